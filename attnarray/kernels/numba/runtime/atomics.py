"""Atomic reads and writes of 64-bit words in compiled code, each given by its address; all sequentially consistent."""

from __future__ import annotations

import platform
from typing import Any

from attnarray.kernels.numba.runtime.lazy import intrinsic, ir, types

PAUSES = {"x86_64": "llvm.x86.sse2.pause", "amd64": "llvm.x86.sse2.pause"}  # by machine; others spin without


def _word_pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def load(_context: Any, address: Any) -> Any:
    """Read the word."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.load_atomic(_word_pointer(builder, arguments[0]), "seq_cst", 8)

    return types.int64(address), emit


@intrinsic
def store(_context: Any, address: Any, word: Any) -> Any:
    """Write the word."""

    def emit(target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        builder.store_atomic(arguments[1], _word_pointer(builder, arguments[0]), "seq_cst", 8)
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def exchange(_context: Any, address: Any, word: Any) -> Any:
    """Write the word and return the one that was there."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.atomic_rmw("xchg", _word_pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def add(_context: Any, address: Any, word: Any) -> Any:
    """Add to the word and return what it was before."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.atomic_rmw("add", _word_pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def compare_exchange(_context: Any, address: Any, old: Any, new: Any) -> Any:
    """Write `new` if the word is `old`; return whether it was."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        pointer = _word_pointer(builder, arguments[0])
        return builder.extract_value(builder.cmpxchg(pointer, arguments[1], arguments[2], "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@intrinsic
def pause(_context: Any) -> Any:
    """Tell the CPU that this thread spins."""

    def emit(target: Any, builder: ir.IRBuilder, _signature: Any, _arguments: Any) -> ir.Value:
        name = PAUSES.get(platform.machine().lower())
        if name is not None:
            known = builder.module.globals.get(name)
            builder.call(known or ir.Function(builder.module, ir.FunctionType(ir.VoidType(), []), name), [])
        return target.get_dummy_value()

    return types.void(), emit
