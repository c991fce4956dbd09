"""Cases of linear attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attnarray.attention.linear.features import FAVOR, Hedgehog
from attnarray.cases.case import Arrays, Case, also, normal

# B 2, H 4, Hkv 2, T 7, Dk 3, Dv 5: several chunks of 2 or 4 steps, the last of which is not full.
_SHAPES = {"query": (2, 4, 7, 3), "key": (2, 2, 7, 3), "value": (2, 2, 7, 5)}
_STATE = {"initial_state": (2, 2, 3, 5)}


def _decay(*shape: int) -> Any:
    """Decays from e^-0.05 to e^-2 a step, away from 0, which no difference may cross."""
    return lambda rng: -0.05 - 1.95 * rng.random(shape)


def _beta(*shape: int) -> Any:
    return lambda rng: rng.random(shape)


def _unit(make: Any) -> Any:
    """Keys of length 1, as the delta rules expect."""

    def arrays(rng: np.random.Generator) -> Arrays:
        made = make(rng)
        made["key"] = made["key"] / np.linalg.norm(made["key"], axis=-1, keepdims=True)
        return made

    return arrays


def _case(label: str, shapes: Mapping[str, tuple[int, ...]], drawn: Mapping[str, Any], **options: Any) -> Case:
    made = also(_unit(normal(**shapes)), **drawn)
    return Case("linear_attention", label, made, options)


_BETA, _DECAY = {"beta": _beta(2, 2, 7)}, {"decay": _decay(2, 2, 7)}
_SWAPPED = {"query": (2, 7, 4, 3), "key": (2, 7, 2, 3), "value": (2, 7, 2, 5)}
_PLAIN = {"query": (2, 7, 3), "key": (2, 7, 3), "value": (2, 7, 5)}


def _hedgehog(rng: np.random.Generator) -> Hedgehog:
    return Hedgehog(rng.standard_normal((4, 6, 3)), rng.standard_normal((2, 6, 3)))


def _generalized(label: str, shapes: Mapping[str, tuple[int, ...]], drawn: Mapping[str, Any], **options: Any) -> Case:
    """Vectors a and b as those of RWKV-7, whose lengths are those of the key."""
    of_key = shapes["key"]
    vectors = {"a": lambda rng: -0.4 * rng.standard_normal(of_key), "b": lambda rng: 0.4 * rng.standard_normal(of_key)}
    return Case("generalized_delta_rule", label, also(normal(**shapes), **vectors, **drawn), options)


GENERALIZED_DELTA_CASES: tuple[Case, ...] = (
    _generalized("no decay", _SHAPES, {}, chunk_size=2, scale=0.7),
    _generalized("by dim", {**_SHAPES, **_STATE}, {"decay": _decay(2, 2, 7, 3)}, chunk_size=4),
    _generalized("by head, lengths", {**_SHAPES, **_STATE}, {**_DECAY, "lengths": lambda rng: np.array([5, 0])},
                 chunk_size=4),
    _generalized("BTHD", {**_SWAPPED, **_STATE}, {"decay": _decay(2, 7, 2, 3)}, layout="BTHD", lengths=6),
    _generalized("one sequence", {"query": (7, 3), "key": (7, 3), "value": (7, 5)}, {"decay": _decay(7, 3)},
                 chunk_size=2),
)  # fmt: skip
LINEAR_ATTENTION_CASES: tuple[Case, ...] = (
    _case("linear", _SHAPES, {}, chunk_size=2),
    _case("linear, state", {**_SHAPES, **_STATE}, {}, scale=0.7),
    _case("gated", {**_SHAPES, **_STATE}, _DECAY, rule="gated", chunk_size=4),
    _case("gated by dim", {**_SHAPES, **_STATE}, {"decay": _decay(2, 2, 7, 3)}, rule="gated", chunk_size=4),
    _case("delta", {**_SHAPES, **_STATE}, _BETA, rule="delta", chunk_size=4),
    _case("delta, no heads", _PLAIN, {"beta": _beta(2, 7)}, rule="delta", chunk_size=1),
    _case("gated delta", {**_SHAPES, **_STATE}, {**_DECAY, **_BETA}, rule="gated_delta", chunk_size=2),
    _case("gated delta by dim, lengths", {**_SHAPES, **_STATE},
          {"decay": _decay(2, 2, 7, 3), **_BETA, "lengths": lambda rng: np.array([5, 0])},
          rule="gated_delta", chunk_size=4),
    _case("gated delta, BTHD", {**_SWAPPED, **_STATE}, {"decay": _decay(2, 7, 2), "beta": _beta(2, 7, 2)},
          rule="gated_delta", layout="BTHD", lengths=6),
    _case("one sequence, gated by dim", {"query": (7, 3), "key": (7, 3), "value": (7, 5)}, {"decay": _decay(7, 3)},
          rule="gated"),
    _case("normalized, elu + 1", {**_SHAPES}, {}, normalize=True, feature_map="elu+1", chunk_size=4),
    _case("normalized, gated, exp, lengths", {**_SHAPES}, {**_DECAY, "lengths": lambda rng: np.array([3, 7]),
          "initial_state": lambda rng: 1.0 + rng.random((2, 2, 3, 6))}, rule="gated", normalize=True,
          feature_map="exp"),
    _case("relu", _SHAPES, {}, feature_map="relu"),
    _case("squared", _SHAPES, _DECAY, feature_map="squared", rule="gated"),
    _case("softmax features", _SHAPES, _BETA, feature_map="softmax", rule="delta"),
    _case("random features", _SHAPES, {"feature_map": lambda rng: FAVOR(rng.standard_normal((8, 3)))}, normalize=True),
    _case("hedgehog", _SHAPES, {"feature_map": _hedgehog}, normalize=True),
)  # fmt: skip
