"""Every floating input of every function, layer and model has a gradient, is refused, or is documented to have none."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.cases import CASES
from attnarray.triples import find_triple
from tests.support.layer_examples import CALLS, EXAMPLES, Example, H, T, every_layer, normal, parameters

# Floating arrays that are taken and have no gradient, and why.
WITHOUT_GRADIENT = {
    ("RelativeAttention", "memory"): "the memory is what an earlier segment left: the paper stops its gradient",
    ("TransformerXL", "memory"): "the memory is what an earlier segment left: the paper stops its gradient",
    ("HardAttention", "noise"): "the noise is a sample, not an input to learn",
    ("lsh_attention", "rotations"): "they choose buckets, and the choice has no gradient",
    ("hard_attention", "noise"): "the noise is a sample, not an input to learn",
}
each_call = pytest.mark.parametrize("example", [example for _, example in CALLS], ids=[name for name, _ in CALLS])


# Options that are ignored, whatever they are.
UNREAD = {"enable_gqa"}


class Given:
    """A layer with some arguments given, as a differentiable function of the others."""

    def __init__(self, layer: Any, **fixed: Any) -> None:
        self.layer, self.fixed = layer, fixed

    def __call__(self, **arguments: Any) -> Any:
        return self.result(self.layer(**arguments, **self.fixed))

    def fwd(self, **arguments: Any) -> Any:
        out, ctx = self.layer.fwd(**arguments, **self.fixed)
        return self.result(out), ctx

    def result(self, out: Any) -> Any:
        """The output that `bwd` takes the cotangent of; the memory that TransformerXL also returns has none."""
        return getattr(out, "logits", out)

    def bwd(self, dout: Any, ctx: Any) -> Any:
        return self.layer.bwd(dout, ctx)


def is_floating(value: Any) -> bool:
    return any(getattr(leaf, "dtype", None) == np.float64 for _, leaf in tree.flatten(value))


def name_of(example: Example) -> str:
    return type(example.layer).__name__


def test_every_layer_and_every_function_has_an_example() -> None:
    assert set(EXAMPLES) == every_layer()
    assert {case.function for case in CASES} == set(aa.TRIPLES)


@each_call
def test_every_floating_input_of_a_layer_has_a_gradient(example: Example) -> None:
    without = {name for owner, name in WITHOUT_GRADIENT if owner == name_of(example)}
    fixed = {name: value for name, value in example.arguments.items() if name in without or name == "rng"}
    arguments = {"params": example.params(), **example.arguments}
    floating = {name for name, value in arguments.items() if is_floating(value)}
    report = aa.gradcheck(
        Given(example.layer, **fixed),
        **{name: value for name, value in arguments.items() if name not in fixed},
        max_elements=8,
    )
    assert report, str(report)
    assert {check.name.split(".")[0] for check in report.inputs} == floating - without


def refuses(call: Any) -> bool:
    try:
        call()
    except (TypeError, ValueError):
        return True
    return False


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_other_input_of_a_layer_takes_a_floating_array(name: str) -> None:
    proven = {which for example in EXAMPLES[name] for which, value in example.arguments.items() if is_floating(value)}
    taken = parameters(type(EXAMPLES[name][0].layer).fwd) - proven - UNREAD
    for example in EXAMPLES[name]:
        params = example.params()
        for other in sorted(taken - {"params", "attn_mask", "memory_mask"}):
            for wrong in (np.array(0.5), np.full(2, 0.5), np.ones((T, T)), normal(2, T)):
                given = {**example.arguments, other: wrong}
                call = functools.partial(example.layer.fwd, params, **given)
                assert refuses(call) or (name, other) in WITHOUT_GRADIENT, (other, wrong.shape)


@each_call
def test_a_floating_mask_is_a_bias(example: Example) -> None:
    taken, params = parameters(type(example.layer).fwd), example.params()
    for mask, bias in (("attn_mask", "bias"), ("memory_mask", "memory_bias")):
        if mask not in taken:
            continue
        if bias not in taken:
            wrong = {**example.arguments, mask: np.zeros((T, T))}
            assert refuses(lambda wrong=wrong: example.layer.fwd(params, **wrong))
        elif bias in example.arguments:
            others = {name: value for name, value in example.arguments.items() if name != bias}
            out, ctx = example.layer.fwd(params, **example.arguments)
            same, its_ctx = example.layer.fwd(params, **others, **{mask: example.arguments[bias]})
            pairs = (out, example.layer.bwd(out, ctx)), (same, example.layer.bwd(same, its_ctx))
            for (path, one), (_, other) in zip(*map(tree.flatten, pairs), strict=True):
                np.testing.assert_array_equal(one, other, err_msg=tree.format_path(path))


@pytest.mark.parametrize("shape", [(), (1,), (T,), (T, 1), (H, 1, 1), (2, 1, T, T), (1, H, T, T)], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_bias_of_all_layers_sums_their_gradients_in_its_own_shape(shape: tuple[int, ...], recompute: bool) -> None:
    example = EXAMPLES["Encoder"][0]
    encoder = dataclasses.replace(example.layer, recompute=recompute)
    params, x, bias = example.params(), example.arguments["x"], normal(*shape)
    report = aa.gradcheck(encoder, params, x, bias=bias, wrt=["bias"])
    assert report, str(report)
    # The same explicitly: each block has its own bias.
    out, ctx = encoder.fwd(params, x, bias=bias)
    dout = normal(*out.shape)
    total, dx, block = encoder.bwd(dout, ctx).bias, dout, encoder.block
    norm = encoder.parts()["norm"].bwd(dx, ctx.norm)
    last = block.bwd(norm.x, ctx.blocks[1])
    first = block.bwd(last.x, ctx.blocks[0])
    assert total.shape == shape
    np.testing.assert_array_equal(total, last.bias + first.bias)


@pytest.mark.parametrize("function", aa.TRIPLES)
def test_every_floating_input_of_a_function_has_a_gradient(function: str) -> None:
    proven, refused = set(), defaultdict(list)
    cases = [case for case in CASES if case.function == function]
    taken = parameters(find_triple(cases[0].f).fwd)
    for case in cases:
        arguments = case.arguments()
        _, fwd, bwd = find_triple(case.f)
        out, ctx = fwd(**arguments)
        grads = bwd(out, ctx)
        proven |= {name for name, grad in grads._asdict().items() if grad is not None}  # checked in test_contract.py
    for case in cases:
        arguments = case.arguments()
        _, fwd, _ = find_triple(case.f)
        shapes = {value.shape for value in arguments.values() if hasattr(value, "shape")}
        for name in taken - proven - UNREAD - {"attn_mask"}:
            for wrong in (np.array(0.5), np.full(2, 0.5), *map(np.ones, sorted(shapes))):
                given = {**arguments, name: wrong}
                refused[name].append(refuses(functools.partial(fwd, **given)))
    without = {name for name, found in refused.items() if not all(found)}
    assert without == {name for owner, name in WITHOUT_GRADIENT if owner == function}
    for name in without:
        assert name in str(aa.__getattr__(function).__doc__)
