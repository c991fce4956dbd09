"""Properties of `embedding` beyond the contract: its gradient, messages."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

import attnarray as aa


def test_embedding_gradient_counts_how_often_a_row_is_used() -> None:
    indices = np.array([[1, 1], [4, 1]], dtype=np.uint8)
    _, pullback = aa.vjp(aa.embedding, indices, np.zeros((5, 2)))
    np.testing.assert_array_equal(pullback(np.ones((2, 2, 2))).weight[:, 0], [0, 3, 0, 0, 1])


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "array_api_strict"])
def test_embedding_names_the_first_bad_index(xp) -> None:
    weight = xp.ones((5, 2))
    with pytest.raises(ValueError, match=r"`indices` holds 5 at position \(1, 0\), expected 0 to 4 .*`weight`: 5\)"):
        aa.embedding(xp.asarray([[0, 4], [5, -1]]), weight)
    with pytest.raises(ValueError, match=r"`indices` holds -1 at position \(2,\), expected 0 to 4"):
        aa.embedding(xp.asarray([0, 1, -1], dtype=xp.int8), weight)
    with pytest.raises(ValueError, match="`indices` holds 9, expected 0 to 4"):
        aa.embedding(xp.asarray(9), weight)


def test_embedding_refuses_bad_input() -> None:
    with pytest.raises(TypeError, match="`indices` has dtype float64, expected an integer dtype"):
        aa.embedding(np.ones(2), np.ones((5, 2)))
    with pytest.raises(TypeError, match="`weight` has dtype int64"):
        aa.embedding(np.array([0]), np.ones((5, 2), int))
    with pytest.raises(ValueError, match=r"`weight` has 1 axes, expected two: \(V, E\)"):
        aa.embedding(np.array([0]), np.ones(5))
    with pytest.raises(ValueError, match=r"holds 0 at position \(0,\), but there is no valid index"):
        aa.embedding(np.array([0]), np.ones((0, 2)))
