"""Results may be changed: those that share memory with a context or an argument are read-only."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import models, tree, use_kernels
from attnarray.cases import CASES
from tests.support.layer_calls import LAYERS, Call, arrays, cotangent

RNG = np.random.default_rng(0)
X, Y, STATES = (RNG.standard_normal(shape) for shape in ((2, 5, 8), (2, 7, 8), (2, 5, 4)))
GRAPH = {"edges": np.array([[0, 2, 3, 1], [1, 1, 0, 4]])}
TOKENS, TARGET = RNG.integers(11, size=(2, 6)), RNG.integers(9, size=(2, 4))


# Calls whose result might be an argument: nothing to drop, rotate, add or skip.
IDENTITIES = {
    "dropout of p = 0": Call(aa.dropout, {"x": X, "p": 0.0}),
    "dropout of p = 0 with rng": Call(aa.dropout, {"x": X, "p": 0.0, "rng": 3}),
    "one part": Call(aa.merge_partials, {"partials": [aa.attention_partial(X, X, X)]}),
    "one step": Call(aa.lstm, {"x": X[:, :1], "weight_ih": np.ones((16, 8)), "weight_hh": np.ones((16, 4)),
                               "h0": np.ones((2, 4)), "c0": np.ones((2, 4))}),
    "no step": Call(aa.gru, {"x": X[:, :0], "weight_ih": np.ones((12, 8)), "weight_hh": np.ones((12, 4)),
                             "h0": np.ones((2, 4))}),
    "no step of any": Call(aa.rnn, {"x": X, "weight_ih": np.ones((4, 8)), "weight_hh": np.ones((4, 4)),
                                    "h0": np.ones((2, 4)), "mask": np.zeros((2, 5), bool)}),
    "width 1": Call(aa.conv1d, {"x": X, "weight": np.ones((1, 8, 1))}),
    "one key": Call(aa.scaled_dot_product_attention, {"query": X[:, :1], "key": X[:, :1], "value": X[:, :1]}),
    "one array for all": Call(aa.scaled_dot_product_attention, {"query": X, "key": X, "value": X}),
    "heads behind": Call(aa.scaled_dot_product_attention, {**dict.fromkeys(("query", "key", "value"), X[:, :, None]),
                                                           "layout": "BTHD"}),
    "bias of full shape": Call(aa.scaled_dot_product_attention, {
        **dict.fromkeys(("query", "key", "value"), X[:, None]), "bias": np.zeros((2, 1, 5, 5))}),
    "gate of 1": Call(aa.scaled_attention, {"query": X, "key": X, "value": X, "gate": 1.0}),
    "no rotation": Call(aa.rotary, {"x": X, "positions": np.zeros(5, int)}),
    "every entry alone": Call(aa.segment_softmax, {"x": X[0], "segments": np.arange(5), "count": 5}),
    "window of local attention": Call(aa.local_attention, {"query": X, "key": X, "value": X, "window": 1}),
    "softmax of one": Call(aa.softmax, {"x": X[..., :1]}),
}  # fmt: skip


CALLS = {
    **{f"{case.name}-{dtype}": Call(case, {}, dtype) for case in CASES for dtype in ("float64", "float16")},
    **IDENTITIES,
    **LAYERS,
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
both_kernels = pytest.mark.parametrize("kernels", ["auto", "reference"])


def shared(found: Any, *others: Any) -> list[tuple[str, str]]:
    """Pairs of arrays that share memory: within `found`, if both are writable, and with `others`."""
    own = list(arrays(found))
    pairs = [(a, b) for a, b in itertools.combinations(own, 2) if a[1].flags.writeable and b[1].flags.writeable]
    pairs += [(a, b) for other in others for b in arrays(other) for a in own if a[1].flags.writeable]
    return [(a, b) for (a, one), (b, two) in pairs if np.may_share_memory(one, two) and np.shares_memory(one, two)]


def spoil(results: Any) -> None:
    """Overwrite all writable arrays."""
    for _, array in arrays(results):
        if array.flags.writeable:
            array[...] = np.nan if array.dtype.kind == "f" else 0


def bits(results: Any) -> list[bytes]:
    return [array.tobytes() for _, array in arrays(results)]


@both_kernels
@each_call
def test_results_of_a_forward_are_not_shared_or_read_only(call: Call, kernels: str) -> None:
    _, fwd, bwd = call.triple
    with use_kernels(kernels):
        given = call.arguments()
        before = bits(given)
        out, ctx = fwd(**given)
        dout = cotangent(out)
        assert not shared(out, ctx, given)
        expected = bits(bwd(dout, ctx))
        spoil(out)
        assert bits(bwd(dout, ctx)) == expected
        assert bits(given) == before


@both_kernels
@each_call
def test_gradients_share_no_memory(call: Call, kernels: str) -> None:
    _, fwd, bwd = call.triple
    with use_kernels(kernels):
        given = call.arguments()
        out, ctx = fwd(**given)
        dout = cotangent(out)
        before = bits((given, dout, ctx))
        grads = bwd(dout, ctx)
        expected = bits(grads)
        assert not shared(grads, ctx, dout, given, out)
        assert not any(isinstance(leaf, np.generic) for _, leaf in tree.flatten(grads))  # these are not changed
        read_only = [path for path, array in arrays(grads) if not array.flags.writeable]
        assert not read_only or call.function is aa.dropout
        spoil(grads)
        assert bits((given, dout, ctx)) == before
        assert bits(bwd(dout, ctx)) == expected


@both_kernels
@each_call
def test_inference_gives_arrays_of_the_callers_own(call: Call, kernels: str) -> None:
    with use_kernels(kernels):
        given = call.arguments()
        before = bits(given)
        out = call.triple.f(**given)
        assert all(array.flags.writeable for _, array in arrays(out))
        assert not shared(out, given)
        spoil(out)
        assert bits(given) == before
        assert all(array.flags.writeable for _, array in arrays(given))  # not even with a forward


@each_call
def test_a_pickled_context_works(call: Call) -> None:
    _, fwd, bwd = call.triple
    out, ctx = fwd(**call.arguments())
    dout = cotangent(out)
    assert bits(bwd(dout, pickle.loads(pickle.dumps(ctx)))) == bits(bwd(dout, ctx))


def test_changing_an_output_raises_where_it_is_changed() -> None:
    out, _ = aa.scaled_dot_product_attention_fwd(X, X, X)
    for change in (lambda: out.__iadd__(X), lambda: out[0].fill(0.0), lambda: out.T.sort()):
        with pytest.raises(ValueError, match="read-only"):
            change()
    changed = out + X
    changed += X
    out, pullback = aa.vjp(aa.softmax, X)
    assert not out.flags.writeable
    assert pullback(X).x.flags.writeable


def test_other_ways_to_results_of_models_and_layers() -> None:
    gpt, bert = models.GPT(11, 6, 8, 2, 2), models.BERT(11, 6, 8, 2, 2)
    params, of_bert = gpt.init(aa.Philox(0)), bert.init(aa.Philox(0))
    found: dict[str, Callable[[], Any]] = {
        "states": lambda: gpt.states(params, TOKENS),
        "states of BERT": lambda: bert.states(of_bert, TOKENS),
        "mask_logits": lambda: bert.mask_logits(of_bert, X.astype(np.float32)),
        "step": lambda: gpt.step(params, TOKENS[:, :2], gpt.cache(2))[0],
        "generate": lambda: models.generate(gpt, params, TOKENS[:, :3], 2),
        "attention_weights": lambda: aa.attention_weights(aa.scaled_dot_product_attention_fwd(X, X, X)[1]),
        "weights of locations": lambda: aa.attention_weights(LAYERS["LocationAttention-0"].triple.fwd(
            **LAYERS["LocationAttention-0"].arguments())[1]),
        "graph weights": lambda: aa.graph_attention_weights(LAYERS["GraphAttention-0"].triple.fwd(
            **LAYERS["GraphAttention-0"].arguments())[1]),
    }  # fmt: skip
    for name, make in found.items():
        made = make()
        assert all(array.flags.writeable for _, array in arrays(made)), name
        assert not shared(made, params, of_bert, X), name
