"""Every kernel of the table against its reference, on every option, and the rules by which kernels are chosen."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention.engine import attention
from attnarray.attention.modifiers import ScoreModifiers, allowed
from attnarray.attention.normalizers import masked_softmax, masked_softmax_backward
from attnarray.dispatch import KernelUnavailableError, available_kernels
from attnarray.kernels import Declined
from attnarray.kernels.table import KERNELS
from tests.support.libraries import EPS, STRICT

Arguments = tuple[Any, ...]
ALL_ROWS = [(name, backend) for name, row in KERNELS.items() for backend in row]
# The others: tests/kernels/numba/test_rows.py and tests/kernels/numba/test_additive.py.
OF_ATTENTION = [name for name in KERNELS if name.startswith(("attention.engine", "attention.normalizers"))]
ROWS = [(name, backend) for name, backend in ALL_ROWS if name in OF_ATTENTION]
LIBRARY_OF = {"numba": "numpy", "cuda": "cupy"}
USABLE = {(status.function, status.backend): status.reason for status in available_kernels()}


def reference_of(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"attnarray.{module}"), function).reference


def kernel_of(name: str, backend: str) -> Callable[..., Any]:
    module, _, function = KERNELS[name][backend].partition(":")
    return getattr(importlib.import_module(f"attnarray.kernels.{backend}.{module}"), function)


def scorings(b: int, h: int, t: int, s: int, every: int = 1) -> Iterator[ScoreModifiers]:
    """Every n-th of all combinations of options; biases and masks go through all shapes that broadcast."""
    rng = np.random.default_rng(0)
    shapes = [None, *itertools.product((b, 1), (h, 1), (t, 1), (s, 1))]
    combinations = itertools.product(
        shapes,
        (None, 0.9),
        (None, 0, 2),
        (None, 0, s // 2),
        (0, 3, np.arange(b) * 2 - 1),
        (None, np.minimum(np.arange(b) * 3, s)),  # no key at all in the first batch
        (None, rng.standard_normal(h)),
    )
    for n, (bias, softcap, left, right, q_offset, lengths, sinks) in enumerate(combinations):
        if n % every:
            continue
        mask = shapes[n // every % len(shapes)]
        yield ScoreModifiers(
            scale=0.7,
            softcap=softcap,
            bias=None if bias is None else rng.standard_normal(bias),
            mask=None if mask is None else rng.random(mask) < 0.7,
            left=left,
            right=right,
            q_offset=q_offset,
            kv_lengths=lengths,
            sinks=sinks,
        )


def arguments_of(name: str, dots: np.ndarray, scoring: ScoreModifiers) -> Arguments:
    """The arguments of a reference in float64, given the dot products."""
    if name == "attention.normalizers:masked_softmax":
        return dots, scoring
    rng = np.random.default_rng(1)
    if name.startswith(
        "attention.engine"
    ):  # with the unit vectors as keys, shared by all heads, the queries are the dots
        batch, _, _, keys = dots.shape
        key = np.broadcast_to(np.eye(keys), (batch, 1, keys, keys))
        inputs = (dots, key, rng.standard_normal((batch, 1, keys, 5)))
        if name == "attention.engine:attention":
            return *inputs, scoring
        assert name == "attention.engine:attention_backward", f"say here how {name} is called"
        with np.errstate(all="ignore"):
            out, lse = attention.reference(*inputs, scoring)
        return rng.standard_normal(out.shape), rng.standard_normal(lse.shape), *inputs, out, lse, scoring
    assert name == "attention.normalizers:masked_softmax_backward", f"say here how {name} is called"
    with np.errstate(all="ignore"):
        _, lse = masked_softmax.reference(dots, scoring)
    return dots, rng.standard_normal(dots.shape), lse, rng.standard_normal(lse.shape), scoring


def in_dtype(arguments: Any, dtype: str) -> Any:
    """Copies, with floats in `dtype`."""

    def convert(value: Any) -> Any:
        if isinstance(value, ScoreModifiers):
            return ScoreModifiers(*map(convert, value))
        if isinstance(value, np.ndarray):
            return value.astype(dtype if value.dtype.kind == "f" else value.dtype)
        return value

    return tuple(map(convert, arguments))


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


def largest_distance(array: np.ndarray, exact: np.ndarray) -> float:
    """max |array - exact|, where equal infinities are 0 apart."""
    equal = array == exact
    with np.errstate(invalid="ignore"):
        distance = np.abs(array.astype(np.float64) - exact)
    assert np.all(np.isfinite(distance) | equal), "NaN, or an infinity in the wrong place"
    return float(np.max(np.where(equal, 0.0, distance), initial=0.0))


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
    for scoring in scorings(*shape, every=5):  # 5 shares no factor with the numbers of choices: each pair comes up
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
        with pytest.raises(KernelUnavailableError, match="cuda kernels do not run on these arrays, numba kernels do"):
            aa.scaled_dot_product_attention(x, x, x)
        with pytest.raises(KernelUnavailableError, match=r"use_kernels\('cuda'\) was asked for, but attention.engine"):
            attention(x, x, x, ScoreModifiers(1.0))
    with aa.use_kernels("numba"):
        assert np.all(masked_softmax_backward(x.copy(), x.copy(), x[..., 0], x[..., 0], ScoreModifiers(1.0))[0] > 0)


def test_unknown_kernels_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="Unknown kernels 'fast'; expected one of 'auto', 'reference', 'numba', 'cuda'"),
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


def test_warmup_readies_every_kernel() -> None:
    seconds = aa.warmup(("float32", "float64"))
    modules = {kernel_of(*place).__module__ for place, reason in USABLE.items() if not reason}
    assert set(seconds) == modules
    assert all(second >= 0 for second in seconds.values())
