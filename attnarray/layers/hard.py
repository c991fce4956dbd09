"""Hard attention with its parameters: scaled dot products of projected queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Unpack

from attnarray import checks, tree
from attnarray.attention.selection.estimators import ESTIMATORS, Estimator
from attnarray.attention.selection.hard import (
    HardContext,
    HardOptions,
    HardResult,
    check_numbers,
    hard_attention_bwd,
    hard_attention_fwd,
)
from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, dense
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox


class HardAttentionContext(NamedTuple):
    query: LinearContext
    key: LinearContext
    attention: HardContext
    has_value: bool


class HardAttentionGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT | None
    params: Params
    bias: ArrayT | None


@dataclass(frozen=True)
class HardAttention(Layer):
    r"""Attention of queries to one key each, or to k keys.

    .. math:: s_{ij} = \frac{(W_q x_i + b) \cdot (W_k y_j)}{\sqrt{A}}, \qquad o_i = \sum_j w_{ij}\, y_j

    with the weights w of the estimator, see `hard_attention`.

    Parameters
    ----------
    query_dim : int
        Size of the queries x.
    key_dim : int
        Size of the keys y.
    dim : int
        Size A of projected queries and keys.
    estimator : {"reinforce", "gumbel", "straight_through", "argmax", "top_k"}
        How the gradient is estimated. At inference, a layer with "argmax" and the same parameters needs no noise.
    temperature : float
        Temperature of "gumbel" and "straight_through".
    k : int
        Number of keys that "top_k" selects.

    Raises
    ------
    ValueError
        If the estimator is unknown, an option does not apply to it, or a size is not a positive integer.

    References
    ----------
    Xu et al., "Show, attend and tell", 2015, arXiv:1502.03044, section 4.1.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.HardAttention(query_dim=6, key_dim=8, dim=16)
    >>> params = layer.init(aa.Philox(0))
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((2, 5, 6), np.float32), rng.standard_normal((2, 7, 8), np.float32)
    >>> result, ctx = layer.fwd(params, x, y, kv_lengths=[7, 4], rng=aa.Philox(1))
    >>> cost = (result.out**2).sum(axis=-1)  # one for each query
    >>> grads = layer.bwd(aa.reinforce_cotangent(result, cost, baseline=8.0, dout=2 * result.out), ctx)
    >>> result.out.shape, sorted(grads.params)
    ((2, 5, 8), ['key', 'query'])
    """

    widths: ClassVar = {"query": ("query_dim",), "key": ("key_dim",)}

    query_dim: int
    key_dim: int
    dim: int
    estimator: Estimator = "reinforce"
    temperature: float = 1.0
    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("estimator", self.estimator, tuple(ESTIMATORS))
        check_numbers(self.estimator, self.temperature, self.k)

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters: query {weight (dim, query_dim), bias (dim,)}, key {weight (dim, key_dim)}.

        A bias of the keys would shift all scores of a query alike, and change no probability.
        """
        query, key = rng.split(2)
        return {
            "query": dense(query, self.dim, self.query_dim, dtype),
            "key": dense(key, self.dim, self.key_dim, dtype, bias=False),
        }

    def shapes(self) -> Shapes:
        query = {"weight": (self.dim, self.query_dim), "bias": (self.dim,)}
        return {"query": query, "key": {"weight": (self.dim, self.key_dim)}}

    def __call__(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        is_causal: bool = False,
        *,
        rng: Philox | int | None = None,
        noise: Array | None = None,
        **options: Unpack[HardOptions],
    ) -> HardResult[ArrayT]:
        """Outputs (*batch, T, Dv), log-probabilities and entropies (*batch, T) of queries (*batch, T, query_dim).

        The values are the keys (*batch, S, key_dim) unless given. Options as in `hard_attention`.
        """
        return writable(self.fwd(params, query, key, value, attn_mask, is_causal, rng=rng, noise=noise, **options)[0])

    def fwd(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        is_causal: bool = False,
        *,
        rng: Philox | int | None = None,
        noise: Array | None = None,
        **options: Unpack[HardOptions],
    ) -> tuple[HardResult[ArrayT], HardAttentionContext]:
        """The same, and the context for `bwd`."""
        q, q_ctx = project(query, **params["query"])
        k, k_ctx = project(key, **params["key"])
        result, attention = hard_attention_fwd(
            narrow(q, query), narrow(k, key), key if value is None else value, attn_mask, is_causal,
            estimator=self.estimator, temperature=self.temperature, k=self.k, rng=rng, noise=noise, **options,
        )  # fmt: skip
        return result, HardAttentionContext(q_ctx, k_ctx, attention, value is not None)

    def bwd(self, dout: HardResult[ArrayT], ctx: HardAttentionContext) -> HardAttentionGrads[ArrayT]:
        """The gradients of query, key, value (None where the keys were the values), parameters and bias."""
        checks.context("ctx", ctx, HardAttentionContext)
        grads = hard_attention_bwd(dout, ctx.attention)
        query = project_backward(wide(grads.query), ctx.query)
        key = project_backward(wide(grads.key), ctx.key)
        params = {"query": {"weight": query.weight, "bias": query.bias}, "key": {"weight": key.weight}}
        dkey, dvalue = (key.x, grads.value) if ctx.has_value else (key.x + wide(grads.value), None)
        params, dquery, dkey = tree.map(lambda grad: narrow(grad, ctx.query.x), (params, query.x, dkey))
        return HardAttentionGrads(dquery, dkey, dvalue, check_gradients(self, params), grads.bias)
