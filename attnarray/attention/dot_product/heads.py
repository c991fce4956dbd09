"""The parameters and options of multi-head attention, checked."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.attention.layout import sequence_layout
from attnarray.attention.options import ScoreOptions, check_arrays
from attnarray.backend import Array
from attnarray.masks import Mask

Params = dict[str, Any]
PARTS = ("query", "key", "value", "out")


class HeadOptions(ScoreOptions, total=False):
    """The keyword-only options of attention with heads of its own."""

    sinks: Array | None


def checked_heads(
    query: Array,
    key: Array,
    value: Array,
    params: Params | None,
    num_heads: int,
    num_kv_heads: int | None,
    attn_mask: Array | Mask | None,
    options: Any,
) -> tuple[tuple[int, ...], int, Params]:
    """Check everything that multi-head attention is given; returns the batch, Hkv and the parameters."""
    checks.required(query=query)
    checked = _tree(params)
    arrays = {f"params.{part}.{name}": array for part in PARTS for name, array in checked[part].items()}
    check_arrays(attn_mask, options, query=query, key=key, value=value, **arrays)
    layout = sequence_layout(query, key, value)
    num_heads = checks.whole("num_heads", num_heads, 1, 2**31, "the number of heads of the queries")
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    num_kv_heads = checks.whole("num_kv_heads", num_kv_heads, 1, num_heads, "at most one per query head")
    if num_heads % num_kv_heads:
        raise ValueError(
            f"`num_kv_heads` ({num_kv_heads}) must divide `num_heads` ({num_heads}): query heads are split evenly."
        )
    _check_shapes(checked, query, key, value, num_heads, num_kv_heads)
    return layout.batch, num_kv_heads, checked


def _tree(params: Params | None) -> Params:
    """`params`, if it is a tree of the right layout."""
    if not isinstance(params, dict) or set(params) != set(PARTS):
        given = f"a dict with {', '.join(map(repr, params)) or 'nothing'}" if isinstance(params, dict) else None
        raise TypeError(
            f"`params` is {given or checks.shown(params)}, expected a dict with 'query', 'key', 'value' and 'out', "
            "such as layers.MultiHeadAttention(...).init(...) makes."
        )
    for part, entries in params.items():
        if not isinstance(entries, dict) or not {"weight"} <= set(entries) <= {"weight", "bias"}:
            given = f"has {', '.join(map(repr, entries)) or 'nothing'}" if isinstance(entries, dict) else None
            raise TypeError(
                f"`params.{part}` {given or f'is {checks.shown(entries)}'}, expected a dict with 'weight' and, unless "
                "there is none, 'bias'."
            )
        for name, array in entries.items():
            checks.required(**{f"params.{part}.{name}": array})
    return params


def _check_shapes(params: Params, query: Array, key: Array, value: Array, num_heads: int, num_kv_heads: int) -> None:
    weights = {part: params[part]["weight"] for part in PARTS}
    for part, weight in weights.items():
        if weight.ndim != 2:
            raise ValueError(f"`params.{part}.weight` has shape {tuple(weight.shape)}, expected (outputs, inputs).")
    for part, count, name in (("query", num_heads, "num_heads"), ("value", num_kv_heads, "num_kv_heads")):
        if weights[part].shape[0] % count:
            raise ValueError(
                f"`params.{part}.weight` has {weights[part].shape[0]} rows, which `{name}`, {count}, does not divide; "
                "each head has equally many."
            )
    Dk, Dv = weights["query"].shape[0] // num_heads, weights["value"].shape[0] // num_kv_heads
    sizes = f"H = {num_heads}, Hkv = {num_kv_heads}, Dk = {Dk} from the query weight, Dv = {Dv} from the value weight"
    expected = {
        "query": ("(H Dk, Eq)", num_heads * Dk, query.shape[-1]),
        "key": ("(Hkv Dk, Ek)", num_kv_heads * Dk, key.shape[-1]),
        "value": ("(Hkv Dv, Ev)", num_kv_heads * Dv, value.shape[-1]),
        "out": ("(E, H Dv)", weights["out"].shape[0], num_heads * Dv),
    }
    for part, (axes, *shape) in expected.items():
        inputs = "" if part == "out" else f", and `{part}` has {shape[1]} features"
        checks.shape(f"params.{part}.weight", weights[part], tuple(shape), f"{axes}, where {sizes}{inputs}")
        if "bias" in params[part]:
            because = f"one number per row of `params.{part}.weight`"
            checks.shape(f"params.{part}.bias", params[part]["bias"], (shape[0],), because)
