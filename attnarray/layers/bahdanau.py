"""Additive attention with its parameters (Bahdanau, Cho and Bengio, 2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Unpack

from attnarray import checks, tree
from attnarray.attention.alignment.additive import AdditiveContext, additive_attention_bwd, additive_attention_fwd
from attnarray.attention.options import ScoreOptions
from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, dense, glorot
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox


class BahdanauContext(NamedTuple):
    query: LinearContext
    key: LinearContext
    attention: AdditiveContext
    has_value: bool


class BahdanauGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT | None
    params: Params
    bias: ArrayT | None


@dataclass(frozen=True)
class BahdanauAttention(Layer):
    r"""Additive attention of decoder states over encoder states.

    .. math:: e_{ij} = v^T \tanh(W s_i + U h_j + b), \qquad c_i = \sum_j \mathrm{softmax}_j(e_{ij})\, h_j

    Parameters
    ----------
    query_dim : int
        Size of the queries, the decoder states s.
    key_dim : int
        Size of the keys, the encoder states h.
    hidden_dim : int
        Size A of the hidden layer.

    Raises
    ------
    ValueError
        If a size is not a positive integer.

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

    widths: ClassVar = {"query": ("query_dim",), "key": ("key_dim",)}

    query_dim: int
    key_dim: int
    hidden_dim: int

    def shapes(self) -> Shapes:
        A = self.hidden_dim
        return {
            "query": {"weight": (A, self.query_dim), "bias": (A,)},
            "key": {"weight": (A, self.key_dim)},
            "score_vector": (A,),
        }

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters: query {weight (A, query_dim), bias}, key {weight (A, key_dim)}, score_vector (A,)."""
        query, key, score = rng.split(3)
        return {
            "query": dense(query, self.hidden_dim, self.query_dim, dtype),
            "key": dense(key, self.hidden_dim, self.key_dim, dtype, bias=False),
            "score_vector": glorot(score, (1, self.hidden_dim), dtype)[0, :],
        }

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
        """Contexts (*batch, T, Dv) of queries (*batch, T, query_dim) over keys (*batch, S, key_dim).

        The values are the keys unless given. Options as in `additive_attention`.
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
    ) -> tuple[ArrayT, BahdanauContext]:
        """The same, and the context for `bwd`."""
        q, q_ctx = project(query, **params["query"])
        k, k_ctx = project(key, **params["key"])
        out, attention = additive_attention_fwd(
            narrow(q, query), narrow(k, key), key if value is None else value, params["score_vector"], attn_mask,
            dropout_p, is_causal, **options,
        )  # fmt: skip
        return out, BahdanauContext(q_ctx, k_ctx, attention, value is not None)

    def bwd(self, dout: ArrayT, ctx: BahdanauContext) -> BahdanauGrads[ArrayT]:
        """The gradients of query, key, value (None where the keys were the values), parameters and bias."""
        checks.context("ctx", ctx, BahdanauContext)
        grads = additive_attention_bwd(dout, ctx.attention)
        query = project_backward(wide(grads.query), ctx.query)
        key = project_backward(wide(grads.key), ctx.key)
        params = {
            "query": {"weight": query.weight, "bias": query.bias},
            "key": {"weight": key.weight},
            "score_vector": grads.score_vector,
        }
        dkey, dvalue = (key.x, grads.value) if ctx.has_value else (key.x + wide(grads.value), None)
        params, dquery, dkey = tree.map(lambda grad: narrow(grad, ctx.query.x), (params, query.x, dkey))
        return BahdanauGrads(dquery, dkey, dvalue, check_gradients(self, params), grads.bias)
