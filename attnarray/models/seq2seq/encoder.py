"""A bidirectional recurrent encoder: one state for each token, and the final states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray.backend import Array, namespace_of
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, LayerGrads
from attnarray.layers.linear import Linear
from attnarray.models.seq2seq.cell import Cell, CellKind, State
from attnarray.ops.activations import TanhContext, tanh_bwd, tanh_fwd
from attnarray.ops.linear import LinearContext


class BridgeContext(NamedTuple):
    linear: LinearContext
    tanh: TanhContext


class RecurrentEncoderContext(NamedTuple):
    forwards: Any
    backwards: Any
    bridge: dict[str, BridgeContext]


@dataclass(frozen=True)
class RecurrentEncoder(Layer):
    r"""A bidirectional GRU or LSTM, half of the features for each direction.

    .. math::
        m_j = [\overrightarrow{h}_j; \overleftarrow{h}_j], \qquad
        s_0 = \tanh(W [\overrightarrow{h}_S; \overleftarrow{h}_1] + b)

    with m the memory of a decoder and s_0 its initial state; for an LSTM, its initial cell likewise.
    """

    cell: CellKind
    in_dim: int
    hidden_dim: int

    def parts(self) -> dict[str, Any]:
        half, bridge = Cell(self.cell, self.in_dim, self.hidden_dim // 2), Linear(self.hidden_dim, self.hidden_dim)
        return {"forwards": half, "backwards": half, **{f"bridge_{name}": bridge for name in half.states}}

    def fwd(self, params: Params, x: Array, exists: Array | None) -> tuple[Any, State, RecurrentEncoderContext]:
        """Return the memory (B, S, H) of x (B, S, in_dim), masked by `exists` (B, S), and the initial state of a
        decoder.
        """
        xp, parts = namespace_of(x), self._parts
        out, last, forwards_ctx = parts["forwards"].fwd(params["forwards"], x, mask=exists)
        back, first, backwards_ctx = parts["backwards"].fwd(params["backwards"], x, mask=exists, reverse=True)
        state, contexts = [], {}
        for n, name in enumerate(parts["forwards"].states):
            both = xp.concat([last[n], first[n]], axis=-1)  # (B, H)
            y, linear_ctx = parts[f"bridge_{name}"].fwd(params[f"bridge_{name}"], both)
            y, tanh_ctx = tanh_fwd(y)
            state.append(y)
            contexts[name] = BridgeContext(linear_ctx, tanh_ctx)
        return (
            xp.concat([out, back], axis=-1),
            tuple(state),
            RecurrentEncoderContext(forwards_ctx, backwards_ctx, contexts),
        )

    def bwd(self, dmemory: Array, dstate: tuple[Array, ...], ctx: RecurrentEncoderContext) -> LayerGrads:
        """Return the gradients of x and the parameters."""
        parts, half, params = self._parts, self.hidden_dim // 2, {}
        last, first = [], []
        for dy, (name, bridge) in zip(dstate, ctx.bridge.items(), strict=True):
            grads = parts[f"bridge_{name}"].bwd(tanh_bwd(dy, bridge.tanh).x, bridge.linear)
            params[f"bridge_{name}"] = grads.params
            last.append(grads.x[:, :half])
            first.append(grads.x[:, half:])
        forwards = parts["forwards"].bwd(dmemory[:, :, :half], tuple(last), ctx.forwards)
        backwards = parts["backwards"].bwd(dmemory[:, :, half:], tuple(first), ctx.backwards)
        cells = {"forwards": forwards.params, "backwards": backwards.params}
        return LayerGrads(forwards.x + backwards.x, {**cells, **params})
