"""Calls of kernels as integers and numbers, both named by the fields of one NamedTuple.

A kernel takes its first and last unit of work, and then integers, addresses and numbers: a few as they are, more than
that as two arrays, so that each dtype is compiled once whatever the layout of its arrays. `pack` makes these two of a
NamedTuple of integers, arrays and numbers, `unpack` a NamedTuple of integers, pointers and numbers for compiled code.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from attnarray.kernels.numba.runtime.lazy import arrayobj, intrinsic, ir, types

# Kinds of fields besides `int`: arrays or addresses, which become pointers; and numbers of the dtype of the call.
Numbers: TypeAlias = Any  # of the dtype of the call
Doubles: TypeAlias = Any
Integers: TypeAlias = Any  # 64 bits
Bytes: TypeAlias = Any
Number: TypeAlias = Any
POINTERS = {"Doubles": "float64", "Integers": "int64", "Bytes": "uint8"}


@functools.cache
def kinds(record: Any) -> dict[str, str]:
    """The annotation of each field of a NamedTuple."""
    return {
        name: str(getattr(kind, "__forward_arg__", getattr(kind, "__name__", kind)))
        for name, kind in inspect.get_annotations(record).items()
    }


def address(x: np.ndarray) -> int:
    """`x.ctypes.data`, in a tenth of its time."""
    return WORD_AT(id(x) + OFFSET).value


# NumPy's C API has the address of the data first in an array, after the fields of all Python objects.
WORD_AT, OFFSET = ctypes.c_size_t.from_address, object.__basicsize__


def pack(call: Any, real: Any) -> tuple[np.ndarray, np.ndarray]:
    """The integers, None as 0 and arrays as addresses, and the numbers in the dtype `real`, at least one.

    The arrays must stay alive until the kernel has ended.
    """
    integers, numbers = _getters(call.__class__)
    words = [address(x) if isinstance(x, np.ndarray) else x or 0 for x in integers(call)]
    return np.array(words, np.int64), np.array(numbers(call), real)


@functools.cache
def _getters(record: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Getters of the integers and addresses of a record, and of its numbers."""
    fields = list(enumerate(kinds(record).values()))
    integers, numbers = ([n for n, kind in fields if (kind == "Number") == wanted] for wanted in (False, True))
    if len(numbers) > 1:
        return operator.itemgetter(*integers), operator.itemgetter(*numbers)
    return operator.itemgetter(*integers), lambda call: [call[n] for n in numbers] or [0.0]


def empty_call(record: Any, **given: int) -> Any:
    """A call without work, to compile a kernel."""
    return record(**{name: given.get(name, 0) for name in record._fields})


@intrinsic
def unpack(_context: Any, record: Any, integers: Any, numbers: Any) -> Any:
    """The record of a call from its two arrays."""
    named = kinds(record.instance_class)
    fields = [_field(kind, numbers.dtype) for kind in named.values()]
    result = types.NamedTuple(fields, record.instance_class)

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        words = arrayobj.make_array(integers)(context, builder, arguments[1]).data
        floats = arrayobj.make_array(numbers)(context, builder, arguments[2]).data
        values, at = [], {True: 0, False: 0}
        for kind, field in zip(named.values(), fields, strict=True):
            is_number = kind == "Number"
            start = floats if is_number else words
            value = builder.load(builder.gep(start, [ir.IntType(64)(at[is_number])]))
            at[is_number] += 1
            pointer = isinstance(field, types.CPointer)
            values.append(builder.inttoptr(value, context.get_value_type(field)) if pointer else value)
        return context.make_tuple(builder, result, values)

    return result(record, integers, numbers), emit


def _field(kind: str, real: Any) -> Any:
    if kind in ("int", "Number"):
        return types.int64 if kind == "int" else real
    return types.CPointer(real if kind == "Numbers" else getattr(types, POINTERS[kind]))
