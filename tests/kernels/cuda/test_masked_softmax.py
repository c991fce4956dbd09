"""The CUDA kernels of scores and weights, run on a CPU in the emulation by their host functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from attnarray.attention.modifiers import ScoreModifiers
from attnarray.kernels import Declined
from attnarray.kernels.cuda import additive, loader
from tests.cuda_emulation import fake_cupy
from tests.support.libraries import EPS
from tests.support.table_calls import arguments_of, in_dtype, kernel_of, largest_distance, reference_of, scorings
from tests.support.tiers import slow

pytestmark = pytest.mark.emulation
SCORING = ["attention.normalizers:masked_softmax", "attention.normalizers:masked_softmax_backward"]
ADDITIVE = [
    "attention.alignment.additive:additive_scores",
    "attention.alignment.additive:additive_scores_backward",
]
EVERY = 149  # every n-th combination of options, coprime to their numbers


@pytest.fixture(autouse=True)
def cupy() -> Iterator[Any]:
    with fake_cupy.installed() as module:
        yield module


def moved(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return fake_cupy.ndarray(value.copy())
    return (
        value._replace(**{k: moved(v) for k, v in value._asdict().items()})
        if isinstance(value, ScoreModifiers)
        else value
    )


def kernel(name: str, arguments: Any) -> tuple[Any, ...]:
    results = kernel_of(name, "cuda")(*map(moved, arguments))
    results = results if isinstance(results, tuple) else (results,)
    return tuple(None if result is None else result.held for result in results)


def reference(name: str, arguments: Any) -> tuple[Any, ...]:
    with np.errstate(all="ignore"):
        results = reference_of(name)(*in_dtype(arguments, arguments[0].dtype.name))
    return results if isinstance(results, tuple) else (results,)


def assert_right(name: str, arguments: Any, dtype: str) -> None:
    truth = reference(name, in_dtype(arguments, "float64"))
    rounded = in_dtype(arguments, dtype)
    for result, exact in zip(kernel(name, rounded), truth, strict=True):
        assert (result is None) == (exact is None)
        if exact is not None:
            assert (result.dtype, result.shape) == (dtype, exact.shape)
            scale = max(float(np.max(np.abs(exact[np.isfinite(exact)]), initial=0.0)), 1.0)
            assert (
                largest_distance(result, exact) <= 20 * EPS[dtype] * scale
            )  # roundings of scores are those of exponents


@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
@pytest.mark.parametrize("name", SCORING)
def test_every_option_of_scores(name: str, dtype: str) -> None:
    shape = (2, 3, 5, 7)
    dots = 2.0 * np.random.default_rng(0).standard_normal(shape)
    for n, scoring in enumerate(scorings(*shape, every=EVERY)):
        fake_cupy.State.seed = n
        assert_right(name, arguments_of(name, dots, scoring), dtype)
    assert fake_cupy.State.synchronisations == 0


@pytest.mark.slow
@pytest.mark.parametrize("keys", [0, 1, 300, 4500])
@pytest.mark.parametrize("name", SCORING)
def test_rows_of_any_length(name: str, keys: int) -> None:
    shape = (1, 2, 1 if keys > 1000 else 3, keys)
    rng = np.random.default_rng(1)
    dots, bias = 2.0 * rng.standard_normal(shape), rng.standard_normal(shape)
    bias[rng.random(shape) < 0.1] = -np.inf
    scoring = ScoreModifiers(0.7, softcap=2.0, bias=bias, mask=rng.random(shape) < 0.8, left=keys // 2, q_offset=keys)
    assert_right(name, arguments_of(name, dots, scoring), "float32")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["mask", "bias"])
@pytest.mark.parametrize("name", SCORING)
def test_masked_entries_are_ignored(name: str, by: str) -> None:
    shape = (2, 2, 4, 9)
    rng = np.random.default_rng(2)
    mask = rng.random(shape) < 0.5
    mask[0, 0, 0] = False
    rule = {"mask": mask} if by == "mask" else {"bias": np.where(mask, rng.standard_normal(shape), -np.inf)}
    arguments = in_dtype(arguments_of(name, rng.standard_normal(shape), ScoreModifiers(1.0, **rule)), "float32")
    poisoned = tuple(
        np.where(mask, value, np.nan).astype(np.float32) if getattr(value, "shape", None) == shape else value
        for value in arguments
    )
    for found, expected in zip(kernel(name, poisoned), kernel(name, arguments), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert expected is None or not np.isnan(expected).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORING)
def test_visible_nan_stays_in_its_row_and_out_of_masked_entries(name: str) -> None:
    rng = np.random.default_rng(4)
    dots, mask = rng.standard_normal((1, 2, 3, 9)), rng.random((1, 2, 3, 9)) < 0.6
    mask[0, 1, 1, 4], dots[0, 1, 1, 4] = True, np.nan
    arguments = in_dtype(arguments_of(name, dots, ScoreModifiers(1.0, mask=mask)), "float32")
    for found, expected in zip(kernel(name, arguments), reference(name, arguments), strict=True):
        if expected is not None:
            np.testing.assert_allclose(found, expected, rtol=0, atol=20 * EPS["float32"])  # roundings of exponents


def test_results_overwrite_the_dot_products_and_biases_are_never_copied() -> None:
    dots = fake_cupy.ndarray(np.ones((1, 2, 3, 4), np.float32))
    bias = fake_cupy.ndarray(np.broadcast_to(np.arange(4, dtype=np.float32), (1, 2, 3, 4)))
    weights, _ = kernel_of(SCORING[0], "cuda")(dots, ScoreModifiers(1.0, bias=bias))
    assert weights is dots
    np.testing.assert_allclose(dots.held.sum(-1), 1.0, rtol=1e-6)  # some roundings


def strange(x: Any) -> Any:
    """The same numbers, neither contiguous nor at multiples of 16 bytes."""
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        return x
    held = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    held[..., 1:-2] = x
    return held[..., 1:-2]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SCORING, *ADDITIVE])
def test_arrays_that_are_neither_contiguous_nor_aligned(name: str) -> None:
    if name in ADDITIVE:
        arguments = additive_arguments(name, (2, 9, 35, 20), "float32")
    else:
        dots = np.random.default_rng(5).standard_normal((2, 3, 5, 7))
        arguments = in_dtype(arguments_of(name, dots, ScoreModifiers(0.7, softcap=2.0)), "float32")
    # A copy would make an array contiguous: this moves it without.
    expected = kernel(name, arguments)
    views = [fake_cupy.ndarray(strange(x)) if isinstance(x, np.ndarray) else moved(x) for x in arguments]
    assert not any(x.flags.c_contiguous for x in views if isinstance(x, fake_cupy.ndarray) and x.ndim > 1)
    found = kernel_of(name, "cuda")(*views)
    for result, exact in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert (result is None) == (exact is None)
        if exact is not None:
            np.testing.assert_array_equal(result.held, exact)


def test_contiguous_arrays_may_begin_anywhere() -> None:
    for start in (0, 1, 3):
        q, k = (
            fake_cupy.ndarray(np.ones(n + 400, np.float32)[start : start + n].reshape(1, 1, -1, 5)) for n in (45, 35)
        )
        out = kernel_of(ADDITIVE[0], "cuda")(q, k, fake_cupy.ndarray(np.ones(5, np.float32)))
        np.testing.assert_allclose(out.held, 5 * np.tanh(2.0), rtol=1e-6)  # some roundings


def test_16_bit_scores_are_declined() -> None:
    with pytest.raises(Declined, match="dtype float16: float32, float64 only"):
        kernel_of(SCORING[0], "cuda")(fake_cupy.ndarray(np.ones((1, 1, 2, 3), np.float16)), ScoreModifiers(1.0))


def additive_arguments(name: str, sizes: tuple[int, ...], dtype: str, size: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    b, t, s, a = sizes
    q, k, w = (
        size * rng.standard_normal((b, 1, t, a)),
        size * rng.standard_normal((b, 1, s, a)),
        rng.standard_normal(a),
    )
    dscores = rng.standard_normal((b, 1, t, s)) * (rng.random((b, 1, t, s)) < 0.8)
    given = (q, k, w) if name == ADDITIVE[0] else (dscores, q, k, w)
    return [x.astype(dtype) for x in given]


# Several tiles, blocks of rows and ranges of others, with queries or keys as the longer ones; and nothing of each.
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 33, 40, 37), (2, 9, 35, 130), (1, 150, 70, 66), (1, 67, 131, 5)]
SIZES += [(2, 0, 3, 4), (2, 3, 0, 4), (0, 2, 3, 4), (2, 0, 0, 4)]


@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
@pytest.mark.parametrize("name", ADDITIVE)
def test_additive_scores_of_any_size(name: str, dtype: str) -> None:
    for n, (sizes, size) in enumerate(
        itertools.chain(((s, 1.0) for s in SIZES), (((2, 9, 35, 20), x) for x in (8, 1e4)))
    ):
        fake_cupy.State.seed = n
        arguments = additive_arguments(name, sizes, dtype, size)
        truth = reference(name, [x.astype(np.float64) for x in arguments])
        b, t, s, a = sizes
        counts = [a] if name == ADDITIVE[0] else [s, t, b * t * s]  # of the terms of each sum
        for result, exact, terms in zip(kernel(name, arguments), truth, counts, strict=True):
            assert (result.dtype, result.shape) == (dtype, exact.shape)
            assert largest_distance(result, exact) <= 8 * EPS[dtype] * (1 + 3 * terms**0.5) * 3  # of sums of such terms


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDITIVE)
def test_additive_scores_have_the_same_bits_in_every_run(name: str) -> None:
    arguments = additive_arguments(name, (2, 70, 66, 35), "float32")
    runs = []
    for seed in range(3):
        fake_cupy.State.seed = seed
        runs.append([result.tobytes() for result in kernel(name, arguments)])
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.slow
def test_additive_gradients_hold_far_less_than_all_pairs_with_their_features() -> None:
    for batch, rows, others, features in ((8, 512, 512, 256), (4, 1024, 1024, 512), (1, 16384, 16384, 64)):
        grid, each = additive.plan_slopes(batch, rows, others, features, 4, 132)
        assert each * grid.blocks[2] >= others > each * (grid.blocks[2] - 1)
        held = grid.blocks[2] * rows + grid.blocks[0] // batch * others
        assert held * batch * features <= batch * rows * others * features / 32
        assert grid.shared <= loader.LARGE_SHARED
        assert grid.blocks[0] * grid.blocks[1] * grid.blocks[2] >= 132 * 4  # all multiprocessors have work


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDITIVE)
def test_additive_scores_keep_nan_with_its_pairs(name: str) -> None:
    arguments = additive_arguments(name, (2, 9, 35, 20), "float32")
    q, k = arguments[-3:-1]
    q[0, 0, 2, 3], k[1, 0, 34, 1], q[1, 0, 8, 0] = np.nan, np.inf, -np.inf
    if name == ADDITIVE[1]:
        arguments[0][0, 0, 2] = 0.0  # then that query's NaN is ignored
    for found, expected in zip(kernel(name, arguments), reference(name, arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # sums of float32 in another order
