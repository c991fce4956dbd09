"""Attention with forget gates: the paper's formula, constant gates, a cache, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention import blocks
from tests.support.frozen import frozen
from tests.support.libraries import assert_close
from tests.support.messages import says

RNG = np.random.default_rng(3)
Q, K, V = (RNG.standard_normal((2, 3, n, d)) for n, d in ((5, 4), (7, 4), (7, 6)))
GATES = np.log(0.2 + 0.8 * RNG.random((2, 3, 7)))


def call(q: Any = Q, k: Any = K, v: Any = V, gates: Any = GATES, **options: Any) -> Any:
    return aa.forgetting_attention(q, k, v, gates, **{"is_causal": True, "q_offset": 2, **options})


@pytest.mark.parametrize("rows", [5, 2])
def test_it_equals_the_formula_in_pytorch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", rows * 2 * 4 * 7 * 2)  # two arrays (2, 4, rows, 7) are held
    a = frozen("variants.npz")["forgetting"].arrays
    log_forget = -np.log1p(np.exp(-a["gates"]))
    out, ctx = aa.forgetting_attention_fwd(a["query"], a["key"], a["value"], log_forget, is_causal=True, q_offset=2)
    grads = aa.forgetting_attention_bwd(a["dout"], ctx)
    assert_close(out, a["result"], 1e-13, "out")
    for name in ("query", "key", "value"):
        assert_close(getattr(grads, name), a[f"grad_{name}"], 1e-12, name)
    assert_close(grads.log_forget / (1.0 + np.exp(a["gates"])), a["grad_gates"], 1e-12, "gates")


def test_constant_gates_are_alibi() -> None:
    slopes = np.array([0.5, 0.25, 0.125])
    gates = np.broadcast_to(-slopes[:, None], (2, 3, 7))
    bias = -slopes[:, None, None] * (2 + np.arange(5)[:, None] - np.arange(7))
    expected = aa.scaled_dot_product_attention(Q, K, V, is_causal=True, q_offset=2, bias=bias)
    assert_close(call(gates=gates), expected, 1e-13)


def test_queries_one_by_one_equal_one_call() -> None:
    expected = call()
    for n in range(5):
        seen = slice(n + 3)
        found = call(Q[:, :, n : n + 1], K[:, :, seen], V[:, :, seen], GATES[:, :, seen], q_offset=2 + n)
        assert_close(found, expected[:, :, n : n + 1], 1e-13, str(n))


def test_what_is_forgotten_does_not_come_back() -> None:
    gates = GATES.copy()
    gates[:, :, 4] = -1e4
    assert_close(call(gates=gates)[:, :, 2:], call(gates=gates, v=V * (np.arange(7) > 3)[:, None])[:, :, 2:], 1e-13)


BAD: dict[str, tuple[type[Exception], Any, str]] = {
    "gates": (ValueError, lambda: call(gates=GATES[:, :, 1:]), "`log_forget` has shape (2, 3, 6), expected (2, 3, 7)"),
    "offset": (ValueError, lambda: call(q_offset=3), "`query` has 5 positions from `q_offset`, 3, on, expected"),
    "array offset": (ValueError, lambda: call(q_offset=np.array([1, 2])), "`q_offset` is"),
    "softcap": (TypeError, lambda: call(softcap=1.0), "Attention has no option `softcap`"),
    "none": (TypeError, lambda: call(gates=None), "`log_forget` is None"),
}


@pytest.mark.parametrize(("error", "f", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input(error: type[Exception], f: Any, expected: str) -> None:
    says(error, expected, f)
