"""Calls of C functions from compiled code, each by its address."""

from __future__ import annotations

from typing import Any

from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types


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
def call_on_panel(
    _context: Any, function: Any, first: Any, past: Any, panel: Any, before: Any, positions: Any, heads: Any,
    start: Any, b: Any, captured: Any,
) -> Any:  # fmt: skip
    """Call the C function of a modifier at an address: see attention/modifier_code.py."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)] * 9)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(*[types.int64] * 10), emit
