"""Deformable attention: points, borders, and wrong input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.frozen import frozen

RNG = np.random.default_rng(0)
LEVELS = ((4, 3), (2, 2))
GIVEN = {
    "value": RNG.standard_normal((2, 16, 3, 5)),
    "spatial_shapes": LEVELS,
    "sampling_locations": RNG.random((2, 7, 3, 2, 4, 2)),
    "attention_weights": RNG.random((2, 7, 3, 2, 4)),
}
DETR = {name: case for name, case in frozen("spatial.npz").items() if name.startswith("deformable")}


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("name", DETR)
def test_equals_bilinear_sampling(name: str, kernels: str) -> None:
    case = DETR[name]
    given = case.given("value", "sampling_locations", "attention_weights")
    with aa.use_kernels(kernels):
        out, ctx = aa.deformable_attention_fwd(**given, **case.options)
        grads = aa.deformable_attention_bwd(case.arrays["dout"], ctx)
    np.testing.assert_allclose(out, case.arrays["out"], rtol=0, atol=1e-13)
    for given_name, expected in case.below("grad_").items():
        np.testing.assert_allclose(getattr(grads, given_name), expected, rtol=0, atol=1e-12)


def test_a_point_in_the_middle_of_a_pixel_is_the_pixel() -> None:
    value = GIVEN["value"]
    centers = np.stack(np.meshgrid((np.arange(3) + 0.5) / 3, (np.arange(4) + 0.5) / 4), -1).reshape(1, 12, 1, 1, 1, 2)
    locations = np.broadcast_to(centers, (2, 12, 3, 1, 1, 2)).copy()
    out = aa.deformable_attention(value[:, :12], LEVELS[:1], locations, np.ones((2, 12, 3, 1, 1)))
    np.testing.assert_allclose(out, value[:, :12], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_points_far_away_give_0_and_nan_propagates(kernels: str) -> None:
    locations = GIVEN["sampling_locations"].copy()
    locations[0, 0], locations[0, 1], locations[0, 2, 0, 0, 0, 0] = 1e300, -np.inf, np.nan
    with aa.use_kernels(kernels):
        out, ctx = aa.deformable_attention_fwd(**{**GIVEN, "sampling_locations": locations})
        grads = aa.deformable_attention_bwd(np.ones_like(out), ctx)
    assert not np.any(out[0, :2])
    assert not any(np.any(grad[0, :2]) for grad in grads[1:])
    assert np.argwhere(np.isnan(out)).tolist() == [[0, 2, 0, d] for d in range(5)]


def test_no_queries_and_no_features() -> None:
    for kernels in ("reference", "auto"):
        for empty in ({"value": (0, 4, 3, 5)}, {"value": (2, 4, 3, 0)}, {"value": (2, 4, 3, 5), "queries": 0}):
            B, _, heads, _ = empty["value"]
            of = (B, empty.get("queries", 6), heads, 1, 2)
            with aa.use_kernels(kernels):
                given = np.zeros(empty["value"]), ((2, 2),), np.zeros((*of, 2)), np.zeros(of)
                out, ctx = aa.deformable_attention_fwd(*given)
                grads = aa.deformable_attention_bwd(out, ctx)
            assert [grad.shape for grad in grads] == [given[0].shape, (*of, 2), of]


WRONG: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "`spatial_shapes` ((4, 3), (2, 3)) have 18 pixels, but `value` has 16": (
        {"spatial_shapes": ((4, 3), (2, 3))}, ValueError),
    "`spatial_shapes[1]` is 4, expected (H, W)": ({"spatial_shapes": ((4, 3), 4)}, ValueError),
    "`spatial_shapes[0]` is 0, expected an integer >= 1": ({"spatial_shapes": ((0, 3), (4, 4))}, ValueError),
    "`spatial_shapes` is 16, expected a list of (H, W)": ({"spatial_shapes": 16}, TypeError),
    "`sampling_locations` has shape (2, 7, 3, 2, 4, 3), expected (2, 7, 3, 2, 4, 2)": (
        {"sampling_locations": np.zeros((2, 7, 3, 2, 4, 3))}, ValueError),
    "`attention_weights` has shape (2, 7, 3, 8), expected (2, 7, 3, 2, 4)": (
        {"attention_weights": np.zeros((2, 7, 3, 8))}, ValueError),
    "`value` has shape (16, 3, 5), expected (B, S, heads, D)": ({"value": np.zeros((16, 3, 5))}, ValueError),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input(message: str) -> None:
    changed, kind = WRONG[message]
    with pytest.raises(kind, match=re.escape(message)):
        aa.deformable_attention(**{**GIVEN, **changed})
