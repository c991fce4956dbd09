"""Attention by sparsemax and entmax: equal to PyTorch, and properties of masks, padding and steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.attention import blocks
from tests.contract import test_query_key_value as shared
from tests.contract.test_query_key_value import HIDING, Mechanism
from tests.support.frozen import frozen
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

TOLERANCE = {"float64": 1e-13, "float32": 1e-5}  # PyTorch's own float32 is off by up to 2e-6 here
ROUNDING = 1e-13  # sums of a few dozen products in another order
REFERENCES = {name: case for name, case in frozen("sparse.npz").items() if name.startswith(("sparsemax_a", "entmax_a"))}
MECHANISMS = {
    "sparsemax": Mechanism("sparsemax_attention", {}, {}, {"scale": 1.0}),
    "entmax": Mechanism("entmax_attention"),
    "alpha 1.3": Mechanism("entmax_attention", {}, {}, {"alpha": 1.3}),
}
each_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS.values(), ids=list(MECHANISMS))
each_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])
RNG = np.random.default_rng(4)


@each_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", REFERENCES)
def test_they_equal_the_papers(name: str, dtype: str, kernels: str) -> None:
    reference = REFERENCES[name].in_dtype(dtype)
    given = reference.given("query", "key", "value", "attn_mask")
    with aa.use_kernels(kernels):
        out, pullback = aa.vjp(getattr(aa, name.split(",")[0]), **given, **reference.options)
        grads = pullback(reference.arrays["dout"])
    assert_close(out, reference.arrays["out"], TOLERANCE[dtype])
    for grad in ("query", "key", "value"):
        assert_close(getattr(grads, grad), reference.arrays[f"grad_{grad}"], TOLERANCE[dtype], grad)


@each_mechanism
@each_kernels
def test_ragged_batches_are_the_single_sequences(mechanism: Mechanism, kernels: str) -> None:
    shared.test_ragged_batches_are_the_single_sequences(mechanism, kernels)


@each_mechanism
@each_kernels
def test_step_by_step_is_the_whole_causal_run(mechanism: Mechanism, kernels: str) -> None:
    shared.test_step_by_step_is_the_whole_causal_run(mechanism, kernels)


@each_mechanism
@each_kernels
@pytest.mark.parametrize(("options", "hidden"), HIDING.values(), ids=list(HIDING))
@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_masked_keys_are_ignored(
    mechanism: Mechanism, kernels: str, options: dict[str, Any], hidden: np.ndarray, rubbish: float
) -> None:
    shared.test_masked_keys_are_ignored(mechanism, kernels, options, hidden, rubbish)


@each_mechanism
def test_fully_masked_queries_give_zeros(mechanism: Mechanism) -> None:
    shared.test_fully_masked_queries_give_zeros(mechanism)


@each_mechanism
@pytest.mark.parametrize("changes", [{"B": 0}, {"T": 0}, {"S": 0}, {"T": 0, "S": 0}], ids=str)
def test_empty_sizes(mechanism: Mechanism, changes: dict[str, int]) -> None:
    shared.test_empty_sizes(mechanism, changes)


@each_mechanism
def test_the_weights_are_those_of_the_output(mechanism: Mechanism) -> None:
    shared.test_the_weights_are_those_of_the_output(mechanism)


@each_mechanism
def test_contexts_hold_nothing_of_the_size_of_the_scores(mechanism: Mechanism) -> None:
    shared.test_contexts_hold_nothing_of_the_size_of_the_scores(mechanism)


QKV = {"query": (2, 6, 9, 4), "key": (2, 3, 11, 4), "value": (2, 3, 11, 5)}
ARRAYS = {name: RNG.standard_normal(shape) for name, shape in QKV.items()}


@each_kernels
def test_the_weights_are_sparsemax_of_the_scores(kernels: str) -> None:
    bias = RNG.standard_normal((9, 11))
    with aa.use_kernels(kernels):
        out, ctx = aa.sparsemax_attention_fwd(**ARRAYS, scale=0.7, softcap=2.0, bias=bias)
        weights = aa.attention_weights(ctx)
    keys, values = (np.repeat(ARRAYS[name], 2, axis=1) for name in ("key", "value"))
    scores = 2.0 * np.tanh(0.7 * ARRAYS["query"] @ keys.mT / 2.0) + bias
    assert_close(weights, aa.sparsemax(scores), ROUNDING)
    assert_close(out, weights @ values, ROUNDING)
    assert (weights == 0).mean() > 0.5


@each_kernels
@pytest.mark.parametrize("rows", [1, 4])
def test_blocks_of_queries_change_nothing(rows: int, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bias = {"full": RNG.standard_normal((9, 11)), "one row": RNG.standard_normal((6, 1, 11))}
    for given in bias.values():
        options = {"bias": given, "dropout_p": 0.3, "rng": 5, "is_causal": True, "q_offset": 2, "scale": 1.0}
        results = []
        for elements in (blocks.BLOCK_ELEMENTS, 2 * 6 * 11 * 4 * rows):
            monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
            with aa.use_kernels(kernels):
                out, pullback = aa.vjp(aa.sparsemax_attention, **ARRAYS, **options)
                results.append([out, *pullback(np.ones_like(out))])
        assert_trees_close(results[1], results[0], ROUNDING)


@each_kernels
def test_heads_that_share_keys_are_repeated_keys(kernels: str) -> None:
    repeated = {**ARRAYS, **{name: np.repeat(ARRAYS[name], 2, axis=1) for name in ("key", "value")}}
    with aa.use_kernels(kernels):
        out, pullback = aa.vjp(aa.entmax_attention, **ARRAYS)
        same, expected = aa.vjp(aa.entmax_attention, **repeated)
    assert_close(out, same, ROUNDING)
    grads, others = pullback(out), expected(out)
    assert_close(grads.key, others.key.reshape(2, 3, 2, 11, 4).sum(2), ROUNDING)
    assert_close(grads.query, others.query, ROUNDING)


def test_alpha_near_one_is_softmax_attention() -> None:
    soft = aa.scaled_dot_product_attention(**ARRAYS)
    assert_close(aa.entmax_attention(**ARRAYS, alpha=1.001), soft, 1e-2)
    assert np.abs(aa.entmax_attention(**ARRAYS) - soft).max() > 0.05


def test_16_bit_floats_are_rounded_once() -> None:
    halves = {name: array.astype(np.float16) for name, array in ARRAYS.items()}
    exact = aa.sparsemax_attention(**{name: array.astype(np.float32) for name, array in halves.items()})
    np.testing.assert_array_equal(aa.sparsemax_attention(**halves), exact.astype(np.float16))


BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "sinks": (
        TypeError,
        {"sinks": np.zeros(6)},
        "`sinks` is given, but sparse weights have none: a sink is a share of",
    ),
    "option": (TypeError, {"estimator": "top_k"}, "Attention has no option `estimator`. The options: scale, bias, wi"),
    "head dim": (ValueError, {"key": ARRAYS["key"][..., :3]}, "`key` has head dim 3 but `query` has 4; they must"),
    "no rng": (ValueError, {"dropout_p": 0.1}, "`dropout_p` is 0.1 but neither `rng` nor `dropout_mask` is given."),
    "dtype": (TypeError, {"value": np.zeros((2, 3, 11, 5), "f4")}, "query float64, key float64, value float32"),
    "no key": (TypeError, {"key": None}, "`key` is None, expected an array"),
    "mask": (ValueError, {"attn_mask": np.ones((11, 9), bool)}, "`attn_mask` has shape (11, 9), which does not broad"),
}


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    for function in (aa.sparsemax_attention, aa.entmax_attention):
        says(error, expected, lambda function=function: function(**{**ARRAYS, **changes}))


def test_alpha_and_the_backward_say_what_is_wrong() -> None:
    says(ValueError, "`alpha` is 1, expected a number above 1", lambda: aa.entmax_attention(**ARRAYS, alpha=1))
    out, ctx = aa.sparsemax_attention_fwd(**ARRAYS)
    backward = aa.sparsemax_attention_bwd
    says(ValueError, "`dout` has shape (2, 6, 9), expected (2, 6, 9, 5)", lambda: backward(out[..., 0], ctx))
    says(TypeError, "expected the SparseContext that the", lambda: backward(out, None))
    assert tree.nbytes(ctx) == sum(array.nbytes for array in ARRAYS.values())
