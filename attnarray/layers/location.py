"""Location-aware attention with its parameters (Chorowski et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Unpack

from attnarray import checks, tree
from attnarray.attention.alignment.location import (
    LocationContext,
    LocationResult,
    location_attention_bwd,
    location_attention_fwd,
)
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


class LocationLayerContext(NamedTuple):
    query: LinearContext
    key: LinearContext
    attention: LocationContext
    has_value: bool


class LocationLayerGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT | None
    previous: ArrayT | None
    params: Params
    bias: ArrayT | None


@dataclass(frozen=True)
class LocationAttention(Layer):
    r"""Additive attention of decoder states over encoder states, with scores that also depend on the previous weights.

    .. math::
        e_{ij} = w^T \tanh(W s_{i-1} + V h_j + U f_{ij} + b), \qquad f_i = F * \alpha_{i-1}, \qquad
        \alpha_i = \mathrm{softmax}_j(e_{ij}), \qquad c_i = \sum_j \alpha_{ij} h_j

    Parameters
    ----------
    query_dim : int
        Size of the queries, the decoder states s; row i is s_(i-1).
    key_dim : int
        Size of the keys, the encoder states h.
    hidden_dim : int
        Size A of the hidden layer.
    filters : int
        Number of filters F that are convolved with the weights.
    width : int
        Width of the filters, odd.
    cumulative : bool
        Filter the sum of the weights of all previous steps instead of the last ones (Tacotron 2).

    Raises
    ------
    ValueError
        If a size is not a positive integer, or the width is even.

    References
    ----------
    Chorowski et al., arXiv:1506.07503.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.LocationAttention(query_dim=6, key_dim=8, hidden_dim=16, filters=4, width=5)
    >>> params = layer.init(aa.Philox(0))
    >>> rng = np.random.default_rng(0)
    >>> s, h = rng.standard_normal((2, 5, 6), np.float32), rng.standard_normal((2, 7, 8), np.float32)
    >>> result, ctx = layer.fwd(params, s, h, kv_lengths=[7, 4])
    >>> result.out.shape, result.weights.shape, sorted(layer.bwd(result, ctx).params)
    ((2, 5, 8), (2, 5, 7), ['key', 'location', 'query', 'score_vector'])

    A decoder whose next state depends on the context runs step by step, and passes the weights on:

    >>> cell = {"weight_ih": rng.standard_normal((18, 8), np.float32), "weight_hh": np.eye(18, 6, dtype=np.float32)}
    >>> state, previous, steps = s[:, 0], np.eye(7, dtype=np.float32)[[0, 0]], []  # all weight on the first key
    >>> for i in range(5):
    ...     result, layer_ctx = layer.fwd(params, state[:, None], h, previous=previous)
    ...     step, cell_ctx = aa.gru_fwd(result.out, **cell, h0=state)
    ...     state, previous = step.h, result.weights[:, 0]
    ...     steps.append((layer_ctx, cell_ctx))

    Its gradient, for a loss that is the sum of the last state, runs through the same steps in reverse:

    >>> from attnarray import tree
    >>> dstate, dprevious, total = np.ones_like(state), None, None
    >>> for layer_ctx, cell_ctx in reversed(steps):
    ...     recurrence = aa.gru_bwd(aa.GRUResult(None, dstate), cell_ctx)
    ...     grads = layer.bwd(aa.LocationResult(recurrence.x, dprevious), layer_ctx)
    ...     dstate, dprevious = recurrence.h0 + grads.query[:, 0], grads.previous[:, None]
    ...     grad = {"layer": grads.params, "key": grads.key, "cell": recurrence.weight_ih}
    ...     total = grad if total is None else tree.add(total, grad)
    >>> total["key"].shape, total["cell"].shape
    ((2, 7, 8), (18, 8))
    """

    widths: ClassVar = {"query": ("query_dim",), "key": ("key_dim",)}

    query_dim: int
    key_dim: int
    hidden_dim: int
    filters: int
    width: int
    cumulative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2 == 0:
            raise ValueError(f"`width` is {self.width}, expected an odd one: a filter of even width has no center.")

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters: query {weight (A, query_dim)}, key {weight (A, key_dim), bias (A,)}, score_vector (A,),
        location {filter (filters, width), weight (A, filters)}."""
        query, key, score, over, mapped = rng.split(5)
        return {
            "query": dense(query, self.hidden_dim, self.query_dim, dtype, bias=False),
            "key": dense(key, self.hidden_dim, self.key_dim, dtype),
            "score_vector": glorot(score, (1, self.hidden_dim), dtype)[0, :],
            "location": {
                "filter": glorot(over, (self.filters, self.width), dtype),
                "weight": glorot(mapped, (self.hidden_dim, self.filters), dtype),
            },
        }

    def shapes(self) -> Shapes:
        A = self.hidden_dim
        return {
            "query": {"weight": (A, self.query_dim)},
            "key": {"weight": (A, self.key_dim), "bias": (A,)},
            "score_vector": (A,),
            "location": {"filter": (self.filters, self.width), "weight": (A, self.filters)},
        }

    def __call__(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        previous: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> LocationResult[ArrayT]:
        """Return contexts (*batch, T, Dv) and weights (*batch, T, S) of queries (*batch, T, query_dim), step by step.

        The values are the keys (*batch, S, key_dim) unless given. `previous` and options as in `location_attention`.
        """
        return writable(self.fwd(params, query, key, value, previous, attn_mask, dropout_p, is_causal, **options)[0])

    def fwd(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        previous: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> tuple[LocationResult[ArrayT], LocationLayerContext]:
        """The same, and the context for `bwd`."""
        q, q_ctx = project(query, **params["query"])
        k, k_ctx = project(key, **params["key"])
        result, attention = location_attention_fwd(
            narrow(q, query), narrow(k, key), key if value is None else value, params["score_vector"],
            params["location"]["filter"], params["location"]["weight"], previous, attn_mask, dropout_p, is_causal,
            cumulative=self.cumulative, **options,
        )  # fmt: skip
        return result, LocationLayerContext(q_ctx, k_ctx, attention, value is not None)

    def bwd(self, dout: LocationResult[ArrayT], ctx: LocationLayerContext) -> LocationLayerGrads[ArrayT]:
        """The gradients of query, key, value (None where the keys were the values), previous, parameters and bias."""
        checks.context("ctx", ctx, LocationLayerContext)
        grads = location_attention_bwd(dout, ctx.attention)
        query = project_backward(wide(grads.query), ctx.query)
        key = project_backward(wide(grads.key), ctx.key)
        params = {
            "query": {"weight": query.weight},
            "key": {"weight": key.weight, "bias": key.bias},
            "score_vector": grads.score_vector,
            "location": {"filter": grads.location_filter, "weight": grads.location_weight},
        }
        dkey, dvalue = (key.x, grads.value) if ctx.has_value else (key.x + wide(grads.value), None)
        params, dquery, dkey = tree.map(lambda grad: narrow(grad, ctx.query.x), (params, query.x, dkey))
        check_gradients(self, params)
        return LocationLayerGrads(dquery, dkey, dvalue, grads.previous, params, grads.bias)
