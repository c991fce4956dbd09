"""Axial attention: which positions it joins, and wrong input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import attnarray as aa

IMAGE = np.random.default_rng(0).standard_normal((3, 2, 5, 6, 2, 4))  # query, key and value: (B, H, W, heads, D)


def test_two_axes_reach_every_position() -> None:
    query, key, value = IMAGE
    moved = value.copy()
    moved[0, 0, 0] += 1.0
    changed = [aa.axial_attention(query, key, x, axis=2) for x in (value, moved)]
    assert np.flatnonzero(np.any(changed[0] != changed[1], axis=(2, 3, 4))).tolist() == [0]  # the first row
    both = [aa.axial_attention(query, key, x, axis=1) for x in changed]
    assert np.all(np.any(both[0] != both[1], axis=(3, 4))[0])


def test_the_lse_has_a_cotangent() -> None:
    out, ctx = aa.axial_attention_fwd(*IMAGE, axis=1)
    assert aa.attention_weights(ctx).shape == (2, 6, 2, 5, 5)
    dlse = np.ones((2, 6, 2, 5))
    grads = aa.axial_attention_bwd(0 * out, ctx, dlse)
    weights = np.moveaxis(aa.attention_weights(ctx), 1, 2)  # (B, heads, W, H, H)
    expected = np.einsum("bhwij,bjwhd->biwhd", weights, IMAGE[1]) / 2
    np.testing.assert_allclose(grads.query, expected, rtol=0, atol=1e-14)


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception]]] = {
    "`axis` is 0, expected an axis of positions, from 1 to 2": (IMAGE, {"axis": 0}, ValueError),
    "`axis` is -1, expected an axis of positions, from 1 to 2": (IMAGE, {"axis": -1}, ValueError),
    "`axis` is 7, but the array has 5 axes": (IMAGE, {"axis": 7}, ValueError),
    "have 3, 3 and 3 axes; they must have equally many: (B, T, heads, D)": (IMAGE[:, 0, 0], {"axis": 1}, ValueError),
    "Attention has no option `layout`": (IMAGE, {"axis": 1, "layout": "BHTD"}, TypeError),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input(message: str) -> None:
    arrays, options, kind = WRONG[message]
    with pytest.raises(kind, match=re.escape(message)):
        aa.axial_attention(*arrays, **options)
