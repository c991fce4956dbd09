"""From what users pass to one problem in canonical layout, for the dot-product functions."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.options import Options, check_arrays, known_options, score_modifiers
from attnarray.backend import Array
from attnarray.masks import Mask


class Problem(NamedTuple):
    """One call in canonical layout."""

    q: Any
    k: Any
    v: Any
    modifiers: ScoreModifiers
    layout: Layout
    bias_shape: tuple[int, ...] | None


def attention_problem(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | Mask | None,
    dropout_p: float,
    is_causal: bool,
    *,
    kv_offset: int | None = None,
    **options: Unpack[Options],
) -> Problem:
    """Check everything that a dot-product attention function takes, and bring it to canonical layout.

    With `kv_offset` the keys are a part of more, and key j stands at position j + kv_offset.
    """
    known_options(options, Options)
    if query is None or key is None or value is None:
        checks.required(query=query, key=key, value=value)
    check_arrays(attn_mask, options, query=query, key=key, value=value)
    layout = attention_layout(query, key, value, options.get("layout", "BHTD"))
    q, k, v = layout.canonical(query), layout.canonical(key), layout.canonical(value)
    scale = 1.0 / math.sqrt(q.shape[3] or 1)
    modifiers, bias_shape = score_modifiers(
        q, k.shape[2], layout, attn_mask, dropout_p, is_causal, options, default_scale=scale, kv_offset=kv_offset
    )
    return Problem(q, k, v, modifiers, layout, bias_shape)


def plain_problem(
    query: Array, key: Array, value: Array, attn_mask: Any, dropout_p: float, is_causal: bool,
    scale: float | None = None, q_offset: Any = 0,
) -> Problem | None:  # fmt: skip
    """The fast path of `attention_problem` for NumPy arrays (B, H, T, D) without mask and dropout, else None.

    A small call takes less time than its checks, and the same shapes come again and again: what was once found for them
    is kept.
    """
    if not (
        type(query) is type(key) is type(value) is np.ndarray
        and query.dtype is key.dtype is value.dtype
        and attn_mask is None
        and type(dropout_p) is float
        and dropout_p == 0
        and type(is_causal) is bool
        and (scale is None or type(scale) is float)
        and type(q_offset) is int
    ):
        return None
    known = _plain(query.shape, key.shape, value.shape, query.dtype, is_causal, scale, q_offset)
    return None if known is None else Problem(query, key, value, *known, None)


@functools.lru_cache(maxsize=1024)
def _plain(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], dtype: Any, is_causal: bool, scale: float | None,
    q_offset: int,
) -> tuple[ScoreModifiers, Layout] | None:  # fmt: skip
    if len(q) != 4 or dtype.name not in ("float32", "float64"):
        return None
    query, key, value = (np.broadcast_to(np.zeros((), dtype), shape) for shape in (q, k, v))
    try:
        problem = attention_problem(query, key, value, None, 0.0, is_causal, scale=scale, q_offset=q_offset)
    except (TypeError, ValueError):
        return None
    return problem.modifiers, problem.layout
