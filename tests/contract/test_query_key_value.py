"""Mechanisms with queries, keys and values: padding is ignored, steps equal the whole run, and masks mask."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.support.libraries import assert_trees_close

ROUNDING = 1e-13  # sums of a few dozen products in another order
RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


B, T, S, D, Dv = 3, 4, 7, 5, 6
QKV = {"query": normal(B, T, D), "key": normal(B, S, D), "value": normal(B, S, Dv)}
PARAMS = {
    name: {"weight": normal(*shape), "bias": normal(shape[0])}
    for name, shape in {"query": (16, D), "key": (8, D), "value": (6, Dv), "out": (9, 12)}.items()
}


class Mechanism(NamedTuple):
    """A function, its arguments that all sequences share, and those that belong to the queries."""

    function: str
    shared: dict[str, Any] = {}  # noqa: RUF012 - never changed
    of_queries: dict[str, np.ndarray] = {}  # noqa: RUF012 - never changed
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def run(self, dout: np.ndarray | None = None, **given: Any) -> tuple[Any, Any]:
        arguments = {**QKV, **self.of_queries, **self.shared, **self.options, **given}
        out, pullback = aa.vjp(getattr(aa, self.function), **arguments)
        return out, pullback(cotangent(out) if dout is None else dout)

    def of_row(self, grads: Any) -> dict[str, Any]:
        """The gradients that belong to a sequence."""
        return {name: getattr(grads, name) for name in (*QKV, *self.of_queries)}

    def of_all(self, grads: Any) -> dict[str, Any]:
        """The gradients that all sequences share."""
        return {name: getattr(grads, name) for name in self.shared}


def cotangent(out: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(out.shape)


MECHANISMS = {
    "multi-head": Mechanism("multi_head_attention", {"params": PARAMS}, {}, {"num_heads": 4, "num_kv_heads": 2}),
    "additive": Mechanism("additive_attention", {"score_vector": normal(D)}),
    "dot": Mechanism("multiplicative_attention", {}, {}, {"score": "dot"}),
    "general": Mechanism("multiplicative_attention", {"weight": normal(D, D)}, {}, {"score": "general"}),
    "concat": Mechanism(
        "multiplicative_attention", {"weight": normal(8, 2 * D), "score_vector": normal(8)}, {}, {"score": "concat"}
    ),
    "scaled": Mechanism(
        "scaled_attention",
        {"inverse_temperature": np.array(1.3)},
        {"gate": normal(B, T), "score_scale": normal(B, T)},
    ),
    "scaled, softcap": Mechanism(
        "scaled_attention",
        {"score_scale": np.array(0.8)},
        {"gate": normal(B, T), "inverse_temperature": normal(B, T)},
        {"softcap": 2.0},
    ),
}
each_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS.values(), ids=list(MECHANISMS))
each_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])


@each_mechanism
@each_kernels
def test_ragged_batches_are_the_single_sequences(mechanism: Mechanism, kernels: str) -> None:
    lengths = np.array([7, 1, 4])
    padded = {name: QKV[name].copy() for name in ("key", "value")}
    for row, length in enumerate(lengths):
        padded["key"][row, length:], padded["value"][row, length:] = math.nan, math.nan
    with aa.use_kernels(kernels):
        out, grads = mechanism.run(**padded, kv_lengths=lengths)
        total = None
        for row, length in enumerate(lengths):
            keys = {name: QKV[name][row, :length] for name in ("key", "value")}
            queries = {name: array[row] for name, array in mechanism.of_queries.items()}
            alone, its_grads = mechanism.run(cotangent(out)[row], query=QKV["query"][row], **keys, **queries)
            assert_trees_close(out[row], alone, ROUNDING)
            of_row = {name: grad[row] for name, grad in mechanism.of_row(grads).items()}
            assert not np.any(of_row["key"][length:])
            assert not np.any(of_row["value"][length:])
            of_row |= {name: of_row[name][:length] for name in keys}
            assert_trees_close(of_row, mechanism.of_row(its_grads), ROUNDING)
            shared = mechanism.of_all(its_grads)
            total = shared if total is None else tree.add(total, shared)
    assert_trees_close(mechanism.of_all(grads), total, ROUNDING)


@each_mechanism
@each_kernels
def test_step_by_step_is_the_whole_causal_run(mechanism: Mechanism, kernels: str) -> None:
    known = S - T  # keys before the first query
    with aa.use_kernels(kernels):
        out, grads = mechanism.run(is_causal=True, q_offset=known)
        dout, total = cotangent(out), None
        dkey, dvalue = np.zeros_like(QKV["key"]), np.zeros_like(QKV["value"])
        for t in range(T):
            queries = {name: array[:, t : t + 1] for name, array in mechanism.of_queries.items()}
            queries["query"] = QKV["query"][:, t : t + 1]
            keys = {name: QKV[name][:, : known + t + 1] for name in ("key", "value")}
            step, its_grads = mechanism.run(dout[:, t : t + 1], **queries, **keys, is_causal=True, q_offset=known + t)
            assert_trees_close(step, out[:, t : t + 1], ROUNDING)
            for name in queries:
                assert_trees_close(getattr(its_grads, name), getattr(grads, name)[:, t : t + 1], ROUNDING)
            dkey[:, : known + t + 1] += its_grads.key
            dvalue[:, : known + t + 1] += its_grads.value
            shared = mechanism.of_all(its_grads)
            total = shared if total is None else tree.add(total, shared)
    assert_trees_close([grads.key, grads.value], [dkey, dvalue], ROUNDING)
    assert_trees_close(mechanism.of_all(grads), total, ROUNDING)


HIDDEN = np.array([True, False, False, True, True, False, True])
HIDING = {
    "mask": ({"attn_mask": ~HIDDEN}, HIDDEN),
    "-inf": ({"attn_mask": np.where(HIDDEN, -math.inf, 0.3)}, HIDDEN),
    "-inf in a bias": ({"bias": np.where(HIDDEN, -math.inf, np.zeros((B, 1, 1)))}, HIDDEN),
    "causal": ({"is_causal": True}, np.arange(S) >= T),
    "window": ({"window": (1, 0), "q_offset": 2}, np.isin(np.arange(S), [0, 6])),
    "Padding": ({"attn_mask": aa.Padding([3, 3, 3])}, np.arange(S) >= 3),
}


@each_mechanism
@each_kernels
@pytest.mark.parametrize(("options", "hidden"), HIDING.values(), ids=list(HIDING))
@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_masked_keys_are_ignored(
    mechanism: Mechanism, kernels: str, options: dict[str, Any], hidden: np.ndarray, rubbish: float
) -> None:
    if mechanism.function == "multi_head_attention" and "bias" in options:
        options = {"bias": options["bias"][:, None]}  # (B, 1, 1, S)
    dirty = {name: np.where(hidden[:, None], rubbish, QKV[name]) for name in ("key", "value")}
    with aa.use_kernels(kernels), np.errstate(invalid="ignore"):  # masked infinities give NaN in between
        clean, found = mechanism.run(**options), mechanism.run(**dirty, **options)
    assert_trees_close(found, clean, ROUNDING)
    assert not np.any(found[1].key[:, hidden])
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten(found))


@each_mechanism
def test_fully_masked_queries_give_zeros(mechanism: Mechanism) -> None:
    mask = np.ones((T, S), bool)
    mask[1] = False
    out, grads = mechanism.run(attn_mask=mask)
    offset = PARAMS["out"]["bias"] if "params" in mechanism.shared else 0.0
    np.testing.assert_allclose(out[:, 1], np.broadcast_to(offset, out[:, 1].shape), rtol=1e-15)
    assert not np.any(grads.query[:, 1])
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten(grads))


@each_mechanism
@pytest.mark.parametrize("changes", [{"B": 0}, {"T": 0}, {"S": 0}, {"T": 0, "S": 0}], ids=str)
def test_empty_sizes(mechanism: Mechanism, changes: dict[str, int]) -> None:
    b, t, s = changes.get("B", B), changes.get("T", T), changes.get("S", S)
    given = {"query": np.ones((b, t, D)), "key": np.ones((b, s, D)), "value": np.ones((b, s, Dv))}
    given |= {name: np.ones((b, t)) for name in mechanism.of_queries}
    out, grads = mechanism.run(**given, is_causal=True, kv_lengths=np.full(b, s))
    assert out.shape[:2] == (b, t)
    if s == 0 and "params" not in mechanism.shared:
        assert not np.any(out)
    shapes = {name: getattr(grads, name).shape for name in given}
    assert shapes == {name: array.shape for name, array in given.items()}
    assert all(np.all(np.isfinite(leaf)) for _, leaf in tree.flatten(grads))


@each_mechanism
def test_the_weights_are_those_of_the_output(mechanism: Mechanism) -> None:
    """With the identity as values the output shows them; with a gate or heads only sums of rows are compared."""
    arguments = {**QKV, **mechanism.of_queries, **mechanism.shared, **mechanism.options, "kv_lengths": [7, 3, 5]}
    function = getattr(aa, mechanism.function)
    _, ctx = aa.triples.find_triple(function).fwd(**arguments)
    weights = aa.attention_weights(ctx)
    heads = (4,) if mechanism.function == "multi_head_attention" else ()
    assert weights.shape == (B, *heads, T, S)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-14)
    assert not np.any(weights[1, ..., 3:])
    if not heads:
        shown = function(**{**arguments, "value": np.broadcast_to(np.eye(S), (B, S, S))})
        gate = mechanism.of_queries.get("gate", np.ones((B, T)))
        assert_trees_close(shown, gate[..., None] * weights, ROUNDING)
    np.testing.assert_array_equal(aa.attention_weights(ctx, slice(1, 3)), weights[..., 1:3, :])


@each_mechanism
def test_contexts_hold_nothing_of_the_size_of_the_scores(mechanism: Mechanism) -> None:
    given = {"query": normal(1, 256, D), "key": normal(1, 256, D), "value": normal(1, 256, Dv)}
    given |= {name: normal(1, 256) for name in mechanism.of_queries}
    fwd = aa.triples.find_triple(getattr(aa, mechanism.function)).fwd
    _, ctx = fwd(**given, **mechanism.shared, **mechanism.options, is_causal=True)
    assert tree.nbytes(ctx) < 256 * 256 * 8
