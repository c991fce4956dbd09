"""Scaled attention with its parameters: a learned scale of the scores, and a gate computed from each query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.dot_product.scaled import (
    ScaledContext,
    ScaledOptions,
    scaled_attention_bwd,
    scaled_attention_fwd,
)
from attnarray.attention.sequences import contributing_rows
from attnarray.backend import Array, ArrayT, asarray
from attnarray.dispatch import ignoring_fp_errors
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, dense
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.ops.activations import SigmoidContext, sigmoid_bwd, sigmoid_fwd
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd
from attnarray.random import Philox


class ScaledAttentionContext(NamedTuple):
    gate: tuple[LinearContext, SigmoidContext] | None
    attention: ScaledContext
    has_value: bool


class ScaledAttentionGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT | None
    params: Params
    bias: ArrayT | None


@dataclass(frozen=True)
class ScaledAttention(Layer):
    r"""Dot-product attention with a learned scale of the scores, and a gate for each query.

    .. math::
        o_i = \gamma_i \sum_j \mathrm{softmax}_j(g\, q_i \cdot k_j)\, v_j, \qquad \gamma_i = \sigma(w \cdot q_i + b)

    The gate scales the output of each query; the attention weights still sum to 1.

    Parameters
    ----------
    dim : int
        Width D of queries and keys.
    gate : bool
        Whether there is a gate.
    learned_scale : bool
        Whether g is a parameter, with initial value 1 / sqrt(D), or fixed to it.

    References
    ----------
    Xu et al., "Show, attend and tell", 2015, arXiv:1502.03044, section 4.2.1; their beta is the gate.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.ScaledAttention(dim=6)
    >>> params = layer.init(aa.Philox(0))
    >>> rng = np.random.default_rng(0)
    >>> query, key = rng.standard_normal((2, 5, 6), np.float32), rng.standard_normal((2, 7, 6), np.float32)
    >>> out, ctx = layer.fwd(params, query, key, kv_lengths=[7, 4])
    >>> out.shape, sorted(layer.bwd(out, ctx).params)
    ((2, 5, 6), ['gate', 'score_scale'])
    """

    widths: ClassVar = {"query": ("dim",), "key": ("dim",)}

    dim: int
    gate: bool = True
    learned_scale: bool = True

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters: gate {weight (1, dim), bias (1,)} and score_scale (), those that apply."""
        params: Params = {"gate": dense(rng, 1, self.dim, dtype)} if self.gate else {}
        scale = {"score_scale": asarray(np.asarray(1.0 / math.sqrt(self.dim)), dtype=dtype)}
        return {**params, **scale} if self.learned_scale else params

    def shapes(self) -> Shapes:
        shapes: Shapes = {"gate": {"weight": (1, self.dim), "bias": (1,)}} if self.gate else {}
        return {**shapes, "score_scale": ()} if self.learned_scale else shapes

    def __call__(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScaledOptions],
    ) -> ArrayT:
        """Contexts (*batch, T, Dv) of queries (*batch, T, dim) over keys (*batch, S, dim).

        The values are the keys unless given. Options as in `scaled_attention`.
        """
        return self.fwd(params, query, key, value, attn_mask, dropout_p, is_causal, **options)[0]

    @ignoring_fp_errors
    def fwd(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScaledOptions],
    ) -> tuple[ArrayT, ScaledAttentionContext]:
        """The same, and the context for `bwd`."""
        gate = contexts = None
        if self.gate:
            logits, logits_ctx = linear_fwd(query, **params["gate"])  # (*batch, T, 1)
            opened, gate_ctx = sigmoid_fwd(logits)
            gate, contexts = opened[..., 0], (logits_ctx, gate_ctx)
        values = key if value is None else value
        out, attention = scaled_attention_fwd(
            query, key, values, gate, params.get("score_scale"), None, attn_mask, dropout_p, is_causal, **options
        )
        return out, ScaledAttentionContext(contexts, attention, value is not None)

    @ignoring_fp_errors
    def bwd(self, dout: ArrayT, ctx: ScaledAttentionContext) -> ScaledAttentionGrads[ArrayT]:
        """The gradients of query, key, value (None where the keys were the values), parameters and bias."""
        checks.context("ctx", ctx, ScaledAttentionContext)
        grads = scaled_attention_bwd(dout, ctx.attention)
        dquery, params = grads.query, {}
        if ctx.gate is not None and grads.gate is not None:
            logits_ctx, gate_ctx = ctx.gate
            dgate = grads.gate[..., None]  # 0 where a query attends to nothing; such a query may be NaN
            dlogits = sigmoid_bwd(dgate, SigmoidContext(contributing_rows(gate_ctx.out, dgate))).x
            logits = linear_bwd(dlogits, logits_ctx._replace(x=contributing_rows(logits_ctx.x, dlogits)))
            dquery = dquery + logits.x
            params["gate"] = {"weight": logits.weight, "bias": logits.bias}
        if grads.score_scale is not None:
            params["score_scale"] = grads.score_scale
        check_gradients(self, params)
        if ctx.has_value:
            return ScaledAttentionGrads(dquery, grads.key, grads.value, params, grads.bias)
        return ScaledAttentionGrads(dquery, grads.key + grads.value, None, params, grads.bias)
