"""Cases of `attend`, with a scorer, a modifier and a normalizer as a caller would write them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray.attention.compiled_modifiers import compiled_modifier
from attnarray.attention.normalizers import Sigmoid, Softmax
from attnarray.attention.positional.contextual import CoPE
from attnarray.attention.positional.learned_biases import FIRE, KERPLE
from attnarray.attention.selection.estimators import Argmax, TopK
from attnarray.attention.selection.sparse import Entmax
from attnarray.backend import Array, namespace_of
from attnarray.cases.case import Arrays, Case
from attnarray.masks import Global, Window

QKV = {"query": (2, 4, 5, 3), "key": (2, 2, 7, 3), "value": (2, 2, 7, 6)}  # B 2, H 4, Hkv 2, T 5, S 7, D 3, Dv 6


class Cosine(NamedTuple):
    """s_ij = cos(q_i, k_j) / temperature, with a temperature for each head."""

    temperature: Array  # (H,)

    def scores(self, q: Array, k: Array, rows: slice) -> Array:
        return namespace_of(q).matmul(_unit(q), _unit(k).mT) / self.temperature[:, None, None]

    def backward(self, dscores: Array, q: Array, k: Array, rows: slice) -> tuple[Array, Array, Cosine]:
        xp, unit_q, unit_k = namespace_of(q), _unit(q), _unit(k)
        dcosines = dscores / self.temperature[:, None, None]
        dtemperature = -xp.sum(dcosines * xp.matmul(unit_q, unit_k.mT), axis=(0, 2, 3)) / self.temperature
        dq = _unit_backward(xp.matmul(dcosines, unit_k), q)
        return dq, _unit_backward(xp.matmul(dcosines.mT, unit_q), k), Cosine(dtemperature)


def _unit(x: Array) -> Array:
    xp = namespace_of(x)
    return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))


def _unit_backward(dunit: Array, x: Array) -> Array:
    xp, unit = namespace_of(x), _unit(x)
    norm = xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))
    return (dunit - unit * xp.sum(unit * dunit, axis=-1, keepdims=True)) / norm


class Distance(NamedTuple):
    """Scores less slope times the distance of the positions, with a slope for each head."""

    slope: Array  # (H,)

    def apply(self, scores: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        return scores - self.slope[:, None, None] * _distance(scores, q_idx, kv_idx)

    def backward(
        self, dscores: Array, scores: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array
    ) -> tuple[Array, Distance]:
        xp = namespace_of(scores)
        return dscores, Distance(-xp.sum(dscores * _distance(scores, q_idx, kv_idx), axis=(0, 2, 3)))


def _distance(scores: Array, q_idx: Array, kv_idx: Array) -> Array:
    xp = namespace_of(scores)
    return xp.astype(xp.abs(q_idx - kv_idx), scores.dtype)


class Squared(NamedTuple):
    """strength * score^2, for each batch: a modifier whose gradient depends on the score."""

    strength: Array  # (B,)

    def apply(self, scores: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        return self.strength[:, None, None, None] * scores**2

    def backward(
        self, dscores: Array, scores: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array
    ) -> tuple[Array, Squared]:
        xp = namespace_of(scores)
        dstrength = xp.sum(dscores * scores**2, axis=(1, 2, 3))
        return 2.0 * dscores * self.strength[:, None, None, None] * scores, Squared(dstrength)


@compiled_modifier
class CappedDistance(NamedTuple):
    """A softcap, and a slope for each head times the distance, written for one score."""

    slope: Any  # (H,)

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return 2.0 * namespace_of(score).tanh(score / 2.0) - self.slope[h] * _distance(score, q_idx, kv_idx)

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        tanh = namespace_of(score).tanh(score / 2.0)
        return dscore * (1.0 - tanh * tanh), CappedDistance((h, -dscore * _distance(score, q_idx, kv_idx)))


@compiled_modifier
class Buckets(NamedTuple):
    """A learned bias for each head and distance, which is clipped."""

    bias: Any  # (H, 5)

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + self.bias[h, self.bucket(q_idx, kv_idx)]

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return dscore, Buckets(((h, self.bucket(q_idx, kv_idx)), dscore))

    def bucket(self, q_idx: Any, kv_idx: Any) -> Any:
        return namespace_of(q_idx).clip(q_idx - kv_idx, -2, 2) + 2


def _case(label: str, *, parts: Any = None, bias: bool = False, **options: Any) -> Case:
    def arrays(rng: np.random.Generator) -> Arrays:
        made: Arrays = {name: rng.standard_normal(shape) for name, shape in QKV.items()}
        if bias:
            made["bias"] = rng.standard_normal((4, 5, 7))
        return {**made, **(parts(rng) if parts else {})}

    return Case("attend", label, arrays, options)


def _positive(rng: np.random.Generator, size: int) -> np.ndarray:
    return 0.5 + rng.random(size)


def _fire(rng: np.random.Generator) -> FIRE:
    hidden, out, bias = rng.standard_normal((2, 8)), rng.standard_normal((4, 8)), rng.standard_normal(4)
    return FIRE(hidden[0], hidden[1], out, bias, np.array(0.3), np.array(4.2))


ATTEND_CASES: tuple[Case, ...] = (
    _case("dot products", is_causal=True, q_offset=2),
    _case(
        "sinks, softcap, bias, dropout", bias=True, softcap=1.5, dropout_p=0.3, rng=4, window=(2, 3),
        parts=lambda rng: {"normalizer": Softmax(rng.standard_normal(4))},
    ),
    _case("entmax", normalizer=Entmax(1.3), scale=0.9),
    _case("argmax", normalizer=Argmax(), kv_lengths=6),
    _case("top k", normalizer=TopK(2), is_causal=True, q_offset=2),
    _case("sigmoid", normalizer=Sigmoid(), attn_mask=Window(2, 1) | Global(1)),
    _case("cosine", kv_lengths=np.array([4, 7]), parts=lambda rng: {"scorer": Cosine(_positive(rng, 4))}),
    _case(
        "modifiers", softcap=2.0, bias=True, is_causal=True, q_offset=1,
        parts=lambda rng: {"modifiers": (Squared(_positive(rng, 2)), Distance(_positive(rng, 4)))},
    ),
    _case(
        "compiled modifiers", softcap=3.0, is_causal=True, q_offset=3, kv_lengths=np.array([6, 7]),
        parts=lambda rng: {"modifiers": (CappedDistance(_positive(rng, 4)), Buckets(rng.standard_normal((4, 5))))},
    ),
    _case(
        "KERPLE", q_offset=2,
        parts=lambda rng: {
            "modifiers": (
                KERPLE(_positive(rng, 4), _positive(rng, 4)), KERPLE(_positive(rng, 4), _positive(rng, 4), "power"),
            )
        },
    ),
    _case(
        "FIRE", is_causal=True, q_offset=np.array([2, 1]),
        parts=lambda rng: {"modifiers": (_fire(rng),), "normalizer": Softmax(rng.standard_normal(4))},
    ),
    _case("CoPE", is_causal=True, q_offset=2, parts=lambda rng: {"scorer": CoPE(rng.standard_normal((3, 3)), 0.7, 2)}),
    _case(
        "cosine, modifiers, sigmoid, dropout", window=(3, 2), dropout_p=0.2, rng=9,
        parts=lambda rng: {
            "scorer": Cosine(_positive(rng, 4)), "modifiers": (Distance(_positive(rng, 4)),),
            "normalizer": Sigmoid(rng.standard_normal(4)),
        },
    ),
)  # fmt: skip
