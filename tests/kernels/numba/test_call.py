"""A call as integers and numbers: what Python packs is what compiled code unpacks, and formulas take it as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from attnarray.kernels.numba.runtime.call import Bytes, Doubles, Integers, Number, Numbers, address, pack, unpack
from attnarray.kernels.numba.runtime.jit import jit
from attnarray.kernels.numba.vector.lanes import Lanes
from attnarray.kernels.numba.vector.memory import ahead, is_null
from attnarray.kernels.numba.vector.rows import Row, Scalar, Sum, row_pass


class Call(NamedTuple):
    """Every kind of field, numbers between the others, and an array that is not given."""

    count: int
    factor: Number
    x: Numbers
    added: Doubles
    order: Integers
    flags: Bytes
    rest: Number
    out: Numbers
    missing: Numbers = None


class Scaled(NamedTuple):
    x: Row
    factor: Scalar


@row_pass(vectors=1)
def scale(given: Scaled, out: Row, total: Sum) -> dict[str, Lanes]:
    product = given.x * given.factor
    return {"out": product, "total": total + product}


@jit
def kernel(first: int, past: int, integers: Any, numbers: Any) -> Any:
    c = unpack(Call, integers, numbers)
    total = scale(past - first, ahead(Scaled(c.x, c.factor), first), ahead(c.out, first))
    for n in range(c.count):
        c.out[c.order[n]] += c.added[n] * c.flags[n] + c.rest
    return total, is_null(c.missing)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_kind_of_field_arrives(dtype: str) -> None:
    x, out = np.arange(40, dtype=dtype), np.zeros(40, dtype)
    added, order, flags = np.array([0.25, 0.5, 0.75]), np.array([7, 0, 39]), np.array([True, False, True])
    call = Call(3, 0.5, x, added, order, flags, 0.125, out)
    total, missing = kernel(2, 39, *pack(call, np.dtype(dtype)))
    expected = np.where((np.arange(40) >= 2) & (np.arange(40) < 39), x / 2, 0)
    expected[order] += added * flags + 0.125
    np.testing.assert_array_equal(out, expected)  # halves of small integers, and eighths: no rounding
    assert (total, missing) == (np.sum(x[2:39]) / 2, True)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda x: x,
    "a part": lambda x: x[2:],
    "rows apart": lambda x: x[::2],
    "transposed": lambda x: x.T,
    "backward": lambda x: x[::-1],
    "of no numbers": lambda x: x[:0],
    "one number": lambda x: x[1, 1:2].reshape(()),
}


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_address_of_an_array(layout: str, dtype: str, writable: bool) -> None:
    x = LAYOUTS[layout](np.zeros((5, 3), dtype))
    x.setflags(write=writable)
    assert address(x) == x.ctypes.data
