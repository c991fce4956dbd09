"""The range of floating dtypes: options that they hold, squares and sums that stay within them."""

from __future__ import annotations

import math
from typing import NamedTuple

from attnarray.backend import Array, accumulator_dtype, dtype_name, namespace_of


class Range(NamedTuple):
    """From `least` to `most`, numbers and their reciprocals have all digits of a dtype.

    Sums of squares of numbers from `small` to `large` stay within it; those of others do when they are multiplied by
    `grow` or `shrink`, powers of two.
    """

    least: float
    most: float
    small: float
    large: float
    grow: float
    shrink: float


RANGES = {
    "float32": Range(2.0**-126, 2.0**126, 2.0**-48, 2.0**48, 2.0**90, 2.0**-80),
    "float64": Range(2.0**-1022, 2.0**1022, 2.0**-400, 2.0**400, 2.0**700, 2.0**-620),
}


def check_number(name: str, number: float, dtype: str, *, small: bool = False, power: int = 1) -> float:
    """Check that the dtype in which arrays of `dtype` are computed holds a number, also to that power.

    With `small` it may be so small that it counts as 0.
    """
    computed = "float64" if dtype == "float64" else "float32"
    within = RANGES[computed]
    least, most = within.least ** (1 / power), within.most ** (1 / power)
    if least <= abs(number) <= most or number == 0 or (small and abs(number) < 1):
        return number
    more = "" if computed == "float64" else ", or give float64 arrays"
    raise ValueError(
        f"`{name}` is {number:g}, expected a number of a size from {0 if small else least:.2g} to {most:.2g}: arrays "
        f"of {dtype} are computed in {computed}, which has no others. Choose one in this range{more}."
    )


def sum_wide(array: Array, axis: int | tuple[int, ...]) -> Array:
    """The sum over axes, in float32 for 16-bit types: a sum of ones in bfloat16 would stop at 256."""
    xp = namespace_of(array)
    wide = xp.astype(array, accumulator_dtype(xp, array.dtype), copy=False)
    return xp.astype(xp.asarray(xp.sum(wide, axis=axis)), array.dtype, copy=False)


def row_scales(x: Array) -> Array | None:
    """Factors (..., 1) of the rows of x (..., E) that keep squares in range; None if all are 1."""
    xp, within = namespace_of(x), RANGES[dtype_name(x.dtype)]
    if not math.prod(x.shape):
        return None
    large = xp.max(xp.abs(x), axis=-1, keepdims=True) > within.large
    if not bool(xp.any(large)):
        return None
    return xp.astype(xp.where(large, within.shrink, 1.0), x.dtype, copy=False)


def common_scale(leaves: list[Array]) -> float:
    """A factor of all numbers of arrays of one dtype that keeps the sum of squares in range."""
    largest = 0.0
    for leaf in leaves:
        if math.prod(leaf.shape):
            xp = namespace_of(leaf)
            largest = max(largest, float(xp.max(leaf)), -float(xp.min(leaf)))
    within = RANGES[dtype_name(leaves[0].dtype)]
    return within.shrink if largest > within.large else within.grow if 0 < largest < within.small else 1.0
