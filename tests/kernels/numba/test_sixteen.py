"""16-bit numbers: each is widened exactly, and float32 numbers are rounded as NumPy and ml_dtypes round them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.kernels.numba.runtime.call import address
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector import conversion, sixteen
from attnarray.kernels.numba.vector.lanes import Lanes
from attnarray.kernels.numba.vector.memory import pointer, pointer_at
from attnarray.kernels.numba.vector.rows import Row, row_pass

DTYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def sixteen_bit(dtype: str) -> Any:
    if dtype == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(np.float16)


def hard_numbers() -> np.ndarray:
    """Bit patterns of float32 of all exponents: random ones, and those around the middle of two 16-bit numbers."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 2**18, dtype=np.uint32)
    around = rng.integers(0, 2**19, 2**16, dtype=np.uint32) << 13
    near = [around + np.uint32(step) for step in (0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)]
    return np.concatenate([bits, *near]).view(np.float32)


@DTYPES
def test_all_numbers_are_widened_exactly(dtype: str) -> None:
    x = np.arange(2**16, dtype=np.uint16).view(sixteen_bit(dtype))
    np.testing.assert_array_equal(conversion.converted(x, np.dtype(np.float32)), x.astype(np.float32))


@DTYPES
def test_numbers_are_rounded_to_the_nearest(dtype: str) -> None:
    x, to = hard_numbers(), sixteen_bit(dtype)
    with np.errstate(all="ignore"):
        expected = x.astype(to)
    found = conversion.converted(x, to)
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    there = ~np.isnan(x)  # the signs of zeros too
    np.testing.assert_array_equal(found.view(np.uint16)[there], expected.view(np.uint16)[there])


@row_pass(vectors=1)
def widen(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": sixteen.from_float16(x)}


@row_pass(vectors=1)
def narrow(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": sixteen.to_float16(x)}


def _widen(bits: int, out: Any) -> None:
    widen(out.size, pointer_at(sixteen.FLOAT16_BITS, bits), pointer(out))


def _narrow(x: Any, bits: int) -> None:
    narrow(x.size, pointer(x), pointer_at(sixteen.FLOAT16_BITS, bits))


def test_float16_without_an_instruction_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sixteen, "has_float16", lambda: False)
    all_numbers, wide = np.arange(2**16, dtype=np.uint16).view(np.float16), np.empty(2**16, np.float32)
    jit(_widen, fastmath=EXACT)(address(all_numbers), wide)
    np.testing.assert_array_equal(wide, all_numbers.astype(np.float32))
    x = hard_numbers()
    found = np.empty(x.shape, np.float16)
    jit(_narrow, fastmath=EXACT)(x, address(found))
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16)
    np.testing.assert_array_equal(found, expected)
    there = ~np.isnan(x)
    np.testing.assert_array_equal(found.view(np.uint16)[there], expected.view(np.uint16)[there])


@DTYPES
def test_arrays_that_no_kernel_converts(dtype: str) -> None:
    to = sixteen_bit(dtype)
    x = np.random.default_rng(1).standard_normal((6, 7)).astype(to)
    for given in (x.T, x[:, ::2], x[:0]):
        np.testing.assert_array_equal(conversion.converted(given, np.dtype(np.float32)), given.astype(np.float32))
        np.testing.assert_array_equal(conversion.converted(given.astype(np.float32), to), given)
    assert conversion.converted(x, to) is x
    assert aa.softmax(x).dtype == to
