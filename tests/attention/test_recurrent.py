"""Attention with recurrent scores: an LSTM per query, masks as missing steps, states handed in, blocks, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.attention.alignment import recurrent as recurrent_module

Arrays = dict[str, Any]
B, T, S, Dq, Dk, H, A = 2, 4, 6, 3, 5, 7, 8


def arrays(seed: int = 0, *, states: bool = False) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {
        "query": (B, T, Dq), "key": (B, S, Dk), "weight_ih": (4 * H, Dq + Dk), "weight_hh": (4 * H, H),
        "output_weight": (A, H), "score_vector": (A,), "gate_bias": (4 * H,),
    }  # fmt: skip
    shapes |= {"h0": (B, T, H), "c0": (B, T, H)} if states else {}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def run(given: Arrays, dout: np.ndarray | None = None, **options: Any) -> tuple[np.ndarray, Arrays]:
    out, ctx = aa.recurrent_attention_fwd(**given, **options)
    grads = aa.recurrent_attention_bwd(np.cos(np.arange(out.size)).reshape(out.shape) if dout is None else dout, ctx)
    return out, {name: grad for name, grad in grads._asdict().items() if grad is not None}


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_equal_to_an_lstm_over_the_pairs_of_every_query(kernels: str) -> None:
    """And its gradients to those of that LSTM and a softmax over its scores."""
    given = arrays(states=True)
    q, k = given["query"], given["key"]
    pairs = np.concatenate(
        [np.broadcast_to(q[:, :, None], (B, T, S, Dq)), np.broadcast_to(k[:, None], (B, T, S, Dk))], axis=-1
    )
    with aa.use_kernels(kernels):
        out, grads = run(given)
        cell = given["weight_ih"], given["weight_hh"], given["gate_bias"], None, given["h0"], given["c0"]
        result, lstm_ctx = aa.lstm_fwd(pairs, *cell)
        hidden, hidden_ctx = aa.linear_fwd(result.out, given["output_weight"])
        read = np.tanh(hidden)
        weights, softmax_ctx = aa.softmax_fwd(read @ given["score_vector"])
        np.testing.assert_allclose(weights @ k, out, rtol=0, atol=1e-13)

        dout = np.cos(np.arange(out.size)).reshape(out.shape)
        dscores = aa.softmax_bwd(dout @ k.mT, softmax_ctx).x
        dread = dscores[..., None] * given["score_vector"]
        linear = aa.linear_bwd(dread * (1 - read**2), hidden_ctx)
        lstm = aa.lstm_bwd(aa.LSTMResult(linear.x, None, None), lstm_ctx)
    expected = {
        "query": lstm.x[..., :Dq].sum(axis=2), "key": lstm.x[..., Dq:].sum(axis=1) + weights.mT @ dout,
        "weight_ih": lstm.weight_ih, "weight_hh": lstm.weight_hh, "gate_bias": lstm.bias_ih, "h0": lstm.h0,
        "c0": lstm.c0, "output_weight": linear.weight, "score_vector": np.sum(dscores[..., None] * read, (0, 1, 2)),
    }  # fmt: skip
    assert set(grads) == set(expected)
    for name, gradient in expected.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=0, atol=1e-12, err_msg=name)


def test_ragged_batches_are_their_single_sequences() -> None:
    given, lengths = arrays(), np.array([3, 6])
    given["key"][0, 3:] = np.nan
    out, grads = run(given, kv_lengths=lengths)
    total: Arrays = {}
    for b, length in enumerate(lengths):
        single = given | {"query": given["query"][b], "key": given["key"][b, :length]}
        alone, of_one = run(single, np.cos(np.arange(out.size)).reshape(out.shape)[b])
        np.testing.assert_allclose(out[b], alone, rtol=0, atol=1e-14)
        np.testing.assert_allclose(grads["query"][b], of_one["query"], rtol=0, atol=1e-13)
        np.testing.assert_allclose(grads["key"][b, :length], of_one["key"], rtol=0, atol=1e-13)
        assert not np.any(grads["key"][b, length:])
        shared = {name: of_one[name] for name in of_one if name not in ("query", "key")}
        total = tree.add(total, shared) if total else shared
    for name, gradient in total.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=0, atol=1e-12, err_msg=name)


def test_step_by_step_is_the_whole_causal_run() -> None:
    given = arrays()
    x = np.random.default_rng(3).standard_normal((B, T, Dk))
    given |= {"key": x, "query": x[..., :Dq]}
    out, grads = run(given, is_causal=True)
    dout = np.cos(np.arange(out.size)).reshape(out.shape)
    dkey = np.zeros_like(x)
    for t in range(T):
        step = given | {"query": given["query"][:, t : t + 1], "key": x[:, : t + 1]}
        one, of_step = run(step, dout[:, t : t + 1], is_causal=True, q_offset=t)
        np.testing.assert_allclose(one, out[:, t : t + 1], rtol=0, atol=1e-14)
        np.testing.assert_allclose(of_step["query"], grads["query"][:, t : t + 1], rtol=0, atol=1e-13)
        dkey[:, : t + 1] += of_step["key"]
    np.testing.assert_allclose(dkey, grads["key"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_size_of_the_blocks_does_not_matter(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given, options = (
        arrays(states=True),
        {"window": (1, 2), "attn_mask": np.random.default_rng(0).random((B, T, S)) < 0.8},
    )
    with aa.use_kernels("reference"):
        expected = run(given, **options)
        monkeypatch.setattr(recurrent_module, "HELD", rows * 2 * B * S * 4 * H)
        found = run(given, **options)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-14)
    for name, gradient in expected[1].items():
        np.testing.assert_allclose(found[1][name], gradient, rtol=0, atol=1e-12, err_msg=name)


def test_a_state_for_all_rows_gets_the_sum_of_their_gradients() -> None:
    given = arrays()
    h0 = np.random.default_rng(5).standard_normal(H)
    _, one = run(given | {"h0": h0})
    _, each = run(given | {"h0": np.broadcast_to(h0, (B, T, H))})
    np.testing.assert_allclose(one["h0"], each["h0"].sum(axis=(0, 1)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("states", [False, True])
def test_the_layer(states: bool) -> None:
    layer = aa.layers.RecurrentAttention(Dq, Dk, H, A)
    params = layer.init(aa.Philox(0), "float64")
    given = arrays(states=states)
    inputs = {name: given[name] for name in ("query", "key", "h0", "c0") if name in given}
    report = aa.gradcheck(layer, params, **inputs, kv_lengths=np.array([6, 2]), tolerance=1e-8)
    assert report, str(report)
    out, ctx = layer.fwd(params, **inputs)
    grads = layer.bwd(out, ctx)
    assert tree.map(np.shape, grads.params) == tree.map(np.shape, params)
    assert aa.attention_weights(ctx).shape == (B, T, S)


def test_the_layer_on_one_sequence() -> None:
    layer = aa.layers.RecurrentAttention(Dk, Dk, H, A)
    params = layer.init(aa.Philox(0), "float64")
    report = aa.gradcheck(layer, params, arrays()["key"], is_causal=True, tolerance=1e-8)
    assert report, str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight_ih": np.zeros((4 * H, Dq))},
            r"`weight_ih` has shape \(28, 3\), expected \(4 H, 8\): rows for the four",
        ),
        ({"weight_ih": np.zeros((4 * H + 1, Dq + Dk))}, r"`weight_ih` has shape \(29, 8\), expected \(4 H, 8\)"),
        ({"weight_hh": np.zeros((4 * H, H + 1))}, r"`weight_hh` has shape \(28, 8\), expected \(28, 7\)"),
        ({"output_weight": np.zeros((A + 1, H))}, r"`output_weight` has shape \(9, 7\), expected \(8, 7\)"),
        ({"score_vector": np.zeros((A, 1))}, "`score_vector` has shape"),
        ({"gate_bias": np.zeros(H)}, r"`gate_bias` has shape \(7,\), expected \(28,\)"),
        ({"h0": np.zeros((B, T, H + 1))}, "`h0` has shape"),
        ({"c0": np.zeros((B + 1, T, H))}, "`c0` has shape"),
    ],
)
def test_bad_input(change: Arrays, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aa.recurrent_attention(**(arrays() | change))


@pytest.mark.parametrize("missing", ["query", "weight_hh", "score_vector"])
def test_missing_arrays(missing: str) -> None:
    with pytest.raises(TypeError, match=f"`{missing}` is None"):
        aa.recurrent_attention(**(arrays() | {missing: None}))


def test_sizes_of_the_layer() -> None:
    make: Callable[..., Any] = aa.layers.RecurrentAttention
    with pytest.raises(ValueError, match="`state_dim` is 0"):
        make(3, 3, 0, 8)
