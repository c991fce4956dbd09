"""The CUDA kernels along rows, run on a CPU in the emulation by their host functions, against their references."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from attnarray.backend import asarray
from attnarray.kernels import Declined
from attnarray.kernels.cuda import grid, loss, lstm_cell, norm, segments
from attnarray.kernels.table import KERNELS
from tests.cuda_emulation import fake_cupy
from tests.support.libraries import EPS
from tests.support.row_calls import CALLS, LAYOUTS, Arguments, as_tuple, reference
from tests.support.table_calls import in_dtype, kernel_of, largest_distance
from tests.support.tiers import slow

pytestmark = pytest.mark.emulation

NAMES = sorted(name for name, row in KERNELS.items() if "cuda" in row and not name.startswith("attention."))
SHAPES = [(9, 3), (3, 130), (2, 3, 5), (0, 4), (3, 0), (7,)]
ROW_OF_A_BLOCK, ROW_NOT_ALIGNED, ROW_OF_A_WARP = (2, 2052), (2, 1001), (3, 260)
ROW_IN_SPANS, LONG_ROW = (1, 5001), (1, 16412)  # longer than what 512 threads hold
LONGER_ROWS = [ROW_OF_A_BLOCK, ROW_NOT_ALIGNED, ROW_OF_A_WARP, ROW_IN_SPANS, LONG_ROW]
ALONG_ROWS = [name for name in NAMES if any(word in name for word in ("softmax:", "norm", "loss"))]


@pytest.fixture(autouse=True)
def cupy() -> Iterator[Any]:
    with fake_cupy.installed() as module:
        yield module


def moved(values: Any) -> Any:
    """The arguments with their arrays in CuPy."""
    return tuple(fake_cupy.ndarray(x) if isinstance(x, np.ndarray) else x for x in values)


def kernel(name: str, arguments: Arguments) -> tuple[Any, ...]:
    """Called on CuPy arrays; the results on the host."""
    results = as_tuple(kernel_of(name, "cuda")(*moved(arguments)))
    assert all(result is None or type(result) is fake_cupy.ndarray for result in results)
    return tuple(None if result is None else result.held for result in results)


def calls_of(name: str, shape: tuple[int, ...], dtype: str) -> list[Arguments]:
    if 0 in shape and ("loss" in name or "segments" in name or "embedding" in name or "lstm" in name):
        shape = tuple(size or 1 for size in shape)  # no classes or entries at all: excluded by the callers
    drawn = [in_dtype(call, dtype) for call in CALLS[name](np.random.default_rng(shape), shape)]
    drawn = [call for call in drawn if call[-1] is None or "embedding" not in name or call[-1] < 100]  # blocks per row
    return drawn[:: max(1, len(drawn) // 3)]


def assert_right(name: str, arguments: Arguments, dtype: str) -> None:
    truth, other = reference(name, in_dtype(arguments, "float64")), reference(name, arguments)
    found = kernel(name, arguments)
    assert len(found) == len(truth)
    for result, exact, beside in zip(found, truth, other, strict=True):
        assert (result is None) == (exact is None)
        if exact is None:
            continue
        assert (result.dtype, result.shape) == (beside.dtype, exact.shape)
        scale = max(largest(exact), 1.0, largest(arguments[0]) if "backward" in name else 0.0)
        errors = largest_distance(result, exact), largest_distance(beside, exact)
        # A few roundings more, as the error of the reference may be small by chance; in float64 it is not the truth.
        roundings = {"float32": 8, "float64": 40}[dtype]
        assert errors[0] <= 2 * errors[1] + roundings * EPS[dtype] * scale, (errors, scale)


def largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))


def test_every_kernel_is_tested() -> None:
    assert set(NAMES) <= set(CALLS)


@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
@pytest.mark.parametrize("name", NAMES)
def test_as_exact_as_the_reference(name: str, dtype: str) -> None:
    for shape in SHAPES:
        for n, arguments in enumerate(calls_of(name, shape, dtype)):
            fake_cupy.State.seed = n
            assert_right(name, arguments, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("shape", LONGER_ROWS, ids=str)
@pytest.mark.parametrize("name", ALONG_ROWS)
def test_rows_of_a_whole_block_and_longer(name: str, shape: tuple[int, ...]) -> None:
    assert_right(name, calls_of(name, shape, "float32")[-1], "float32")
    if shape == ROW_IN_SPANS:  # float64 holds half as many numbers
        assert_right(name, calls_of(name, (1, 2501), "float64")[0], "float64")


WIDE = [name for name in NAMES if "softmax:" in name or "norm" in name]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", WIDE)
def test_wide_rows_one_array_of_which_fits_in_registers(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "WAVE_BYTES", 2 * 2 * 40000)  # two rows, for more than one wave
    shape = (3, {"float64": 4100, "float32": 8200, "float16": 16400}[dtype])
    for arguments in calls_of(name, shape, "float32" if dtype == "float16" else dtype)[:2]:
        if dtype != "float16":
            assert_right(name, arguments, dtype)
        elif "norm" not in name or arguments[-1] is not None:
            assert_right_in_16_bits(name, arguments, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if "segment" in name or "embedding" in name])
def test_segments_of_many_entries(name: str) -> None:
    assert_right(name, calls_of(name, (150, 3), "float32")[0], "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_few_blocks_go_over_many_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (grid, segments, lstm_cell):
        monkeypatch.setattr(module, "MOST_BLOCKS", 2)
    monkeypatch.setattr(segments, "MOST_BLOCKS_ALONG_Y", 1)
    monkeypatch.setattr(norm, "MULTIPROCESSOR_THREADS", 1)
    monkeypatch.setattr(loss, "AT_ONCE", dict.fromkeys(loss.AT_ONCE, 1))
    for shape in [(40, 5), (5, 300), (9, 301)]:
        assert_right(name, calls_of(name, shape, "float32")[0], "float32")
    wide = (2, 9, 40) if "segment" in name else (3, 1500)
    assert_right(name, calls_of(name, wide, "float32")[0], "float32")


@pytest.mark.slow
def test_losses_of_many_rows_and_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "AT_ONCE", dict.fromkeys(loss.AT_ONCE, 1))
    for shape in [(41, 300), (5, 9000)]:  # rows of a warp, and of a block in several spans; some are ignored
        for arguments in calls_of("ops.loss:_cross_entropy", shape, "float32"):
            assert_right("ops.loss:_cross_entropy", arguments, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_any_layout_is_accepted(name: str, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    for arguments in calls_of(name, (3, 7, 4), "float32")[:1]:
        given = tuple(layout(value) if isinstance(value, np.ndarray) else value for value in arguments)
        for found, expected in zip(kernel(name, given), kernel(name, arguments), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_threads_does_not_matter_and_nothing_waits_for_the_gpu(name: str) -> None:
    for shape in [(9, 20), (1, 300)]:
        arguments = calls_of(name, shape, "float32")[-1]
        results = []
        for seed in (1, 2):
            fake_cupy.State.seed = seed
            results.append(kernel(name, arguments))
        for others in results[1:]:
            for found, expected in zip(others, results[0], strict=True):
                np.testing.assert_array_equal(found, expected)
    assert fake_cupy.State.synchronisations == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in NAMES if "lstm" not in name])
def test_16_bit_arrays_are_computed_in_float32(name: str, dtype: str) -> None:
    for shape in [(3, 19), (1, 300), (5, 520), (1, 1040)]:
        for arguments in calls_of(name, shape, "float32")[:1]:
            assert_right_in_16_bits(name, arguments, dtype)


def assert_right_in_16_bits(name: str, arguments: Arguments, dtype: str) -> None:
    half = asarray(np.zeros(1), dtype).dtype
    given = tuple(narrowed(name, n, value, half) for n, value in enumerate(arguments))
    expected, found = reference(name, given), kernel(name, given)
    for result, other in zip(found, expected, strict=True):
        if other is None:
            continue
        assert result.dtype == other.dtype
        result, other = result.astype(np.float64), other.astype(np.float64)
        np.testing.assert_allclose(result, other, rtol=0, atol=2 * EPS[dtype] * max(largest(other), 1.0))


# Indices of arguments that stay in the compute dtype.
KEPT = {
    "ops.norm:_layer_norm_backward": (2, 3),
    "ops.norm:_rms_norm_backward": (2,),
    "ops.loss:_cross_entropy_backward": (0, 3, 4),
}


def narrowed(name: str, place: int, value: Any, half: Any) -> Any:
    is_number = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(half) if is_number and place not in KEPT.get(name, ()) else value


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if "lstm" not in name and "dropout" not in name])
def test_nan_and_infinities_go_where_the_reference_has_them(name: str) -> None:
    arguments = calls_of(name, (6, 37), "float32")[0]
    x = arguments[0].copy()
    for place, number in ((1, np.nan), (40, np.inf), (80, -np.inf)):
        x.reshape(-1)[place % x.size] = number
    arguments = (x, *arguments[1:])
    for found, expected in zip(kernel(name, arguments), reference(name, arguments), strict=True):
        if expected is not None:
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
            bound = 50 * EPS["float32"] * max(largest(expected), 1.0)  # another order of sums
            np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 37), ROW_OF_A_BLOCK, (3, 8200)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_cotangents_of_masked_entries_are_ignored(name: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, dout = (rng.standard_normal(shape).astype("f") for _ in range(2))
    mask = rng.random(shape) < 0.5
    mask[1] = False
    (out,) = reference(f"ops.softmax:_{name}", (x, mask, 1))
    found, expected = (
        kernel(f"ops.softmax:_{name}_backward", (np.where(mask, dout, number).astype("f"), out, 1))[0]
        for number in (np.nan, 0.0)
    )
    np.testing.assert_array_equal(found, expected)
    assert not np.any(found[~mask])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 130), (5, 37), (2, 1040), ROW_IN_SPANS, (2, 16400)], ids=str)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_of_rows_whose_squares_overflow(name: str, shape: tuple[int, ...], dtype: str) -> None:
    forward, backward, E = f"ops.norm:_{name}", f"ops.norm:_{name}_backward", shape[-1]
    stored = asarray(np.zeros(1), dtype).dtype
    rng = np.random.default_rng(0)
    x, dout, weight = (rng.uniform(-1.9, 1.9, size) for size in (shape, shape, E))
    options = (weight.astype(stored), *([None] if name == "layer_norm" else []), 1e-5)
    last = [False] if name == "layer_norm" else []

    def results(exponent: int) -> tuple[np.ndarray, ...]:
        large = (x * 2.0**exponent).astype(stored)
        out, *kept = kernel(forward, (large, *options))
        dx, dweight, *_ = kernel(backward, (dout.astype(stored), large, *kept, options[0], *last))
        return out, dweight, dx * stored.type(2.0 ** (exponent - 20))

    expected = results(20)
    for exponent in (64, 120) if dtype != "float64" else (500, 520, 1000):
        found = results(exponent)
        np.testing.assert_array_equal(found[0], expected[0])  # exact for powers of two
        np.testing.assert_array_equal(found[1], expected[1])
        if exponent != 120:  # where the smallest numbers have fewer digits
            np.testing.assert_array_equal(found[2], expected[2])


def test_dropout_draws_the_bits_of_the_reference() -> None:
    for count, p in itertools.product((1, 1031), (0.1, 0.5)):
        x = np.ones(count, np.float32)
        for seed in (5, 2**63 + 2**32 + 1):
            found, expected = (run("ops.dropout:_dropout", (x, p, seed, None))[0] for run in (kernel, reference))
            np.testing.assert_array_equal(found, expected)


def test_integers_are_declined() -> None:
    with pytest.raises(Declined, match="dtype int64: float64, float32, float16, bfloat16 only"):
        kernel_of("ops.softmax:_softmax", "cuda")(fake_cupy.ndarray(np.ones((2, 3), int)), None, 1)
