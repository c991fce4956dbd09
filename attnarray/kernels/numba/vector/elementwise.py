"""Elementwise kernels: one formula for all numbers of arrays of one dtype."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from attnarray.kernels.numba.runtime.jit import EXACT, jit
from attnarray.kernels.numba.vector.formula import Body
from attnarray.kernels.numba.vector.memory import ahead, pointer_at
from attnarray.kernels.numba.vector.rows import row_pass

formula: Any = None  # replaced in the globals of each copy of the functions below


def _two_rows(first: int, past: int, x: int, y: int, like: Any) -> None:
    formula(past - first, ahead(pointer_at(like, x), first), ahead(pointer_at(like, y), first))


def _three_rows(first: int, past: int, x: int, y: int, z: int, like: Any) -> None:
    x_row, y_row = ahead(pointer_at(like, x), first), ahead(pointer_at(like, y), first)
    formula(past - first, x_row, y_row, ahead(pointer_at(like, z), first))


def elementwise(vectors: int) -> Callable[[Body], Any]:
    """Decorate a formula of two or three rows to become a kernel of their addresses, over the numbers [first, past).

    The kernel is a copy of a function of this module: a closure over a formula would never be found in the cache again.
    """

    def decorate(body: Body) -> Any:
        template = {2: _two_rows, 3: _three_rows}[body.__code__.co_argcount]
        variables = {**globals(), "formula": row_pass(vectors)(body), "__name__": body.__module__}
        kernel = FunctionType(template.__code__, variables, body.__name__)
        kernel.__qualname__ = f"{body.__module__.rpartition('.')[2]}.{body.__name__}"  # part of the cache's key
        return jit(kernel, fastmath=EXACT)

    return decorate
