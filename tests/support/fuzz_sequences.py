"""Random calls of attention over sequences without heads, and over graphs."""

from __future__ import annotations

import numpy as np

from tests.support.fuzz_draw import Arrays, Call, Draw, Scores, finish, rows, scores, with_out_field


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


def din_attention(d: Draw) -> Call:
    batch, queries, keys = d.batch(), d.size(5, 20), d.size(9, 40)
    dim, inner = d.size(5), d.size(6, least=1)
    given = {"query": d.normal(*batch, queries, dim), "key": d.normal(*batch, keys, dim),
             "value": d.normal(*batch, keys, d.size()), "weight": d.normal(inner, 3 * dim),
             "unit_bias": d.normal(inner), "score_vector": d.normal(inner), "normalize": d.chance(0.4)}  # fmt: skip
    return _plain(d, "din_attention", scores(d, batch, None, queries, keys), given)


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


def attentional_hidden_state(d: Draw) -> Call:
    batch, width, other, out = (*d.batch(), d.size()), d.size(), d.size(), d.size()
    given = {"context": d.normal(*batch, width), "hidden": d.normal(*batch, other),
             "context_weight": d.normal(out, width), "hidden_weight": d.normal(out, other),
             "activation": d.choice(None, "tanh")}  # fmt: skip
    if d.chance(0.5):
        given["bias"] = d.normal(out)
    return Call("attentional_hidden_state", given, {}, {})


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


def linear_attention(d: Draw) -> Call:
    batch, steps, heads, group = d.batch(), d.size(20, 150), d.size(2, 3, least=1), d.choice(1, 1, 2, 3)
    dim, value_dim, rule = d.size(6, 40), d.size(6, 40), d.choice("linear", "gated", "delta", "gated_delta")
    given = {"query": d.normal(*batch, heads * group, steps, dim), "key": d.normal(*batch, heads, steps, dim),
             "value": d.normal(*batch, heads, steps, value_dim), "rule": rule}  # fmt: skip
    if not batch:
        given["layout"] = "BTHD"
    given["key"] /= np.maximum(np.linalg.norm(given["key"], axis=-1, keepdims=True), 1e-3)
    if rule.startswith("gated"):
        shape = (*batch, heads, steps, dim) if d.chance(0.4) else (*batch, heads, steps)
        given["decay"] = -d.choice(0.01, 1.0, 20.0) * d.rng.random(shape)
    if rule.endswith("delta"):
        given["beta"] = d.rng.random((*batch, heads, steps))
    elif d.chance(0.3):
        given["normalize"], given["feature_map"] = True, d.choice("elu+1", "exp", "softmax")
    if d.chance(0.4):
        columns = value_dim + given.get("normalize", False)
        given["initial_state"] = np.abs(d.normal(*batch, heads, dim, columns))
    return _steps(d, "linear_attention", given, ("query", "key", "value", "decay", "beta"))


def generalized_delta_rule(d: Draw) -> Call:
    batch, steps, heads, group = d.batch(), d.size(20, 150), d.size(2, 3, least=1), d.choice(1, 1, 2, 3)
    dim, value_dim = d.size(6, 40), d.size(6, 40)
    removed = d.normal(*batch, heads, steps, dim)
    removed /= np.maximum(np.linalg.norm(removed, axis=-1, keepdims=True), 1e-3)
    given = {"query": d.normal(*batch, heads * group, steps, dim), "key": d.normal(*batch, heads, steps, dim),
             "value": d.normal(*batch, heads, steps, value_dim), "a": -removed,
             "b": removed * d.rng.random((*batch, heads, steps, dim))}  # fmt: skip
    if not batch:
        given["layout"] = "BTHD"
    if d.chance(0.7):
        shape = (*batch, heads, steps, dim) if d.chance(0.6) else (*batch, heads, steps)
        given["decay"] = -d.choice(0.01, 1.0, 20.0) * d.rng.random(shape)
    if d.chance(0.4):
        given["initial_state"] = d.normal(*batch, heads, dim, value_dim)
    return _steps(d, "generalized_delta_rule", given, ("query", "key", "value", "a", "b", "decay"))


def _steps(d: Draw, function: str, given: Arrays, names: tuple[str, ...]) -> Call:
    """A function of steps, with arrays (*batch, H, T, ...), in any layout and with lengths."""
    batch, steps, value_dim = given["query"].shape[:-3], given["query"].shape[-2], given["value"].shape[-1]
    given["chunk_size"] = d.choice(1, 2, 7, 16, 64, 100)
    arrays = {name: given[name] for name in names if name in given}
    lengths = d.rng.integers(0, steps + 1, batch) if d.chance(0.4) else np.full(batch, steps)
    past = np.arange(steps) >= lengths[..., None, None]
    swap = not batch or d.chance(0.3)
    marks = {}
    for name, array in arrays.items():
        axes = past[..., None] if array.ndim == given["query"].ndim else past
        marks[name] = np.broadcast_to(axes, array.shape)
    marks["out"] = np.broadcast_to(past[..., None], (*given["query"].shape[:-1], value_dim))
    if swap:
        given["layout"] = "BTHD"
        marks = {name: np.swapaxes(mark, len(batch), len(batch) + 1) for name, mark in marks.items()}
        given |= {name: np.ascontiguousarray(np.swapaxes(array, len(batch), len(batch) + 1))
                  for name, array in arrays.items()}  # fmt: skip
    if not (lengths == steps).all():
        given["lengths"] = lengths if batch else int(lengths)
    out = marks.pop("out")
    return Call(function, given, {(name,): mark for name, mark in marks.items()}, {("out",): out})


def ragged_attention(d: Draw) -> Call:
    sequences, group, heads = d.integer(1, 5), d.choice(1, 2, 3), d.size(2, 3, least=1)
    lengths_q, lengths_k = (np.array([d.integer(0, 40) for _ in range(sequences)]) for _ in range(2))
    dim, value_dim = d.size(6, 40, least=1), d.size(6, 40)
    bounds_q, bounds_k = (np.concatenate([[0], np.cumsum(lengths)]) for lengths in (lengths_q, lengths_k))
    given = {"query": d.normal(bounds_q[-1], heads * group, dim), "key": d.normal(bounds_k[-1], heads, dim),
             "value": d.normal(bounds_k[-1], heads, value_dim), "cu_seqlens_q": bounds_q, "cu_seqlens_k": bounds_k,
             "is_causal": d.chance(0.5), "align": d.choice("end", "start")}  # fmt: skip
    if d.chance(0.3):
        given["softcap"] = 3.0
    return Call("ragged_attention", given, {}, {})


DRAWS = (
    additive_attention, multiplicative_attention, scaled_attention, recurrent_attention, location_attention,
    local_attention, pairwise_attention, din_attention, convolutional_attention, attentional_hidden_state,
    graph_attention, linear_attention, generalized_delta_rule, ragged_attention,
)  # fmt: skip
