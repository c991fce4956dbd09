"""A `BenchCase`: a call to be measured, its arrays, and the least work and memory traffic that it needs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
Draw = Callable[[np.random.Generator, Shapes], Any]  # an array, or a tree of arrays

SDPA = "scaled_dot_product_attention"
BACKWARD_FLOPS = 2.5  # times the forward: five matrix products instead of two, the recomputed scores among them
DROPOUT_OPTIONS = {"dropout_p": 0.0, "p": 0.0, "rng": None}

# Exponentials (or logarithms of their kind) per element of the first array, by function.
FORWARD_EXPS = dict.fromkeys(("softmax", "log_softmax", "cross_entropy", "gelu", "silu", "tanh", "sigmoid"), 1.0)
BACKWARD_EXPS = dict.fromkeys(("log_softmax", "cross_entropy", "gelu", "silu"), 1.0)


class Cost(NamedTuple):
    """The least work of a call. Its bytes are counted when it runs: inputs read once, results written once."""

    flops: float
    exps: float


@dataclass(frozen=True)
class BenchCase:
    """One call of a public triple.

    `shapes` names the arrays that are drawn from the standard normal distribution, `drawn` makes the others (masks,
    lengths, indices) from a generator and `shapes`; `options` are passed as they are. `direction` says what is timed:
    "forward" is inference, "backward" the backward alone, "both" the forward with its context and the backward.
    `resized(n)` is the same case with n keys (or n rows).
    """

    name: str
    group: str
    function: str
    shapes: Shapes
    cost: Cost
    options: Mapping[str, Any] = field(default_factory=dict)
    drawn: Mapping[str, Draw] = field(default_factory=dict)
    dtype: str = "float32"
    direction: str = "forward"
    text: str = ""
    size: int = 0
    resized: Callable[[int], BenchCase] | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype; bfloat16 needs the package ml_dtypes."""
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if self.dtype == "bfloat16" else self.dtype)

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        """The arrays by parameter name, on the host, floats in the case's dtype."""
        rng = np.random.default_rng(seed)
        precise = np.float64 if self.dtype == "float64" else np.float32
        made = {
            name: rng.standard_normal(shape, dtype=precise).astype(self.numpy_dtype, copy=False)
            for name, shape in self.shapes.items()
        }
        return {**made, **{name: draw(rng, self.shapes) for name, draw in self.drawn.items()}}

    def without_dropout(self) -> BenchCase | None:
        """The case without dropout, or None if it has none."""
        if "rng" not in self.options:
            return None
        options = {name: DROPOUT_OPTIONS.get(name, value) for name, value in self.options.items()}
        return dataclasses.replace(self, options=options)


def triple(
    function: str,
    name: str = "",
    *,
    group: str = "triples",
    direction: str = "forward",
    dtype: str = "float32",
    flops: float | None = None,
    options: Mapping[str, Any] | None = None,
    drawn: Mapping[str, Draw] | None = None,
    text: str = "",
    pairs: bool = False,
    **shapes: tuple[int, ...],
) -> BenchCase:
    """A case of any public triple, e.g. triple("layer_norm", x=(4096, 1024), weight=(1024,), bias=(1024,)).

    `flops` counts one forward; only `linear` needs no help. Resizing changes the first axis of the first array, and of
    every other array that shares it; with `pairs`, for mechanisms over pairs of positions, the second axis, and the
    cost grows with its square. A case whose arguments are all `drawn` says its sizes in `text` and has one size.
    """
    first = next(iter(shapes.values()), ())
    forward = _count_flops(function, shapes) if flops is None else flops
    exps = {"forward": FORWARD_EXPS.get(function, 0.0), "backward": BACKWARD_EXPS.get(function, 0.0)}
    per_element = exps.get(direction, sum(exps.values()))
    cost = Cost(_directed(direction, forward, 2.0), per_element * float(np.prod(first)))

    axis, power = (1, 2) if pairs else (0, 1)

    def resized(n: int) -> BenchCase:
        scaled = {
            key: (*shape[:axis], n, *shape[axis + 1 :]) if shape[axis : axis + 1] == first[axis : axis + 1] else shape
            for key, shape in shapes.items()
        }
        return triple(
            function, f"{name or function}-{n}", group=group, direction=direction, dtype=dtype, options=options,
            drawn=drawn, text="", flops=None if flops is None else flops * (n / first[axis]) ** power, pairs=pairs,
            **scaled,
        )  # fmt: skip

    text = text or ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    return BenchCase(
        name or function, group, function, shapes, cost, options or {}, drawn or {}, dtype, direction, text,
        first[axis] if first else 0, resized if first else None,
    )  # fmt: skip


def sdpa(
    name: str,
    group: str,
    *,
    B: int = 1,
    H: int = 8,
    T: int,
    S: int | None = None,
    D: int = 64,
    Dv: int | None = None,
    Hkv: int | None = None,
    direction: str = "forward",
    dtype: str = "float32",
    bias: bool = False,
    mask: bool = False,
    lengths: Sequence[float] = (),
    **options: Any,
) -> BenchCase:
    """A case of attention; "{S}", "{T}" and "{D}" in `name` are filled in.

    `bias` gives each head a full bias (H, T, S), `mask` a random boolean mask (T, S), `lengths` the share of the keys
    that exist for each batch. Queries are at the end of the keys: with is_causal the last query attends to the last
    key.
    """
    S, Dv, Hkv = (there if given is None else given for given, there in ((S, T), (Dv, D), (Hkv, H)))
    shapes: dict[str, tuple[int, ...]] = {"query": (B, H, T, D), "key": (B, Hkv, S, D), "value": (B, Hkv, S, Dv)}
    drawn: dict[str, Draw] = {}
    if bias:
        shapes["bias"] = (H, T, S)
    if mask:
        drawn["attn_mask"] = _random_mask
    counts = np.array([round(share * S) for share in lengths])
    if lengths:
        drawn["kv_lengths"] = lambda rng, shapes: counts
    passed = {**options, "q_offset": S - T} if S != T and options.get("is_causal") else options

    def resized(n: int) -> BenchCase:
        return sdpa(
            name, group, B=B, H=H, T=n if T == S else T, S=n, D=D, Dv=Dv, Hkv=Hkv, direction=direction, dtype=dtype,
            bias=bias, mask=mask, lengths=lengths, **options,
        )  # fmt: skip

    pairs = H * allowed_pairs(T, S, counts if lengths else [S] * B, **_positions(passed))
    exps = pairs if options.get("softcap") is None else 2.0 * pairs  # its tanh costs as much as the softmax's exp
    cost = Cost(_directed(direction, 2.0 * pairs * (D + Dv), BACKWARD_FLOPS), _directed(direction, exps, 1.0))
    label = name.format(T=T, S=S, D=D)
    text = f"B{B} H{_both(H, Hkv)} T{T} S{S} D{_both(D, Dv)}"
    return BenchCase(label, group, SDPA, shapes, cost, passed, drawn, dtype, direction, text, S, resized)


def _both(query: int, other: int) -> str:
    return f"{query}" if query == other else f"{query}/{other}"


def allowed_pairs(
    T: int,
    S: int,
    lengths: Sequence[int] | np.ndarray,
    *,
    is_causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int = 0,
) -> float:
    """How many (query, key) pairs of one head are allowed, summed over the batches with these numbers of keys."""
    i = np.arange(T) + q_offset
    left, right = window or (None, None)
    lowest = np.zeros_like(i) if left is None else np.maximum(i - left, 0)
    highest = np.full_like(i, S) if right is None else i + right + 1
    if is_causal:
        highest = np.minimum(highest, i + 1)
    return float(sum(np.maximum(np.minimum(highest, length) - lowest, 0).sum() for length in lengths))


def _positions(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("is_causal", "window", "q_offset") if name in options}


def _random_mask(rng: np.random.Generator, shapes: Shapes) -> np.ndarray:
    """Seven in ten keys at random, (T, S); nothing that a kernel could skip."""
    return rng.random((shapes["query"][-2], shapes["key"][-2])) < 0.7


def _directed(direction: str, forward: float, backward_factor: float) -> float:
    return forward * {"forward": 1.0, "backward": backward_factor, "both": 1.0 + backward_factor}[direction]


def _count_flops(function: str, shapes: Shapes) -> float:
    if function == "linear":
        return 2.0 * float(np.prod(shapes["x"])) * shapes["weight"][0]
    return 0.0
