"""Random calls of every public triple for `python -m tests.fuzz`: any sizes, options and masks, drawn from one seed.

A `Call` holds plain arguments (C order, float64, int64) and says which of their entries must not matter, so that the
runner can put NaN there. What is visible to a query is computed here from the contract, not by the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa

Arrays = dict[str, Any]


class Call(NamedTuple):
    """One call. `hidden` marks entries of arguments, by their path, and `hidden_out` entries of cotangents."""

    function: str
    arguments: Arrays
    hidden: dict[tuple[Any, ...], np.ndarray]
    hidden_out: dict[tuple[Any, ...], np.ndarray]


class Draw:
    """Random choices of one call."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.is_large = self.chance(0.12)
        self.is_long = self.chance(0.004)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def choice(self, *values: Any) -> Any:
        return values[self.integer(0, len(values) - 1)]

    def size(self, most: int = 9, large: int = 70, least: int = 0) -> int:
        """A size; one in thirty is `least`."""
        if self.chance(1 / 30):
            return least
        return self.integer(max(least, 1), large if self.is_large and self.chance(0.6) else most)

    def length(self, most: int, large: int) -> int:
        """The size of an axis that is summed over: now and then thousands, where running sums lose digits."""
        return self.integer(1000, 20000) if self.is_long else self.size(most, large)

    def normal(self, *shape: int) -> np.ndarray:
        """Mostly standard normal numbers, sometimes with equal ones, zeros, or off their center."""
        kind = self.integer(0, 11)
        x = self.rng.standard_normal(shape)
        if kind == 0:
            return np.round(x)
        if kind == 1:
            return 4.0 * x
        if kind == 2:
            return x + 2.0
        if kind == 3:
            return np.zeros(shape) if self.chance(0.3) else 0.01 * x
        return x

    def bits(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.random(shape) < self.choice(0.15, 0.5, 0.8, 1.0))

    def batch(self, most: int = 2) -> tuple[int, ...]:
        return tuple(self.size(3, 3) for _ in range(self.integer(0, most)))

    def broadcastable(self, full: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `full`."""
        shape = tuple(1 if self.chance(0.35) else n for n in full)
        return shape[self.integer(0, len(full)) :] if self.chance(0.5) else shape


def grouped(visible: np.ndarray, kv_heads: int) -> np.ndarray:
    """(*batch, H, T, S) -> (*batch, Hkv, T, S): whether any query head of the group sees the key."""
    *batch, heads, queries, keys = visible.shape
    split = visible.reshape(*batch, kv_heads, heads // kv_heads if kv_heads else 0, queries, keys)
    return split.any(-3)


class Scores(NamedTuple):
    """The options of an attention call, and which keys they leave visible: (*batch, [H], T, S)."""

    options: Arrays
    visible: np.ndarray
    hidden_bias: np.ndarray | None


def scores(
    d: Draw, batch: tuple[int, ...], heads: int | None, queries: int, keys: int, *,
    without: tuple[str, ...] = (), offset: int | None = None, first_key: int = 0,
) -> Scores:  # fmt: skip
    """Draw options. `offset` fixes `q_offset`; `without` names options that the function does not have."""
    middle = () if heads is None else (heads,)
    full = (*batch, *middle, queries, keys)
    options: Arrays = {}

    def wants(name: str) -> bool:
        return name not in without and d.chance(0.3)

    def per_batch(low: int, high: int) -> Any:
        return d.integer(low, high) if not batch or d.chance(0.5) else d.rng.integers(low, high + 1, batch)

    def spread(numbers: Any) -> np.ndarray:
        """(*batch,) -> (*batch, [1], 1, 1)"""
        numbers = np.broadcast_to(np.asarray(numbers), batch)
        return numbers.reshape(*batch, *(1 for _ in middle), 1, 1)

    visible = np.ones(full, bool)
    i, j = np.arange(queries)[:, None], np.arange(keys) + first_key
    if offset is not None:
        options["q_offset"] = offset
    elif wants("q_offset"):
        options["q_offset"] = per_batch(-2, max(keys - queries, 0) + 2)
    position = i + spread(options.get("q_offset", 0))
    if wants("is_causal"):
        options["is_causal"] = True
        visible &= j <= position
    if wants("window"):
        left, right = d.choice(None, 0, d.integer(0, 9)), d.choice(None, 0, d.integer(0, 9))
        options["window"] = left, right
        visible &= j >= position - (10**6 if left is None else left)
        visible &= j <= position + (10**6 if right is None else right)
    if wants("kv_lengths"):
        options["kv_lengths"] = per_batch(first_key, first_key + keys)
        visible &= j < spread(options["kv_lengths"])
    if wants("attn_mask"):
        kind = d.integer(0, 5)
        if kind == 0 and "Documents" not in without:
            ids_q, ids_k = d.rng.integers(0, 3, queries), d.rng.integers(0, 3, keys)
            options["attn_mask"] = aa.Documents(ids_q, ids_k)
            visible &= ids_q[:, None] == ids_k
        elif kind == 2 and "kv_lengths" not in options and "Padding" not in without:
            lengths = per_batch(first_key, first_key + keys)
            options["attn_mask"] = aa.Padding(lengths) & aa.Causal(1)
            visible &= (j < spread(lengths)) & (j <= position + 1)
        elif kind == 1:
            dense = d.bits(queries, keys)
            options["attn_mask"] = aa.Dense(dense) & aa.Window(3, None)
            visible &= dense & (j >= position - 3)
        else:
            dense = d.bits(*d.broadcastable(full))
            options["attn_mask"] = dense
            visible &= dense
    if wants("scale"):
        options["scale"] = d.choice(0.5, 1.7, -0.4)
    if wants("softcap"):
        options["softcap"] = d.choice(0.7, 2.0, 30.0)
    hidden_bias = None
    if wants("bias"):
        shape = d.broadcastable(full)
        options["bias"] = np.where(d.rng.random(shape) < d.choice(0.0, 0.0, 0.2), -np.inf, d.normal(*shape))
        hidden_bias = hidden_under_broadcast(~visible, shape)
    if wants("dropout"):
        options["dropout_p"] = d.choice(0.1, 0.4, 0.8)
        options |= {"rng": d.integer(0, 10**9)} if d.chance(0.5) else {"dropout_mask": d.bits(*d.broadcastable(full))}
    if heads is not None and wants("sinks"):
        options["sinks"] = d.normal(heads)
    return Scores(options, visible, hidden_bias)


def hidden_under_broadcast(hidden: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which entries of an array of `shape` meet nothing but hidden entries of what it broadcasts to."""
    hidden = hidden.all(tuple(range(hidden.ndim - len(shape))))
    axes = tuple(n for n, size in enumerate(shape) if size == 1)
    return hidden.all(axes, keepdims=True).reshape(shape) if axes else hidden


def rows(mark: np.ndarray, width: int) -> np.ndarray:
    """Row by row: the same mark for all features."""
    return np.repeat(mark[..., None], width, -1)


def finish(function: str, arguments: Arrays, s: Scores, hidden: Arrays, hidden_out: Arrays | None = None) -> Call:
    """A call of an attention function with its options."""
    found = {(name,): mark for name, mark in hidden.items()}
    if s.hidden_bias is not None:
        found["bias",] = s.hidden_bias
    arguments = {**arguments, **s.options}
    if "sinks" in arguments:  # a sink is weighed against nothing, but it is there
        found = {path: mark for path, mark in found.items() if path[0] != "query"}
        return Call(function, arguments, found, {})
    outs = {(): hidden_out["out"]} if hidden_out and "out" in hidden_out else {}
    return Call(function, arguments, found, outs)


def with_out_field(call: Call) -> Call:
    """The same where the output is a NamedTuple that holds `out` among others."""
    return call._replace(hidden_out={("out", *path): mark for path, mark in call.hidden_out.items()})


# Dot products with heads.


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


def entmax_attention(d: Draw) -> Call:
    given, s, hidden, hidden_out = _query_key_value(d, without=("sinks",))
    call = finish("entmax_attention", given, s, hidden, hidden_out)
    call.arguments["alpha"] = d.choice(1.5, 1.2, 2.0, 3.0)
    return call


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
    given |= {"params": params, "heads": heads, "kv_heads": kv_heads}
    return finish("multi_head_attention", given, s, hidden)


# Other scores, without heads.


def _sequences(d: Draw) -> tuple[tuple[int, ...], int, int]:
    return d.batch(), d.size(7, 40), d.length(9, 70)


def _plain(d: Draw, function: str, s: Scores, given: Arrays) -> Call:
    """A function whose `query`, `key` and `value` have no heads."""
    unseen, blind = ~s.visible.any(-2), ~s.visible.any(-1)
    hidden = {name: rows(unseen, given[name].shape[-1]) for name in ("key", "value") if name in given}
    hidden["query"] = rows(blind, given["query"].shape[-1])
    width = given.get("value", given["key"]).shape[-1]
    return finish(function, given, s, hidden, {"out": rows(blind, width)})


def additive_attention(d: Draw) -> Call:
    batch, queries, keys = _sequences(d)
    dim, value_dim = d.size(9, 40), d.size(9, 40)
    given = {"query": d.normal(*batch, queries, dim), "key": d.normal(*batch, keys, dim),
             "value": d.normal(*batch, keys, value_dim), "score_vector": 2 * d.normal(dim)}  # fmt: skip
    return _plain(d, "additive_attention", scores(d, batch, None, queries, keys), given)


def multiplicative_attention(d: Draw) -> Call:
    batch, queries, keys = _sequences(d)
    dim, key_dim, hidden_dim = d.size(9, 20), d.size(9, 20), d.size(7)
    score = d.choice("dot", "general", "concat")
    key_dim = dim if score == "dot" else key_dim
    given = {"query": d.normal(*batch, queries, dim), "key": d.normal(*batch, keys, key_dim),
             "value": d.normal(*batch, keys, d.size()), "score": score}  # fmt: skip
    if score == "general":
        given["weight"] = 0.5 * d.normal(dim, key_dim)
    if score == "concat":
        given |= {"weight": 0.5 * d.normal(hidden_dim, dim + key_dim), "score_vector": d.normal(hidden_dim)}
    return _plain(d, "multiplicative_attention", scores(d, batch, None, queries, keys), given)


def scaled_attention(d: Draw) -> Call:
    batch, queries, keys = _sequences(d)
    dim = d.size(9, 20, least=1)
    given = {"query": d.normal(*batch, queries, dim), "key": d.normal(*batch, keys, dim),
             "value": d.normal(*batch, keys, d.size())}  # fmt: skip
    for name in ("gate", "score_scale", "inverse_temperature"):
        kind = d.integer(0, 3)
        if kind:
            given[name] = [d.choice(0.5, 1.3), d.normal(), d.normal(*batch, queries)][kind - 1]
            given[name] = np.asarray(given[name]) if kind > 1 else given[name]
    return _plain(d, "scaled_attention", scores(d, batch, None, queries, keys, without=("scale",)), given)


def recurrent_attention(d: Draw) -> Call:
    batch, queries, keys = d.batch(), d.size(4, 8), d.size(6, 20)
    dim, key_dim, state, inner = d.size(5), d.size(5), d.size(4, 10, least=1), d.size(5)
    given = {"query": d.normal(*batch, queries, dim), "key": d.normal(*batch, keys, key_dim),
             "weight_ih": 0.5 * d.normal(4 * state, dim + key_dim), "weight_hh": 0.5 * d.normal(4 * state, state),
             "output_weight": d.normal(inner, state), "score_vector": 2 * d.normal(inner)}  # fmt: skip
    if d.chance(0.5):
        given["value"] = d.normal(*batch, keys, d.size())
    if d.chance(0.3):
        given["gate_bias"] = d.normal(4 * state)
    for name in ("h0", "c0"):
        if d.chance(0.3):
            given[name] = d.normal(*d.broadcastable((*batch, queries))[: len(batch) + 1], state)
    return _plain(d, "recurrent_attention", scores(d, batch, None, queries, keys), given)


def location_attention(d: Draw) -> Call:
    batch, queries, keys = d.batch(), d.size(5, 8), d.size(9, 30)
    dim, filters = d.size(6), d.size(4)
    given = {"query": d.normal(*batch, queries, dim), "key": d.normal(*batch, keys, dim),
             "value": d.normal(*batch, keys, d.size()), "score_vector": d.normal(dim),
             "location_filter": d.normal(filters, 2 * d.integer(0, 4) + 1),
             "location_weight": d.normal(dim, filters), "cumulative": d.chance(0.4)}  # fmt: skip
    s = scores(d, batch, None, queries, keys)
    if d.chance(0.4):
        given["previous"] = np.abs(d.normal(*batch, keys))
    call = _plain(d, "location_attention", s, given)
    lengths = s.options.get("kv_lengths")
    if lengths is not None and "previous" in given:
        past = np.arange(keys) >= np.broadcast_to(np.asarray(lengths), batch)[..., None]
        call.hidden["previous",] = np.broadcast_to(past, (*batch, keys))
    return with_out_field(call)


def local_attention(d: Draw) -> Call:
    batch, queries, keys = d.batch(), d.size(6, 20), d.size(9, 70)
    dim = d.size(6, 20)
    key_dim = d.size(6, 20) if d.chance(0.4) else dim
    given = {"query": d.normal(*batch, queries, dim), "key": d.normal(*batch, keys, key_dim),
             "value": d.normal(*batch, keys, d.size()), "window": d.integer(1, 6)}  # fmt: skip
    if key_dim != dim or d.chance(0.3):
        given["weight"] = 0.5 * d.normal(dim, key_dim)
    s = scores(d, batch, None, queries, keys, without=("window",))
    if d.chance(0.5):
        inner = d.size(5)
        given |= {"alignment": "predictive", "window": d.integer(1, 6), "position_weight": d.normal(inner, dim),
                  "position_vector": d.normal(inner)}  # fmt: skip
        if d.chance(0.4):
            given["sigma"] = d.choice(0.8, 2.0)
    return _plain(d, "local_attention", s, given)


def _lengths_mark(s: Scores, batch: tuple[int, ...], steps: int) -> np.ndarray:
    lengths = s.options.get("kv_lengths", steps)
    past = np.arange(steps) >= np.broadcast_to(np.asarray(lengths), batch)[..., None]
    return np.broadcast_to(past, (*batch, steps))


def pairwise_attention(d: Draw) -> Call:
    batch, steps = d.batch(), d.size(7, 30)
    dim, inner = d.size(5), d.size(6)
    given = {"x": d.normal(*batch, steps, dim), "input_weight": d.normal(inner, 2 * dim),
             "score_vector": 2 * d.normal(inner)}  # fmt: skip
    keys = steps
    if d.chance(0.4):
        keys = d.size(9, 40)
        given["memory"] = d.normal(*batch, keys, dim)
    s = scores(d, batch, None, steps, keys)
    past = _lengths_mark(s, batch, keys)
    hidden = {"memory" if "memory" in given else "x": rows(past, dim)}
    if d.chance(0.4):
        width = d.size(5)
        given |= {"hidden": d.normal(*batch, steps, width), "hidden_weight": d.normal(inner, width)}
        if "memory" not in given:
            hidden["hidden"] = rows(past, width)
    if d.chance(0.3):
        given["input_bias"] = d.normal(inner)
    if d.chance(0.4):
        width = d.size()
        given["value"] = d.normal(*batch, keys, width)
        hidden["value"] = rows(~s.visible.any(-2), width)
    return finish("pairwise_attention", given, s, hidden)


def convolutional_attention(d: Draw) -> Call:
    batch, steps = d.batch(), d.size(7, 30)
    dim, inner, padding = d.size(5), d.size(6, least=1), d.choice("same", "causal")
    widths = [2 * d.integer(0, 2) + 1 if padding == "same" else d.integer(1, 4) for _ in range(2)]
    given = {"x": d.normal(*batch, steps, dim), "query_weight": d.normal(inner, dim, widths[0]),
             "key_weight": d.normal(inner, dim, widths[1]), "padding": padding}  # fmt: skip
    s = scores(d, batch, None, steps, steps)
    hidden = {"x": rows(_lengths_mark(s, batch, steps), dim)}
    if d.chance(0.5):
        given["score_vector"] = d.normal(inner)
    if d.chance(0.3):
        given["query_bias"] = d.normal(inner)
    if d.chance(0.4):
        width = d.size()
        given["value"] = d.normal(*batch, steps, width)
        hidden["value"] = rows(~s.visible.any(-2), width)
    return finish("convolutional_attention", given, s, hidden)


def combine(d: Draw) -> Call:
    batch, width, other, out = (*d.batch(), d.size()), d.size(), d.size(), d.size()
    given = {"context": d.normal(*batch, width), "hidden": d.normal(*batch, other),
             "context_weight": d.normal(out, width), "hidden_weight": d.normal(out, other),
             "activation": d.choice(None, "tanh")}  # fmt: skip
    if d.chance(0.5):
        given["bias"] = d.normal(out)
    return Call("combine", given, {}, {})


# Graphs.


def graph_attention(d: Draw) -> Call:
    batch, targets, sources = d.batch(), d.size(6, 40, least=1), d.size(6, 40, least=1)
    heads, width, value_dim, count = d.size(3, 8, least=1), d.size(5), d.size(5, 20), d.length(14, 200)
    score = d.choice("gatv2", "gat")
    edges = np.stack([d.rng.integers(0, sources, count), d.rng.integers(0, targets, count)])
    given = {"query": d.normal(*batch, targets, heads, width), "key": d.normal(*batch, sources, heads, width),
             "value": d.normal(*batch, sources, heads, value_dim), "edges": edges, "score": score}  # fmt: skip
    parts = 1
    exists = np.ones((*batch, count), bool)
    hidden = {}
    if d.chance(0.3):
        given["edge_mask"] = d.bits(*d.broadcastable((*batch, count)))
        exists = exists & given["edge_mask"]
    if d.chance(0.3):
        given["edge_features"] = d.normal(*batch, count, heads, width)
        hidden["edge_features",] = np.broadcast_to(~exists[..., None, None], given["edge_features"].shape)
        parts = 2
    given["score_vector"] = d.normal(heads, width if score == "gatv2" else (1 + parts) * width)
    if d.chance(0.3):
        given["dropout_p"] = 0.4
        full = (*batch, count, heads)
        given |= {"rng": d.integer(0, 99)} if d.chance(0.5) else {"dropout_mask": d.bits(*d.broadcastable(full))}
    if d.chance(0.2):
        given["negative_slope"] = d.choice(0.0, -0.1, 0.5)
    used = {}
    for row, name, nodes in ((0, "source", sources), (1, "target", targets)):
        marks = np.zeros((*batch, nodes), bool)
        for n in np.ndindex(batch):
            marks[n][edges[row, exists[n]]] = True
        used[name] = marks
    for name, where in (("query", "target"), ("key", "source"), ("value", "source")):
        hidden[name,] = np.broadcast_to(~used[where][..., None, None], given[name].shape)
    out = np.broadcast_to(~used["target"][..., None, None], (*batch, targets, heads, value_dim))
    return Call("graph_attention", given, hidden, {(): out})


def segment_softmax(d: Draw) -> Call:
    batch, entries, heads, count = d.batch(), d.length(12, 200), d.size(3, 8), d.size(6, 30, least=1)
    given = {"x": 2 * d.normal(*batch, entries, heads), "segments": d.rng.integers(0, count, entries), "count": count}
    if d.chance(0.3):
        given["segments"].sort()
    if not d.chance(0.4):
        return Call("segment_softmax", given, {}, {})
    given["mask"] = d.bits(*d.broadcastable(given["x"].shape))
    hidden = np.broadcast_to(~given["mask"], given["x"].shape)
    return Call("segment_softmax", given, {("x",): hidden}, {(): hidden})


# Primitive operations.


def _masked_rows(function: str) -> Callable[[Draw], Call]:
    def draw(d: Draw) -> Call:
        shape = (*d.batch(), d.size(5), d.length(9, 300))
        given: Arrays = {"x": 2 * d.normal(*shape)}
        if d.chance(0.3):
            given["axis"] = d.integer(-len(shape), len(shape) - 1)
        if function == "entmax":
            given["alpha"] = d.choice(1.5, 1.1, 2.0, 2.5)
        if not d.chance(0.5):
            return Call(function, given, {}, {})
        given["mask"] = d.bits(*d.broadcastable(shape))
        hidden = np.broadcast_to(~given["mask"], shape)
        return Call(function, given, {("x",): hidden}, {(): hidden})

    return draw


def _elementwise(function: str) -> Callable[[Draw], Call]:
    def draw(d: Draw) -> Call:
        given: Arrays = {"x": d.choice(1.0, 3.0, 20.0) * d.normal(*d.batch(), d.size(9, 500))}
        if function == "gelu":
            given["approximate"] = d.choice("none", "tanh")
        return Call(function, given, {}, {})

    return draw


def linear(d: Draw) -> Call:
    given = {"x": d.normal(*d.batch(), d.size()), "weight": None}
    given["weight"] = d.normal(d.size(), given["x"].shape[-1])
    if d.chance(0.5):
        given["bias"] = d.normal(len(given["weight"]))
    return Call("linear", given, {}, {})


def _norm(function: str) -> Callable[[Draw], Call]:
    def draw(d: Draw) -> Call:
        width = d.size(9, 300, least=1)
        given: Arrays = {"x": d.choice(1.0, 10.0) * d.normal(*d.batch(), d.length(6, 20), width)}
        if d.chance(0.6):
            given["weight"] = d.normal(width)
        if d.chance(0.5) and function == "layer_norm":
            given["bias"] = d.normal(width)
        given["eps"] = d.choice(1e-3, 0.5)
        return Call(function, given, {}, {})

    return draw


def embedding(d: Draw) -> Call:
    rows_there, width = d.size(30, 200, least=1), d.size(9, 40)
    indices = d.rng.integers(0, rows_there, (*d.batch(), d.length(7, 60)))
    unused = ~np.isin(np.arange(rows_there), indices)
    given = {"indices": indices, "weight": d.normal(rows_there, width)}
    return Call("embedding", given, {("weight",): rows(unused, width)}, {})


def rotary(d: Draw) -> Call:
    axes, dim = d.choice(2, 3, 4, 4, 5), d.size(12, 64, least=2)
    shape = (*(d.size(3, 4) for _ in range(axes - 2)), d.size(6, 40), dim)
    given: Arrays = {"x": d.normal(*shape), "interleaved": d.chance(0.5)}
    given["dims"] = 2 * d.integer(1, dim // 2) if d.chance(0.4) or dim % 2 else None
    if d.chance(0.3):
        given["positions"] = d.rng.integers(-9, 99, d.broadcastable(shape[:-1]) or (1,))
        if given["positions"].shape[-1] not in (1, shape[-2]) or given["positions"].ndim == 0:
            given.pop("positions")
    elif d.chance(0.3):
        given["offset"] = d.integer(0, 99)
    if d.chance(0.3):
        given |= {"scaling": d.choice("linear", "ntk"), "factor": d.choice(1.0, 4.0)}
        if given["scaling"] == "ntk" and (given["dims"] or dim) == 2:
            given["scaling"] = "linear"
    return Call("rotary", given, {}, {})


def dropout(d: Draw) -> Call:
    shape = (*d.batch(), d.size(9, 300))
    given: Arrays = {"x": d.normal(*shape), "p": d.choice(0.0, 0.2, 0.7)}
    given |= {"rng": d.integer(0, 10**9)} if d.chance(0.6) else {"mask": d.bits(*d.broadcastable(shape))}
    return Call("dropout", given, {}, {})


def cross_entropy(d: Draw) -> Call:
    batch, classes = d.batch(), d.size(9, 300, least=1)
    targets = d.rng.integers(0, classes, batch)
    reduction = d.choice("mean", "sum", "none")
    given: Arrays = {"logits": 3 * d.normal(*batch, classes), "reduction": reduction}
    given["ignore_index"] = d.choice(-100, -1, 0, 200)
    if d.chance(0.5):
        targets = np.where(d.rng.random(batch) < 0.4, given["ignore_index"], targets)
    given["targets"] = np.asarray(targets)
    if d.chance(0.4):
        given["label_smoothing"] = d.choice(0.1, 0.5)
    ignored = given["targets"] == given["ignore_index"]
    hidden_out = {(): ignored} if reduction == "none" else {}
    return Call("cross_entropy", given, {("logits",): rows(ignored, classes)}, hidden_out)


def conv1d(d: Draw) -> Call:
    channels, out, width, dilation = d.size(5), d.size(5), d.integer(1, 4), d.integer(1, 3)
    steps = d.size(9, 60)
    padding = d.choice("same", "causal", "valid", d.integer(0, 5))
    if padding == "same":
        width += 1 - width % 2
    if padding == "valid" or isinstance(padding, int):
        steps += (width - 1) * dilation + 1
    given = {"x": d.normal(*d.batch(), steps, channels), "weight": d.normal(out, channels, width),
             "padding": padding, "dilation": dilation}  # fmt: skip
    if d.chance(0.5):
        given["bias"] = d.normal(out)
    return Call("conv1d", given, {}, {})


def _recurrence(function: str, gates: int) -> Callable[[Draw], Call]:
    def draw(d: Draw) -> Call:
        batch, steps, width, state = d.batch(), d.size(7, 20), d.size(6), d.size(5, 20)
        given = {"x": d.normal(*batch, steps, width), "weight_ih": 0.7 * d.normal(gates * state, width),
                 "weight_hh": 0.7 * d.normal(gates * state, state), "reverse": d.chance(0.3)}  # fmt: skip
        for name in ("bias_ih", "bias_hh"):
            if d.chance(0.5):
                given[name] = d.normal(gates * state)
        for name in ("h0", "c0") if function == "lstm" else ("h0",):
            if d.chance(0.4):
                given[name] = d.normal(*batch, state)
        if function == "rnn":
            given["nonlinearity"] = d.choice("tanh", "relu")
        if not d.chance(0.4):
            return Call(function, given, {}, {})
        given["mask"] = d.bits(*batch, steps)
        return Call(function, given, {("x",): rows(~given["mask"], width)}, {})

    return draw


DRAWS: dict[str, Callable[[Draw], Call]] = {
    **{f.__name__: f for f in (
        scaled_dot_product_attention, attention_partial, merge_partials, multi_head_attention, additive_attention,
        recurrent_attention, multiplicative_attention, scaled_attention, combine, pairwise_attention,
        convolutional_attention, location_attention, sparsemax_attention, entmax_attention, hard_attention,
        local_attention, graph_attention, relative_attention, linear, embedding, segment_softmax, rotary, dropout,
        cross_entropy, conv1d,
    )},
    **{name: _masked_rows(name) for name in ("softmax", "log_softmax", "sparsemax", "entmax")},
    **{name: _norm(name) for name in ("layer_norm", "rms_norm")},
    **{name: _elementwise(name) for name in ("relu", "gelu", "silu", "tanh", "sigmoid")},
    **{name: _recurrence(name, gates) for name, gates in (("rnn", 1), ("lstm", 4), ("gru", 3))},
}  # fmt: skip
