"""Attention layers in a decoder that runs step by step: one query, and the weights of the previous step."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from attnarray import tree
from attnarray.attention.alignment.location import LocationResult
from attnarray.attention.selection.hard import HardResult
from attnarray.backend import Array, use_backend
from attnarray.layers.hard import HardAttention
from attnarray.layers.initial import Params
from attnarray.layers.layer import Shapes
from attnarray.layers.local import LocalAttention
from attnarray.layers.location import LocationAttention
from attnarray.random import Philox


class StepInput(NamedTuple):
    """The arguments of a step besides its query: the memory (B, S, E), its lengths (B,), and the index of the step."""

    memory: Array
    lengths: Any
    step: int
    rng: Philox | None


class AttentionStepGrads(NamedTuple):
    query: Any
    memory: Any
    previous: Any
    params: Params


@dataclass(frozen=True)
class AttentionStep:
    """A layer with `init`, `fwd(params, query, key, kv_lengths=...)` and `bwd`, whose values are its keys."""

    layer: Any

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        params: Params = self.layer.init(rng, dtype)
        return params

    def shapes(self) -> Shapes:
        return _initial_shapes(self.layer)

    def fwd(self, params: Params, query: Array, given: StepInput, previous: Any) -> tuple[Any, Any, Any]:
        """Return the context vector (B, 1, D) of a query (B, 1, H), the state for the next step, and the context."""
        out, ctx = self.layer.fwd(params, query, given.memory, kv_lengths=given.lengths)
        return out, None, ctx

    def bwd(self, dout: Array, dprevious: Any, dlog_prob: Array | None, ctx: Any) -> AttentionStepGrads:
        """Return the gradients of query, memory, the state of the previous step, and parameters."""
        return self._gradients(dout, ctx)

    def _gradients(self, dout: Any, ctx: Any) -> AttentionStepGrads:
        grads = self.layer.bwd(dout, ctx)
        return AttentionStepGrads(grads.query, grads.key, None, grads.params)


class LocalStep(AttentionStep):
    """Local attention, whose window may be centered at the index of the step."""

    def fwd(self, params: Params, query: Array, given: StepInput, previous: Any) -> tuple[Any, Any, Any]:
        out, ctx = self.layer.fwd(params, query, given.memory, kv_lengths=given.lengths, q_offset=given.step)
        return out, None, ctx


class LocationStep(AttentionStep):
    """Location-aware attention, which passes its weights (B, S), or their sum if `cumulative`, to the next step."""

    def fwd(self, params: Params, query: Array, given: StepInput, previous: Any) -> tuple[Any, Any, Any]:
        result, ctx = self.layer.fwd(params, query, given.memory, previous=previous, kv_lengths=given.lengths)
        weights = result.weights[:, 0, :]  # (B, S)
        return result.out, previous + weights if self.layer.cumulative and previous is not None else weights, ctx

    def bwd(self, dout: Array, dprevious: Any, dlog_prob: Array | None, ctx: Any) -> AttentionStepGrads:
        grads = self.layer.bwd(LocationResult(dout, None if dprevious is None else dprevious[:, None, :]), ctx)
        dbefore = grads.previous
        if self.layer.cumulative and dbefore is not None and dprevious is not None:
            dbefore = dbefore + dprevious
        return AttentionStepGrads(grads.query, grads.key, dbefore, grads.params)


class HardStep(AttentionStep):
    """Hard attention, which samples with an `rng`, and takes the most likely key without."""

    def fwd(self, params: Params, query: Array, given: StepInput, previous: Any) -> tuple[Any, Any, Any]:
        layer = self.layer
        if given.rng is None and layer.estimator != "top_k":
            layer = replace(layer, estimator="argmax", temperature=1.0)
        options = {} if layer.estimator in ("argmax", "top_k") else {"rng": given.rng}
        result, ctx = layer.fwd(params, query, given.memory, kv_lengths=given.lengths, **options)
        return result.out, None, ctx

    def bwd(self, dout: Array, dprevious: Any, dlog_prob: Array | None, ctx: Any) -> AttentionStepGrads:
        return self._gradients(HardResult(dout, dlog_prob, None), ctx)


def attention_step(layer: Any) -> AttentionStep:
    """Wrap a layer for a decoder."""
    for kind, step in STEPS.items():
        if isinstance(layer, kind):
            return step(layer)
    return AttentionStep(layer)


def samples(layer: Any) -> bool:
    """Whether the layer needs an `rng` in training."""
    return isinstance(layer, HardAttention) and layer.estimator not in ("argmax", "top_k")


@functools.lru_cache(maxsize=64)
def _initial_shapes(layer: Any) -> Shapes:
    """The shapes of initial parameters, for layers without `shapes`."""
    with use_backend("numpy"):
        shapes: Shapes = tree.map(lambda leaf: tuple(leaf.shape), layer.init(Philox(0)))
    return shapes


STEPS: dict[type, type[AttentionStep]] = {
    HardAttention: HardStep,
    LocalAttention: LocalStep,
    LocationAttention: LocationStep,
}
