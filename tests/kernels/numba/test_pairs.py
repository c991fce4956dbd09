"""Products of bfloat16 numbers in pairs: by the CPU's instructions where it has them, and by ordinary ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attnarray.kernels.numba.runtime import jit as runtime
from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector import pairs
from attnarray.kernels.numba.vector.lanes import tile_size
from attnarray.kernels.numba.vector.memory import pointer
from attnarray.kernels.numba.vector.pairs import (
    blocked_pair_product,
    pair_rows,
    remove_nonfinite_words,
    round_rows,
    tile_pair_product,
)  # fmt: skip
from attnarray.kernels.numba.vector.product import Operand

ml_dtypes = pytest.importorskip("ml_dtypes")
W, M = tile_size(32)


@pytest.fixture(params=["instructions", "products"], autouse=True)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "products":
        monkeypatch.setattr(pairs, "has_registers", lambda: False)
    elif not pairs.available():
        pytest.skip("this CPU has no AVX512-BF16")
    monkeypatch.setattr(runtime, "_cached", lambda compiled: compiled)  # the code depends on what was replaced
    return str(request.param)


def words(x: np.ndarray) -> np.ndarray:
    """bfloat16 numbers (..., N, 2) as words (..., N)."""
    return np.ascontiguousarray(x.astype(ml_dtypes.bfloat16)).view(np.float32)[..., 0]


def bfloat16(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize("rows", [1, M // 3, M])
@pytest.mark.parametrize("steps", [1, 5, 64])
def test_the_tile_product(rows: int, steps: int) -> None:
    def run(rows: int, steps: int, a: Any, b: Any, c: Any, adds: bool) -> None:
        total = Operand(pointer(c), W, 0)
        tile_pair_product(rows, steps, Operand(pointer(a), 1, M), Operand(pointer(b), 0, W), total, adds, 0.5)

    rng = np.random.default_rng(rows + steps)
    a, b, c = bfloat16(rng, steps, M, 2), bfloat16(rng, steps, W, 2), np.zeros((M, W), np.float32)
    kernel, expected = jit(run, fastmath=EXACT).real, 0.5 * np.einsum("kmp,kwp->mw", a, b)
    for times in (1, 2):
        kernel(rows, steps, words(a).ravel(), words(b).ravel(), c.ravel(), times > 1)
        np.testing.assert_allclose(c[:rows], times * expected[:rows], rtol=0, atol=1e-5 * steps)  # roundings of sums


@pytest.mark.parametrize("columns", [W // 2, W])
def test_the_product_of_blocks(columns: int) -> None:
    def run(columns: int, blocks: int, steps: int, a: Any, b: Any, c: Any) -> None:
        given, total = Operand(pointer(a), steps, 1), Operand(pointer(c), W, 0)
        blocked_pair_product(columns, blocks, steps, given, M * steps, Operand(pointer(b), 0, W), steps * W, total)

    rng = np.random.default_rng(columns)
    a, b, c = bfloat16(rng, 3, M, 7, 2), bfloat16(rng, 3, 7, W, 2), np.ones((M, W), np.float32)
    jit(run, fastmath=EXACT).real(columns, 3, 7, words(a).ravel(), words(b).ravel(), c.ravel())
    expected = 1 + np.einsum("nmkp,nkwp->mw", a, b)
    np.testing.assert_allclose(c[:, :columns], expected[:, :columns], rtol=0, atol=1e-4)  # roundings of sums of 42


def test_rows_are_rounded_to_words() -> None:
    def run(panel: Any, pairs: Any, rows: Any) -> None:
        pair_rows(0, 3, pointer(panel), pointer(pairs))
        round_rows(0, 6, pointer(panel), pointer(rows))

    rng = np.random.default_rng(0)
    panel = rng.standard_normal((6, W)).astype(np.float32)
    panel[0, :4] = np.nan, np.inf, -np.inf, -0.0
    paired, rows = np.empty((3, W), np.float32), np.empty((6, W // 2), np.float32)
    jit(run, fastmath=EXACT).real(panel.ravel(), paired.ravel(), rows.ravel())
    expected = panel.astype(ml_dtypes.bfloat16).astype(np.float32)
    found = paired.view(ml_dtypes.bfloat16).reshape(3, W, 2).astype(np.float32)
    np.testing.assert_array_equal(found, expected.reshape(3, 2, W).swapaxes(1, 2))
    np.testing.assert_array_equal(rows.view(ml_dtypes.bfloat16).astype(np.float32), expected)
    in_place = panel.copy()
    jit(run, fastmath=EXACT).real(in_place.ravel(), paired.ravel(), in_place.ravel())
    np.testing.assert_array_equal(in_place.ravel()[: rows.size].view(np.uint32), rows.ravel().view(np.uint32))


def test_what_is_not_finite_is_removed() -> None:
    def run(numbers: Any, count: int) -> bool:
        return remove_nonfinite_words(pointer(numbers), count)

    x = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    finite = np.isfinite(x.astype(np.float32))
    cleared = x.copy()
    kernel = jit(run).real
    assert kernel(cleared.view(np.float32), x.size // 2)
    np.testing.assert_array_equal(cleared.view(np.uint16), np.where(finite, x.view(np.uint16), 0))
    assert not kernel(cleared.view(np.float32), x.size // 2)
