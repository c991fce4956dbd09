"""Blocks of queries: their ranges, what belongs to one, and from their results that of all queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from attnarray import checks
from attnarray.attention.parts import check_result
from attnarray.backend import Array, dtype_name, namespace_of

N = TypeVar("N")

# Scores held at a time. Small enough for a CPU's last cache level to help, large enough to keep a GPU busy.
BLOCK_ELEMENTS = 2**23


def ranges(count: int, each: int, held: int | None = None) -> Iterator[slice]:
    """Ranges of `count` rows, at least one, of `each` numbers a row and at most `held` (or BLOCK_ELEMENTS) numbers."""
    size = max(1, (BLOCK_ELEMENTS if held is None else held) // max(1, each))
    for start in range(0, max(count, 1), size):
        yield slice(start, min(start + size, count))


def query_blocks(q: Array, k: Array, each: int) -> Iterator[slice]:
    """Ranges of queries, so that the scores of a range, times `each` numbers, are held at a time."""
    return ranges(q.shape[2], q.shape[0] * q.shape[1] * k.shape[2] * each)


def block_rows(value: Any, rows: slice) -> Any:
    """These queries of an array (B, H, T, ...), of a NamedTuple of such arrays, or None."""
    return map_arrays(lambda arrays: arrays[0][:, :, rows, ...], value)


def cut(value: N, rows: slice) -> N:
    """A scorer or normalizer with only these queries in the fields that PER_QUERY names."""
    names = getattr(value, "PER_QUERY", ())
    arrays = {name: getattr(value, name) for name in names}
    mine = {n: x if x is None or x.shape[2] == 1 else x[:, :, rows, ...] for n, x in arrays.items()}
    return value._replace(**mine) if mine else value  # type: ignore[attr-defined]


def join(blocks: Sequence[Array]) -> Array:
    return blocks[0] if len(blocks) == 1 else namespace_of(*blocks).concat(list(blocks), axis=2)


def map_arrays(function: Callable[[list[Array]], Array], *values: Any) -> Any:
    """`function` of the arrays in the same field of all values, which are arrays, NamedTuples of them, or None."""
    first = values[0]
    if isinstance(first, tuple):
        return type(first)(*(map_arrays(function, *fields) for fields in zip(*values, strict=True)))
    return None if first is None else function(list(values))


def total_gradient(blocks: Sequence[Any], array: Array | None, per_query: bool = True) -> Array | None:
    """From the gradients of the blocks that of an array: joined where each query has its own entries, else summed."""
    if array is None:
        return None
    joined = per_query and array.shape[2] != 1
    total = join(blocks) if joined else sum(blocks[1:], start=blocks[0])
    return namespace_of(array).astype(total, array.dtype, copy=False)


def total_gradients(blocks: Sequence[Any], owner: Any) -> Any:
    """From the gradients of the blocks that of a scorer, modifier or normalizer; None for what has no gradient."""
    kind = type(owner)
    for block in blocks:
        if type(block) is not kind:
            given = checks.shown(block)
            raise TypeError(f"`{kind.__name__}.backward` returned {given}, expected a {kind.__name__} of gradients.")
    fields = list[Any]()
    for name, array, *values in zip(owner._fields, owner, *blocks, strict=True):
        floating = checks.is_array(array) and dtype_name(array.dtype) in checks.FLOATS
        if not floating or values[0] is None or name in getattr(owner, "NO_GRADIENT", ()):
            fields.append(None)
            continue
        for value in values:
            check_result(owner, "backward", value, getattr(value, "shape", array.shape), f" for `{name}`")
        fields.append(total_gradient(values, array, name in getattr(owner, "PER_QUERY", ())))
        check_result(owner, "backward", fields[-1], array.shape, f" for `{name}`")
    return kind(*fields)
