"""The softmax of segments: equal to softmax segment by segment, and properties beyond the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.backend import to_numpy
from attnarray.ops.segments import sum_segments
from tests.support.libraries import LIBRARIES, NUMPY, Library, assert_close, marks_of
from tests.support.messages import says

ROUNDING = 1e-13  # sums of a few dozen numbers in another order
COUNT = 9
RNG = np.random.default_rng(5)
SEGMENTS = RNG.integers(1, COUNT - 1, 40)  # the first and the last are empty
X = 3.0 * RNG.standard_normal((2, 40, 3))
MASK = RNG.random((2, 40, 1)) < 0.6
each_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])
each_library = pytest.mark.parametrize(
    "library",
    [pytest.param(library, marks=marks_of(library), id=library.name) for library in (NUMPY, *LIBRARIES)],
)


def pulled(x: Any, segments: Any, count: int = COUNT, **options: Any) -> tuple[Any, Any]:
    out, pullback = aa.vjp(aa.segment_softmax, x, segments, count, **options)
    return out, pullback(NUMPY.cotangent(out)).x


@each_kernels
@pytest.mark.parametrize("is_sorted", [False, True], ids=["unsorted", "sorted"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_it_is_the_softmax_of_each_segment(kernels: str, is_sorted: bool, mask: Any) -> None:
    segments = np.sort(SEGMENTS) if is_sorted else SEGMENTS
    with aa.use_kernels(kernels):
        out, dx = pulled(X, segments, mask=mask)
        dout = NUMPY.cotangent(out)
        for segment in range(COUNT):
            there = segments == segment
            part = None if mask is None else mask[:, there]
            expected, pullback = aa.vjp(aa.softmax, X[:, there], 1, mask=part)
            assert_close(out[:, there], expected, ROUNDING)
            assert_close(dx[:, there], pullback(dout[:, there]).x, ROUNDING)


@each_kernels
def test_one_segment_is_softmax(kernels: str) -> None:
    with aa.use_kernels(kernels):
        out, dx = pulled(X, np.zeros(40, np.int64), 1)
    expected, pullback = aa.vjp(aa.softmax, X, 1)
    assert_close(out, expected, ROUNDING)
    assert_close(dx, pullback(NUMPY.cotangent(out)).x, ROUNDING)


@each_kernels
def test_the_order_of_the_entries_does_not_matter(kernels: str) -> None:
    order = RNG.permutation(40)
    with aa.use_kernels(kernels):
        out, _ = pulled(X, SEGMENTS)
        permuted, _ = pulled(X[:, order], SEGMENTS[order])
    assert_close(permuted, out[:, order], ROUNDING)


@each_kernels
def test_a_constant_for_each_segment_does_not_matter(kernels: str) -> None:
    shift = 1e3 * RNG.standard_normal((COUNT, 3))
    with aa.use_kernels(kernels):
        assert_close(aa.segment_softmax(X + shift[SEGMENTS], SEGMENTS, COUNT), aa.segment_softmax(X, SEGMENTS, COUNT),
                     1e-11)  # x + 1000 is rounded to 1e-13, which is an exponent  # fmt: skip


@each_library
def test_nan_stays_in_its_segment_and_behind_the_mask(library: Library) -> None:
    bad = X.copy()
    bad[0, 7, 1] = np.nan
    x, segments = library.array(bad), library.array(SEGMENTS)
    out, pullback = aa.vjp(aa.segment_softmax, x, segments, COUNT)
    reached = np.zeros(X.shape, bool)
    reached[0, np.equal(SEGMENTS, SEGMENTS[7]), 1] = True
    np.testing.assert_array_equal(np.isnan(to_numpy(out)), reached)
    np.testing.assert_array_equal(np.isnan(to_numpy(pullback(library.cotangent(X)).x)), reached)

    mask = np.ones((40, 1), bool)
    mask[7] = False
    out, pullback = aa.vjp(aa.segment_softmax, x, segments, COUNT, mask=library.array(mask))
    dout = NUMPY.cotangent(X)
    dout[:, 7] = np.nan
    for result in (out, pullback(library.array(dout)).x):
        assert np.all(np.isfinite(to_numpy(result)))
        assert not to_numpy(result)[:, 7].any()


@each_kernels
def test_infinities_and_masked_segments(kernels: str) -> None:
    x = np.array([[-np.inf], [0.0], [-np.inf], [-np.inf], [3.0]])
    segments = np.array([0, 0, 1, 1, 2])
    mask = np.array([[True], [True], [True], [True], [False]])
    with aa.use_kernels(kernels):
        out, dx = pulled(x, segments, 3, mask=mask)
    np.testing.assert_array_equal(out[:, 0], [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(dx, 0)


@each_library
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 4, 3), (2, 0, 3)], ids=str)
def test_empty_sizes(library: Library, shape: tuple[int, ...]) -> None:
    segments = np.zeros(shape[-2], np.int64)
    out, pullback = aa.vjp(aa.segment_softmax, library.array(np.zeros(shape)), library.array(segments), 2)
    assert tuple(out.shape) == tuple(pullback(out).x.shape) == shape
    if not shape[-2]:
        assert tuple(aa.segment_softmax(out, library.array(segments), 0).shape) == shape


@each_library
def test_sums_of_segments(library: Library) -> None:
    expected = np.zeros((2, COUNT, 3))
    np.add.at(expected, (slice(None), SEGMENTS), X)
    assert_close(sum_segments(library.array(X), library.array(SEGMENTS), COUNT), expected, ROUNDING)


BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "one axis": (ValueError, {"x": X[0, :, 0]}, "`x` has shape (40,), expected at least two axes: (*batch, E, H), E"),
    "too few": (ValueError, {"segments": SEGMENTS[1:]}, "`segments` has shape (39,), expected (40,): one segment for"),
    "two axes": (ValueError, {"segments": SEGMENTS[:, None]}, "`segments` has shape (40, 1), expected (40,)"),
    "beyond": (ValueError, {"count": 5}, "expected 0 to 4 (the number of segments: 5)"),
    "negative": (ValueError, {"segments": SEGMENTS - 3}, "`segments` holds -"),
    "none": (ValueError, {"count": 0}, "but there is no valid index (the number of segments: 0)"),
    "count": (ValueError, {"count": -1}, "`count` is -1, expected an integer >= 0: the number of segments."),
    "fraction": (ValueError, {"count": 2.5}, "`count` is 2.5, expected an integer"),
    "floats": (TypeError, {"segments": SEGMENTS + 0.0}, "`segments` has dtype float64, expected an integer dtype"),
    "a list": (TypeError, {"segments": [1]}, "`segments` has type list, expected an array"),
    "integers": (TypeError, {"x": SEGMENTS[:, None]}, "`x` has dtype int64, expected one of float16"),
    "mask": (ValueError, {"mask": MASK[:, :, 0]}, "`mask` has shape (2, 40), which does not broadcast to the shape of"),
    "mask of numbers": (TypeError, {"mask": 1 * MASK}, "`mask` has dtype int64, expected bool"),
}


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    given = {"x": X, "segments": SEGMENTS, "count": COUNT, **changes}
    says(error, expected, lambda: aa.segment_softmax(**given))


def test_the_backward_says_what_is_wrong() -> None:
    out, ctx = aa.segment_softmax_fwd(X, SEGMENTS, COUNT)
    says(ValueError, "`dout` has shape (2, 40), expected (2, 40, 3)", lambda: aa.segment_softmax_bwd(out[..., 0], ctx))
    says(TypeError, "expected the SegmentSoftmaxContext that the", lambda: aa.segment_softmax_bwd(out, out))
