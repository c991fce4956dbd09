"""Calls of C functions from compiled code, each by its address."""

from __future__ import annotations

from typing import Any

from attnarray.kernels.numba.runtime.lazy import cgutils, intrinsic, ir, types


@intrinsic
def call_getter(_context: Any, function: Any) -> Any:
    """Call the C function `int f(void)` at an address."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), []), ir.IntType(64))

    return types.int64(types.int64), emit


@intrinsic
def call_with_buffer(_context: Any, function: Any, number: Any, size: Any, buffer: Any) -> Any:
    """Call the C function `int f(int number, size_t size, void *buffer)` at an address."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), *[ir.IntType(64)] * 2])
        function, number, size, buffer = arguments
        given = [builder.trunc(number, ir.IntType(32)), size, buffer]
        return builder.sext(builder.call(builder.inttoptr(function, kind.as_pointer()), given), ir.IntType(64))

    return types.int64(*[types.int64] * 4), emit


@intrinsic
def call_with_integers(_context: Any, function: Any, integers: Any) -> Any:
    """Call the C function of as many 64-bit integers as the tuple has, with such a result, at an address."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        given = cgutils.unpack_tuple(builder, arguments[1])
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)] * len(given))
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), given)

    return types.int64(types.int64, integers), emit
