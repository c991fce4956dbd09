"""Multi-head attention: equal to torch.nn.MultiheadAttention, and properties beyond the contract."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.layers import MultiHeadAttention
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

# Relative to the largest entry of each array, or to 1 if all are smaller.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5}  # PyTorch's own float32 is off by up to 2e-6 here
ROUNDING = 1e-13  # sums of a few dozen products in another order
HEADS = 3
REFERENCES = frozen("multi_head.npz")
PLAIN = {name: reference for name, reference in REFERENCES.items() if not reference.options["add_bias_kv"]}
WITH_OWN_KEY = {name: reference for name, reference in REFERENCES.items() if reference.options["add_bias_kv"]}


def parameters(reference: Frozen, start: str = "params.") -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, array in reference.below(start).items():
        part, entry = name.split(".")
        made.setdefault(part, {})[entry] = array
    return made


def batch_first(reference: Frozen, array: np.ndarray) -> np.ndarray:
    return array if reference.options["batch_first"] or array.ndim == 2 else np.swapaxes(array, 0, 1)


def inputs(reference: Frozen) -> dict[str, np.ndarray]:
    return {name: batch_first(reference, array) for name, array in reference.given("query", "key", "value").items()}


def masks(reference: Frozen, batch: tuple[int, ...]) -> dict[str, Any]:
    """PyTorch's masks converted to ours: True attends, heads have an axis, floats are a bias."""
    given = reference.given("key_padding_mask", "attn_mask")
    if "key_padding_mask" in given:
        given["key_padding_mask"] = given["key_padding_mask"][..., None, None, :]  # (*batch, 1, 1, S)
    if reference.options["is_causal"]:
        given.pop("attn_mask")
    elif given.get("attn_mask", np.zeros(0)).ndim == 3:
        mask = given["attn_mask"]
        given["attn_mask"] = mask.reshape(*batch, HEADS, *mask.shape[1:])  # (*batch, H, T, S)
    seen = [~mask for mask in given.values() if mask.dtype == bool]
    added = [mask for mask in given.values() if mask.dtype != bool]
    options: dict[str, Any] = {"is_causal": reference.options["is_causal"]}
    if seen:
        options["attn_mask"] = seen[0] if len(seen) == 1 else seen[0] & seen[1]
    if added:
        options["bias"] = sum(added[1:], start=added[0])
    return options


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reference", PLAIN.values(), ids=list(PLAIN))
def test_it_equals_pytorch(reference: Frozen, dtype: str, kernels: str) -> None:
    reference, tolerance = reference.in_dtype(dtype), TOLERANCE[dtype]
    given = inputs(reference)
    options = masks(reference, given["query"].shape[:-2])
    if reference.options["add_zero_attn"]:
        options["sinks"] = np.zeros(HEADS, dtype)
    with aa.use_kernels(kernels):
        out, ctx = aa.multi_head_attention_fwd(**given, params=parameters(reference), num_heads=HEADS, **options)
        grads = aa.multi_head_attention_bwd(batch_first(reference, reference.arrays["dout"]), ctx)
        weights = aa.attention_weights(ctx)
    expected = reference.arrays
    keys = weights.shape[-1]  # the position of zeros that PyTorch appends is not among them
    assert_close(weights, expected["weights"][..., :keys], tolerance, "weights")
    assert_close(weights.mean(-3), expected["mean_weights"][..., :keys], tolerance, "mean weights")
    assert_close(out, batch_first(reference, expected["out"]), tolerance, "out")
    for name in given:
        assert_close(getattr(grads, name), batch_first(reference, expected[f"grad_{name}"]), tolerance, name)
    assert_trees_close(grads.params, parameters(reference, "grad_params."), tolerance)
    if "grad_attn_mask" in expected:
        of_mask = grads.bias.reshape(-1, *grads.bias.shape[-2:])
        of_mask = of_mask if expected["grad_attn_mask"].ndim == 3 else of_mask.sum(0)
        assert_close(of_mask, expected["grad_attn_mask"], tolerance, "attn_mask")


@pytest.mark.parametrize("reference", WITH_OWN_KEY.values(), ids=list(WITH_OWN_KEY))
def test_a_learned_key_and_value_are_a_partial_to_merge(reference: Frozen) -> None:
    """PyTorch's add_bias_kv, as described in the docstring."""
    given, params = inputs(reference), parameters(reference)
    batch = given["query"].shape[0]
    q, k, v = (
        np.swapaxes(aa.linear(given[name], **params[name]).reshape(batch, -1, HEADS, 2), 1, 2)
        for name in ("query", "key", "value")
    )
    own_k, own_v = (
        np.broadcast_to(reference.arrays[name].reshape(1, HEADS, 1, 2), (batch, HEADS, 1, 2))
        for name in ("bias_k", "bias_v")
    )
    options = masks(reference, (batch,))
    options |= {"sinks": np.zeros(HEADS)} if reference.options["add_zero_attn"] else {}
    rest, of_rest = aa.vjp(aa.attention_partial, q, k, v, **options)
    own, of_own = aa.vjp(aa.attention_partial, q, own_k, own_v)
    merged, of_parts = aa.vjp(aa.merge_partials, [rest, own])
    joined = np.swapaxes(merged.out, 1, 2).reshape(batch, -1, HEADS * 2)
    out, of_out = aa.vjp(aa.linear, joined, **params["out"])
    assert_close(out, batch_first(reference, reference.arrays["out"]), TOLERANCE["float64"])

    dheads = of_out(batch_first(reference, reference.arrays["dout"])).x.reshape(batch, -1, HEADS, 2)
    dparts = of_parts(aa.Partial(np.swapaxes(dheads, 1, 2), np.zeros_like(merged.lse))).partials
    grads, own_grads = of_rest(dparts[0]), of_own(dparts[1])
    for name in ("key", "value"):
        expected = reference.arrays[f"grad_bias_{name[0]}"]
        assert_close(getattr(own_grads, name).sum(0).reshape(expected.shape), expected, TOLERANCE["float64"])
    dq = np.swapaxes(grads.query + own_grads.query, 1, 2).reshape(batch, -1, HEADS * 2)
    dquery = aa.vjp(aa.linear, given["query"], **params["query"])[1](dq).x
    assert_close(dquery, batch_first(reference, reference.arrays["grad_query"]), TOLERANCE["float64"])


RNG = np.random.default_rng(2)
X = RNG.standard_normal((2, 5, 6))  # B 2, T 5, E 6
LAYER = MultiHeadAttention(dim=6, num_heads=4, num_kv_heads=2, key_dim=3, value_dim=1, out_dim=7)
PARAMS = tree.map(lambda leaf: leaf + 0.3 * RNG.standard_normal(leaf.shape), LAYER.init(aa.Philox(1), "float64"))
DOUT = RNG.standard_normal((2, 5, 7))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "lengths": {"kv_lengths": [5, 2]},
    "sinks, bias": {"sinks": np.linspace(-1.0, 1.0, 4), "bias": RNG.standard_normal((4, 5, 5))},
    "dropout": {"dropout_p": 0.3, "rng": aa.Philox(3)},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@each_option
@pytest.mark.parametrize("given", [("query",), ("query", "key"), ("query", "value"), ("query", "key", "value")])
def test_omitted_arguments_have_their_defaults(options: dict[str, Any], given: tuple[str, ...]) -> None:
    out, whole = aa.vjp(LAYER, PARAMS, X, X, X, **options)
    same, pullback = aa.vjp(LAYER, PARAMS, **dict.fromkeys(given, X), **options)
    np.testing.assert_array_equal(same, out)
    expected, found = whole(DOUT), pullback(DOUT)
    sums = {name: getattr(expected, name) for name in ("query", "key", "value")}
    if "value" not in given:
        sums["key"] = sums["key"] + sums.pop("value")
    if "key" not in given:
        sums["query"] = sums["query"] + sums.pop("key")
    assert {name for name in ("query", "key", "value") if getattr(found, name) is not None} == set(given)
    assert_trees_close({name: getattr(found, name) for name in given}, {name: sums[name] for name in given}, ROUNDING)
    assert_trees_close(found.params, expected.params, 0)
    assert_trees_close([found.bias, found.sinks], [expected.bias, expected.sinks], 0)


@each_option
def test_grouped_heads_are_repeated_key_heads(options: dict[str, Any]) -> None:
    def repeated(array: np.ndarray) -> np.ndarray:
        """The rows of both key heads, each twice."""
        return np.repeat(array.reshape(2, -1, *array.shape[1:]), 2, axis=0).reshape(-1, *array.shape[1:])

    full = {**PARAMS, **{name: tree.map(repeated, PARAMS[name]) for name in ("key", "value")}}
    out, ctx = aa.multi_head_attention_fwd(X, params=PARAMS, num_heads=4, num_kv_heads=2, **options)
    same, its_ctx = aa.multi_head_attention_fwd(X, params=full, num_heads=4, **options)
    assert_close(out, same, ROUNDING)
    grads, its_grads = (aa.multi_head_attention_bwd(DOUT, context) for context in (ctx, its_ctx))
    for name in ("key", "value"):
        summed = tree.map(
            lambda leaf: leaf.reshape(2, 2, -1, *leaf.shape[1:]).sum(1).reshape(-1, *leaf.shape[1:]),
            its_grads.params[name],
        )
        assert_trees_close(grads.params[name], summed, ROUNDING)
    assert_trees_close([grads.query, grads.params["query"]], [its_grads.query, its_grads.params["query"]], ROUNDING)


def test_step_by_step_self_attention_is_the_whole_causal_run() -> None:
    out, pullback = aa.vjp(LAYER, PARAMS, X, is_causal=True)
    grads, total, dx = pullback(DOUT), None, np.zeros_like(X)
    for t in range(5):
        step, of_step = aa.vjp(LAYER, PARAMS, X[:, t : t + 1], X[:, : t + 1], is_causal=True, q_offset=t)
        assert_close(step, out[:, t : t + 1], ROUNDING)
        here = of_step(DOUT[:, t : t + 1])
        dx[:, t] += here.query[:, 0]
        dx[:, : t + 1] += here.key
        total = here.params if total is None else tree.add(total, here.params)
    assert_close(dx, grads.query, ROUNDING)
    assert_trees_close(total, grads.params, ROUNDING)


LAYERS = {
    "plain": MultiHeadAttention(6, 3),
    "no biases, multi-query": MultiHeadAttention(6, 2, num_kv_heads=1, bias=False),
    "half of the width for queries and keys": MultiHeadAttention(8, 2, key_dim=2),
    "any widths": MultiHeadAttention(6, 4, 2, key_dim=3, value_dim=1, key_input_dim=5, value_input_dim=9, out_dim=7),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=list(LAYERS))
def test_gradients_of_the_layer(layer: MultiHeadAttention) -> None:
    params = layer.init(aa.Philox(4), "float64")
    x = RNG.standard_normal((2, 3, layer.dim))
    sinks = RNG.standard_normal(layer.num_heads)  # without them the biases of the keys have no gradient
    others = {}
    if layer.key_input_dim:
        others = {"key": RNG.standard_normal((2, 4, 5)), "value": RNG.standard_normal((2, 4, 9))}
    report = aa.gradcheck(layer, params, x, **others, is_causal=True, q_offset=1, sinks=sinks)
    assert report, str(report)
    names = {f"params.{'.'.join(path)}" for path, _ in tree.flatten(params)}
    assert names | {"query", *others, "sinks"} == {check.name for check in report.inputs}
    out, ctx = layer.fwd(params, x, **others)
    assert out.shape == (2, 3, layer.out_dim or layer.dim)
    tree.add(layer.bwd(out, ctx).params, params)  # trees of the same structure


def test_widths_of_the_layer() -> None:
    half = LAYERS["half of the width for queries and keys"].init(aa.Philox(0))
    assert {name: entry["weight"].shape for name, entry in half.items()} == {
        "query": (4, 8), "key": (4, 8), "value": (8, 8), "out": (8, 8),
    }  # fmt: skip
    shapes = {name: entry["weight"].shape for name, entry in LAYERS["any widths"].init(aa.Philox(0)).items()}
    assert shapes == {"query": (12, 6), "key": (6, 5), "value": (2, 9), "out": (7, 4)}
    bounds = [np.abs(entry["weight"]).max() <= math.sqrt(6 / sum(entry["weight"].shape)) for entry in half.values()]
    assert all(bounds)
    assert not np.any(half["query"]["bias"])
    fused = MultiHeadAttention(6, 3, key_input_dim=5).init(aa.Philox(0))
    assert fused["value"]["weight"].shape == (6, 5)  # values come with the keys, unless their width is given


def without(part: str, entry: str | None = None) -> dict[str, Any]:
    kept = {name: dict(entries) for name, entries in PARAMS.items() if entry or name != part}
    if entry:
        kept[part].pop(entry)
    return kept


def altered(part: str, entry: str, array: Any) -> dict[str, Any]:
    return {**PARAMS, part: {**PARAMS[part], entry: array}}


BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "no parameters": (TypeError, {"params": None}, "`params` is None, expected a dict with 'query', 'key', 'value'"),
    "an array": (TypeError, {"params": X}, "`params` is an array of shape (2, 5, 6) and dtype float64, expected a"),
    "no part": (TypeError, {"params": without("key")}, "`params` is a dict with 'query', 'value', 'out', expected a"),
    "no weight": (TypeError, {"params": without("key", "weight")}, "`params.key` has 'bias', expected a dict with"),
    "a bare weight": (TypeError, {"params": {**PARAMS, "out": X}}, "`params.out` is an array of shape (2, 5, 6) and"),
    "bias None": (TypeError, {"params": altered("out", "bias", None)}, "`params.out.bias` is None, expected an array"),
    "list": (TypeError, {"params": altered("key", "weight", [[1.0]])}, "`params.key.weight` has type list, expected"),
    "dtype": (TypeError, {"params": altered("key", "bias", np.zeros(6, "f4"))}, "params.key.bias float32"),
    "axes": (ValueError, {"params": altered("key", "weight", np.zeros(6))}, "`params.key.weight` has shape (6,),"),
    "rows": (ValueError, {"params": altered("query", "weight", np.zeros((9, 6)))}, "has 9 rows, which `num_heads`, 4,"),
    "rows of keys": (ValueError, {"params": altered("key", "weight", np.zeros((8, 6)))}, "expected (6, 6): (Hkv Dk,"),
    "columns": (ValueError, {"params": altered("value", "weight", np.zeros((2, 5)))}, "and `value` has 6 features"),
    "output": (ValueError, {"params": altered("out", "weight", np.zeros((7, 5)))}, "expected (7, 4): (E, H Dv), where"),
    "bias": (ValueError, {"params": altered("out", "bias", np.zeros(4))}, "`params.out.bias` has shape (4,),"),
    "num_heads": (ValueError, {"num_heads": 0}, "`num_heads` is 0, expected an integer"),
    "key heads": (ValueError, {"num_kv_heads": 3}, "`num_kv_heads` (3) must divide `num_heads` (4)"),
    "too many key heads": (ValueError, {"num_kv_heads": 8}, "`num_kv_heads` is 8, expected an integer from 1 to 4"),
    "width": (ValueError, {"query": X[..., :5]}, "and `query` has 5 features"),
    "batch": (ValueError, {"key": X[:1]}, "`key` has batch (1,) but `query` has (2,); they must be equal. Shapes:"),
    "layout": (TypeError, {"layout": "BTHD"}, "Attention has no option `layout`. The options: scale, bias, window"),
    "mask": (ValueError, {"attn_mask": np.ones((2, 5, 5), bool)}, "does not broadcast to (*batch, H, T, S) = (2, 4,"),
    "sinks": (ValueError, {"sinks": np.zeros(2)}, "`sinks` has shape (2,), expected (4,): one sink for each of the 4"),
    "no query": (TypeError, {"query": None}, "`query` is None, expected an array"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    given = {"query": X, "params": PARAMS, "num_heads": 4, "num_kv_heads": 2, **changes}
    says(error, expected, lambda: aa.multi_head_attention(**given))


def test_the_layer_and_the_backward_say_what_is_wrong() -> None:
    says(ValueError, "`num_heads` (2) must divide `dim` (7)", lambda: MultiHeadAttention(7, 2))
    says(ValueError, "`num_kv_heads` (2) must divide `num_heads` (3)", lambda: MultiHeadAttention(6, 3, 2))
    says(ValueError, "`key_dim` is 0, expected an integer", lambda: MultiHeadAttention(6, 3, key_dim=0))
    assert MultiHeadAttention(7, 2, key_dim=3, value_dim=3)(
        MultiHeadAttention(7, 2, key_dim=3, value_dim=3).init(aa.Philox(0)), np.ones((4, 7), np.float32)
    ).shape == (4, 7)
    out, ctx = LAYER.fwd(PARAMS, X)
    says(ValueError, "`dout` has shape (2, 5), expected (2, 5, 7)", lambda: LAYER.bwd(out[..., 0], ctx))
    says(TypeError, "expected the MultiHeadContext that the forward", lambda: LAYER.bwd(out, ctx.attention))
