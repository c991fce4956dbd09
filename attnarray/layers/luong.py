"""Luong's attention with its parameters: three scores, and the attentional hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.composed.attentional_hidden_state import (
    AttentionalHiddenStateContext,
    attentional_hidden_state_bwd,
    attentional_hidden_state_fwd,
)
from attnarray.attention.composed.multiplicative import (
    SCORES,
    LuongScore,
    MultiplicativeContext,
    multiplicative_attention_bwd,
    multiplicative_attention_fwd,
)
from attnarray.attention.options import ScoreOptions
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.layers.checking import check_gradients, check_same
from attnarray.layers.initial import Params, dense, glorot
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.random import Philox


class LuongContext(NamedTuple):
    attention: MultiplicativeContext
    output: AttentionalHiddenStateContext | None
    has_value: bool


class LuongGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT | None
    params: Params
    bias: ArrayT | None


@dataclass(frozen=True)
class LuongAttention(Layer):
    r"""Global attention of decoder states h over encoder states :math:`\bar h` (Luong, Pham and Manning, 2015).

    .. math::
        c_i = \sum_j \mathrm{softmax}_j(\mathrm{score}(h_i, \bar h_j))\, \bar h_j, \qquad
        \tilde h_i = \tanh(W_c [c_i; h_i])

    Parameters
    ----------
    query_dim : int
        Size of the queries, the decoder states h.
    key_dim : int
        Size of the keys, the encoder states; equal to `query_dim` for "dot".
    score : {"general", "dot", "concat"}
        h^T W h_s, h^T h_s, or w^T tanh(W [h; h_s]).
    hidden_dim : int, optional
        Size A of the hidden layer of "concat"; query_dim by default.
    output : bool
        Whether the layer returns the attentional hidden states h~ instead of the contexts c.
    output_dim : int, optional
        Size of h~; query_dim by default.
    value_dim : int, optional
        Size of the values, if they are not the keys; needed for h~ only.

    Raises
    ------
    ValueError
        If the score is unknown, or a size is not a positive integer.

    References
    ----------
    Luong, Pham and Manning, arXiv:1508.04025; input feeding is section 3.3.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.LuongAttention(query_dim=6, key_dim=8, output=True)
    >>> params = layer.init(aa.Philox(0))
    >>> rng = np.random.default_rng(0)
    >>> h, source = rng.standard_normal((2, 5, 6), np.float32), rng.standard_normal((2, 7, 8), np.float32)
    >>> states, ctx = layer.fwd(params, h, source, kv_lengths=[7, 4])
    >>> states.shape, aa.attention_weights(ctx).shape, sorted(layer.bwd(states, ctx).params)
    ((2, 5, 6), (2, 5, 7), ['output', 'weight'])

    Input feeding: h~ of each step is concatenated with the next input.

    >>> cell = {"weight_ih": rng.standard_normal((24, 3 + 6), np.float32), "weight_hh": np.eye(24, 6, dtype=np.float32)}
    >>> inputs = rng.standard_normal((2, 4, 3), np.float32)
    >>> fed, state, steps = np.zeros((2, 1, 6), np.float32), {}, []
    >>> for t in range(4):
    ...     x = np.concatenate([inputs[:, t : t + 1], fed], axis=-1)  # (2, 1, 9)
    ...     step, cell_ctx = aa.lstm_fwd(x, **cell, **state)
    ...     fed, layer_ctx = layer.fwd(params, step.out, source)
    ...     state = {"h0": step.h, "c0": step.c}
    ...     steps.append((cell_ctx, layer_ctx))

    Its gradient, for a loss that is the sum of the last h~, runs through the same steps in reverse. (If the loss
    depends on every h~, the cotangent of each is added to `dfed` at its step.)

    >>> from attnarray import tree
    >>> dfed, dh, dc, total = np.ones_like(fed), None, None, None
    >>> for cell_ctx, layer_ctx in reversed(steps):
    ...     attention = layer.bwd(dfed, layer_ctx)
    ...     recurrence = aa.lstm_bwd(aa.LSTMResult(attention.query, dh, dc), cell_ctx)
    ...     dfed, dh, dc = recurrence.x[..., 3:], recurrence.h0, recurrence.c0
    ...     grad = {"attention": attention.params, "key": attention.key, "cell": recurrence.weight_ih}
    ...     total = grad if total is None else tree.add(total, grad)
    >>> total["key"].shape, total["cell"].shape
    ((2, 7, 8), (24, 9))
    """

    widths: ClassVar = {"query": ("query_dim",), "key": ("key_dim",)}

    query_dim: int
    key_dim: int
    score: LuongScore = "general"
    hidden_dim: int | None = None
    output: bool = False
    output_dim: int | None = None
    value_dim: int | None = None

    def __post_init__(self) -> None:
        checks.choice("score", self.score, SCORES)
        super().__post_init__()
        if self.score == "dot" and self.query_dim != self.key_dim:
            raise ValueError(
                f"`key_dim` is {self.key_dim} and `query_dim` {self.query_dim}; for the score 'dot' they must be "
                "equal. Use 'general'."
            )

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters, those that apply: weight, score_vector, output {weight (output_dim, Dv + Dq)}.

        `weight` is (query_dim, key_dim) for "general" and (hidden_dim, query_dim + key_dim) for "concat".
        """
        weight, vector, output = rng.split(3)
        hidden, values = self.hidden_dim or self.query_dim, self.value_dim or self.key_dim
        params: Params = {}
        if self.score == "general":
            params["weight"] = glorot(weight, (self.query_dim, self.key_dim), dtype)
        if self.score == "concat":
            params["weight"] = glorot(weight, (hidden, self.query_dim + self.key_dim), dtype)
            params["score_vector"] = glorot(vector, (1, hidden), dtype)[0, :]
        if self.output:
            size = self.output_dim or self.query_dim
            params["output"] = dense(output, size, values + self.query_dim, dtype, bias=False)
        return params

    def shapes(self) -> Shapes:
        hidden, values = self.hidden_dim or self.query_dim, self.value_dim or self.key_dim
        shapes: Shapes = {}
        if self.score == "general":
            shapes["weight"] = (self.query_dim, self.key_dim)
        if self.score == "concat":
            shapes |= {"weight": (hidden, self.query_dim + self.key_dim), "score_vector": (hidden,)}
        if self.output:
            shapes["output"] = {"weight": (self.output_dim or self.query_dim, values + self.query_dim)}
        return shapes

    def __call__(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> ArrayT:
        """Contexts (*batch, T, Dv), or h~ (*batch, T, output_dim), of queries (*batch, T, query_dim).

        The values are the keys (*batch, S, key_dim) unless given. Options as in `multiplicative_attention`.
        """
        return writable(self.fwd(params, query, key, value, attn_mask, dropout_p, is_causal, **options)[0])

    def fwd(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> tuple[ArrayT, LuongContext]:
        """The same, and the context for `bwd`."""
        values = key if value is None else value
        if self.output and checks.is_array(values) and values.shape[-1] != (self.value_dim or self.key_dim):
            name, field = ("key" if value is None else "value"), ("key_dim" if self.value_dim is None else "value_dim")
            raise ValueError(
                f"`{name}` has {values.shape[-1]} features, but LuongAttention has `{field}` {getattr(self, field)}: "
                "the width of the values, which its output must know."
            )
        score_params = params.get("weight"), params.get("score_vector")
        out, attention = multiplicative_attention_fwd(
            query, key, values, *score_params, attn_mask, dropout_p, is_causal, score=self.score, **options
        )
        output = None
        if self.output:
            weight, Dv = params["output"]["weight"], values.shape[-1]
            out, output = attentional_hidden_state_fwd(out, query, weight[:, :Dv], weight[:, Dv:], activation="tanh")
        return out, LuongContext(attention, output, value is not None)

    def bwd(self, dout: ArrayT, ctx: LuongContext) -> LuongGrads[ArrayT]:
        """The gradients of query, key, value (None where the keys were the values), parameters and bias."""
        checks.context("ctx", ctx, LuongContext)
        check_same(self, "output", ctx.output is not None, self.output)
        output_grads: Params = {}
        dquery = None
        if ctx.output is not None:
            output = attentional_hidden_state_bwd(dout, ctx.output)
            weights = [output.context_weight, output.hidden_weight]
            output_grads = {"output": {"weight": namespace_of(dout).concat(weights, axis=1)}}
            dout, dquery = output.context, output.hidden
        grads = multiplicative_attention_bwd(dout, ctx.attention)
        score_grads = {"weight": grads.weight, "score_vector": grads.score_vector}
        params = {**{name: grad for name, grad in score_grads.items() if grad is not None}, **output_grads}
        check_gradients(self, params)
        dquery = grads.query if dquery is None else grads.query + dquery
        if ctx.has_value:
            return LuongGrads(dquery, grads.key, grads.value, params, grads.bias)
        return LuongGrads(dquery, grads.key + grads.value, None, params, grads.bias)
