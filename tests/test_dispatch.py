"""The choice of kernels, and the results of `explain` and `warmup`."""

from __future__ import annotations

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention.engine import attention
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.normalizers import masked_softmax, masked_softmax_backward
from attnarray.dispatch import KernelUnavailableError
from attnarray.kernels import Declined
from tests.support.libraries import STRICT
from tests.support.table_calls import (
    USABLE,
    kernel_of,
)

HALF = np.ones((1, 1, 2, 3), np.float16)


def test_what_a_kernel_declines_goes_to_the_reference() -> None:
    with pytest.raises(Declined, match="dtype float16: float32 and float64 only"):
        kernel_of("attention.normalizers:masked_softmax", "numba")(HALF.copy(), ScoreModifiers(1.0))
    with aa.use_kernels("auto"):
        weights, _ = masked_softmax(HALF.copy(), ScoreModifiers(1.0))
        assert weights.dtype == np.float16
        choices = aa.explain(masked_softmax, HALF.copy(), ScoreModifiers(1.0)).choices
    assert [(choice.kernel, choice.reason) for choice in choices] == [
        ("reference", "dtype float16: float32 and float64 only")
    ]


def test_strict_kernels_raise_with_the_reason() -> None:
    with aa.use_kernels("numba"):
        with pytest.raises(
            KernelUnavailableError, match=r"cannot run there: dtype float16.* Use use_kernels\('auto'\)"
        ):
            masked_softmax(HALF.copy(), ScoreModifiers(1.0))
        with pytest.raises(KernelUnavailableError, match="there are kernels for NumPy and CuPy arrays only"):
            masked_softmax(STRICT.array(np.ones((1, 1, 2, 3))), ScoreModifiers(1.0))
    x = np.ones((1, 1, 2, 3))
    with aa.use_kernels("cuda"):
        with pytest.raises(
            KernelUnavailableError, match="cuda kernels do not run on these arrays, compiled and numba kernels do"
        ):
            aa.scaled_dot_product_attention(x, x, x)
        with pytest.raises(KernelUnavailableError, match=r"use_kernels\('cuda'\) was asked for, but attention.engine"):
            attention(x, x, x, ScoreModifiers(1.0))
    with aa.use_kernels("numba"):
        assert np.all(masked_softmax_backward(x.copy(), x.copy(), x[..., 0], x[..., 0], ScoreModifiers(1.0))[0] > 0)


def test_unknown_kernels_are_refused() -> None:
    with (
        pytest.raises(
            ValueError, match="Unknown kernels 'fast'; expected one of 'auto', 'reference', 'compiled', 'numba', 'cuda'"
        ),
        aa.use_kernels("fast"),
    ):
        pass


def test_kernels_are_chosen_within_the_block_only() -> None:
    x = np.ones((1, 1, 2, 3))
    with aa.use_kernels("reference"):
        with aa.use_kernels("auto"):
            assert "numba" in str(aa.explain(aa.scaled_dot_product_attention, x, x, x))
        assert "numba" not in str(aa.explain(aa.scaled_dot_product_attention, x, x, x))
    with pytest.raises(RuntimeError, match="within"), aa.use_kernels("reference"):
        raise RuntimeError("within")
    assert "numba" in str(aa.explain(aa.scaled_dot_product_attention, x, x, x))


def test_explain_says_what_runs_and_why() -> None:
    x = np.ones((1, 1, 2, 3))
    lines = str(aa.explain(aa.scaled_dot_product_attention, x, x, x)).splitlines()
    assert [line.split()[:2] for line in lines] == [["attention.engine:attention", "numba"]]
    assert str(aa.explain(aa.asarray, x)) == "No accelerated function is involved: plain array code runs."
    given = STRICT.array(x)
    assert "(there are kernels for NumPy and CuPy arrays only)" in str(
        aa.explain(aa.scaled_dot_product_attention, given, given, given)
    )


def test_explain_takes_a_function_not_its_result() -> None:
    with pytest.raises(TypeError, match="`function` has type ndarray, expected a function and then its arguments"):
        aa.explain(aa.softmax(np.ones((2, 3))))


def test_warmup_compiles_every_kernel() -> None:
    seconds = aa.warmup(("float32", "float64"))
    modules = {kernel_of(*place).__module__ for place, reason in USABLE.items() if not reason}
    assert set(seconds) == modules
    assert all(second >= 0 for second in seconds.values())
