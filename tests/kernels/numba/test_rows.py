"""The kernels along rows against their references: every size, axis, mask and layout, and nothing beyond a row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.kernels.numba.rows import dropout as row_dropout
from attnarray.kernels.numba.runtime import threads
from attnarray.kernels.numba.vector.lanes import cpu_features
from attnarray.kernels.table import KERNELS
from attnarray.random import FLAT_STREAM, philox_4x32, seed_words, threshold
from tests.support.guards import assert_nothing_around, guarded
from tests.support.libraries import EPS
from tests.support.row_calls import CALLS, LAYOUTS, Arguments, as_tuple, reference
from tests.support.table_calls import USABLE, in_dtype, kernel_of, largest_distance

SIZES = list(itertools.product((0, 1, 5, 130), (1, 3, 63, 64, 111, 512, 1000)))


def kernel(name: str, arguments: Arguments) -> tuple[np.ndarray | None, ...]:
    return as_tuple(kernel_of(name, "numba")(*arguments))


@pytest.fixture(params=CALLS)
def name(request: pytest.FixtureRequest) -> str:
    if USABLE[request.param, "numba"]:
        pytest.skip(USABLE[request.param, "numba"])
    return str(request.param)


def calls_of(name: str, shape: tuple[int, ...]) -> list[Arguments]:
    return list(CALLS[name](np.random.default_rng(shape), shape))


def test_every_kernel_on_numpy_arrays_is_tested() -> None:
    elsewhere = "attention.", "models.", "ops.correlate:", "ops.lstm:"  # these have tests of their own
    others = {name for name, row in KERNELS.items() if "numba" in row and not name.startswith(elsewhere)}
    assert set(CALLS) == others, "say in row_calls.py how each of these kernels is called"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [*SIZES, (2, 3, 5), (3, 17, 4), (2, 0, 5), (7,)], ids=str)
def test_as_exact_as_the_reference(name: str, shape: tuple[int, ...], dtype: str) -> None:
    # A few roundings more, as the error of the reference may be small by chance. In float64 it is not the truth, but
    # off by some roundings itself, of GELU's slope by twenty.
    roundings = {"float32": 8, "float64": 40}[dtype]
    for arguments in calls_of(name, shape):
        rounded = in_dtype(arguments, dtype)
        truth, other = reference(name, in_dtype(rounded, "float64")), reference(name, rounded)
        found = kernel(name, rounded)
        assert len(found) == len(truth)
        for result, exact, beside in zip(found, truth, other, strict=True):
            assert (result is None) == (exact is None)
            if exact is None:
                continue
            assert type(result) is np.ndarray
            assert (result.dtype, result.shape) == (dtype, exact.shape)
            scale = max(largest(exact), 1.0, largest(arguments[0]) if "backward" in name else 0.0)  # of terms
            errors = largest_distance(result, exact), largest_distance(beside, exact)
            assert errors[0] <= 2 * errors[1] + roundings * EPS[dtype] * scale, errors


def largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))


SHAPES = [(3, 17, 4), (5, 111)]


def in_layout(layout: Callable[[np.ndarray], np.ndarray], arguments: Arguments) -> Arguments:
    return tuple(layout(value) if isinstance(value, np.ndarray) else value for value in arguments)


def assert_same_bits(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for result, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(result, other)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_layout_is_accepted_and_no_input_is_changed(name: str, shape: tuple[int, ...], layout: Any) -> None:
    for arguments in calls_of(name, shape):
        expected = kernel(name, arguments)
        given = in_layout(layout, arguments)
        wholes = [whole(value).copy() for value in given if isinstance(value, np.ndarray)]
        assert_same_bits(kernel(name, given), expected)
        arrays = [value for value in given if isinstance(value, np.ndarray)]
        for array, before in zip(arrays, wholes, strict=True):
            np.testing.assert_array_equal(whole(array), before)


def whole(array: np.ndarray) -> np.ndarray:
    """The array that `array` is a view of."""
    return array if array.base is None else array.base


def test_every_result_is_written_and_nothing_around_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [call for shape in SHAPES for call in calls_of(name, shape)]
    expected = [kernel(name, arguments) for arguments in calls]
    with guarded(monkeypatch) as made:
        found = [kernel(name, arguments) for arguments in calls]
    for results, others in zip(found, expected, strict=True):
        assert_same_bits(results, others)
    assert_nothing_around(made)


def test_the_number_of_threads_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [in_dtype(call, "float32") for shape in ((3, 17, 4), (130, 63)) for call in calls_of(name, shape)]
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    results = []
    for count in (1, 2, 5):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", str(count))
        results.append([kernel(name, arguments) for arguments in calls])
    for others in results[1:]:
        for expected, found in zip(results[0], others, strict=True):
            for place, (one, other) in enumerate(zip(expected, found, strict=True)):
                if "norm_backward" in name and place and one is not None:  # of weight and bias: each thread has a sum
                    np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * largest(one))
                else:
                    np.testing.assert_array_equal(other, one)
        again = [kernel(name, arguments) for arguments in calls]
        for found, expected in zip(again, results[-1], strict=True):
            assert_same_bits(found, expected)


def options_of(function: str, rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> list[dict[str, Any]]:
    mask = rng.random(shape) < 0.6
    mask[0] = False
    parameters = {name: rng.standard_normal(shape[-1]).astype(dtype) for name in ("weight", "bias")}
    targets = {"targets": np.arange(shape[0]) % shape[-1], "reduction": "none"}
    known = {
        "softmax": [{}, {"axis": 0}, {"mask": mask}],
        "log_softmax": [{}, {"axis": 0}, {"mask": mask}],
        "layer_norm": [{}, parameters],
        "rms_norm": [{}, {"weight": parameters["weight"]}],
        "gelu": [{}, {"approximate": "tanh"}],
        **{name: [{}] for name in ("relu", "silu", "tanh", "sigmoid")},
        "dropout": [{"p": 0.3, "rng": 7}, {"p": 0.3, "mask": mask}, {"p": 1.0, "rng": 7}],
        "cross_entropy": [targets, {**targets, "label_smoothing": 0.2}, {**targets, "ignore_index": 3}],
    }
    return known[function]


def with_specials(array: np.ndarray) -> np.ndarray:
    """NaN and infinities in some rows, -inf in a whole one."""
    array = array.copy()
    array[1, 3], array[2, 5], array[3, 7], array[4] = np.nan, np.inf, -np.inf, -np.inf
    array[5, 1], array[5, 2], array[6, 4] = np.nan, np.inf, 1e30
    return array


ACTIVATIONS = ["relu", "gelu", "silu", "tanh", "sigmoid"]
FUNCTIONS = ["softmax", "log_softmax", "layer_norm", "rms_norm", *ACTIVATIONS, "dropout", "cross_entropy"]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinities_go_where_the_reference_has_them(function: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    shape = (8, 37)
    clean = rng.standard_normal(shape)
    for option in options_of(function, rng, shape, dtype):
        for x, where in itertools.product((clean, with_specials(clean)), ("nowhere", "dout")):
            results = {}
            for kernels in ("reference", "numba"):
                with aa.use_kernels(kernels):
                    out, pullback = aa.vjp(getattr(aa, function), x.astype(dtype), **option)
                    dout = np.ones_like(out)
                    if where == "dout":
                        dout[0], dout[7] = np.nan, np.inf
                    results[kernels] = (out, *pullback(dout))
            for found, expected in zip(results["numba"], results["reference"], strict=True):
                if expected is not None:
                    scale = max(largest(expected), 1.0)
                    np.testing.assert_allclose(found, expected, rtol=0, atol=50 * EPS[dtype] * scale)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_arrays_are_computed_in_float32(function: str, dtype: str) -> None:
    rng = np.random.default_rng(2)
    x = aa.asarray(rng.standard_normal((6, 37)), dtype)
    for option in options_of(function, rng, (6, 37), x.dtype):
        results = {}
        for kernels in ("reference", "numba"):
            with aa.use_kernels(kernels):
                out, pullback = aa.vjp(getattr(aa, function), x, **option)
                results[kernels] = (out, *pullback(np.ones_like(out)))
        for found, expected in zip(results["numba"], results["reference"], strict=True):
            if expected is not None:
                assert found.dtype == x.dtype
                found, expected = found.astype(np.float64), expected.astype(np.float64)
                np.testing.assert_allclose(found, expected, rtol=0, atol=2 * EPS[dtype] * max(largest(expected), 1.0))


@pytest.mark.parametrize(("dtype", "lowest"), [("float32", -12.5), ("float64", -37.0)])
def test_gelu_keeps_small_probabilities(dtype: str, lowest: float) -> None:
    x = np.linspace(lowest, 8.0, 4001).astype(dtype)
    expected = np.array([0.5 * number * math.erfc(-number / math.sqrt(2)) for number in x.astype(np.float64)])
    # Four roundings; math.erfc of a number that is rounded twice is off by up to x^2 roundings of float64. Without
    # fused operations, x^2 / 2 is rounded before it is an exponent.
    tolerance = 4 * EPS[dtype] + lowest**2 * EPS["float64"]
    if not cpu_features() & {"fma", "neon"}:
        tolerance += lowest**2 / 2 * EPS[dtype]
    np.testing.assert_allclose(aa.gelu(x), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_is_odd_and_exact_for_small_numbers(dtype: str) -> None:
    x = np.concatenate([np.geomspace(1e-30, 25.0, 4001), np.linspace(0.0, 25.0, 4001)]).astype(dtype)
    np.testing.assert_allclose(aa.tanh(x), np.tanh(x.astype(np.float64)), rtol=3 * EPS[dtype])  # some roundings
    np.testing.assert_array_equal(aa.tanh(-x), -aa.tanh(x))
    assert aa.tanh(x).max() == 1.0


@pytest.mark.parametrize("count", [1, 31, 2049, 5000])
def test_dropout_draws_the_bits_of_the_reference_however_far(count: int) -> None:
    chunk = 2**34 // row_dropout.CHUNK - 1  # then the number of a block outgrows its word
    start, seed, p = chunk * row_dropout.CHUNK, 2**40 + 3, 0.4
    x, out = np.ones((2, count), np.float32)
    places = (array.ctypes.data - start * x.itemsize for array in (x, out))
    chunks = chunk, chunk - (-count // row_dropout.CHUNK)
    row_dropout.keep_drawn(*chunks, start + count, *places, seed % 2**32, seed >> 32, threshold(p), np.float32(3))
    block = start // 4 + np.arange(-(-count // 4))
    zero = np.zeros_like(block)
    words = philox_4x32((block % 2**32, block >> 32, zero, zero + FLAT_STREAM), seed_words(seed))
    np.testing.assert_array_equal(out, np.where(np.stack(words, -1).ravel()[:count] >= threshold(p), 3.0, 0.0))


def test_embedding_gradient_sums_16_bit_numbers_in_float32() -> None:
    _, pullback = aa.vjp(aa.embedding, np.zeros(3000, int), np.zeros((2, 40), np.float16))
    np.testing.assert_array_equal(pullback(np.full((3000, 40), 0.1, np.float16)).weight, [[300.0] * 40, [0.0] * 40])


@pytest.mark.parametrize("index", [5, -6, 2**62])
def test_embedding_gradient_never_writes_beyond_the_weight(index: int) -> None:
    indices = np.array([0, 4, 2])
    _, pullback = aa.vjp(aa.embedding, indices, np.zeros((5, 3)))
    indices[1] = index  # after it was checked
    with pytest.raises(IndexError):
        pullback(np.ones((3, 3)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_public_functions_run_on_the_kernels(function: str) -> None:
    x = np.random.default_rng(3).standard_normal((5, 7))
    option = options_of(function, np.random.default_rng(3), x.shape, "float64")[-1]
    choices = aa.explain(aa.vjp, getattr(aa, function), x, **option).choices
    assert [choice.kernel for choice in choices] == ["numba"]
    _, pullback = aa.vjp(getattr(aa, function), x, **option)
    dout = x[:, 0] if function == "cross_entropy" else x
    assert [choice.kernel for choice in aa.explain(pullback, dout).choices] == ["numba"]


def test_a_mapped_file_is_a_plain_array(tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3, 70))
    x[:] = np.random.default_rng(4).standard_normal(x.shape)
    np.testing.assert_array_equal(aa.softmax(x), aa.softmax(np.array(x)))


def test_foreign_byte_order_and_unaligned_numbers() -> None:
    x = np.random.default_rng(5).standard_normal((3, 70))
    packed = np.zeros(3 * 70, [("byte", np.int8), ("number", np.float64)])["number"].reshape(3, 70)
    packed[:] = x
    swapped = x.astype(x.dtype.newbyteorder())
    for function in (aa.softmax, aa.rms_norm, aa.silu, aa.relu):
        np.testing.assert_array_equal(function(packed), function(x))
        out = function(swapped)
        assert out.dtype == swapped.dtype
        np.testing.assert_array_equal(out, function(x))
