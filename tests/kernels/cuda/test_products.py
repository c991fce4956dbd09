"""Products of 16-bit matrices on a cuBLAS made of NumPy, and attention that multiplies through them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attnarray import use_kernels
from attnarray.attention.engine import attention, attention_backward
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.products import matmul_16_bit
from attnarray.kernels import Declined
from attnarray.kernels.cuda import products
from tests.cuda_emulation import fake_cublas, fake_cupy

pytestmark = pytest.mark.emulation
DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture(autouse=True)
def cupy() -> Iterator[Any]:
    fake_cublas.calls.clear()
    with fake_cupy.installed() as module:
        yield module


def drawn(*shape: int, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


# Layouts: contiguous, last two axes transposed, a part of a wider array, a part of longer ones.
LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: np.ascontiguousarray(x.mT).mT,
    "part of rows": lambda x: np.concatenate([x, x], axis=-1)[..., : x.shape[-1]],
    "part of columns": lambda x: np.concatenate([x, x], axis=-2).mT.copy().mT[..., : x.shape[-2], :],
    "some of the matrices' rows": lambda x: np.concatenate([x, x], axis=-2)[..., : x.shape[-2], :],
    "every other number": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "one for all": lambda x: np.broadcast_to(x[:1, :1], x.shape),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("y_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_layouts(x_layout: str, y_layout: str, dtype: str) -> None:
    for sizes in ((2, 3, 5, 7, 4), (1, 1, 1, 9, 3), (2, 1, 4, 1, 1), (1, 3, 6, 8, 1)):
        b, h, m, k, n = sizes
        x = LAYOUTS[x_layout](drawn(b, h, m, k, dtype=DTYPES[dtype]))
        y = LAYOUTS[y_layout](drawn(b, h, k, n, dtype=DTYPES[dtype], seed=1))
        found = products.matmul_16_bit(fake_cupy.ndarray(x), fake_cupy.ndarray(y), np.float32).held
        expected = x.astype(np.float32) @ y.astype(np.float32)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # float32 sums of up to 9


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_weights_are_rounded_in_their_own_layout(dtype: str) -> None:
    y = drawn(2, 3, 5, 4, dtype=DTYPES[dtype])
    for weights in (drawn(2, 3, 700, 5, dtype=np.float32), drawn(2, 3, 5, 700, dtype=np.float32).mT):
        found = products.matmul_16_bit(fake_cupy.ndarray(weights), fake_cupy.ndarray(y), y.dtype).held
        expected = (weights.astype(y.dtype).astype(np.float32) @ y.astype(np.float32)).astype(y.dtype)
        assert found.dtype == y.dtype
        bound = 4 * EPS[dtype]  # one rounding of sums of five
        np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=bound, atol=bound)
    assert fake_cublas.calls == [(0, 0), (1, 0)]  # x, y


def test_nothing_is_copied_that_cublas_can_read() -> None:
    x, y = (fake_cupy.ndarray(drawn(2, 3, 8, 6, dtype=np.float16, seed=n)) for n in range(2))
    for given in (x, x.mT, x[:, :, 2:5], x[:, :1], x[1:, :, ::2]):
        assert products.matrices(given).array is given
    assert products.matrices(y[:, ::2, :, ::3]).array is not y
    products.matmul_16_bit(x, y.mT, np.float32)
    assert fake_cublas.calls == [(0, 1)]


def test_nothing_to_multiply() -> None:
    for b, m, k, n in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 4, 0), (2, 3, 0, 4)):
        x, y = (fake_cupy.ndarray(np.ones((b, 1, *s), np.float16)) for s in ((m, k), (k, n)))
        found = products.matmul_16_bit(x, y, np.float32)
        assert found.shape == (b, 1, m, n)
        assert not found.held.any()
    assert not fake_cublas.calls


def test_what_cublas_does_not_multiply_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = (fake_cupy.ndarray(np.ones((1, 2, 3, 3), dtype)) for dtype in (np.float16, np.float32))
    with pytest.raises(Declined, match="dtype float32: float16, bfloat16 only"):
        products.matmul_16_bit(half, single, np.float32)
    with pytest.raises(Declined, match="the numbers of matrices differ"):
        products.matmul_16_bit(half, half[:, :1], np.float32)
    with pytest.raises(Declined, match="dtype float16 times bfloat16"):
        products.matmul_16_bit(half, fake_cupy.ndarray(half.held.astype(ml_dtypes.bfloat16)), np.float32)
    other = fake_cupy.ndarray(half.held, 1)
    with pytest.raises(ValueError, match=r"matrix products: the arrays are on the devices \[0, 1\], expected one"):
        products.matmul_16_bit(half, other, np.float32)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.cublas", None)
    with pytest.raises(Declined, match="cuBLAS cannot be loaded"):
        products.matmul_16_bit(half, half, np.float32)
    assert matmul_16_bit(half, half, np.float32).held.tolist() == [[[[3.0] * 3] * 3] * 2]  # the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_multiplies_16_bit_numbers(dtype: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped heads and several blocks of queries; no float32 copy of q, k and v is multiplied."""
    monkeypatch.setattr("attnarray.attention.blocks.BLOCK_ELEMENTS", 2 * 4 * 9 * 3)
    monkeypatch.setattr(np, "matmul", None)
    kind, scoring = DTYPES[dtype], ScoreModifiers(0.4, right=0 if causal else None, q_offset=2)
    q, k, v, dout = (
        drawn(2, heads, length, size, dtype=kind, seed=n)
        for n, (heads, length, size) in enumerate(((4, 7, 6), (2, 9, 6), (2, 9, 5), (4, 7, 5)))
    )
    given = [fake_cupy.ndarray(x) for x in (q, k, v, dout)]
    out, lse = attention.reference(*given[:3], scoring)  # as for what the fused kernels decline
    gradients = attention_backward.reference(given[3], None, *given[:3], out, lse, scoring)[:3]
    calls = len(fake_cublas.calls)
    monkeypatch.undo()
    assert calls == 3 * (2 + 5)  # each product of three blocks
    wide = [x.astype(np.float64) for x in (q, k, v, dout)]
    with use_kernels("reference"):
        true_out, true_lse = attention(*wide[:3], scoring)
        true = attention_backward(wide[3], None, *wide[:3], true_out, true_lse, scoring)[:3]
    for found, exact in zip((out, *gradients), (true_out, *true), strict=True):
        assert found.dtype == kind
        error = np.abs(found.held.astype(np.float64) - exact).max()
        assert error <= 4 * EPS[dtype] * np.abs(exact).max()  # weights, gradients of scores and results are rounded


def test_a_weight_of_zero_hides_nan() -> None:
    q, k, v = (drawn(1, 1, 4, 4, dtype=np.float16, seed=n) for n in range(3))
    v[0, 0, 3] = np.nan
    out, _ = attention.reference(*(fake_cupy.ndarray(x) for x in (q, k, v)), ScoreModifiers(1.0, right=0))
    assert np.isfinite(out.held[0, 0, :3]).all()
    assert np.isnan(out.held[0, 0, 3]).all()
