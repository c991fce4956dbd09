"""From what users pass to the canonical form (B, H, T, D) and back: every check of the dot-product functions stands here."""

from __future__ import annotations

import math
import numbers
import operator
from functools import reduce
from typing import Any, NamedTuple, TypedDict

from attnarray import checks
from attnarray.attention.core import sum_to_shape
from attnarray.attention.scoring import Dropout, Scoring
from attnarray.backend import Array, Namespace, device_of, dtype_name, index_dtype, library_of, namespace_of
from attnarray.masks import Causal, Constraints, Mask, Window, constraints_of, smaller
from attnarray.random import Philox, seed_of

LAYOUTS = ("BHTD", "BTHD")


class Form(NamedTuple):
    """How the caller's arrays are laid out, so that results can be given back in the same way."""

    ndim: int
    layout: str
    batch: tuple[int, ...]

    def canonical(self, x: Array) -> Array:
        """(*batch, H, T, N), (*batch, T, H, N), (B, T, N) or (T, N) -> (B, H, T, N), by views wherever strides allow."""
        xp = namespace_of(x)
        if self.layout == "BTHD":
            axes = (*range(self.ndim - 3), self.ndim - 2, self.ndim - 3, self.ndim - 1)
            x = xp.permute_dims(x, axes)
        if self.ndim == 4:
            return x
        heads = x.shape[-3] if self.has_heads else 1
        return xp.reshape(x, (math.prod(self.batch), heads, *x.shape[-2:]))

    def restored(self, x: Array) -> Array:
        """(B, H, T, N) in the caller's own axes."""
        xp = namespace_of(x)
        if self.ndim != 4:
            heads = (x.shape[1],) if self.has_heads else ()
            x = xp.reshape(x, (*self.batch, *heads, *x.shape[2:]))
        if self.layout == "BTHD":
            axes = (*range(self.ndim - 3), self.ndim - 2, self.ndim - 3, self.ndim - 1)
            x = xp.permute_dims(x, axes)
        return x

    def restored_rows(self, x: Array) -> Array:
        """(B, H, T) -> (*batch, H, T), without H where the caller has none; `layout` does not reorder it."""
        heads = (x.shape[1],) if self.has_heads else ()
        return namespace_of(x).reshape(x, (*self.batch, *heads, x.shape[2]))

    @property
    def has_heads(self) -> bool:
        return self.ndim > 3 or self.layout == "BTHD"

    def scores_shape(self, heads: int, queries: int, keys: int) -> tuple[int, ...]:
        """The shape that masks and biases broadcast to."""
        return (*self.batch, *((heads,) if self.has_heads else ()), queries, keys)

    def canonical_scores(self, x: Array) -> Array:
        """An array that broadcasts to `scores_shape` -> (B|1, H|1, T|1, S|1)."""
        xp = namespace_of(x)
        x = xp.reshape(x, (1,) * (self.ndim - x.ndim) + tuple(x.shape))
        if self.ndim == 4:
            return x
        lead, tail = tuple(x.shape[: len(self.batch)]), tuple(x.shape[len(self.batch) :])
        tail = tail if self.has_heads else (1, *tail)
        if math.prod(lead) == 1:
            return xp.reshape(x, (1, *tail))
        x = xp.broadcast_to(x, (*self.batch, *x.shape[len(self.batch) :]))
        return xp.reshape(x, (math.prod(self.batch), *tail))

    def restored_bias(self, dbias: Array, shape: tuple[int, ...]) -> Array:
        """The gradient of a canonical bias, summed back to the bias's own shape."""
        xp = namespace_of(dbias)
        lead = self.batch if dbias.shape[0] == math.prod(self.batch) else (1,) * len(self.batch)
        tail = dbias.shape[1:] if self.has_heads else dbias.shape[2:]
        return sum_to_shape(xp.reshape(dbias, (*lead, *tail)), shape)


class Problem(NamedTuple):
    """One call in canonical form."""

    q: Array
    k: Array
    v: Array
    scoring: Scoring
    form: Form
    bias_shape: tuple[int, ...] | None


class Options(TypedDict, total=False):
    """The keyword-only options of the dot-product functions; `scaled_dot_product_attention` documents each."""

    scale: float | None
    bias: Array | None
    window: tuple[int | None, int | None] | None
    q_offset: Any
    kv_lengths: Any
    softcap: float | None
    sinks: Array | None
    rng: Philox | int | None
    dropout_mask: Array | None
    enable_gqa: bool | None
    layout: str


def problem_of(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | Mask | None,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None = None,
    bias: Array | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: Any = 0,
    kv_lengths: Any = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    rng: Philox | int | None = None,
    dropout_mask: Array | None = None,
    enable_gqa: bool | None = None,
    layout: str = "BHTD",
    kv_offset: int = 0,
) -> Problem:
    """Check everything that a dot-product attention function takes, and bring it to canonical form.

    With `kv_offset`, key j stands at position j + kv_offset (for partial attention over a part of the keys).
    """
    xp = namespace_of(query, key, value, bias, sinks, dropout_mask, None if isinstance(attn_mask, Mask) else attn_mask)
    form = _form_of(query, key, value, layout)
    q, k, v = form.canonical(query), form.canonical(key), form.canonical(value)
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    full = form.scores_shape(heads, queries, keys)
    constraints, bias = _constraints(attn_mask, bias, is_causal, window)
    checks.floating(query=query, key=key, value=value, bias=bias, sinks=sinks)
    if bias is not None:
        checks.broadcasts("bias", bias, full, "(*batch, H, T, S)")
    for dense in constraints.dense:
        checks.broadcasts("attn_mask", dense, full, "(*batch, H, T, S)")
    masks = [form.canonical_scores(dense) for dense in constraints.dense]
    if sinks is not None:
        checks.shape("sinks", sinks, (heads,), f"one sink for each of the {heads} query heads")
    if not isinstance(kv_offset, int) or kv_offset < 0:
        raise ValueError(
            f"`kv_offset` is {kv_offset!r}, expected an integer >= 0: the position of the first key given."
        )
    scoring = Scoring(
        scale=_scale(scale, q.shape[3]),
        softcap=None if softcap is None else checks.positive("softcap", softcap),
        bias=None if bias is None else form.canonical_scores(bias),
        mask=reduce(operator.and_, masks) if masks else None,
        left=constraints.left,
        right=constraints.right,
        q_offset=_integers("q_offset", q_offset, form, q, xp) - kv_offset,
        kv_lengths=_lengths((*constraints.lengths, kv_lengths), form, keys, kv_offset, q, xp),
        sinks=sinks,
        dropout=_dropout(dropout_p, rng, dropout_mask, kv_offset, form, full),
    )
    return Problem(q, k, v, scoring, form, None if bias is None else tuple(bias.shape))


def _form_of(query: Array, key: Array, value: Array, layout: str) -> Form:
    checks.one_of("layout", layout, LAYOUTS)
    ndim = query.ndim
    fewest = 2 if layout == "BHTD" else 3
    named = checks.shapes(query=query, key=key, value=value)
    if not ndim == key.ndim == value.ndim or ndim < fewest:
        raise ValueError(
            f"`query`, `key` and `value` have {ndim}, {key.ndim} and {value.ndim} axes; they must have equally many, at "
            f"least {fewest} for layout {layout!r}. {named}"
        )
    heads, rows = (-3, -2) if layout == "BHTD" else (-2, -3)
    form = Form(ndim, layout, tuple(query.shape[: -3 if ndim > 3 or layout == "BTHD" else -2]))
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"`key` has head dim {key.shape[-1]} but `query` has {query.shape[-1]}; they must match. {named}"
        )
    if key.shape[rows] != value.shape[rows]:
        raise ValueError(
            f"`value` has {value.shape[rows]} positions but `key` has {key.shape[rows]}; there must be one value per key. {named}"
        )
    for name, array in (("key", key), ("value", value)):
        if tuple(array.shape[: len(form.batch)]) != form.batch:
            raise ValueError(
                f"`{name}` has batch {tuple(array.shape[: len(form.batch)])} but `query` has {form.batch}; they must be "
                f"equal. {named}"
            )
    if form.has_heads:
        query_heads, kv_heads = query.shape[heads], key.shape[heads]
        if value.shape[heads] != kv_heads or (query_heads % kv_heads if kv_heads else query_heads):
            raise ValueError(
                f"`query` has {query_heads} heads, `key` {kv_heads} and `value` {value.shape[heads]}; key and value must "
                f"have equally many, and the query heads must be a multiple of them. {named}"
            )
    return form


def _constraints(
    attn_mask: Array | Mask | None, bias: Array | None, is_causal: bool, window: tuple[int | None, int | None] | None
) -> tuple[Constraints, Array | None]:
    constraints = Constraints(None, None, (), ())
    if isinstance(attn_mask, Mask):
        constraints = constraints_of(attn_mask)
    elif attn_mask is not None and dtype_name(attn_mask.dtype) == "bool":
        constraints = Constraints(None, None, (), (attn_mask,))
    elif attn_mask is not None:
        if dtype_name(attn_mask.dtype) not in checks.FLOATS:
            raise TypeError(
                f"`attn_mask` has dtype {dtype_name(attn_mask.dtype)}, expected bool (True = attend), a Mask, or a "
                "floating array that is added to the scores. For 0/1 integers write attn_mask != 0."
            )
        if bias is not None:
            raise ValueError(
                "`attn_mask` is a floating array, which is a bias, and `bias` is given too; add them first."
            )
        bias = attn_mask
    if is_causal:
        constraints = constraints._replace(right=smaller(constraints.right, Causal().offset))
    if window is not None:
        if not isinstance(window, tuple | list) or len(window) != 2:
            raise ValueError(
                f"`window` is {window!r}, expected (left, right), each an integer >= 0 or None for unbounded."
            )
        limits = Window(*window)
        left, right = smaller(constraints.left, limits.left), smaller(constraints.right, limits.right)
        constraints = constraints._replace(left=left, right=right)
    return constraints, bias


def _scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    if not isinstance(scale, numbers.Real) or not math.isfinite(float(scale)) or float(scale) == 0:
        raise ValueError(
            f"`scale` is {scale!r}, expected a finite number other than 0; leave it out for 1 / sqrt(D) = "
            f"{1.0 / math.sqrt(head_dim or 1):.4g}."
        )
    return float(scale)


def _integers(name: str, given: Any, form: Form, like: Array, xp: Namespace) -> int | Array:
    """An int as it is; one integer per batch as an array (B,) beside `like`."""
    if isinstance(given, numbers.Integral):
        return int(given)
    array = given
    if not checks.is_array(given) or library_of(given) != library_of(like):
        array = xp.asarray(given, device=device_of(like))
    checks.integer(name, array)
    checks.shape(name, array, form.batch, "one integer for all, or one per batch")
    return xp.astype(xp.reshape(array, (math.prod(form.batch),)), index_dtype(xp, like))


def _lengths(given: tuple[Any, ...], form: Form, keys: int, kv_offset: int, like: Array, xp: Namespace) -> Array | None:
    """The number of keys that exist among those given, (B,); lengths count from the start of the whole."""
    total: Array | None = None
    for lengths in given:
        if lengths is None:
            continue
        array = _integers("kv_lengths", lengths, form, like, xp)
        if isinstance(array, int):
            array = xp.full((math.prod(form.batch),), array, dtype=index_dtype(xp, like), device=device_of(like))
        out_of_range = (array < 0) if kv_offset else (array < 0) | (array > keys)
        if array.shape[0] and bool(xp.any(out_of_range)):
            raise ValueError(
                f"`kv_lengths` goes from {int(xp.min(array))} to {int(xp.max(array))}, expected 0 to S = {keys}: the number "
                "of keys that exist in each batch."
            )
        array = xp.maximum(array - kv_offset, xp.zeros_like(array))
        total = array if total is None else xp.minimum(total, array)
    return total


def _dropout(
    p: float, rng: Philox | int | None, keep: Array | None, kv_offset: int, form: Form, full: tuple[int, ...]
) -> Dropout | None:
    p = checks.probability("dropout_p", p)
    if keep is not None:
        checks.boolean("dropout_mask", keep)
        checks.broadcasts("dropout_mask", keep, full, "(*batch, H, T, S)")
        return Dropout(p, 0, form.canonical_scores(keep), kv_offset)
    if p == 0:
        return None
    if rng is None:
        raise ValueError(
            f"`dropout_p` is {p} but neither `rng` nor `dropout_mask` is given. Pass rng=attnarray.Philox(seed), a new one "
            "for each step, or leave dropout out at inference."
        )
    return Dropout(p, seed_of(rng), None, kv_offset)
