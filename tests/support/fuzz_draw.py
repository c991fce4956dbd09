"""Random sizes, numbers, and options of attention for `python -m tests.fuzz`.

A `Call` holds plain arguments (C order, float64, int64) and marks the entries that must be ignored, so that the
runner can put NaN there. Which keys are visible to a query is computed here, not by the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa

Arrays = dict[str, Any]


class Call(NamedTuple):
    """One call. `hidden` marks masked entries of arguments, by their path, and `hidden_out` those of cotangents."""

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
        """The size of an axis that is summed over: sometimes thousands, where running sums lose digits."""
        return self.integer(1000, 20000) if self.is_long else self.size(most, large)

    def normal(self, *shape: int) -> np.ndarray:
        """Mostly standard normal numbers, sometimes with equal ones, zeros, or another mean."""
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
    """(*batch, H, T, S) -> (*batch, Hkv, T, S): whether the key is visible to any query head of the group."""
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
        options["attn_mask"], seen = _mask(d, full, position, j, without)
        visible &= seen
    options |= _numbers(d, full, heads, wants)
    hidden_bias = None
    if "bias" in options:
        hidden_bias = hidden_under_broadcast(~visible, options["bias"].shape)
    return Scores(options, visible, hidden_bias)


def _numbers(d: Draw, full: tuple[int, ...], heads: int | None, wants: Callable[[str], bool]) -> Arrays:
    """Options that change scores and weights."""
    options: Arrays = {}
    if wants("scale"):
        options["scale"] = d.choice(0.5, 1.7, -0.4)
    if wants("softcap"):
        options["softcap"] = d.choice(0.7, 2.0, 30.0)
    if wants("bias"):
        shape = d.broadcastable(full)
        options["bias"] = np.where(d.rng.random(shape) < d.choice(0.0, 0.0, 0.2), -np.inf, d.normal(*shape))
    if wants("dropout"):
        options["dropout_p"] = d.choice(0.1, 0.4, 0.8)
        options |= {"rng": d.integer(0, 10**9)} if d.chance(0.5) else {"dropout_mask": d.bits(*d.broadcastable(full))}
    if heads is not None and wants("sinks"):
        options["sinks"] = d.normal(heads)
    return options


def _mask(
    d: Draw, full: tuple[int, ...], position: np.ndarray, j: np.ndarray, without: tuple[str, ...]
) -> tuple[Any, np.ndarray]:
    """A mask of some kind, and which keys it leaves visible."""
    kind, (queries, keys) = d.integer(0, 5), full[-2:]
    if kind == 0 and "Documents" not in without:
        ids_q, ids_k = d.rng.integers(0, 3, queries), d.rng.integers(0, 3, keys)
        return aa.Documents(ids_q, ids_k), ids_q[:, None] == ids_k
    if kind == 1:
        dense = d.bits(queries, keys)
        return aa.Dense(dense) & aa.Window(3, None), dense & (j >= position - 3)
    if kind == 2:
        length = d.integer(int(j[0]), int(j[-1]) + 1) if keys else int(not keys)
        return aa.Padding(length) & aa.Causal(1), (j < length) & (j <= position + 1)
    dense = d.bits(*d.broadcastable(full))
    return dense, dense


def hidden_under_broadcast(hidden: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which entries of an array of `shape` broadcast to masked entries only."""
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
    if "sinks" in arguments:  # a sink alone in its softmax
        found = {path: mark for path, mark in found.items() if path[0] != "query"}
        return Call(function, arguments, found, {})
    outs = {(): hidden_out["out"]} if hidden_out and "out" in hidden_out else {}
    return Call(function, arguments, found, outs)


def with_out_field(call: Call) -> Call:
    """The same for an output that is a NamedTuple with `out` and others."""
    return call._replace(hidden_out={("out", *path): mark for path, mark in call.hidden_out.items()})
