"""Additive attention with its parameters, as Bahdanau, Cho and Bengio have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Unpack

from attnarray.attention.additive import AdditiveContext, additive_attention_bwd, additive_attention_fwd
from attnarray.attention.options import ScoreOptions
from attnarray.backend import Array
from attnarray.layers.initial import Params, dense, glorot
from attnarray.masks import Mask
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd
from attnarray.random import Philox


class BahdanauContext(NamedTuple):
    query: LinearContext
    key: LinearContext
    attention: AdditiveContext
    value_is_key: bool


class BahdanauGrads(NamedTuple):
    query: Array
    key: Array
    value: Array | None
    params: Params
    bias: Array | None


@dataclass(frozen=True)
class BahdanauAttention:
    r"""Additive attention of decoder states over encoder states.

    .. math:: e_{ij} = v^T \tanh(W s_i + U h_j + b), \qquad c_i = \sum_j \mathrm{softmax}_j(e_{ij})\, h_j

    Parameters
    ----------
    query_dim : int
        Size of the states s that ask.
    key_dim : int
        Size of the states h that are looked at.
    hidden_dim : int
        Size A of the hidden layer.

    References
    ----------
    Bahdanau, Cho and Bengio, arXiv:1409.0473.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.BahdanauAttention(query_dim=6, key_dim=8, hidden_dim=16)
    >>> params = layer.init(aa.Philox(0))
    >>> rng = np.random.default_rng(0)
    >>> s, h = rng.standard_normal((2, 5, 6), np.float32), rng.standard_normal((2, 7, 8), np.float32)
    >>> context, ctx = layer.fwd(params, s, h, kv_lengths=[7, 4])
    >>> context.shape, sorted(layer.bwd(context, ctx).params)
    ((2, 5, 8), ['key', 'query', 'score_vector'])
    """

    query_dim: int
    key_dim: int
    hidden_dim: int

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Fresh parameters: query {weight (A, query_dim), bias}, key {weight (A, key_dim)}, score_vector (A,)."""
        query, key, score = rng.split(3)
        return {
            "query": dense(query, self.hidden_dim, self.query_dim, dtype),
            "key": dense(key, self.hidden_dim, self.key_dim, dtype, bias=False),
            "score_vector": glorot(score, (1, self.hidden_dim), dtype)[0, :],
        }

    def __call__(
        self,
        params: Params,
        query: Array,
        key: Array,
        value: Array | None = None,
        attn_mask: Array | Mask | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Array:
        """Contexts (*batch, T, Dv) of queries (*batch, T, query_dim) over keys (*batch, S, key_dim).

        The values are the keys unless given. Options as in `additive_attention`.
        """
        return self.fwd(params, query, key, value, attn_mask, **options)[0]

    def fwd(
        self,
        params: Params,
        query: Array,
        key: Array,
        value: Array | None = None,
        attn_mask: Array | Mask | None = None,
        **options: Unpack[ScoreOptions],
    ) -> tuple[Array, BahdanauContext]:
        """The same, and the context for `bwd`."""
        q, q_ctx = linear_fwd(query, **params["query"])
        k, k_ctx = linear_fwd(key, **params["key"])
        values = key if value is None else value
        out, attention = additive_attention_fwd(q, k, values, params["score_vector"], attn_mask, **options)
        return out, BahdanauContext(q_ctx, k_ctx, attention, value is None)

    def bwd(self, dout: Array, ctx: BahdanauContext) -> BahdanauGrads:
        """The gradients of query, key, value (None where the keys were the values), parameters and bias."""
        attention = additive_attention_bwd(dout, ctx.attention)
        query = linear_bwd(attention.query, ctx.query)
        key = linear_bwd(attention.key, ctx.key)
        params = {
            "query": {"weight": query.weight, "bias": query.bias},
            "key": {"weight": key.weight},
            "score_vector": attention.score_vector,
        }
        if ctx.value_is_key:
            return BahdanauGrads(query.x, key.x + attention.value, None, params, attention.bias)
        return BahdanauGrads(query.x, key.x, attention.value, params, attention.bias)
