"""One call on all ranks: its arguments are checked on each of them, and ranks that disagree all raise."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.attention.options import Options, check_arrays, known_options, score_modifiers
from attnarray.backend import Array, dtype_name, to_numpy
from attnarray.distributed.communicator import Gathering, gathered, same
from attnarray.distributed.masks import PartMask, split_mask
from attnarray.distributed.sequence import ORDERS, OrderName, Part, sequence_parts
from attnarray.masks import Mask
from attnarray.masks.geometry import Sizes


class RankProblem(NamedTuple):
    """This rank's arrays in canonical layout, the modifiers of its queries and all keys, and the parts of all ranks."""

    q: Any
    k: Any
    v: Any
    modifiers: ScoreModifiers
    layout: Layout
    bias_shape: tuple[int, ...] | None
    queries: tuple[Part, ...]
    keys: tuple[Part, ...]
    mask: PartMask | None  # what is asked about pairs, when they are computed


def agreed_problem(
    comm: Gathering,
    arrays: tuple[Array, Array, Array],
    attn_mask: Array | Mask | None,
    dropout_p: float,
    is_causal: bool,
    order: OrderName,
    options: Any,
    call: str,
) -> RankProblem:
    """Check everything that a call on several ranks takes, and bring it to canonical layout.

    Two rounds of small messages: shapes first, as a bias must have a column for each key of all ranks.
    """
    shapes = gathered(comm, _shapes, arrays, attn_mask, order, options, call=call)
    same([{name: value for name, value in given.items() if name not in ("T", "S")} for given in shapes])
    queries, keys = (sequence_parts([given[axis] for given in shapes], order) for axis in ("T", "S"))
    total = sum(given["S"] for given in shapes)
    own: list[RankProblem] = []

    def options_of_rank() -> dict[str, Any]:
        own.append(_problem(arrays, attn_mask, dropout_p, is_causal, options, queries, keys, total))
        return _described(own[0])

    same(gathered(comm, options_of_rank))
    return own[0]


def _shapes(arrays: tuple[Array, Array, Array], attn_mask: Any, order: OrderName, options: Any) -> dict[str, Any]:
    query, key, value = arrays
    checks.choice("order", order, ORDERS)
    known_options(options, Options)
    checks.required(query=query, key=key, value=value)
    check_arrays(attn_mask, options, query=query, key=key, value=value)
    layout = attention_layout(query, key, value, options.get("layout", "BHTD"))
    q, k, v = (layout.canonical(x) for x in arrays)
    return {
        "order": order,
        "dtype": dtype_name(q.dtype),
        "batch": tuple(layout.batch),
        "query heads": q.shape[1],
        "key heads": k.shape[1],
        "head dim": q.shape[3],
        "value dim": v.shape[3],
        "T": q.shape[2],
        "S": k.shape[2],
    }


def _problem(
    arrays: tuple[Array, Array, Array],
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    options: Any,
    queries: tuple[Part, ...],
    keys: tuple[Part, ...],
    total: int,
) -> RankProblem:
    layout = attention_layout(*arrays, options.get("layout", "BHTD"))
    q, k, v = (layout.canonical(x) for x in arrays)
    scale, asked = 1.0 / math.sqrt(q.shape[3] or 1), None
    if isinstance(attn_mask, Mask):
        attn_mask, asked = split_mask(attn_mask)
    modifiers, bias_shape = score_modifiers(
        q, total, layout, attn_mask, dropout_p, is_causal, options, default_scale=scale
    )
    mask = None
    if asked is not None:
        mask = PartMask(asked, Sizes(layout.batch, q.shape[1], q.shape[2], total, has_heads=layout.has_heads))
        mask.check(q)
    return RankProblem(q, k, v, modifiers, layout, bias_shape, queries, keys, mask)


def _described(problem: RankProblem) -> dict[str, Any]:
    """What all ranks must give alike, as values that can be compared."""
    m = problem.modifiers
    keep = None if m.dropout is None else m.dropout.keep
    dropout = None if m.dropout is None else (m.dropout.p, m.dropout.seed, m.dropout.keep is not None)
    return {
        "scale": m.scale,
        "softcap": m.softcap,
        "window": (m.left, m.right),
        "q_offset": _numbers(m.q_offset),
        "kv_lengths": _numbers(m.kv_lengths),
        "sinks": _numbers(m.sinks),
        "dropout (p, seed, mask)": dropout,
        "bias (batch, heads, keys)": _but_rows(m.bias),
        "attn_mask (batch, heads, keys)": _but_rows(m.mask),
        "attn_mask": None if problem.mask is None else type(problem.mask.mask).__name__,
        "dropout_mask (batch, heads, keys)": _but_rows(keep),
    }


def _but_rows(array: Array | None) -> tuple[int, ...] | None:
    """The axes of an array over the scores but that of the queries, of which ranks have their own."""
    return None if array is None else (*array.shape[:2], array.shape[3])


def _numbers(value: Any) -> Any:
    return to_numpy(value).tolist() if checks.is_array(value) else value
