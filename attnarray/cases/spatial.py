"""Cases of attention on images and volumes."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.cases.case import Case, also, normal


def _neighborhood(label: str, size: tuple[int, ...], width: int, bias: tuple[int, ...] = (), **options: Any) -> Case:
    """B 2 with 3 heads, or a volume of 1 with 2 heads; D 4 or 6, Dv `width`."""
    of, D = ((2, *size, 3), 4) if len(size) < 3 else ((1, *size, 2), 6)
    shapes = {"query": (*of, D), "key": (*of, D), "value": (*of, width)}
    extents = {"relative_bias": (of[-1], *bias)} if bias else {}
    return Case("neighborhood_attention", label, normal(**shapes, **extents), options)


def _windows(label: str, size: tuple[int, ...], width: int, bias: tuple[int, ...] = (), **options: Any) -> Case:
    made = _neighborhood(label, size, width, bias, **options)
    return Case("shifted_window_attention", label, made.arrays, options)


def _axial(label: str, shapes: dict[str, tuple[int, ...]], **options: Any) -> Case:
    return Case("axial_attention", label, normal(**shapes), options)


def _deformable(label: str, levels: tuple[tuple[int, int], ...], points: int) -> Case:
    """B 2, T 5, 3 heads, D 4; some points beyond the border, none near a pixel, where gradients jump."""
    pixels, of = sum(H * W for H, W in levels), (2, 5, 3, len(levels), points)

    def locations(rng: np.random.Generator) -> np.ndarray:
        whole = [rng.integers(-3, np.array([W, H]) + 2, (2, 5, 3, 1, points, 2)) for H, W in levels]
        shares = 0.1 + 0.8 * rng.random((*of, 2))
        return (np.concatenate(whole, axis=3) + shares + 0.5) / np.array([[[W, H]] for H, W in levels])

    arrays = also(normal(value=(2, pixels, 3, 4), attention_weights=of), sampling_locations=locations)
    return Case("deformable_attention", label, arrays, {"spatial_shapes": levels})


SPATIAL_CASES: tuple[Case, ...] = (
    _neighborhood("a line", (9,), 5, kernel_size=5),
    _neighborhood("a line, dilated, bias", (11,), 5, (5,), kernel_size=3, dilation=3, scale=0.7),
    _neighborhood("a causal line, even", (7,), 5, (7,), kernel_size=4, is_causal=True),
    _neighborhood("an image, bias", (5, 6), 7, (5, 9), kernel_size=(3, 5)),
    _neighborhood("an image, dilated, one causal axis, bias", (7, 5), 6, (5, 5), kernel_size=3, dilation=(2, 1),
                  is_causal=(True, False)),
    _neighborhood("a volume, bias", (3, 4, 5), 7, (5, 1, 5), kernel_size=(3, 1, 3)),
    _windows("a line", (9,), 5, window_size=3),
    _windows("a shifted line, bias", (8,), 5, (7,), window_size=4, shift=3),
    _windows("an image, shifted, bias", (6, 9), 7, (5, 5), window_size=3, shift=(1, 2), scale=0.7),
    _windows("an image, one window along an axis", (6, 5), 7, (3, 9), window_size=(2, 5), shift=(1, 2)),
    _windows("a volume", (3, 4, 9), 7, window_size=(1, 2, 3), shift=(0, 1, 1)),
    _axial("rows of an image", {"query": (2, 5, 6, 3, 4), "key": (2, 5, 7, 3, 4), "value": (2, 5, 7, 3, 8)}, axis=2),
    _axial("columns, grouped heads, causal", {"query": (2, 5, 6, 4, 3), "key": (2, 7, 6, 2, 3),
           "value": (2, 7, 6, 2, 9)}, axis=-4, is_causal=True, q_offset=2),
    _axial("a volume, bias", {"query": (1, 3, 4, 5, 2, 6), "key": (1, 3, 4, 5, 2, 6), "value": (1, 3, 4, 5, 2, 7),
           "bias": (2, 4, 4)}, axis=2, softcap=2.0),
    _deformable("an image", ((7, 6),), 8),
    _deformable("three levels", ((4, 3), (2, 5), (1, 1)), 6),
)  # fmt: skip
