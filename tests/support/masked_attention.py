"""Calls of attention with masks, and which entries of their arrays and cotangents are masked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray import tree
from attnarray.triples import find_triple

NOTHING = np.zeros((), bool)  # is hidden
Arrays = dict[str, Any]


class Sizes(NamedTuple):
    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    queries: int = 4
    keys: int = 7
    features: int = 5
    value_features: int = 6
    hidden: int = 3


class Masked(NamedTuple):
    """A call; by the names of its arrays, which of their entries are masked; and which of its results."""

    function: Callable[..., Any]
    arrays: Arrays
    options: dict[str, Any]
    hidden: dict[str, np.ndarray]
    results: tuple[np.ndarray, ...]

    def filled(self, number: float, dtype: str) -> Masked:
        """Floats in `dtype`, with `number` in masked entries."""

        def of(name: str, array: Any) -> Any:
            if name in self.hidden:
                array = np.where(self.hidden[name], number, array)
            return tree.map(lambda x: x.astype(dtype) if x.dtype == np.float64 else x, array)

        return self._replace(arrays={name: of(name, array) for name, array in self.arrays.items()})

    def run(self, number: float) -> tuple[Any, Any, Any]:
        """The result, the gradients for random cotangents with `number` where the result is masked, and the context."""
        triple, rng, results = find_triple(self.function), np.random.default_rng(1), iter(self.results)
        out, ctx = triple.fwd(**self.arrays, **self.options)

        def cotangent(leaf: Any) -> Any:
            return np.where(next(results), number, rng.standard_normal(leaf.shape)).astype(leaf.dtype)

        return out, triple.bwd(tree.map(cotangent, out), ctx), ctx


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(math.prod(shape) + len(shape)).standard_normal(shape)


def attention_calls(sizes: Sizes) -> dict[str, Masked]:
    """The calls of attention over arrays, by their names."""
    return {**_with_heads(sizes), **_without_heads(sizes), **_multi_head(sizes), **_of_one_sequence(sizes)}


def masks(sizes: Sizes, heads: tuple[int, ...]) -> dict[str, tuple[Arrays, dict[str, Any], np.ndarray]]:
    """Arrays and options that mask keys, and the pairs (B, 1 for heads, T, S) that they leave."""
    B, T, S, ones = sizes.batch, sizes.queries, sizes.keys, (1,) * len(heads)
    queries, keys = np.arange(T)[:, None], np.arange(S)
    allowed = np.broadcast_to((keys % 3 != 1) & (queries != 1), (B, *ones, T, S))
    lengths = np.where(np.arange(B) % 2, 0, S // 2 + 1) if S else np.zeros(B, np.int64)
    shorter = np.broadcast_to(np.reshape(keys < lengths[:, None], (B, *ones, 1, S)), allowed.shape)
    causal, bias = np.broadcast_to(keys <= queries + 1, allowed.shape), normal(*heads, T, S)
    hiding = np.where((keys % 3 != 1) & (queries != 1), bias, -math.inf)
    return {
        "no mask": ({}, {}, np.ones(allowed.shape, bool)),
        "dropout": ({}, {"dropout_p": 0.5, "dropout_mask": allowed}, allowed),
        "mask": ({}, {"attn_mask": allowed}, allowed),
        "bias of -inf": ({"bias": hiding}, {}, allowed),
        "mask, bias": ({"bias": bias}, {"attn_mask": allowed}, allowed),
        "lengths": ({}, {"kv_lengths": lengths}, shorter),
        "causal": ({}, {"is_causal": True, "q_offset": 1}, causal),
        "all, softcap": (
            {"bias": bias},
            {"attn_mask": allowed, "kv_lengths": lengths, "is_causal": True, "q_offset": 1, "softcap": 3.0},
            allowed & shorter & causal,
        ),
    }


def attention(
    sizes: Sizes,
    function: str,
    arrays: Arrays,
    keys: str = "key value",
    queries: str = "query",
    axes: tuple[int, ...] = (),
    without: str | None = None,
    results: str = "rows",
    label: str = "",
    drops: bool = True,
    **options: Any,
) -> dict[str, Masked]:
    """The calls with each mask except `without`.

    `keys` and `queries` name the arrays with a row for each of them. `results` says what each result has: "rows" of
    features for the queries, one "number", or one for the "pairs".
    """
    made = {}
    for mask, (given, rules, allowed) in masks(sizes, axes).items():
        if mask == without or (mask == "dropout" and not drops):
            continue
        no_query, no_key = ~allowed.any(axis=-2), ~allowed.any(axis=-1)
        hidden = dict.fromkeys(keys.split(), no_query[..., None])
        hidden |= {name: no_key[..., None] if arrays[name].ndim > no_key.ndim else no_key for name in queries.split()}
        if mask != "bias of -inf" and "bias" in given:
            hidden["bias"] = np.broadcast_to(~allowed, (sizes.batch, *given["bias"].shape)).all(axis=0)
        kinds = {"rows": no_key[..., None], "number": no_key, "pairs": ~allowed}
        if mask == "dropout":  # comes after the scores, and after the weights that are results
            hidden = {name: hidden[name] for name in hidden if name == "value"}
            kinds |= {"number": NOTHING, "pairs": NOTHING}
        name = ", ".join(part for part in (function, label, mask) if part)
        made[name] = Masked(
            getattr(aa, function), arrays | given, options | rules, hidden, tuple(kinds[k] for k in results.split())
        )
    return made


def _with_heads(sizes: Sizes) -> dict[str, Masked]:
    B, H, G, T, S, D, E, _ = sizes
    qkv = {"query": normal(B, H, T, D), "key": normal(B, G, S, D), "value": normal(B, G, S, E)}
    sinks, noise = qkv | {"sinks": normal(H)}, qkv | {"noise": np.abs(normal(B, H, T, S))}
    estimators = {"argmax": qkv, "gumbel": noise, "straight_through": noise, "reinforce": noise, "top_k": qkv}
    distances = {
        "position_key": normal(G, max(T + S - 1, 0), D), "content_bias": normal(H, D), "position_bias": normal(H, D)
    }  # fmt: skip
    uncapped = {"axes": (H,), "without": "all, softcap"}
    made = [
        attention(sizes, "scaled_dot_product_attention", qkv, axes=(H,)),
        attention(sizes, "scaled_dot_product_attention", sinks, axes=(H,), label="sinks"),
        attention(sizes, "attention_partial", qkv, axes=(H,), results="rows number"),
        attention(sizes, "sparsemax_attention", qkv, axes=(H,)),
        attention(sizes, "entmax_attention", qkv, axes=(H,)),
        attention(sizes, "entmax_attention", qkv, axes=(H,), alpha=1.2, label="alpha 1.2"),
        attention(sizes, "relative_attention", qkv | distances, **uncapped),
        attention(sizes, "relative_attention", sinks | distances, **uncapped, label="sinks"),
    ]
    for estimator, arrays in estimators.items():
        options = {"results": "rows number number", "estimator": estimator, "drops": False}
        made.append(attention(sizes, "hard_attention", arrays, axes=(H,), label=estimator, **options))
    return {name: call for some in made for name, call in some.items()}


def _without_heads(sizes: Sizes) -> dict[str, Masked]:
    B, _, _, T, S, D, E, A = sizes
    qkv = {"query": normal(B, T, D), "key": normal(B, S, D), "value": normal(B, S, E)}
    vector, gates = {"score_vector": normal(A)}, {"gate": normal(B, T), "score_scale": normal(B, T)}
    filters = {"score_vector": normal(D), "location_filter": normal(2, 3), "location_weight": normal(D, 2)}
    places = {"position_weight": normal(A, D), "position_vector": normal(A)}
    lstm = vector | {
        "weight_ih": normal(8, 2 * D), "weight_hh": normal(8, 2), "output_weight": normal(A, 2), "h0": normal(B, T, 2)
    }  # fmt: skip
    pairs = vector | {"x": qkv["query"], "memory": qkv["key"], "input_weight": normal(A, 2 * D)}
    unit = vector | {"weight": normal(A, 3 * D), "unit_bias": normal(A)}
    general, both = qkv | {"weight": normal(D, D)}, qkv | vector | {"weight": normal(A, 2 * D)}
    temperature = qkv | {"inverse_temperature": normal(B, T)}
    steps = {"results": "rows pairs"}
    made = [
        attention(sizes, "additive_attention", qkv | {"score_vector": normal(D)}),
        attention(sizes, "din_attention", qkv | unit),
        attention(sizes, "din_attention", qkv | unit, normalize=True, label="normalized"),
        attention(sizes, "multiplicative_attention", qkv),
        attention(sizes, "multiplicative_attention", general, score="general", label="general"),
        attention(sizes, "multiplicative_attention", both, score="concat", label="concat"),
        attention(sizes, "scaled_attention", qkv | gates, queries="query gate score_scale"),
        attention(sizes, "scaled_attention", temperature, queries="query inverse_temperature", label="temperature"),
        attention(sizes, "location_attention", qkv | filters, **steps),
        attention(sizes, "location_attention", qkv | filters, **steps, cumulative=True, label="cumulative"),
        attention(sizes, "local_attention", qkv, window=2),
        attention(sizes, "local_attention", general, window=2, label="general"),
        attention(sizes, "local_attention", qkv | places, window=2, alignment="predictive", label="predictive"),
        attention(sizes, "recurrent_attention", qkv | lstm, queries="query h0", without="bias of -inf"),
        attention(sizes, "pairwise_attention", pairs, "memory", "x"),
        attention(sizes, "pairwise_attention", pairs | {"value": qkv["value"]}, "memory value", "x", label="value"),
    ]
    return {name: call for some in made for name, call in some.items()}


def _multi_head(sizes: Sizes) -> dict[str, Masked]:
    """Its inputs have no heads, and no result is masked: without keys, it is the bias of the last linear map."""
    B, H, G, T, S, D, E, _ = sizes
    made = {}
    for label, width in (("", 3), ("rotary", 4)):
        shapes = {"query": (H * width, D), "key": (G * width, D), "value": (G * 3, E), "out": (D, H * 3)}
        params = {name: {"weight": normal(*shape), "bias": normal(shape[0])} for name, shape in shapes.items()}
        arrays = {"query": normal(B, T, D), "key": normal(B, S, D), "value": normal(B, S, E), "params": params}
        options = {"num_heads": H, "num_kv_heads": G, "rotary": aa.Rotary() if label else None}
        found = attention(sizes, "multi_head_attention", arrays, axes=(H,), label=label, **options)
        for name, call in found.items():
            rows = {"query": T, "key": S, "value": S}
            hidden = {n: np.reshape(x, (B, rows[n], 1)) if n in rows else x for n, x in call.hidden.items()}
            made[name] = call._replace(hidden=hidden, results=(NOTHING,))
    return made


def _of_one_sequence(sizes: Sizes) -> dict[str, Masked]:
    """Attention of a sequence to itself: only lengths mask positions."""
    B, _, _, T, _, D, E, A = sizes
    lengths = np.where(np.arange(B) % 2, 0, T // 2)
    padding, empty = np.arange(T) >= lengths[:, None], (lengths == 0)[:, None, None]
    windows = {"x": normal(B, T, D), "query_weight": normal(A, D, 3), "key_weight": normal(A, D, 3)}
    state = {"hidden": normal(B, T, 2), "hidden_weight": normal(A, 2)}
    arrays = {
        "convolutional_attention": windows,
        "convolutional_attention, pairs": {**windows, "score_vector": normal(A)},
        "convolutional_attention, value": {**windows, "value": normal(B, T, E)},
        "pairwise_attention, self": {
            "x": normal(B, T, D), "input_weight": normal(A, 2 * D), "score_vector": normal(A), **state
        },
    }  # fmt: skip
    made = {}
    for name, given in arrays.items():
        hidden = {n: padding[..., None] for n in ("x", "value", "hidden") if n in given}
        made[name] = Masked(getattr(aa, name.partition(",")[0]), given, {"kv_lengths": lengths}, hidden, (empty,))
    return made
