"""KERPLE, FIRE, CoPE and sigmoid attention: the papers' formulas, what they reduce to, kernels, and bad input."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention import blocks
from attnarray.kernels.numba import unavailable
from tests.support.frozen import frozen
from tests.support.libraries import assert_close
from tests.support.messages import says

FROZEN = {name: one.arrays for name, one in frozen("variants.npz").items()}
NO_COMPILER = unavailable("numba") or ("" if importlib.util.find_spec("numba") else "numba is not installed")
CALL: dict[str, Any] = {"is_causal": True, "q_offset": 2}


def both(a: Any, **parts: Any) -> Any:
    """The gradients of a frozen call; output and the gradients of the three inputs are checked."""
    out, ctx = aa.attend_fwd(a["query"], a["key"], a["value"], **CALL, **parts)
    grads = aa.attend_bwd(a["dout"], ctx)
    assert_close(out, a["result"], 1e-13, "out")
    for name in ("query", "key", "value"):
        assert_close(getattr(grads, name), a[f"grad_{name}"], 1e-12, name)
    return grads


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("kind", ["log", "power"])
def test_kerple_equals_the_paper(kind: Any, kernels: Any) -> None:
    a = FROZEN[f"kerple {kind}"]
    r1, r2 = np.exp(a["r1"]), np.exp(a["r2"])
    with aa.use_kernels(kernels):
        own = both(a, modifiers=[aa.KERPLE(r1, r2, kind)]).modifiers[0]
    assert_close(own.r1 * r1, a["grad_r1"], 1e-12, "r1")
    assert_close(own.r2 * r2, a["grad_r2"], 1e-12, "r2")


@pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER)
@pytest.mark.parametrize("kind", ["log", "power"])
def test_kerple_is_compiled(kind: Any) -> None:
    a = FROZEN["kerple log"]
    given: dict[str, Any] = {**CALL, "modifiers": [aa.KERPLE(np.ones(4), np.ones(4), kind)]}
    choices = aa.explain(aa.attend, a["query"], a["key"], a["value"], **given).choices
    assert [choice.kernel for choice in choices] == ["numba"]


def test_kerple_with_exponent_1_is_alibi() -> None:
    a, slopes = FROZEN["kerple log"], aa.to_numpy(aa.alibi_slopes(4)).astype(float)
    found = aa.attend(a["query"], a["key"], a["value"], **CALL, modifiers=[aa.KERPLE(slopes, np.ones(4), "power")])
    bias = -slopes[:, None, None] * abs(2 + np.arange(5)[:, None] - np.arange(7))
    expected = aa.scaled_dot_product_attention(a["query"], a["key"], a["value"], bias=bias, **CALL)
    assert_close(found, expected, 1e-13)


@pytest.mark.parametrize("rows", [5, 2])
def test_fire_equals_the_paper(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", rows * 7 * 9)  # of hidden units
    a = FROZEN["fire"]
    c, threshold = 0.1 * np.exp(a["c"]), 4.5 * np.exp(a["L"])
    fire = aa.FIRE(a["w1"], a["b1"], a["w2"], a["b2"], np.array(c), np.array(threshold))
    own = both(a, modifiers=[fire]).modifiers[0]
    for found, name in zip(own, ("w1", "b1", "w2", "b2"), strict=False):
        assert_close(found, a[f"grad_{name}"], 1e-12, name)
    assert_close(own.c * c, a["grad_c"], 1e-12, "c")
    assert_close(own.threshold * threshold, a["grad_L"], 1e-12, "L")


@pytest.mark.parametrize("rows", [5, 2])
def test_cope_equals_the_paper(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", rows * 2 * 4 * 7 * 8)  # eight arrays (2, 4, rows, 7) are held
    a = FROZEN["cope"]
    own = both(a, scorer=aa.CoPE(a["e"], q_offset=2)).scorer
    assert_close(own.position_embedding, a["grad_e"], 1e-12, "e")


def test_cope_with_open_gates_counts_positions() -> None:
    rng = np.random.default_rng(0)
    q, k, v = 1.0 + rng.random((3, 1, 2, 6, 4))
    embedding = rng.standard_normal((9, 4))
    found = aa.attend(q, k, v, is_causal=True, scorer=aa.CoPE(embedding, scale=1e3))
    distances = np.clip(np.arange(6)[:, None] - np.arange(6) + 1, 0, 8)
    scores = 1e3 * q @ k.mT + np.einsum("bhtd,tsd->bhts", q, embedding[distances])
    expected = aa.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1e-300, bias=scores)
    assert_close(found, expected, 1e-11)


def test_masked_keys_of_cope_may_be_nan() -> None:
    rng = np.random.default_rng(1)
    q, k, v, embedding = *rng.standard_normal((3, 2, 2, 5, 4)), rng.standard_normal((3, 4))
    options: dict[str, Any] = {"is_causal": True, "kv_lengths": np.array([5, 3]), "scorer": aa.CoPE(embedding)}
    expected, spoiled = aa.attend(q, k, v, **options), k.copy()
    spoiled[1, :, 3:] = np.nan
    found = aa.attend(q, spoiled, v, **options)
    assert_close(found[1, :, :3], expected[1, :, :3], 0, "queries before the padding")
    assert np.isfinite(found).all()


def test_sigmoid_attention_equals_the_paper() -> None:
    a = FROZEN["sigmoid"]
    out, ctx = aa.sigmoid_attention_fwd(a["query"], a["key"], a["value"], a["shift"], **CALL)
    grads = aa.sigmoid_attention_bwd(a["dout"], ctx)
    assert_close(out, a["result"], 1e-13, "out")
    for name in ("query", "key", "value", "shift"):
        assert_close(getattr(grads, name), a[f"grad_{name}"], 1e-12, name)


def test_sigmoid_attention_of_equal_scores_is_near_a_mean() -> None:
    zeros, v = np.zeros((1, 2, 50, 4)), np.random.default_rng(0).standard_normal((1, 2, 50, 3))
    assert_close(aa.sigmoid_attention(zeros, zeros, v), np.broadcast_to(v.sum(2, keepdims=True) / 51, v.shape), 1e-15)


X = np.ones((1, 2, 3, 4))


def fire(**changes: Any) -> aa.FIRE:
    fields = (np.ones(5), np.ones(5), np.ones((2, 5)), np.ones(2), np.array(0.1), np.array(4.0))
    return aa.FIRE(*fields)._replace(**changes)


BAD: dict[str, tuple[type[Exception], Any, str]] = {
    "kind": (
        ValueError, lambda: aa.attend(X, X, X, modifiers=[aa.KERPLE(np.ones(2), np.ones(2), "cubic")]),  # type: ignore[arg-type]
        "`modifiers[0].kind` is 'cubic', expected one of",
    ),
    "heads": (
        ValueError, lambda: aa.attend(X, X, X, modifiers=[aa.KERPLE(np.ones(2), np.ones(3))]),
        "`modifiers[0].r2` has shape (3,), expected (2,)",
    ),
    "list": (
        TypeError, lambda: aa.attend(X, X, X, modifiers=[aa.KERPLE([1.0, 1.0], np.ones(2))]),
        "`modifiers[0].r1` has type",
    ),
    "width": (
        ValueError, lambda: aa.attend(X, X, X, modifiers=[fire(hidden_bias=np.ones(3))]),
        "`modifiers[0].hidden_bias` has shape (3,), expected (5,)",
    ),
    "number": (
        TypeError, lambda: aa.attend(X, X, X, modifiers=[fire(c=0.1)]), "`modifiers[0].c` has type float",
    ),
    "embedding": (
        ValueError, lambda: aa.attend(X, X, X, scorer=aa.CoPE(np.ones((5, 3)))),
        "`scorer.position_embedding` has shape (5, 3), expected (5, 4)",
    ),
    "no positions": (
        ValueError, lambda: aa.attend(X, X, X, scorer=aa.CoPE(np.ones((0, 4)))),
        "`scorer.position_embedding` has shape (0, 4), expected (1, 4)",
    ),
    "offset": (
        ValueError, lambda: aa.attend(X, X, X, scorer=aa.CoPE(np.ones((5, 4)), q_offset=0.5)),  # type: ignore[arg-type]
        "`scorer.q_offset` is 0.5, expected an integer",
    ),
    "scale": (ValueError, lambda: aa.attend(X, X, X, scorer=aa.CoPE(np.ones((5, 4)), 0.0)), "`scale` is 0.0, expected"),
    "shift": (ValueError, lambda: aa.sigmoid_attention(X, X, X, np.ones(3)), "`shift` has shape (3,), expected (2,)"),
    "sinks": (
        TypeError, lambda: aa.sigmoid_attention(X, X, X, sinks=np.ones(2)),  # type: ignore[call-arg]
        "Attention has no option `sinks`",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "f", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input(error: type[Exception], f: Any, expected: str) -> None:
    says(error, expected, f)
