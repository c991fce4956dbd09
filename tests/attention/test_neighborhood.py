"""Neighborhood attention: its windows, and what it equals."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.frozen import frozen

RNG = np.random.default_rng(0)
LINE = RNG.standard_normal((3, 2, 9, 2, 4))  # query, key and value: (B, T, heads, D)
IMAGE = RNG.standard_normal((3, 1, 7, 8, 2, 4))
NATTEN = {name: case for name, case in frozen("spatial.npz").items() if name.startswith("neighborhood")}


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("name", NATTEN)
def test_equals_gathered_windows(name: str, kernels: str) -> None:
    case = NATTEN[name]
    with aa.use_kernels(kernels):
        out, ctx = aa.neighborhood_attention_fwd(**case.given("query", "key", "value", "relative_bias"), **case.options)
        grads = aa.neighborhood_attention_bwd(case.arrays["dout"], ctx)
    np.testing.assert_allclose(out, case.arrays["out"], rtol=0, atol=1e-13)
    for given, expected in case.below("grad_").items():
        np.testing.assert_allclose(getattr(grads, given), expected, rtol=0, atol=1e-12)


def windows(size: int, kernel_size: int, **options: Any) -> list[list[int]]:
    """The neighbors of each position of a line, where the weights are not 0."""
    line = np.eye(size)[None, :, None, :]
    weights = aa.neighborhood_attention(0 * line, line, line, kernel_size, **options)[0, :, 0]
    return [np.flatnonzero(row).tolist() for row in weights]


def test_windows_move_inward_at_edges() -> None:
    assert windows(6, 5) == [[0, 1, 2, 3, 4]] * 3 + [[1, 2, 3, 4, 5]] * 3
    assert windows(5, 3) == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]


def test_a_dilated_axis_is_grids_beside_each_other() -> None:
    found = windows(7, 3, dilation=2)
    assert found == [[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5], [2, 4, 6], [1, 3, 5], [2, 4, 6]]
    alone = aa.neighborhood_attention(*(x[:, 1::2] for x in LINE), 3)
    np.testing.assert_allclose(aa.neighborhood_attention(*LINE, 3, dilation=2)[:, 1::2], alone, rtol=0, atol=1e-14)


def test_causal_windows_do_not_move() -> None:
    assert windows(5, 3, is_causal=True) == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert windows(5, 2, is_causal=True, dilation=2) == [[0], [1], [0, 2], [1, 3], [2, 4]]


def test_a_window_of_the_whole_grid_is_full_attention() -> None:
    q, k, v = (x[:, :, :7] for x in IMAGE)
    flat = (x.reshape(1, 49, 2, 4) for x in (q, k, v))
    expected = aa.scaled_dot_product_attention(*flat, layout="BTHD").reshape(q.shape)
    np.testing.assert_allclose(aa.neighborhood_attention(q, k, v, 7), expected, rtol=0, atol=1e-14)


def test_a_line_is_a_sliding_window_away_from_edges() -> None:
    expected = aa.scaled_dot_product_attention(*LINE, window=(1, 1), layout="BTHD")
    found = aa.neighborhood_attention(*LINE, 3)
    np.testing.assert_allclose(found[:, 1:-1], expected[:, 1:-1], rtol=0, atol=1e-14)
    causal = aa.scaled_dot_product_attention(*LINE, window=(2, 0), layout="BTHD")
    np.testing.assert_allclose(aa.neighborhood_attention(*LINE, 3, is_causal=True), causal, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_a_bias_of_minus_infinity_hides_a_neighbor(kernels: str) -> None:
    bias = np.zeros((2, 5))
    bias[:, 3] = -np.inf  # the next position
    with aa.use_kernels(kernels):
        out, ctx = aa.neighborhood_attention_fwd(*LINE, 3, bias)
        grads = aa.neighborhood_attention_bwd(np.ones_like(out), ctx)
    q, k, v = LINE
    # Query 1 has the window 0, 1, 2, now without 2.
    weights = np.exp(np.einsum("bhd,bkhd->bkh", q[:, 1], k[:, :2]) / 2)
    expected = np.einsum("bkh,bkhd->bhd", weights / weights.sum(1, keepdims=True), v[:, :2])
    np.testing.assert_allclose(out[:, 1], expected, rtol=0, atol=1e-14)
    assert all(np.all(np.isfinite(grad)) for grad in grads)
    with aa.use_kernels(kernels):
        out, ctx = aa.neighborhood_attention_fwd(*LINE, 3, np.full((2, 5), -np.inf))
        grads = aa.neighborhood_attention_bwd(np.ones_like(out), ctx)
    assert not out.any()
    assert not any(np.any(grad) for grad in grads)
    assert np.all(np.isneginf(ctx.lse))


def test_the_lse_has_a_cotangent() -> None:
    out, ctx = aa.neighborhood_attention_fwd(*IMAGE, (3, 5))
    dlse = RNG.standard_normal(ctx.lse.shape)
    grads = aa.neighborhood_attention_bwd(0 * out, ctx, dlse)

    def total(shift: float) -> float:
        moved = IMAGE[0] + shift * grads.query, *IMAGE[1:]
        return float(np.sum(dlse * aa.neighborhood_attention_fwd(*moved, (3, 5))[1].lse))

    slope = (total(1e-4) - total(-1e-4)) / 2e-4
    np.testing.assert_allclose(slope, np.sum(grads.query**2), rtol=1e-7)  # central differences of second order


def test_weights_of_chosen_queries() -> None:
    bias = RNG.standard_normal((2, 5, 9))
    out, ctx = aa.neighborhood_attention_fwd(*IMAGE, (3, 5), bias, is_causal=(True, False))
    weights = aa.attention_weights(ctx)
    assert weights.shape == (1, 2, 56, 56)
    attended = np.einsum("bhts,bshd->bthd", weights, IMAGE[2].reshape(1, 56, 2, 4))
    np.testing.assert_allclose(attended.reshape(out.shape), out, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(aa.attention_weights(ctx, slice(10, 20)), weights[:, :, 10:20])


def test_no_batch_and_no_features() -> None:
    for shape in ((0, 5, 6, 2, 4), (2, 5, 6, 2, 0), (2, 5, 6, 0, 4)):
        empty = np.zeros(shape)
        for kernels in ("reference", "auto"):
            with aa.use_kernels(kernels):
                out, ctx = aa.neighborhood_attention_fwd(empty, empty, empty, 3)
                assert [grad.shape for grad in aa.neighborhood_attention_bwd(out, ctx)[:3]] == [shape] * 3


WRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "`kernel_size` is 9, larger than the 7 positions along axis 0 of (7, 8)": (IMAGE, {"kernel_size": 9}),
    "`kernel_size` (3) times `dilation` (3) is 9, larger than the 7 positions along axis 0": (
        IMAGE, {"kernel_size": 3, "dilation": 3}),
    "`kernel_size` is 4 along axis 1 of (7, 8), expected an odd number": (IMAGE, {"kernel_size": (3, 4)}),
    "(B, Z, H, W, heads, D), have (7, 8) positions: expected one number for each axis": (
        IMAGE, {"kernel_size": (3, 3, 3)}),
    "`kernel_size` is 0, expected an integer >= 1": (IMAGE, {"kernel_size": 0}),
    "`dilation` is 1.5, expected an integer >= 1": (IMAGE, {"kernel_size": 3, "dilation": 1.5}),
    "`relative_bias` has shape (2, 3, 3), expected (2, 5, 5)": (
        IMAGE, {"kernel_size": 3, "relative_bias": np.zeros((2, 3, 3))}),
    "`scale` is -1, expected a finite number above 0": (IMAGE, {"kernel_size": 3, "scale": -1}),
    "have 3, 3 and 3 axes; they must have equally many: (B, T, heads, D)": (IMAGE[:, 0, 0], {"kernel_size": 3}),
    "must have the same batch, positions and heads": ((IMAGE[0], IMAGE[1][:, :6], IMAGE[2]), {"kernel_size": 3}),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input(message: str) -> None:
    arrays, options = WRONG[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        aa.neighborhood_attention(*arrays, **options)
