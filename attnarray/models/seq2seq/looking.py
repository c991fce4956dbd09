"""Every attention layer as a decoder uses it that goes step by step: one query, and where it looked before."""

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


class Given(NamedTuple):
    """What a step knows beside its query: the memory (B, S, E), how much of it there is, and which step it is."""

    memory: Array
    lengths: Any
    step: int
    rng: Philox | None


class LookGrads(NamedTuple):
    query: Array
    memory: Array
    looked: Array | None
    params: Params


@dataclass(frozen=True)
class Looking:
    """A layer with `init`, `fwd(params, query, key, kv_lengths=...)` and `bwd`, whose values are its keys."""

    layer: Any

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        params: Params = self.layer.init(rng, dtype)
        return params

    def shapes(self) -> Shapes:
        return _initial_shapes(self.layer)

    def fwd(self, params: Params, query: Array, given: Given, looked: Any) -> tuple[Array, Any, Any]:
        """The context (B, 1, D) of a query (B, 1, H), what the next step must know of this one, and the context."""
        out, ctx = self.layer.fwd(params, query, given.memory, kv_lengths=given.lengths)
        return out, None, ctx

    def bwd(self, dout: Array, dlooked: Any, dlog_prob: Array | None, ctx: Any) -> LookGrads:
        """The gradients of query, memory, what the step before left, and parameters."""
        return self._gradients(dout, ctx)

    def _gradients(self, dout: Any, ctx: Any) -> LookGrads:
        grads = self.layer.bwd(dout, ctx)
        return LookGrads(grads.query, grads.key, None, grads.params)


class LookingAroundStep(Looking):
    """Local attention: where it stands may be the number of the step."""

    def fwd(self, params: Params, query: Array, given: Given, looked: Any) -> tuple[Array, Any, Any]:
        out, ctx = self.layer.fwd(params, query, given.memory, kv_lengths=given.lengths, q_offset=given.step)
        return out, None, ctx


class LookingByLocation(Looking):
    """Each step hands its weights (B, S) on, or the sum of all so far where the layer is `cumulative`."""

    def fwd(self, params: Params, query: Array, given: Given, looked: Any) -> tuple[Array, Any, Any]:
        result, ctx = self.layer.fwd(params, query, given.memory, previous=looked, kv_lengths=given.lengths)
        weights = result.weights[:, 0, :]  # (B, S)
        return result.out, looked + weights if self.layer.cumulative and looked is not None else weights, ctx

    def bwd(self, dout: Array, dlooked: Any, dlog_prob: Array | None, ctx: Any) -> LookGrads:
        grads = self.layer.bwd(LocationResult(dout, None if dlooked is None else dlooked[:, None, :]), ctx)
        before = grads.previous
        if self.layer.cumulative and before is not None and dlooked is not None:
            before = before + dlooked
        return LookGrads(grads.query, grads.key, before, grads.params)


class LookingHard(Looking):
    """Hard attention draws where there is an `rng`, and takes the most likely key where there is none."""

    def fwd(self, params: Params, query: Array, given: Given, looked: Any) -> tuple[Array, Any, Any]:
        layer = self.layer
        if given.rng is None and layer.estimator != "top_k":
            layer = replace(layer, estimator="argmax", temperature=1.0)
        draws = {} if layer.estimator in ("argmax", "top_k") else {"rng": given.rng}
        result, ctx = layer.fwd(params, query, given.memory, kv_lengths=given.lengths, **draws)
        return result.out, None, ctx

    def bwd(self, dout: Array, dlooked: Any, dlog_prob: Array | None, ctx: Any) -> LookGrads:
        return self._gradients(HardResult(dout, dlog_prob, None), ctx)


def looking(layer: Any) -> Looking:
    """The layer in that form."""
    for kind, form in FORMS.items():
        if isinstance(layer, kind):
            return form(layer)
    return Looking(layer)


def draws(layer: Any) -> bool:
    """Whether the layer needs an `rng` in training."""
    return isinstance(layer, HardAttention) and layer.estimator not in ("argmax", "top_k")


@functools.lru_cache(maxsize=64)
def _initial_shapes(layer: Any) -> Shapes:
    """Those of fresh parameters, for layers that do not tell."""
    with use_backend("numpy"):
        shapes: Shapes = tree.map(lambda leaf: tuple(leaf.shape), layer.init(Philox(0)))
    return shapes


FORMS: dict[type, type[Looking]] = {
    HardAttention: LookingHard,
    LocalAttention: LookingAroundStep,
    LocationAttention: LookingByLocation,
}
