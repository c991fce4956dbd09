"""Pairwise additive self-attention with its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.composed.pairwise import PairwiseContext, pairwise_attention_bwd, pairwise_attention_fwd
from attnarray.attention.options import ScoreOptions
from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, dense, glorot
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.random import Philox


class PairwiseLayerGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    hidden: ArrayT | None
    memory: ArrayT | None
    value: ArrayT | None
    params: Params
    bias: ArrayT | None


@dataclass(frozen=True)
class PairwiseAttention(Layer):
    r"""Self-attention that scores pairs of positions of a sequence, with the state before the query position.

    .. math::
        o_t = \sum_{t'} \mathrm{softmax}_{t'}(e_{tt'})\, x_{t'}, \qquad
        e_{tt'} = v^T \tanh(W_x [x_t; x_{t'}] + b_x + W_h h_{t-1})

    Parameters
    ----------
    dim : int
        Size D of the positions x_t.
    hidden_dim : int
        Size A of the hidden layer.
    state_dim : int, optional
        Size Dh of the states; None for no states.

    Raises
    ------
    ValueError
        If a size is not a positive integer.

    References
    ----------
    Near Cheng, Dong and Lapata, arXiv:1601.06733.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.PairwiseAttention(dim=3, hidden_dim=8, state_dim=4)
    >>> params = layer.init(aa.Philox(0))
    >>> rng = np.random.default_rng(0)
    >>> x, states = rng.standard_normal((2, 5, 3), np.float32), rng.standard_normal((2, 5, 4), np.float32)
    >>> out, ctx = layer.fwd(params, x, states, is_causal=True)
    >>> out.shape, aa.attention_weights(ctx).shape, sorted(layer.bwd(out, ctx).params)
    ((2, 5, 3), (2, 5, 5), ['hidden', 'input', 'score_vector'])

    When the states come from an LSTM over the outputs of the attention, both run step by step. `memory` is the sequence
    that every step attends to; the state before the first step is 0.

    >>> cell = {"weight_ih": rng.standard_normal((16, 3), np.float32), "weight_hh": np.eye(16, 4, dtype=np.float32)}
    >>> state, steps = {"h0": np.zeros((2, 4), np.float32), "c0": np.zeros((2, 4), np.float32)}, []
    >>> for t in range(5):
    ...     out, layer_ctx = layer.fwd(params, x[:, t : t + 1], state["h0"][:, None], memory=x)
    ...     step, cell_ctx = aa.lstm_fwd(out, **cell, **state)
    ...     state = {"h0": step.h, "c0": step.c}
    ...     steps.append((layer_ctx, cell_ctx))

    Its gradient, for a loss that is the sum of the last state, runs through the same steps in reverse:

    >>> from attnarray import tree
    >>> dh, dc, total = np.ones_like(step.h), None, None
    >>> for layer_ctx, cell_ctx in reversed(steps):
    ...     recurrence = aa.lstm_bwd(aa.LSTMResult(None, dh, dc), cell_ctx)
    ...     attention = layer.bwd(recurrence.x, layer_ctx)  # and for a loss of each output its cotangent
    ...     dh, dc = recurrence.h0 + attention.hidden[:, 0], recurrence.c0
    ...     grad = {"layer": attention.params, "memory": attention.memory, "cell": recurrence.weight_ih}
    ...     total = grad if total is None else tree.add(total, grad)
    >>> total["memory"].shape, total["cell"].shape
    ((2, 5, 3), (16, 3))

    The gradient of x as the query is added to this row by row: ``attention.x``.
    """

    widths: ClassVar = {"x": ("dim",), "hidden": ("state_dim",), "memory": ("dim",)}

    dim: int
    hidden_dim: int
    state_dim: int | None = None

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters: input {weight (A, 2 D), bias (A,)}, hidden {weight (A, Dh)} if any, score_vector (A,)."""
        inputs, states, score = rng.split(3)
        params = {
            "input": dense(inputs, self.hidden_dim, 2 * self.dim, dtype),
            "score_vector": glorot(score, (1, self.hidden_dim), dtype)[0, :],
        }
        if self.state_dim is not None:
            params["hidden"] = dense(states, self.hidden_dim, self.state_dim, dtype, bias=False)
        return params

    def shapes(self) -> Shapes:
        A = self.hidden_dim
        shapes: Shapes = {"input": {"weight": (A, 2 * self.dim), "bias": (A,)}, "score_vector": (A,)}
        return shapes if self.state_dim is None else {**shapes, "hidden": {"weight": (A, self.state_dim)}}

    def __call__(
        self,
        params: Params,
        x: ArrayT,
        hidden: ArrayT | None = None,
        memory: ArrayT | None = None,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> ArrayT:
        """(*batch, T, D or Dv) of x (*batch, T, D) and the states before each of its steps (*batch, T, Dh).

        Arguments and options as in `pairwise_attention`.
        """
        return writable(self.fwd(params, x, hidden, memory, value, attn_mask, dropout_p, is_causal, **options)[0])

    def fwd(
        self,
        params: Params,
        x: ArrayT,
        hidden: ArrayT | None = None,
        memory: ArrayT | None = None,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> tuple[ArrayT, PairwiseContext]:
        """The same, and the context for `bwd`."""
        weight = params["hidden"]["weight"] if "hidden" in params else None
        if (hidden is None) != (weight is None):
            what = (
                "the states before each position" if hidden is None else "None: a layer without state_dim has no states"
            )
            raise ValueError(f"`hidden` is {checks.shown(hidden)}, expected {what}.")
        return pairwise_attention_fwd(
            x, params["input"]["weight"], params["score_vector"], hidden, weight, params["input"]["bias"], memory,
            value, attn_mask, dropout_p, is_causal, **options,
        )  # fmt: skip

    def bwd(self, dout: ArrayT, ctx: PairwiseContext) -> PairwiseLayerGrads[ArrayT]:
        """The gradients of x, hidden, memory and value (None where not given), parameters and bias."""
        grads = pairwise_attention_bwd(dout, ctx)
        params: Params = {
            "input": {"weight": grads.input_weight, "bias": grads.input_bias},
            "score_vector": grads.score_vector,
        }
        if grads.hidden_weight is not None:
            params["hidden"] = {"weight": grads.hidden_weight}
        check_gradients(self, params)
        return PairwiseLayerGrads(grads.x, grads.hidden, grads.memory, grads.value, params, grads.bias)
