"""Cases of approximations of softmax attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attnarray.cases.case import Case, normal

# B 2, H 4, T 5, S 7, D 3, Dv 6, and for self-attention T 12.
QKV = {"query": (2, 4, 5, 3), "key": (2, 2, 7, 3), "value": (2, 2, 7, 6)}
EQUAL_HEADS = {"query": (2, 4, 9, 5), "key": (2, 4, 7, 5), "value": (2, 4, 7, 6)}
ITSELF = {"query": (2, 3, 12, 5), "value": (2, 3, 12, 6)}


def _case(function: str, label: str, shapes: Mapping[str, tuple[int, ...]], **options: Any) -> Case:
    return Case(f"{function}_attention", label, normal(**shapes), options)


APPROXIMATE_CASES: tuple[Case, ...] = (
    _case("linformer", "one projection", {**QKV, "key_projection": (8, 7)}),
    _case("linformer", "two projections of each head", {**QKV, "key_projection": (2, 8, 7),
          "value_projection": (2, 8, 7)}, scale=0.7),
    _case("linformer", "one sequence, two projections", {"query": (5, 3), "key": (7, 3), "value": (7, 6),
          "key_projection": (4, 7), "value_projection": (4, 7)}),
    _case("nystrom", "plain", EQUAL_HEADS, num_landmarks=3),
    _case("nystrom", "two steps", EQUAL_HEADS, num_landmarks=7, iterations=2, scale=0.7),
    _case("lsh", "one round", {**ITSELF, "rotations": (1, 5, 2)}, chunk_size=4),
    _case("lsh", "rounds, causal", {**ITSELF, "rotations": (3, 5, 1)}, chunk_size=3, is_causal=True, scale=1.3),
    _case("lsh", "one chunk", {**ITSELF, "rotations": (2, 5, 3)}, chunk_size=12),
)  # fmt: skip
