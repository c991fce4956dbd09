"""Cases of attention on images and volumes."""

from __future__ import annotations

from typing import Any

from attnarray.cases.case import Case, normal


def _neighborhood(label: str, size: tuple[int, ...], width: int, bias: tuple[int, ...] = (), **options: Any) -> Case:
    """B 2 with 3 heads, or a volume of 1 with 2 heads; D 4 or 6, Dv `width`."""
    of, D = ((2, *size, 3), 4) if len(size) < 3 else ((1, *size, 2), 6)
    shapes = {"query": (*of, D), "key": (*of, D), "value": (*of, width)}
    extents = {"relative_bias": (of[-1], *bias)} if bias else {}
    return Case("neighborhood_attention", label, normal(**shapes, **extents), options)


SPATIAL_CASES: tuple[Case, ...] = (
    _neighborhood("a line", (9,), 5, kernel_size=5),
    _neighborhood("a line, dilated, bias", (11,), 5, (5,), kernel_size=3, dilation=3, scale=0.7),
    _neighborhood("a causal line, even", (7,), 5, (7,), kernel_size=4, is_causal=True),
    _neighborhood("an image, bias", (5, 6), 7, (5, 9), kernel_size=(3, 5)),
    _neighborhood("an image, dilated, one causal axis, bias", (7, 5), 6, (5, 5), kernel_size=3, dilation=(2, 1),
                  is_causal=(True, False)),
    _neighborhood("a volume, bias", (3, 4, 5), 7, (5, 1, 5), kernel_size=(3, 1, 3)),
)  # fmt: skip
