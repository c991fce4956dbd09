"""Max-over-time pooling beyond the contract: ties, padding, empty sequences."""

from __future__ import annotations

import numpy as np

import attnarray as aa
from tests.support.libraries import Library, assert_trees_close


def test_of_equal_maxima_the_first_has_the_gradient() -> None:
    out, pullback = aa.vjp(aa.max_over_time, np.array([[1.0], [2.0], [2.0]]))
    np.testing.assert_array_equal(out, [2.0])
    np.testing.assert_array_equal(pullback(np.array([3.0])).x, [[0.0], [3.0], [0.0]])


def test_padding_may_hold_anything() -> None:
    x = np.array([[[1.0], [-np.inf], [np.nan]], [[np.nan], [np.inf], [np.nan]], [[-np.inf], [np.nan], [9.0]]])
    out, pullback = aa.vjp(aa.max_over_time, x, lengths=np.array([2, 0, 1]))
    np.testing.assert_array_equal(out, [[1.0], [0.0], [-np.inf]])
    dx = pullback(np.array([[2.0], [3.0], [4.0]])).x
    np.testing.assert_array_equal(dx[..., 0], [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])


def test_one_length_is_that_of_all_sequences(library: Library) -> None:
    x = library.moved(np.arange(24.0).reshape(2, 4, 3))
    assert_trees_close(aa.max_over_time(x, lengths=2), np.arange(24.0).reshape(2, 4, 3)[:, 1], 0)


def test_no_step_no_sequence_no_feature(library: Library) -> None:
    for shape in ((2, 0, 3), (0, 4, 3), (2, 4, 0)):
        out, pullback = aa.vjp(aa.max_over_time, library.moved(np.ones(shape)))
        assert_trees_close([out, pullback(out).x], [np.zeros((shape[0], shape[2])), np.zeros(shape)], 0)
