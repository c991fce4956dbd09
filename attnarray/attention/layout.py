"""How the caller lays out query, key and value, and conversions to the canonical layout (B, H, T, D) and back."""

from __future__ import annotations

import math
from typing import NamedTuple

from attnarray import checks
from attnarray.attention.products import sum_to_shape
from attnarray.backend import Array, ArrayT, namespace_of


class Layout(NamedTuple):
    """How the caller's arrays are laid out, so that results can be given back in the same way."""

    ndim: int
    order: str
    batch: tuple[int, ...]
    has_heads: bool

    def canonical(self, x: ArrayT) -> ArrayT:
        """(*batch, H, T, N), (*batch, T, H, N), (B, T, N) or (T, N) -> (B, H, T, N), by views where strides allow."""
        xp = namespace_of(x)
        if self.order == "BTHD":
            x = xp.permute_dims(x, self._heads_and_rows_swapped)
        if self.is_canonical:
            return x
        heads = x.shape[-3] if self.has_heads else 1
        return xp.reshape(x, (math.prod(self.batch), heads, *x.shape[-2:]))

    def restore(self, x: ArrayT) -> ArrayT:
        """(B, H, T, N) in the caller's own axes."""
        xp = namespace_of(x)
        if not self.is_canonical:
            heads = (x.shape[1],) if self.has_heads else ()
            x = xp.reshape(x, (*self.batch, *heads, *x.shape[2:]))
        if self.order == "BTHD":
            x = xp.permute_dims(x, self._heads_and_rows_swapped)
        return x

    def restored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a canonical array (B, H, T, N) in the caller's own axes."""
        _, heads, rows, features = shape
        if not self.has_heads:
            return (*self.batch, rows, features)
        return (*self.batch, rows, heads, features) if self.order == "BTHD" else (*self.batch, heads, rows, features)

    def restore_rows(self, x: ArrayT) -> ArrayT:
        """(B, H, T) -> (*batch, H, T), without H where the caller has none; `layout` does not reorder it."""
        heads = (x.shape[1],) if self.has_heads else ()
        return namespace_of(x).reshape(x, (*self.batch, *heads, x.shape[2]))

    @property
    def _heads_and_rows_swapped(self) -> tuple[int, ...]:
        return (*range(self.ndim - 3), self.ndim - 2, self.ndim - 3, self.ndim - 1)

    @property
    def is_canonical(self) -> bool:
        return self.ndim == 4 and self.has_heads

    def scores_shape(self, heads: int, queries: int, keys: int) -> tuple[int, ...]:
        """The shape that masks and biases broadcast to."""
        return (*self.batch, *((heads,) if self.has_heads else ()), queries, keys)

    def canonical_scores(self, x: Array) -> Array:
        """An array that broadcasts to `scores_shape` -> (B|1, H|1, T|1, S|1)."""
        xp = namespace_of(x)
        x = xp.reshape(x, (1,) * (self.ndim - x.ndim) + tuple(x.shape))
        if self.is_canonical:
            return x
        lead, tail = tuple(x.shape[: len(self.batch)]), tuple(x.shape[len(self.batch) :])
        tail = tail if self.has_heads else (1, *tail)
        if math.prod(lead) == 1:
            return xp.reshape(x, (1, *tail))
        x = xp.broadcast_to(x, (*self.batch, *x.shape[len(self.batch) :]))
        return xp.reshape(x, (math.prod(self.batch), *tail))

    def restore_bias(self, dbias: Array, shape: tuple[int, ...]) -> Array:
        """The gradient of a canonical bias, summed back to the bias's own shape."""
        xp = namespace_of(dbias)
        lead = self.batch if dbias.shape[0] == math.prod(self.batch) else (1,) * len(self.batch)
        tail = dbias.shape[1:] if self.has_heads else dbias.shape[2:]
        return sum_to_shape(xp.reshape(dbias, (*lead, *tail)), shape)


CANONICAL = Layout(4, "BHTD", (), True)  # of arrays that are (B, H, T, D) already


def attention_layout(query: Array, key: Array, value: Array, order: str, *, same_features: bool = True) -> Layout:
    """The layout of a call, once the shapes of its arrays fit together."""
    checks.choice("layout", order, checks.LAYOUTS)
    ndim = query.ndim
    fewest = 2 if order == "BHTD" else 3
    named = checks.shapes(query=query, key=key, value=value)
    if not ndim == key.ndim == value.ndim or ndim < fewest:
        raise ValueError(
            f"`query`, `key` and `value` have {ndim}, {key.ndim} and {value.ndim} axes; they must have equally many, "
            f"at least {fewest} for layout {order!r}. {named}"
        )
    heads, rows = (-3, -2) if order == "BHTD" else (-2, -3)
    has_heads = ndim > 3 or order == "BTHD"
    layout = Layout(ndim, order, tuple(query.shape[: -3 if has_heads else -2]), has_heads)
    if same_features and query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"`key` has head dim {key.shape[-1]} but `query` has {query.shape[-1]}; they must match. {named}"
        )
    _check_keys_and_batch(layout, key, value, rows, named)
    if layout.has_heads:
        query_heads, kv_heads = query.shape[heads], key.shape[heads]
        if value.shape[heads] != kv_heads or (query_heads % kv_heads if kv_heads else query_heads):
            axes, other = ("heads, positions", "BTHD") if order == "BHTD" else ("positions, heads", "BHTD")
            raise ValueError(
                f"`query` has {query_heads} heads, `key` {kv_heads} and `value` {value.shape[heads]}; key and value "
                "must have equally many, and the query heads must be a multiple of them. In layout "
                f"{order!r} arrays are (*batch, {axes}, dim); give layout={other!r} for the other order. {named}"
            )
    return layout


def sequence_layout(query: Array, key: Array, value: Array) -> Layout:
    """The layout of sequences (*batch, T, N) without heads, once their batches and numbers of keys fit together.

    The sizes N may differ; mechanisms that compare features check them.
    """
    named = checks.shapes(query=query, key=key, value=value)
    if not query.ndim == key.ndim == value.ndim or query.ndim < 2:
        raise ValueError(
            f"`query`, `key` and `value` have {query.ndim}, {key.ndim} and {value.ndim} axes; they must have equally "
            f"many, at least 2: (*batch, T, N). {named}"
        )
    layout = Layout(query.ndim, "BHTD", tuple(query.shape[:-2]), False)
    _check_keys_and_batch(layout, key, value, -2, named)
    return layout


def _check_keys_and_batch(layout: Layout, key: Array, value: Array, rows: int, named: str) -> None:
    if key.shape[rows] != value.shape[rows]:
        raise ValueError(
            f"`value` has {value.shape[rows]} positions but `key` has {key.shape[rows]}; there must be one value "
            f"per key. {named}"
        )
    for name, array in (("key", key), ("value", value)):
        if tuple(array.shape[: len(layout.batch)]) != layout.batch:
            given = tuple(array.shape[: len(layout.batch)])
            raise ValueError(f"`{name}` has batch {given} but `query` has {layout.batch}; they must be equal. {named}")
