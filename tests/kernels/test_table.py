"""Every kernel of attention in the table against its reference, on every option."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest

from attnarray.attention.modifiers import ScoreModifiers, allowed
from attnarray.kernels.table import KERNELS
from tests.support.libraries import EPS
from tests.support.table_calls import (
    USABLE,
    Arguments,
    arguments_of,
    in_dtype,
    kernel_of,
    largest_distance,
    reference_of,
    scorings,
)

ALL_ROWS = [(name, backend) for name, row in KERNELS.items() for backend in row]
# The others: tests/kernels/numba/test_rows.py, tests/kernels/numba/test_additive.py and
# tests/attention/test_compiled_modifiers.py.
OF_ATTENTION = [
    name for name in KERNELS
    if name.startswith(("attention.engine", "attention.normalizers")) and ":modified_" not in name
]  # fmt: skip
ROWS = [(name, backend) for name, backend in ALL_ROWS if name in OF_ATTENTION]
LIBRARY_OF = {"numba": "numpy", "cuda": "cupy"}


def assert_as_exact_as_the_reference(name: str, backend: str, arguments: Arguments, dtype: str) -> None:
    """Both against the reference in float64, on the same rounded numbers."""
    rounded = in_dtype(arguments, dtype)
    with np.errstate(all="ignore"):
        truth = reference_of(name)(*in_dtype(rounded, "float64"))
        reference = reference_of(name)(*in_dtype(rounded, dtype))
    found = kernel_of(name, backend)(*in_dtype(rounded, dtype))
    assert len(found) == len(truth)
    for place, (result, other, exact) in enumerate(zip(found, reference, truth, strict=True)):
        what = f"result {place}, {arguments[-1]}"
        if exact is None:
            assert result is None, what
            continue
        assert result.dtype == dtype, what
        assert result.shape == exact.shape, what
        scale = np.max(np.abs(exact[np.isfinite(exact)]), initial=0.0)
        error, reference_error = (largest_distance(array, exact) for array in (result, other))
        if name == "attention.engine:attention_backward":  # sums that may cancel, of terms of size 1
            scale = max(scale, 1.0) * np.sqrt(max(arguments[2].size / exact.size, 1.0))
        # A few roundings in another order, of the scores (up to 100 eps for outliers) before they are exponents.
        assert error <= 2 * reference_error + 8 * EPS[dtype] * scale, what


@pytest.fixture(params=ROWS, ids=[f"{backend}-{name}" for name, backend in ROWS])
def row(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A row of the table whose kernel can be used here; those of CuPy arrays have tests of their own."""
    reason = USABLE[request.param]
    if reason:
        pytest.skip(reason)
    if LIBRARY_OF[request.param[1]] != "numpy":
        pytest.skip("takes no NumPy arrays")
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_combination_of_options(row: tuple[str, str], dtype: str) -> None:
    shape = (2, 3, 4, 5)
    dots = 2.0 * np.random.default_rng(2).standard_normal(shape)
    for scoring in scorings(*shape, every=5):  # 5 is coprime to the numbers of choices: each pair occurs
        assert_as_exact_as_the_reference(*row, arguments_of(row[0], dots, scoring), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("t", "s"), list(itertools.product((1, 63, 111), repeat=2)))
def test_odd_lengths_and_outliers(row: tuple[str, str], t: int, s: int, dtype: str) -> None:
    rng = np.random.default_rng(3)
    dots = rng.standard_normal((2, 3, t, s))
    dots = np.where(rng.random(dots.shape) < 0.02, 20.0 * dots, dots)
    for scoring in scorings(*dots.shape, every=307):
        assert_as_exact_as_the_reference(*row, arguments_of(row[0], dots, scoring), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fully_masked_rows(row: tuple[str, str], dtype: str) -> None:
    rng = np.random.default_rng(4)
    dots = rng.standard_normal((2, 3, 5, 7))
    mask = rng.random((2, 1, 5, 7)) < 0.8
    mask[:, :, [0, 3]] = False
    for sinks in (None, rng.standard_normal(3)):
        for bias in (None, rng.standard_normal((5, 7))[None, None], np.full((1, 1, 1, 1), -np.inf)):
            scoring = ScoreModifiers(0.5, mask=mask, sinks=sinks, bias=bias)
            assert_as_exact_as_the_reference(*row, arguments_of(row[0], dots, scoring), dtype)


def test_every_result_is_written_and_no_masked_number_read(
    row: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (2, 3, 6, 9)
    dots = np.random.default_rng(5).standard_normal(shape)
    cases = [arguments_of(row[0], dots, scoring) for scoring in scorings(*shape, every=97)]
    kernel = kernel_of(*row)
    expected = [kernel(*in_dtype(arguments, "float32")) for arguments in cases]
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda *a, **k: _poison(empty(*a, **k)))
    for arguments, results in zip(cases, expected, strict=True):
        rubbish = in_dtype(arguments, "float32")
        hidden = ~visible_of(rubbish[-1], shape)
        for array in rubbish[:-1]:
            if array.shape == shape and row[0].startswith("attention.modifiers"):
                array[hidden] = np.nan
        for result, other in zip(kernel(*rubbish), results, strict=True):
            np.testing.assert_array_equal(result, other)


def _poison(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        array.fill(np.nan)
    return array


def visible_of(scoring: ScoreModifiers, shape: tuple[int, ...]) -> np.ndarray:
    mask = allowed(scoring, shape[2], shape[3], np.zeros(()))
    return np.broadcast_to(True if mask is None else mask, shape)


@pytest.mark.parametrize(("name", "backend"), ALL_ROWS)
def test_a_kernel_has_the_signature_of_its_reference(name: str, backend: str) -> None:
    if USABLE[name, backend]:
        pytest.skip(USABLE[name, backend])
    kernel = inspect.signature(kernel_of(name, backend)).parameters
    assert list(kernel) == list(inspect.signature(reference_of(name)).parameters)
