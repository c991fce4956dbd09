"""Passes along rows that many kernels need."""

from __future__ import annotations

from attnarray.kernels.numba.vector.lanes import Lanes, in_type
from attnarray.kernels.numba.vector.rows import Row, Scalar, row_pass


@row_pass(vectors=2)
def fill(out: Row, number: Scalar) -> dict[str, Lanes]:
    return {"out": number}


@row_pass(vectors=2)
def copy(x: Row, out: Row) -> dict[str, Lanes]:
    return {"out": x}


@row_pass(vectors=2)
def scale(x: Row, factor: Scalar) -> dict[str, Lanes]:
    return {"x": x * factor}


@row_pass(vectors=1)
def move(part: Row, total: Row) -> dict[str, Lanes]:
    """Add numbers to those in the same or a wider type, and clear them."""
    return {"total": total + in_type(part, total), "part": part.constant(0.0)}
