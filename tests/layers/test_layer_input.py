"""Invalid arguments of layers and models give one clear error at once, and change nothing."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import array_api_strict
import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.layers.checking import FROM_ZERO
from attnarray.layers.layer import RENAMED
from tests.support.layer_examples import CALLS, Example
from tests.support.messages import INTERNAL

each_call = pytest.mark.parametrize("example", [example for _, example in CALLS], ids=[name for name, _ in CALLS])


def refused(named: str, call: Callable[[], Any]) -> str:
    """The error message of `call`, which names the invalid argument."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert re.search(named, message), f"{named} is not in: {message}"
    assert "\n" not in message
    assert len(message) < 900
    assert not INTERNAL.search(message.replace("__init__", "").replace("__call__", "")), message
    return message


def calls(example: Example, params: Any = None, **changes: Any) -> Iterator[Callable[[], Any]]:
    """The layer and its `fwd`, with other parameters or arguments."""
    given = {**example.arguments, **changes}
    for call in (example.layer, example.layer.fwd):
        yield functools.partial(call, example.params() if params is None else params, **given)


def branches(node: Any, path: tree.Path = ()) -> Iterator[tuple[tree.Path, Any]]:
    """All entries of the dicts of a tree, branches and leaves."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(node, dict):
            yield (*path, key), child
        if isinstance(child, dict | list):
            yield from branches(child, (*path, key))


def changed(params: Any, path: tree.Path, value: Any) -> Any:
    """Parameters with another entry at a path."""
    if not path:
        return value
    if isinstance(params, list):
        return [changed(child, path[1:], value) if n == path[0] else child for n, child in enumerate(params)]
    return {**params, path[0]: changed(params.get(path[0], {}), path[1:], value)}


def without(params: Any, path: tree.Path) -> Any:
    if isinstance(params, list):
        return [without(child, path[1:]) if n == path[0] else child for n, child in enumerate(params)]
    if len(path) == 1:
        return {name: child for name, child in params.items() if name != path[0]}
    return {**params, path[0]: without(params[path[0]], path[1:])}


@each_call
def test_parameters(example: Example) -> None:
    params = example.params()
    before = copy.deepcopy(params)
    name, leaves = type(example.layer).__name__, len(tree.flatten(params))
    for wrong in ([], 3, "abc", (params,), aa.Philox(0), np.ones(3)):
        for call in calls(example, wrong):
            refused(rf"`params` is .*expected a dict with .* as {name}\.init makes it", call)
    for path, child in branches(params):
        shown = re.escape(tree.format_path(("params", *path)))
        for call in calls(example, without(params, path)):
            refused(rf"`params.*` lacks '{path[-1]}', which {name} needs", call)
        for call in calls(example, changed(params, (*path[:-1], "more"), np.ones(2))):
            refused(f"`params.*` has 'more', which {name} does not know", call)
        if isinstance(child, dict | list):
            expected = "a dict with" if isinstance(child, dict) else f"a list of {len(child)}"
            for wrong in (None, [], {}, np.ones(3), list(child.values()) if isinstance(child, dict) else child[:-1]):
                for call in calls(example, changed(params, path, wrong)):
                    refused(rf"`{shown}` (is .*, expected {expected}|lacks)", call)
            continue
        for wrong in (None, [1.0], 1.0, "abc", np.ones((2, 3, 1)), child[None], np.ma.masked_array(child)):
            for call in calls(example, changed(params, path, wrong)):
                refused(f"`{shown}` (has|is)", call)
        types = [child.astype(np.int64), child + 0j, child > 0]
        if leaves > 1:
            types += [child.astype(np.float32), array_api_strict.asarray(child)]
        for wrong in types:
            for call in calls(example, changed(params, path, wrong)):
                refused("^The arrays (have different dtypes|come from)|has dtype", call)
    for dtype in ("int64", "bool", "complex128", "object"):
        whole = aa.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        for call in calls(example, whole) if leaves else ():
            refused(f"`params[.a-z_0-9]*` has dtype {dtype}, expected one of float16", call)
    assert leaves == len(tree.flatten(before))
    for (path, one), (_, other) in zip(tree.flatten(params), tree.flatten(before), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=tree.format_path(path))


@each_call
def test_the_parameters_come_first(example: Example) -> None:
    first, *_ = example.arguments.values()
    for call in (example.layer, example.layer.fwd):
        message = refused("`params` is an array", lambda call=call: call(first, example.params()))
        assert "The parameters come first" in message


@each_call
def test_parameters_of_another_layer(example: Example) -> None:
    own = example.layer.shapes()
    for _, other in CALLS:
        if other.layer.shapes() != own:
            for call in calls(example, other.params()):
                refused("`params", call)


@each_call
def test_parameters_of_one_dtype_and_inputs_of_another(example: Example) -> None:
    params = aa.tree.map(lambda leaf: leaf.astype(np.float32), example.params())
    if tree.flatten(params) and any(
        getattr(value, "dtype", None) == np.float64 for value in example.arguments.values()
    ):
        for call in calls(example, params):
            refused("^The arrays have different dtypes: .* Bring them to one dtype first", call)


INPUTS = [
    (f"{name}-{which}", example, which)
    for name, example in CALLS
    for which in example.layer.widths
    if which in example.arguments
]


@pytest.mark.parametrize(("example", "which"), [call[1:] for call in INPUTS], ids=[call[0] for call in INPUTS])
def test_inputs(example: Example, which: str) -> None:
    given, name = example.arguments[which], type(example.layer).__name__
    features = given.shape[-1]
    for wrong in (given[..., 1:], np.concatenate([given, given], axis=-1), given[..., :0]):
        for call in calls(example, **{which: wrong}):
            refused(rf"`{which}` has {wrong.shape[-1]} features, but {name} has `\w+` {features}: expected", call)
    few = np.zeros((3,) * (example.layer.axes - 1)) if example.layer.axes > 1 else np.zeros(())
    for wrong in (few, np.float64(1.0)):
        for call in calls(example, **{which: wrong}):
            refused(f"`{which}` has . ax[ie]s, but {name} has|`{which}` has type", call)
    for wrong in (given.tolist(), "abc", 3, given.astype(np.int64), given.astype(np.float32), given + 0j,
                  array_api_strict.asarray(given), np.ma.masked_array(given)):  # fmt: skip
        for call in calls(example, **{which: wrong}):
            refused(rf"`{which}` (has|numpy|array_api_strict)|^The arrays have .*{which} float32", call)


@each_call
def test_the_first_input_is_needed(example: Example) -> None:
    first = next(iter(example.arguments))
    for call in calls(example, **{first: None}):
        refused(f"`{first}`", call)


@each_call
def test_generators(example: Example) -> None:
    layer = example.layer
    for call in (
        lambda: layer.init(np.random.default_rng(0)), lambda: layer.init(0), lambda: layer.init(None),
        lambda: layer.init("abc"), lambda: layer.init(rng=np.ones(2)), lambda: layer.init(np.random),
    ):  # fmt: skip
        refused(rf"`rng` is .*expected {type(layer).__name__}\(\.\.\.\)\.init\(attnarray\.Philox\(seed\)\)", call)
    refused(r"`rng` is None, expected", layer.init)
    for rng in (aa.Philox(0), np.random.default_rng(0)):  # of the class, not of a layer
        refused(r"`rng` is .*, expected \w+\(\.\.\.\)\.init", lambda rng=rng: type(layer).init(rng))
    for dtype in ("int64", None, 3, "float8", "", np.int32, "complex64", bool):
        refused("`dtype` is .*, expected one of 'float16', ", lambda dtype=dtype: layer.init(aa.Philox(0), dtype))
    if hasattr(layer, "dropout"):
        for rng in (0, 3, "abc", np.random.default_rng(0), np.ones(2), False):
            for call in calls(example, rng=rng):
                refused(r"`rng` is .*, but \w+ expects attnarray\.Philox\(seed\)", call)


@each_call
def test_training_with_dropout_needs_a_generator(example: Example) -> None:
    fields = {field.name: 0.0 for field in dataclasses.fields(example.layer) if field.name.endswith("dropout")}
    given = {name: value for name, value in example.arguments.items() if name != "rng"}
    for which in fields:
        layer = dataclasses.replace(example.layer, **{**fields, which: 0.1})
        message = refused("`rng` is None", lambda layer=layer: layer.fwd(example.params(), **given))
        assert "pass rng=attnarray.Philox(seed), a new one for each step" in message
        assert "For inference call the layer or model itself" in message
        layer(example.params(), **given)
        dataclasses.replace(layer, **fields).fwd(example.params(), **given)


@each_call
def test_unknown_options(example: Example) -> None:
    for call in calls(example, maks=None):
        refused("maks", call)


def cotangents(out: Any) -> tuple[Any, list[Any]]:
    """A cotangent of an output, and wrong ones."""
    good = getattr(out, "logits", out)
    if isinstance(good, tuple):
        return good, [None, good[0], good[0].tolist(), "abc", type(good)(*[3] * len(good))]
    wrong = [None, good.tolist(), "abc", 3, good[..., 1:], good[None], good[0], good.astype(np.float32),
             good.astype(np.int64), array_api_strict.asarray(good), (good,)]  # fmt: skip
    return good, wrong


@each_call
def test_backward(example: Example) -> None:
    layer, params = example.layer, example.params()
    out, ctx = layer.fwd(params, **example.arguments)
    good, wrong = cotangents(out)
    if type(layer).__name__ == "Embedding":  # whose context does not hold its weight
        wrong = [dout for dout in wrong if str(getattr(dout, "dtype", "")) != "float32"]
    for dout in wrong:
        refused("`dout|`dlogits|^The arrays (have|come)", lambda dout=dout: layer.bwd(dout, ctx))
    message = refused("`ctx` is", lambda: layer.bwd(ctx, good))
    assert isinstance(good, tuple) or "The order is bwd(dout, ctx)." in message
    for other in (None, {}, (), "abc", params, out):
        expected = "`ctx` is .*, expected the .*Context.* that the forward pass returned"
        refused(expected, lambda other=other: layer.bwd(good, other))
    for _, other in CALLS:
        other_out, other_ctx = contexts(other)
        if other.layer.shapes() != layer.shapes():
            for dout in (good, cotangents(other_out)[0]):
                refused("`ctx`|`dout|`dlogits|^The arrays", lambda d=dout, c=other_ctx: layer.bwd(d, c))


@functools.cache
def _contexts(position: int) -> Any:
    example = CALLS[position][1]
    return example.layer.fwd(example.params(), **example.arguments)


def contexts(example: Example) -> Any:
    return _contexts(next(n for n, (_, other) in enumerate(CALLS) if other is example))


# Fields of layers that contexts do not contain.
# Sinks may be an option of the call, too.
UNTOLD = {(name, "tie_embeddings") for name in ("GPT", "TransformerXL", "EncoderDecoder")}
UNTOLD |= {(name, "sinks") for name in ("MultiHeadAttention", "TransformerBlock", "GPT")}


@each_call
def test_a_context_of_the_same_layer_made_otherwise(example: Example) -> None:
    layer = example.layer
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        others = [not value] if isinstance(value, bool) else [value + 1, 2 * value] if isinstance(value, int) else []
        for other in others:
            try:
                changed_layer = dataclasses.replace(layer, **{field.name: other})
                params = changed_layer.init(aa.Philox(0), "float64")
                out, ctx = changed_layer.fwd(params, **example.arguments)
            except (TypeError, ValueError):  # its arguments would be others too
                continue
            if changed_layer.shapes() != layer.shapes():
                good, _ = cotangents(out)
                if (type(layer).__name__, field.name) not in UNTOLD:
                    refused("`ctx`|`dout` has shape", lambda good=good, ctx=ctx: layer.bwd(good, ctx))


WRONG_FIELDS: dict[str, list[Any]] = {
    "int": [0, -1, 2.0, True, "3", float("nan"), 2**40, np.ones(2), [3], aa.Philox(0)],
    "bool": ["no", 2, 0.5, np.ones(2), []],
    "word": ["other", 3, True, ["gelu"], np.ones(2)],
    "Rotary | tuple[Rotary | None, ...]": [3, True, "rotary", {}, (3,)],
    "windows": [3, True, "3", (0,), (1.5,), ()],
    "mixers": [3, True, "gla", ("other",), (3,), (aa.layers.LinearAttention,), (), np.ones(2)],
    "Rotary": [3, True, "rotary", {}],
    "dropout": [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), "0.1", True, np.ones(2)],
    "lambda_init": [-0.1, 1.5, float("nan"), float("inf"), "0.1", True, np.ones(2)],
    "eps": [0, 0.0, -1.0, float("nan"), float("inf"), "small", True, np.ones(2)],
    "init_std": [-1.0, float("nan"), float("inf"), "0.1", True, np.ones(2)],
    "temperature": [0.0, -1.0, float("nan"), float("inf"), "1", True, np.ones(2)],
    "negative_slope": [float("nan"), float("inf"), "1", True, np.ones(2)],
    "scale": [float("nan"), float("inf"), "1", True, np.ones(2)],
    "softcap": [0.0, -1.0, float("nan"), float("inf"), "1", True, np.ones(2)],
    "window": [3.0, True, "3", (1, 2, 3), (1.5, 0), np.ones(2)],
    "sigma": [0.0, -1.0, float("nan"), float("inf"), "1", True, np.ones(2)],
    "size": [0, -1, 2.0, True, "3", (4,), (4, 6, 2), (4, 0), (4, 5), 5],
    "attention": [None, 3, "bahdanau", aa.layers.BahdanauAttention],
    "BERT": [3, "bert", aa.models.BERT],
}


@each_call
def test_fields(example: Example) -> None:
    hints = typing.get_type_hints(type(example.layer))
    for field in dataclasses.fields(example.layer):
        optional = str(field.type).endswith(" | None")
        kind = str(field.type).removesuffix(" | None")
        name = next((name for name in WRONG_FIELDS if field.name.endswith(name)), kind)
        choices = (hints[field.name], *typing.get_args(hints[field.name]))  # also of words or None
        if any(typing.get_origin(choice) is typing.Literal for choice in choices):
            name = "word"
        elif kind in ("int", "bool"):
            name = kind
        for wrong in [*WRONG_FIELDS[name], *([] if optional else [None])]:
            if field.name in FROM_ZERO and wrong is WRONG_FIELDS["int"][0]:
                continue
            change = {field.name: wrong}
            refused(f"`{field.name}[`.]", lambda change=change: dataclasses.replace(example.layer, **change))


@pytest.mark.parametrize(("old", "new"), RENAMED.items(), ids=list(RENAMED))
def test_an_earlier_name_of_a_field_names_its_new_one(old: str, new: str) -> None:
    refused(f"GPT has no field `{old}`: it is called `{new}`.", lambda: aa.models.GPT(**{old: 3}))
    refused(f"it is called `{new}`", lambda: dataclasses.replace(aa.layers.Linear(3, 2), **{old: 3}))


def test_a_summary_counts_all_parameters() -> None:
    model = aa.models.GPT(11, 12, 8, 3, 2, num_experts=2, windows=(3, None))
    leaves = [leaf for _, leaf in aa.tree.flatten(model.init(aa.Philox(0)))]
    lines = model.summary("bfloat16").splitlines()
    count = sum(leaf.size for leaf in leaves)
    assert lines[-1] == f"{count:,} parameters, {2 * count:,} bytes in bfloat16"
    assert sum(int(line.split()[-1].replace(",", "")) for line in lines[1:-1]) == 2 * count
    assert any(line.startswith("blocks.0-2.feed_forward.experts.0-1.out.weight") for line in lines)
