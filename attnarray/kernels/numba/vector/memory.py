"""Pointers and views for compiled code, without reference counts: the caller keeps the arrays alive.

Numba counts references with atomic instructions wherever an array is passed; pointers cost nothing.
"""

from __future__ import annotations

from typing import Any

from attnarray.kernels.numba.runtime.lazy import arrayobj, cgutils, intrinsic, ir, types


@intrinsic
def pointer(_context: Any, array: Any) -> Any:
    """A pointer to the first element of a contiguous array."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return arrayobj.make_array(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), emit


@intrinsic
def ahead(_context: Any, start: Any, count: Any) -> Any:
    """The pointer advanced by `count` elements; for a NamedTuple, each of its pointers."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        if isinstance(start, types.CPointer):
            return builder.gep(arguments[0], [arguments[1]])
        fields = zip(start, cgutils.unpack_tuple(builder, arguments[0]), strict=True)
        moved = [builder.gep(x, [arguments[1]]) if isinstance(kind, types.CPointer) else x for kind, x in fields]
        return context.make_tuple(builder, start, moved)

    return start(start, types.intp), emit


@intrinsic
def is_null(_context: Any, start: Any) -> Any:
    """Whether a pointer is null."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.icmp_unsigned("==", arguments[0], ir.Constant(arguments[0].type, None))

    return types.boolean(start), emit


@intrinsic
def matrix_at(_context: Any, like: Any, address: Any, rows: Any, columns: Any, row: Any, column: Any) -> Any:
    """A view (rows, columns) of the memory at an address, with strides in bytes and the dtype that `like` points to."""
    view = types.Array(like.dtype, 2, "A")
    signature = view(like, *[types.intp] * 5)

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        _, address, rows, columns, row, column = arguments
        element = context.get_data_type(view.dtype)
        array = arrayobj.make_array(view)(context, builder)
        arrayobj.populate_array(
            array, data=builder.inttoptr(address, element.as_pointer()), shape=[rows, columns], strides=[row, column],
            itemsize=context.get_constant(types.intp, context.get_abi_sizeof(element)), meminfo=None,
        )  # fmt: skip
        return array._getvalue()

    return signature, emit


@intrinsic
def vector_at(_context: Any, like: Any, address: Any) -> Any:
    """A view of contiguous numbers at an address, in the dtype of `like`; its size is not known, and given as 2^40."""
    view = types.Array(like, 1, "C")

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        element = context.get_data_type(like)
        array = arrayobj.make_array(view)(context, builder)
        size, bytes_each = ir.IntType(64)(2**40), context.get_constant(types.intp, context.get_abi_sizeof(element))
        arrayobj.populate_array(
            array, data=builder.inttoptr(arguments[1], element.as_pointer()), shape=[size], strides=[bytes_each],
            itemsize=bytes_each, meminfo=None,
        )  # fmt: skip
        return array._getvalue()

    return view(like, types.intp), emit


@intrinsic
def scratch(_context: Any, array: Any) -> Any:
    """A pointer to the first cache line (64 bytes) of a contiguous array or of the memory at a pointer."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        is_pointer = isinstance(array, types.CPointer)
        data = arguments[0] if is_pointer else arrayobj.make_array(array)(context, builder, arguments[0]).data
        address = builder.ptrtoint(data, ir.IntType(64))
        line = builder.and_(builder.add(address, ir.IntType(64)(63)), ir.IntType(64)(-64))
        return builder.inttoptr(line, data.type)

    return types.CPointer(array.dtype)(array), emit


@intrinsic
def as_bytes(_context: Any, start: Any) -> Any:
    """The same pointer, to bytes."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.bitcast(arguments[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(start), emit


@intrinsic
def keep(_context: Any, array: Any) -> Any:
    """Keep an array alive up to here: Numba frees it after its last use, and pointers into it do not count as uses."""

    def emit(context: Any, _builder: ir.IRBuilder, _signature: Any, _arguments: Any) -> ir.Value:
        return context.get_dummy_value()

    return types.void(array), emit


@intrinsic
def row_pointer(_context: Any, matrix: Any, row: Any) -> Any:
    """A pointer to the first element of a row of a matrix of any strides."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        view = arrayobj.make_array(matrix)(context, builder, arguments[0])
        strides = cgutils.unpack_tuple(builder, view.strides, 2)
        start = builder.ptrtoint(view.data, ir.IntType(64))
        return builder.inttoptr(builder.add(start, builder.mul(strides[0], arguments[1])), view.data.type)

    return types.CPointer(matrix.dtype)(matrix, types.intp), emit


@intrinsic
def pointer_at(_context: Any, like: Any, address: Any) -> Any:
    """An address as a pointer to the dtype of `like`."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.inttoptr(arguments[1], context.get_data_type(like).as_pointer())

    return types.CPointer(like)(like, types.intp), emit


@intrinsic
def address_of(_context: Any, start: Any) -> Any:
    """The address that a pointer has."""

    def emit(_target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return types.intp(start), emit
