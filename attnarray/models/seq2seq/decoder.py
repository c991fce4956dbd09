"""A recurrent decoder with attention and input feeding, step by step, with backpropagation through time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import tree
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, namespace_of
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.models.seq2seq.attention_step import StepInput, attention_step
from attnarray.models.seq2seq.cell import Cell, CellKind, State
from attnarray.ops.activations import TanhContext, tanh_bwd, tanh_fwd
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox


class DecoderState(NamedTuple):
    """The state of a decoder: the memory, the state of its cell, its last output h~, previous weights, the step
    index.
    """

    memory: Array
    lengths: Any
    cell: State
    fed: Array
    previous: Any
    step: int


class StepContext(NamedTuple):
    cell: Any
    attention: Any
    combine: LinearContext
    tanh: TanhContext


class Carried(NamedTuple):
    """The gradients of what one step passes to the next."""

    cell: tuple[Array | None, ...]
    fed: Array | None
    previous: Array | None


class DecoderGrads(NamedTuple):
    x: Any
    memory: Any
    cell: State
    params: Params


@dataclass(frozen=True)
class RecurrentDecoder(Layer):
    r"""The steps of a decoder.

    .. math::
        s_i = \mathrm{RNN}([x_i; \tilde h_{i-1}], s_{i-1}), \qquad c_i = \mathrm{attention}(s_i, m), \qquad
        \tilde h_i = \tanh(W_c [c_i; s_i])
    """

    cell: CellKind
    dim: int
    hidden_dim: int
    context_dim: int
    attention: Any

    def parts(self) -> dict[str, Any]:
        return {
            "cell": Cell(self.cell, self.dim + self.hidden_dim, self.hidden_dim),
            "attention": attention_step(self.attention),
            "combine": Linear(self.context_dim + self.hidden_dim, self.hidden_dim, bias=False),
        }

    def step(
        self, params: Params, x: Array, state: DecoderState, rng: Philox | None = None
    ) -> tuple[DecoderState, StepContext]:
        """Return the state after x (B, 1, dim), whose `fed` is h~ (B, 1, H), and the context."""
        xp, parts = namespace_of(x), self._parts
        inputs = xp.concat([x, state.fed], axis=-1)  # (B, 1, dim + H)
        s, cell, cell_ctx = parts["cell"].fwd(params["cell"], inputs, state.cell)
        given = StepInput(state.memory, state.lengths, state.step, rng.fold_in(state.step) if rng else None)
        c, previous, attention_ctx = parts["attention"].fwd(params["attention"], s, given, state.previous)
        y, combine_ctx = parts["combine"].fwd(params["combine"], xp.concat([c, s], axis=-1))
        fed, tanh_ctx = tanh_fwd(y)
        after = DecoderState(state.memory, state.lengths, cell, fed, previous, state.step + 1)
        return after, StepContext(cell_ctx, attention_ctx, combine_ctx, tanh_ctx)

    def fwd(
        self, params: Params, x: Array, state: DecoderState, rng: Philox | None
    ) -> tuple[Any, tuple[StepContext, ...]]:
        """Return h~ (B, T, H) of x (B, T, dim), and the context of each step."""
        states, contexts = [], []
        for t in range(x.shape[1]):
            state, ctx = self.step(params, x[:, t : t + 1, :], state, rng)
            states.append(state.fed)
            contexts.append(ctx)
        return namespace_of(x).concat(states, axis=1), tuple(contexts)

    def bwd(self, dout: Array, ctx: tuple[StepContext, ...], dlog_prob: Array | None) -> DecoderGrads:
        """Return the gradients of x, the memory, the initial state of the cell, and the parameters, through all
        steps.
        """
        dx, total = [], None
        after = Carried((None,) * len(self._parts["cell"].states), None, None)
        for t in reversed(range(len(ctx))):
            dlog = None if dlog_prob is None else dlog_prob[:, t : t + 1]
            dfed = dout[:, t : t + 1, :]
            grads, after = self._step_bwd(dfed if after.fed is None else dfed + after.fed, after, dlog, ctx[t])
            dx.append(grads.x)
            summed = tree.map(wide, (grads.memory, grads.params))
            total = summed if total is None else tree.add(total, summed)
        assert total is not None, "there is a step"
        memory, params = tree.map(lambda grad: narrow(grad, dout), total)
        return DecoderGrads(namespace_of(dout).concat(dx[::-1], axis=1), memory, grads.cell, params)

    def _step_bwd(
        self, dfed: Array, after: Carried, dlog_prob: Array | None, ctx: StepContext
    ) -> tuple[DecoderGrads, Carried]:
        parts = self._parts
        both = parts["combine"].bwd(tanh_bwd(dfed, ctx.tanh).x, ctx.combine)
        dc, ds = both.x[..., : self.context_dim], both.x[..., self.context_dim :]
        attention = parts["attention"].bwd(dc, after.previous, dlog_prob, ctx.attention)
        cell = parts["cell"].bwd(ds + attention.query, after.cell, ctx.cell)
        params = {"cell": cell.params, "attention": attention.params, "combine": both.params}
        grads = DecoderGrads(cell.x[..., : self.dim], attention.memory, cell.state, params)
        return grads, Carried(cell.state, cell.x[..., self.dim :], attention.previous)
