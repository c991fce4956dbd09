"""Attention in windows of images as a layer, and its block."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers

X = np.random.default_rng(0).standard_normal((2, 4, 6, 8))


@pytest.mark.parametrize("kind", ["shifted", "neighborhood"])
def test_the_layer_is_projections_around_the_function(kind: Any) -> None:
    layer = layers.WindowAttention(8, 2, 3 if kind == "neighborhood" else 2, kind)
    params = layer.init(aa.Philox(0), "float64")
    q, k, v = np.moveaxis(aa.linear(X, **params["qkv"]).reshape(2, 4, 6, 3, 2, 4), 3, 0)
    function = aa.shifted_window_attention if kind == "shifted" else aa.neighborhood_attention
    attended = function(q, k, v, layer.window_size, params["relative_bias"])
    expected = aa.linear(attended.reshape(X.shape), **params["out"])
    np.testing.assert_allclose(layer(params, X), expected, rtol=0, atol=1e-14)


def test_a_shifted_block_joins_windows() -> None:
    stage = [layers.WindowBlock(8, 2, 2, shift=shift) for shift in (0, 1)]
    params = [block.init(rng, "float64") for block, rng in zip(stage, aa.Philox(0).split(2), strict=True)]
    moved = X.copy()
    moved[0, 0, 0] += 1.0
    reached = []
    for blocks in (stage[:1], stage):
        outs = []
        for x in (X, moved):
            for block, own in zip(blocks, params, strict=False):
                x = block(own, x)
            outs.append(x)
        reached.append(int(np.sum(np.any(outs[0] != outs[1], axis=-1))))
    assert reached == [4, 9]  # the window of 2 x 2, and the four windows that it meets, two of them smaller


WRONG: dict[str, dict[str, Any]] = {
    "`num_heads` (3) must divide `dim` (8)": {"num_heads": 3},
    "`shift` is given, but neighborhoods are not shifted": {"kind": "neighborhood", "shift": 1},
    "`dilation` is given, but shifted windows have none": {"dilation": 2},
    "`kind` is 'axial', expected one of 'shifted', 'neighborhood'": {"kind": "axial"},
    "`shift` is -1, expected an integer >= 0": {"shift": -1},
}


@pytest.mark.parametrize("message", WRONG)
@pytest.mark.parametrize("layer", [layers.WindowAttention, layers.WindowBlock])
def test_wrong_fields(layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(**{"dim": 8, "num_heads": 2, "window_size": 2, **WRONG[message]})


def test_wrong_images() -> None:
    layer = layers.WindowAttention(8, 2, 3)
    params = layer.init(aa.Philox(0), "float64")
    with pytest.raises(ValueError, match=re.escape("`window_size` (3) must divide the 4 positions along axis 0")):
        layer(params, X)
    with pytest.raises(ValueError, match="axes"):
        layer(params, X[0])
