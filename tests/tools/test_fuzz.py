"""The fuzzer: some of its calls in each run of the tests, and that it finds errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray
from attnarray import dispatch
from attnarray.kernels.numba.rows import activations as row_activations
from attnarray.ops import softmax
from tests.fuzz import attempt, main
from tests.support.fuzz_calls import DRAWS


def test_every_triple_is_drawn() -> None:
    assert set(DRAWS) == set(attnarray.TRIPLES), (
        "give each of attnarray.TRIPLES a function, named in tests/support/fuzz_calls.py"
    )


@pytest.mark.parametrize("function", DRAWS)
def test_random_calls_agree(function: str) -> None:
    tried = [(seed, *attempt(seed, [function])[1:]) for seed in range(40)]
    assert not [(seed, notes) for seed, verdict, notes in tried if verdict == "wrong"]
    assert sum(verdict == "right" for _, verdict, _ in tried) > 20  # few calls are refused


@pytest.mark.parametrize(
    "change",
    [lambda x: 1.001 * x, lambda x: x + (x == x.max()), lambda x: np.full_like(x, np.nan)],
    ids=["a factor", "one entry", "NaN"],
)
def test_a_wrong_kernel_is_found(change: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    right = row_activations.silu_backward
    monkeypatch.setattr(row_activations, "silu_backward", lambda dout, x: change(right(dout, x)) if x.size else x)
    dispatch._choose.cache_clear()
    dispatch._find.cache_clear()
    try:
        assert main(["0", "20", "--only", "silu"]) == 1
    finally:
        monkeypatch.undo()
        dispatch._choose.cache_clear()
        dispatch._find.cache_clear()
    assert "silu: wrong ('x',) is off by" in capsys.readouterr().out


def test_a_warning_for_what_is_masked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = softmax.softmax_fwd

    def warns(x: Any, *args: Any, **kwargs: Any) -> Any:
        _ = x - x  # NaN where infinite
        return right(x, *args, **kwargs)

    monkeypatch.setattr(softmax, "softmax_fwd", warns)
    notes = [note for seed in range(100) for note in attempt(seed, ["softmax"])[2]]
    assert any("FloatingPointError: invalid value encountered in subtract" in note for note in notes)
