"""The CUDA kernel of linear attention, run on a CPU in the emulation by its host function, against its reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from attnarray.kernels import Declined
from attnarray.kernels.cuda import linear
from tests.cuda_emulation import fake_cupy
from tests.support.libraries import EPS
from tests.support.table_calls import kernel_of, reference_of

pytestmark = pytest.mark.emulation

NAME = "attention.linear.chunks:scan_chunks"
# B, Hkv, chunks, C, Dk, Dv: one block, parts of rows and columns, several rows of a thread, and nothing.
SIZES = [(1, 1, 1, 1, 1, 1), (2, 2, 3, 4, 5, 17), (1, 2, 2, 8, 70, 3), (1, 1, 2, 128, 18, 20)]
EMPTY = [(0, 2, 1, 2, 3, 4), (2, 0, 1, 2, 3, 4), (1, 2, 2, 2, 0, 4), (1, 2, 2, 2, 3, 0)]
EVERY = list(itertools.product((None, 1, "dim"), (False, True), (False, True), (False, True), (False, True)))


@pytest.fixture(autouse=True)
def cupy() -> Iterator[Any]:
    with fake_cupy.installed() as module:
        yield module


def arguments(sizes: tuple[int, ...], option: tuple[Any, ...], dtype: str = "float32") -> tuple[Any, ...]:
    """Arrays of which those that an option leaves out are None."""
    (B, H, N, C, Dk, Dv), (decays, *there, reverse) = sizes, option
    rng = np.random.default_rng(0)
    shapes = (B, H, 1, N, C, Dk), (B, H, 1, N, C, Dk), (B, H, 1, N, Dk, Dv)
    p, q, r = (0.3 * rng.standard_normal(shape).astype(dtype) if given else None
               for shape, given in zip(shapes, there, strict=True))  # fmt: skip
    S, x = (rng.standard_normal(shape).astype(dtype) for shape in ((B, H, 1, Dk, Dv), (B, H, 1, N, C, Dv)))
    whole = None if decays is None else rng.random((B, H, 1, N, 1, Dk if decays == "dim" else 1)).astype(dtype)
    return S, whole, x, p, q, r, reverse


def kernel(given: tuple[Any, ...]) -> list[np.ndarray]:
    moved = (fake_cupy.ndarray(x) if isinstance(x, np.ndarray) else x for x in given)
    return [x.held for x in kernel_of(NAME, "cuda")(*moved)]


def assert_right(given: tuple[Any, ...]) -> None:
    dtype = given[2].dtype
    exact = reference_of(NAME)(*(x.astype(np.float64) if isinstance(x, np.ndarray) else x for x in given))
    for found, truth in zip(kernel(given), exact, strict=True):
        assert (found.dtype, found.shape) == (dtype, truth.shape)
        scale = np.max(np.abs(truth), initial=1.0)
        np.testing.assert_allclose(found, truth, rtol=0, atol=64 * EPS[str(dtype)] * scale)  # sums of up to 128 numbers


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_option(dtype: str) -> None:
    for seed, option in enumerate(EVERY):
        fake_cupy.State.seed = seed
        assert_right(arguments(SIZES[1], option, dtype))


@pytest.mark.parametrize("sizes", [*SIZES, *EMPTY], ids=str)
def test_sizes(sizes: tuple[int, ...]) -> None:
    for option in EVERY[-2:]:
        assert_right(arguments(sizes, option))


def test_few_blocks_go_over_many_heads_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MOST_BLOCKS", 2)
    monkeypatch.setattr(linear, "MOST_BLOCKS_ALONG_Y", 1)
    assert_right(arguments((2, 2, 2, 2, 3, 35), EVERY[-1]))


def test_any_layout_and_any_order_of_threads() -> None:
    given = arguments(SIZES[1], EVERY[-1])
    expected = kernel(given)
    strided = tuple(np.repeat(x, 2, axis=-1)[..., ::2] if isinstance(x, np.ndarray) else x for x in given)
    for seed, changed in ((1, given), (2, strided)):
        fake_cupy.State.seed = seed
        for found, same in zip(kernel(changed), expected, strict=True):
            np.testing.assert_array_equal(found, same)
    assert fake_cupy.State.synchronisations == 0


def test_large_states_are_declined() -> None:
    with pytest.raises(Declined, match="a state of 20000 rows and chunks of 2 steps: they need 1280128 bytes"):
        kernel(arguments((1, 1, 1, 2, 20000, 1), EVERY[0]))
