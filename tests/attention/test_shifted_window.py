"""Shifted window attention: its windows, and wrong input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.frozen import frozen

IMAGE = np.random.default_rng(0).standard_normal((3, 1, 6, 8, 2, 4))  # query, key and value: (B, H, W, heads, D)
SWIN = {name: case for name, case in frozen("spatial.npz").items() if name.startswith("swin")}


@pytest.mark.parametrize("name", SWIN)
def test_equals_the_cyclic_shift_of_the_paper(name: str) -> None:
    case = SWIN[name]
    out, ctx = aa.shifted_window_attention_fwd(**case.given("query", "key", "value", "relative_bias"), **case.options)
    grads = aa.shifted_window_attention_bwd(case.arrays["dout"], ctx)
    np.testing.assert_allclose(out, case.arrays["out"], rtol=0, atol=1e-13)
    for given, expected in case.below("grad_").items():
        np.testing.assert_allclose(getattr(grads, given), expected, rtol=0, atol=1e-12)


def test_a_window_is_a_sequence() -> None:
    alone = aa.scaled_dot_product_attention(*(x[:, 3:, 4:].reshape(1, 12, 2, 4) for x in IMAGE), layout="BTHD")
    found = aa.shifted_window_attention(*IMAGE, (3, 4))[:, 3:, 4:]
    np.testing.assert_allclose(found, alone.reshape(found.shape), rtol=0, atol=1e-14)


def test_shifted_windows_are_smaller_at_the_ends() -> None:
    found = aa.shifted_window_attention(*IMAGE, (3, 4), shift=(1, 2))
    for rows, columns in ((slice(0, 1), slice(0, 2)), (slice(4, 6), slice(2, 6)), (slice(1, 4), slice(6, 8))):
        part = [x[:, rows, columns] for x in IMAGE]
        alone = aa.scaled_dot_product_attention(*(x.reshape(1, -1, 2, 4) for x in part), layout="BTHD")
        np.testing.assert_allclose(found[:, rows, columns], alone.reshape(part[0].shape), rtol=0, atol=1e-14)


def test_weights_are_those_of_each_window() -> None:
    _, ctx = aa.shifted_window_attention_fwd(*IMAGE, 2, shift=1)
    weights = aa.attention_weights(ctx)
    assert weights.shape == (1, 12, 2, 4, 4)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-14)


WRONG: dict[str, dict[str, Any]] = {
    "`window_size` (4) must divide the 6 positions along axis 0 of (6, 8)": {"window_size": 4},
    "`window_size` (12) must divide the 6 positions": {"window_size": 12},
    "`shift` (2) must be less than `window_size` (2) along axis 0": {"window_size": 2, "shift": 2},
    "`shift` is -1, expected an integer >= 0": {"window_size": 2, "shift": -1},
    "`window_size` is (2, 2, 2), but the arrays, (B, T, heads, D)": {"window_size": (2, 2, 2)},
    "`relative_bias` has shape (9, 2), expected (2, 3, 3)": {"window_size": 2, "relative_bias": np.zeros((9, 2))},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input(message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        aa.shifted_window_attention(*IMAGE, **WRONG[message])
