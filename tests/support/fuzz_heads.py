"""Random calls of attention with heads, and of multi-head attention."""

from __future__ import annotations

import numpy as np

import attnarray as aa
from attnarray.cases.attend import Distance, Sigmoid
from tests.support.fuzz_draw import Arrays, Call, Draw, Scores, finish, grouped, rows, scores, with_out_field


def _with_heads(d: Draw) -> tuple[tuple[int, ...], int | None, int, int, int, int, int]:
    """batch, H, Hkv, T, S, D, Dv; H is None without a head axis."""
    axes = d.choice(0, 1, 2, 2, 2, 3)
    kv_heads, group = d.integer(1, 3), d.integer(1, 3)
    heads = None if axes < 2 else kv_heads * group
    batch = tuple(d.size(3, 3) for _ in range(axes if axes < 2 else axes - 1))
    queries = 1 if d.chance(0.15) else d.size(9, 70)
    keys = d.length(11, d.choice(70, 300))
    dim = d.choice(16, 32, 64) if d.is_large and d.chance(0.5) else d.size(9, 40, least=1)
    value_dim = dim if d.chance(0.4) else d.size(9, 40)
    return batch, heads, kv_heads, queries, keys, dim, value_dim


def _query_key_value(
    d: Draw, *, without: tuple[str, ...] = (), first_key: int = 0
) -> tuple[Arrays, Scores, Arrays, Arrays]:
    batch, heads, kv_heads, queries, keys, dim, value_dim = _with_heads(d)
    q_middle, k_middle = ((), ()) if heads is None else ((heads,), (kv_heads,))
    given = {
        "query": 1.5 * d.normal(*batch, *q_middle, queries, dim),
        "key": d.normal(*batch, *k_middle, keys, dim),
        "value": d.normal(*batch, *k_middle, keys, value_dim),
    }
    s = scores(d, batch, heads, queries, keys, without=without, first_key=first_key)
    by_key_head = s.visible if heads is None else grouped(s.visible, kv_heads)
    unseen, blind = ~by_key_head.any(-2), ~s.visible.any(-1)
    hidden = {"query": rows(blind, dim), "key": rows(unseen, dim), "value": rows(unseen, value_dim)}
    hidden_out = {"out": rows(blind, value_dim)}
    if heads is not None and d.chance(0.25):
        s.options["layout"] = "BTHD"
        given, hidden, hidden_out = (
            {name: x.swapaxes(-2, -3).copy() for name, x in group.items()} for group in (given, hidden, hidden_out)
        )
    return given, s, hidden, hidden_out


def scaled_dot_product_attention(d: Draw) -> Call:
    given, s, hidden, hidden_out = _query_key_value(d)
    return finish("scaled_dot_product_attention", given, s, hidden, hidden_out)


def attention_partial(d: Draw) -> Call:
    first_key = d.choice(0, 0, d.integer(1, 5))
    given, s, hidden, hidden_out = _query_key_value(d, without=("Documents",), first_key=first_key)
    call = finish("attention_partial", {**given, "kv_offset": first_key}, s, hidden, hidden_out)
    return with_out_field(call)


def merge_partials(d: Draw) -> Call:
    shape = (*d.batch(), d.size(4), d.size(5), d.size(6))
    parts, hidden = [], {}
    for n in range(d.integer(1, 4)):
        lse = np.where(d.rng.random(shape[:-1]) < 0.3, -np.inf, 2 * d.normal(*shape[:-1]))
        parts.append(aa.Partial(d.normal(*shape), lse))
        hidden["partials", n, "out"] = rows(np.isinf(lse), shape[-1])
    return Call("merge_partials", {"partials": tuple(parts)}, hidden, {})


def sparsemax_attention(d: Draw) -> Call:
    given, s, hidden, hidden_out = _query_key_value(d, without=("sinks",))
    return finish("sparsemax_attention", given, s, hidden, hidden_out)


def sigmoid_attention(d: Draw) -> Call:
    given, s, hidden, hidden_out = _query_key_value(d, without=("sinks",))
    if given["query"].ndim > 3 and d.chance(0.5):
        given["shift"] = d.normal(given["query"].shape[-2 if s.options.get("layout") == "BTHD" else -3])
    return finish("sigmoid_attention", given, s, hidden, hidden_out)


def entmax_attention(d: Draw) -> Call:
    given, s, hidden, hidden_out = _query_key_value(d, without=("sinks",))
    call = finish("entmax_attention", given, s, hidden, hidden_out)
    call.arguments["alpha"] = d.choice(1.5, 1.2, 2.0, 3.0)
    return call


def attend(d: Draw) -> Call:
    given, s, hidden, hidden_out = _query_key_value(d, without=("sinks",))
    heads_axis = -2 if s.options.get("layout") == "BTHD" else -3
    heads = given["query"].shape[heads_axis] if given["query"].ndim > 3 else 1
    call = finish("attend", given, s, hidden, hidden_out)
    if d.chance(0.5):
        call.arguments["modifiers"] = (Distance(d.rng.random(heads)),)
    normalizers = (aa.Softmax(), aa.Softmax(d.normal(heads)), aa.Entmax(d.choice(1.5, 2.0)), Sigmoid(d.normal(heads)))
    call.arguments["normalizer"] = d.choice(*normalizers)
    return call


def block_topk_attention(d: Draw) -> Call:
    batch, group, kv_heads, positions, dim = d.size(3), d.size(3), d.size(3), d.size(20), d.size(6)
    given = {
        "query": d.normal(batch, group * kv_heads, positions, dim),
        "key": d.normal(batch, kv_heads, positions, dim),
        "value": d.normal(batch, kv_heads, positions, d.size(5)),
    }
    options = {"top_k": d.integer(1, 4), "block_size": d.integer(1, 8)}
    options |= {"is_causal": d.chance(0.5), "by_block": d.chance(0.5)}
    if d.chance(0.5):
        given["gates"] = d.normal(batch, group * kv_heads, positions, 3)
        options["window"] = d.integer(0, 6)
    return Call("block_topk_attention", {**given, **options}, {}, {})


def hard_attention(d: Draw) -> Call:
    given, s, hidden, hidden_out = _query_key_value(d, without=("sinks", "dropout"))
    estimator = d.choice("reinforce", "gumbel", "straight_through", "argmax", "top_k")
    call = finish("hard_attention", given, s, hidden, hidden_out)
    call.arguments["estimator"] = estimator
    if estimator in ("reinforce", "gumbel", "straight_through"):
        call.arguments["rng"] = d.integer(0, 10**9)
    if estimator in ("gumbel", "straight_through"):
        call.arguments["temperature"] = d.choice(0.5, 1.0, 2.0)
    if estimator == "top_k":
        seen = s.visible.sum(-1)
        fewest = int(seen[seen > 0].min(initial=s.visible.shape[-1]))
        call.arguments["k"] = d.integer(1, max(fewest, 1))
    return with_out_field(call)


def relative_attention(d: Draw) -> Call:
    batch, heads, kv_heads, queries, keys, dim, value_dim = _with_heads(d)
    q_middle, k_middle = ((), ()) if heads is None else ((heads,), (kv_heads,))
    offset = max(keys - queries, 0) if d.chance(0.5) else d.integer(0, 4)
    s = scores(d, batch, heads, queries, keys, without=("softcap", "Documents"), offset=offset)
    distances = queries + keys - 1
    if s.options.get("is_causal") and d.chance(0.5):
        distances = queries + offset
    given = {
        "query": d.normal(*batch, *q_middle, queries, dim),
        "key": d.normal(*batch, *k_middle, keys, dim),
        "value": d.normal(*batch, *k_middle, keys, value_dim),
        "position_key": d.normal(*k_middle, max(distances, 0), dim),
        "content_bias": d.normal(*q_middle, dim),
        "position_bias": d.normal(*q_middle, dim),
    }
    by_key_head = s.visible if heads is None else grouped(s.visible, kv_heads)
    unseen, blind = ~by_key_head.any(-2), ~s.visible.any(-1)
    hidden = {"query": rows(blind, dim), "key": rows(unseen, dim), "value": rows(unseen, value_dim)}
    return finish("relative_attention", given, s, hidden, {"out": rows(blind, value_dim)})


def forgetting_attention(d: Draw) -> Call:
    batch, heads, kv_heads, queries, keys, dim, value_dim = _with_heads(d)
    keys = max(keys, queries)
    q_middle, k_middle = ((), ()) if heads is None else ((heads,), (kv_heads,))
    offset = d.choice(keys - queries, d.integer(0, keys - queries))
    s = scores(d, batch, heads, queries, keys, without=("softcap", "Documents"), offset=offset)
    given = {
        "query": d.normal(*batch, *q_middle, queries, dim),
        "key": d.normal(*batch, *k_middle, keys, dim),
        "value": d.normal(*batch, *k_middle, keys, value_dim),
        "log_forget": -d.rng.random((*batch, *q_middle, keys)),
    }
    by_key_head = s.visible if heads is None else grouped(s.visible, kv_heads)
    unseen, blind = ~by_key_head.any(-2), ~s.visible.any(-1)
    hidden = {"query": rows(blind, dim), "key": rows(unseen, dim), "value": rows(unseen, value_dim)}
    return finish("forgetting_attention", given, s, hidden, {"out": rows(blind, value_dim)})


def differential_attention(d: Draw) -> Call:
    batch, pairs, kv_pairs = (d.size(3),), d.integer(1, 2), d.integer(1, 2)
    heads, queries, keys, dim, value_dim = 2 * pairs * kv_pairs, d.size(9, 70), d.size(11, 70), d.size(9), d.size(9)
    s = scores(d, batch, heads, queries, keys, without=("Documents",))
    given = {
        "query": d.normal(*batch, heads, queries, dim),
        "key": d.normal(*batch, 2 * kv_pairs, keys, dim),
        "value": d.normal(*batch, kv_pairs, keys, value_dim),
        "lambd": np.asarray(d.normal(*d.choice((), (heads // 2,)))),
    }
    unseen = ~grouped(s.visible, kv_pairs).any(-2)
    return finish("differential_attention", given, s, {"value": rows(unseen, value_dim)})


def multi_head_attention(d: Draw) -> Call:
    batch, heads, kv_heads, queries, keys, dim, value_dim = _with_heads(d)
    batch, heads = batch[:1], heads or kv_heads
    widths = [d.size(7, 20, least=1) for _ in range(4)]
    is_self = d.chance(0.3)
    if is_self:
        keys, widths[1:3] = queries, [widths[0]] * 2
    s = scores(d, batch, heads, queries, keys, without=("Documents",))
    shapes = (heads * dim, widths[0]), (kv_heads * dim, widths[1]), (kv_heads * value_dim, widths[2])
    shapes = (*shapes, (widths[3], heads * value_dim))
    params = {}
    for name, shape in zip(("query", "key", "value", "out"), shapes, strict=True):
        params[name] = {"weight": 0.5 * d.normal(*shape)} | ({"bias": d.normal(shape[0])} if d.chance(0.5) else {})
    given: Arrays = {"query": d.normal(*batch, queries, widths[0])}
    hidden = {}
    if not is_self:
        given |= {"key": d.normal(*batch, keys, widths[1]), "value": d.normal(*batch, keys, widths[2])}
        unseen = ~s.visible.any((-2, -3))
        hidden = {"key": rows(unseen, widths[1]), "value": rows(unseen, widths[2])}
    given |= {"params": params, "num_heads": heads, "num_kv_heads": kv_heads}
    return finish("multi_head_attention", given, s, hidden)


DRAWS = (
    scaled_dot_product_attention, attention_partial, merge_partials, multi_head_attention, sparsemax_attention,
    entmax_attention, attend, hard_attention, block_topk_attention, relative_attention,
    forgetting_attention, differential_attention, sigmoid_attention,
)  # fmt: skip
