"""Properties of convolutional attention beyond the contract: pairs of windows, lengths, the future, the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

ROUNDING = 1e-13  # sums of a few dozen products in another order

RNG = np.random.default_rng(7)
GIVEN = {  # B 2, T 7, D 3, A 4, widths 5 and 3
    "x": RNG.standard_normal((2, 7, 3)),
    "query_weight": RNG.standard_normal((4, 3, 5)),
    "key_weight": RNG.standard_normal((4, 3, 3)),
    "query_bias": RNG.standard_normal(4),
}
VECTOR = {"score_vector": 2 * RNG.standard_normal(4)}
DOUT = RNG.standard_normal((2, 7, 3))
KINDS = {"pairs": VECTOR, "dot": {}}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
each_padding = pytest.mark.parametrize("padding", ["same", "causal"])


def pulled(dout: Any = DOUT, **given: Any) -> tuple[Any, Any]:
    """The output, and the gradients for `dout`."""
    out, pullback = aa.vjp(aa.convolutional_attention, **{**GIVEN, **given})
    return out, pullback(dout)


@each_padding
def test_a_convolution_over_pairs_shifts_both_windows(padding: str) -> None:
    x, kernel, v = GIVEN["x"][0], RNG.standard_normal((4, 6, 5)), VECTOR["score_vector"]  # W_c (A, 2 D, width)
    before = 4 if padding == "causal" else 2
    padded = np.concatenate([np.zeros((before, 3)), x, np.zeros((4 - before, 3))])
    scores = np.zeros((7, 7))
    for t, other in np.ndindex(7, 7):
        pairs = [np.concatenate([padded[t + n], padded[other + n]]) for n in range(5)]
        scores[t, other] = v @ np.tanh(sum(kernel[:, :, n] @ pair for n, pair in enumerate(pairs)))
    halves = {"query_weight": kernel[:, :3], "key_weight": kernel[:, 3:]}
    out, ctx = aa.convolutional_attention_fwd(x, **halves, **VECTOR, padding=padding)
    assert_close(out, aa.softmax(scores) @ x, ROUNDING)
    assert_close(aa.attention_weights(ctx), aa.softmax(scores), ROUNDING)


def test_of_width_1_it_is_attention_to_projections() -> None:
    x, wq, wk = GIVEN["x"], GIVEN["query_weight"][:, :, :1], GIVEN["key_weight"][:, :, :1]
    q, k = x @ wq[:, :, 0].T, x @ wk[:, :, 0].T
    options = {"attn_mask": RNG.random((2, 7, 7)) < 0.6, "is_causal": True}
    for padding in ("same", "causal"):
        pairs, dots = (
            aa.convolutional_attention(x, wq, wk, **kind, padding=padding, **options) for kind in KINDS.values()
        )
        assert_close(pairs, aa.additive_attention(q, k, x, *VECTOR.values(), **options), ROUNDING)
        assert_close(dots, aa.scaled_dot_product_attention(q, k, x, **options), ROUNDING)


@each_kind
@each_padding
@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
@pytest.mark.parametrize("by_mask", [False, True], ids=["kv_lengths", "Padding"])
def test_a_ragged_batch_is_its_single_sequences(kind: dict, padding: str, rubbish: float, by_mask: bool) -> None:
    lengths = (4, 0)
    past = (np.arange(7) >= np.array(lengths)[:, None])[..., None]
    options = {"attn_mask": aa.Padding(np.array(lengths))} if by_mask else {"kv_lengths": lengths}
    dirty = np.where(past, rubbish, GIVEN["x"])
    out, grads = pulled(np.where(past, 0.0, DOUT), x=dirty, **kind, **options, padding=padding)
    assert np.all(np.isfinite(out))
    shared = ("query_weight", "key_weight", "query_bias", *kind)
    sums = None
    for row, length in enumerate(lengths):
        its_out, its_grads = pulled(DOUT[row, :length], x=GIVEN["x"][row, :length], **kind, padding=padding)
        assert_close(out[row, :length], its_out, ROUNDING)
        assert_close(grads.x[row, :length], its_grads.x, ROUNDING)
        assert not np.any(grads.x[row, length:])
        here = {name: getattr(its_grads, name) for name in shared}
        sums = here if sums is None else tree.add(sums, here)
    assert_trees_close({name: getattr(grads, name) for name in shared}, sums, ROUNDING)
    assert not np.any(out[1])  # a length of 0


@each_kind
def test_no_query_attends_to_the_future(kind: dict) -> None:
    options = {**kind, "padding": "causal", "is_causal": True}
    for t in range(1, 7):
        changed = GIVEN["x"].copy()
        changed[:, t:] += RNG.standard_normal((2, 7 - t, 3))
        dout = np.where(np.arange(7)[:, None] < t, DOUT, 0.0)
        (out, grads), (other, other_grads) = pulled(dout, **options), pulled(dout, x=changed, **options)
        assert_close(other[:, :t], out[:, :t], ROUNDING)
        assert_trees_close(other_grads, grads, ROUNDING)
        assert not np.any(grads.x[:, t:])
        prefix, prefix_grads = pulled(DOUT[:, :t], x=GIVEN["x"][:, :t], **options)  # decoding, step by step
        assert_close(prefix, out[:, :t], ROUNDING)
        assert_trees_close(prefix_grads._replace(x=None), grads._replace(x=None), ROUNDING)
        assert_close(prefix_grads.x, grads.x[:, :t], ROUNDING)
    _, seen = pulled(np.where(np.arange(7)[:, None] < 3, DOUT, 0.0), **{**options, "padding": "same"})
    assert np.any(seen.x[:, 3:5])  # the windows of "same" reach ahead, as the docstring says
    assert not np.any(seen.x[:, 5:])


def test_nothing_of_the_size_of_all_pairs_is_kept() -> None:
    x = np.zeros((1, 500, 2))
    weight = np.zeros((3, 2, 3))
    for vector in (None, np.zeros(3)):
        _, ctx = aa.convolutional_attention_fwd(x, weight, weight, score_vector=vector)
        assert tree.nbytes(ctx) < 20 * x.nbytes  # q, k, v, out and views of x: a row of pairs alone has 1500 numbers


@each_padding
@pytest.mark.parametrize("kind", ["pairs", "dot"])
def test_the_layer_has_right_gradients_for_everything(kind: str, padding: str) -> None:
    layer = aa.layers.ConvolutionalAttention(dim=3, hidden_dim=4, width=3, kind=kind, padding=padding)
    params = tree.map(lambda leaf: 2 * leaf + 0.1, layer.init(aa.Philox(1), "float64"))
    value, bias, x = RNG.standard_normal((2, 7, 2)), RNG.standard_normal((7, 7)), GIVEN["x"]
    for report in (
        aa.gradcheck(layer, params, x, is_causal=True, tolerance=1e-8),
        aa.gradcheck(layer, params, x, value, kv_lengths=np.array([7, 4]), bias=bias, scale=0.7, tolerance=1e-8),
    ):
        assert report, str(report)
    out, ctx = layer.fwd(params, x)
    tree.map(lambda leaf, grad: assert_alike(grad, leaf), params, layer.bwd(out, ctx).params)
    assert ("score_vector" in params) == (kind == "pairs")


def assert_alike(found: np.ndarray, like: np.ndarray) -> None:
    assert found.shape == like.shape
    assert found.dtype == like.dtype


EVEN, CENTER = np.ones((4, 3, 4)), "a window of even width has no center. Use an odd width, or padding='causal'."
WRONG = {
    "x": ({"x": np.ones(3)}, "`x` has shape (3,), expected at least two axes: (*batch, positions, features)."),
    "even queries": ({"query_weight": EVEN}, f"`query_weight` has width 4, and with padding='same' {CENTER}"),
    "even keys": ({"key_weight": EVEN}, f"`key_weight` has width 4, and with padding='same' {CENTER}"),
    "features": ({"query_weight": np.ones((4, 2, 5))}, "`query_weight` has shape (4, 2, 5), expected (A, D, width) ="),
    "hidden": ({"key_weight": np.ones((5, 3, 3))}, "`key_weight` has shape (5, 3, 3), expected (A, D, width) = (4, 3,"),
    "linear": ({"key_weight": np.ones((4, 3))}, "`key_weight` has shape (4, 3), expected (A, D, width) = (4, 3, 1 or"),
    "number": ({"query_weight": np.array(1.0)}, "`query_weight` has shape (), expected (A, D, width)"),
    "no taps": ({"key_weight": np.ones((4, 3, 0))}, "`key_weight` has shape (4, 3, 0), expected (A, D, width)"),
    "score vector": ({"score_vector": np.ones(3)}, "`score_vector` has shape (3,), expected (4,): one number per row"),
    "bias": ({"query_bias": np.ones(3)}, "`query_bias` has shape (3,), expected (4,): one number per row of"),
    "value": ({"value": np.ones((2, 6, 3))}, "`value` has shape (2, 6, 3), expected (2, 7, 3): one value per position"),
    "padding": ({"padding": "valid"}, "`padding` is 'valid', expected one of 'same', 'causal'"),
    "padding, a number": ({"padding": 2}, "`padding` is 2, expected one of 'same', 'causal'"),
    "length": ({"kv_lengths": [1, 8]}, "`kv_lengths` goes from 1 to 8, expected 0 to S = 7"),
    "mask": ({"attn_mask": np.ones((7, 6), bool)}, "`attn_mask` has shape (7, 6), which does not broadcast to (*batch"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), WRONG.values(), ids=list(WRONG))
def test_bad_input(changes: dict[str, Any], expected: str) -> None:
    says(ValueError, expected, lambda: aa.convolutional_attention(**{**GIVEN, **changes}))


def test_bad_types_cotangents_and_layers() -> None:
    def call(**changes: Any) -> Any:
        return aa.convolutional_attention(**{**GIVEN, **changes})

    says(TypeError, "`key_weight` is None, expected an array.", lambda: call(key_weight=None))
    says(TypeError, "score_vector float32, query_bias float64", lambda: call(score_vector=np.ones(4, "f4")))
    with pytest.raises(TypeError, match=r"no option `dilation`. The options: scale, bias, window"):
        call(dilation=2)
    out, ctx = aa.convolutional_attention_fwd(**GIVEN)
    backward = aa.convolutional_attention_bwd
    says(ValueError, "`dout` has shape (1, 7, 3), expected (2, 7, 3): the shape", lambda: backward(out[:1], ctx))
    says(TypeError, "expected the ConvolutionalContext that the forward", lambda: backward(out, None))
    layer = aa.layers.ConvolutionalAttention
    says(ValueError, f"`width` is 4, and with padding='same' {CENTER}", lambda: layer(3, 4, 4))
    says(ValueError, "`kind` is 'dots', expected one of 'pairs', 'dot'", lambda: layer(3, 4, 5, "dots"))
    says(ValueError, "`padding` is 'valid', expected one of 'same', 'causal'", lambda: layer(3, 4, 5, padding="valid"))
    says(ValueError, "`dim` is 0, expected an integer", lambda: layer(0, 4, 5))
