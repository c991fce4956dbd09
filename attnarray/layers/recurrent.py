"""Attention with recurrent scores, with its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.alignment.recurrent import RecurrentContext, recurrent_attention_bwd, recurrent_attention_fwd
from attnarray.attention.options import ScoreOptions
from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, dense, glorot
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.random import Philox


class RecurrentOptions(ScoreOptions, total=False):
    """The keyword-only options; `recurrent_attention` documents each."""

    h0: Array | None
    c0: Array | None


class RecurrentLayerGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT | None
    value: ArrayT | None
    params: Params
    h0: ArrayT | None
    c0: ArrayT | None
    bias: ArrayT | None


class RecurrentLayerContext(NamedTuple):
    attention: RecurrentContext
    is_self_attention: bool


@dataclass(frozen=True)
class RecurrentAttention(Layer):
    r"""Attention whose scores come from an LSTM that reads the keys, once for each query.

    .. math::
        o_t = \sum_{t'} \mathrm{softmax}_{t'}(e_{tt'})\, x_{t'}, \qquad
        e_{tt'} = v^T \tanh(W_r\, \mathrm{LSTM}([x_t; x_{t'}])_{t'})

    Parameters
    ----------
    query_dim : int
        Size of the queries x_t.
    key_dim : int
        Size of the keys x_t'.
    state_dim : int
        Size H of the LSTM.
    hidden_dim : int
        Size A of the layer after it.

    Raises
    ------
    ValueError
        If a size is not a positive integer.

    References
    ----------
    Near Yang et al., arXiv:1607.05108; see `recurrent_attention`.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.RecurrentAttention(query_dim=3, key_dim=3, state_dim=4, hidden_dim=8)
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 3), np.float32)
    >>> out, ctx = layer.fwd(params, x, kv_lengths=[5, 2])
    >>> out.shape, sorted(layer.bwd(out, ctx).params)
    ((2, 5, 3), ['gate_bias', 'output_weight', 'score_vector', 'weight_hh', 'weight_ih'])
    """

    widths: ClassVar = {"query": ("query_dim",), "key": ("key_dim",), "h0": ("state_dim",), "c0": ("state_dim",)}

    query_dim: int
    key_dim: int
    state_dim: int
    hidden_dim: int

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters, named as the arguments of `recurrent_attention`.

        weight_ih (4 H, query_dim + key_dim), gate_bias (4 H,), weight_hh (4 H, H), output_weight (A, H) and
        score_vector (A,).
        """
        inputs, states, output, score = rng.split(4)
        gates = 4 * self.state_dim
        given = dense(inputs, gates, self.query_dim + self.key_dim, dtype)
        return {
            "weight_ih": given["weight"],
            "gate_bias": given["bias"],
            "weight_hh": glorot(states, (gates, self.state_dim), dtype),
            "output_weight": glorot(output, (self.hidden_dim, self.state_dim), dtype),
            "score_vector": glorot(score, (1, self.hidden_dim), dtype)[0, :],
        }

    def shapes(self) -> Shapes:
        gates = 4 * self.state_dim
        return {
            "weight_ih": (gates, self.query_dim + self.key_dim),
            "gate_bias": (gates,),
            "weight_hh": (gates, self.state_dim),
            "output_weight": (self.hidden_dim, self.state_dim),
            "score_vector": (self.hidden_dim,),
        }

    def __call__(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT | None = None,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[RecurrentOptions],
    ) -> ArrayT:
        """(*batch, T, Dv) of queries (*batch, T, query_dim) over keys (*batch, S, key_dim).

        Without keys this is self-attention; the values are the keys unless given. h0, c0 and the other options as in
        `recurrent_attention`.
        """
        return writable(self.fwd(params, query, key, value, attn_mask, dropout_p, is_causal, **options)[0])

    def fwd(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT | None = None,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[RecurrentOptions],
    ) -> tuple[ArrayT, RecurrentLayerContext]:
        """The same, and the context for `bwd`."""
        if key is None and self.key_dim != self.query_dim:
            raise ValueError(
                f"`key` is None, but `key_dim` of the layer is {self.key_dim} and `query_dim` {self.query_dim}: give "
                "a `key`."
            )
        out, attention = recurrent_attention_fwd(
            query, query if key is None else key, value=value, attn_mask=attn_mask, dropout_p=dropout_p,
            is_causal=is_causal, **params, **options,
        )  # fmt: skip
        return out, RecurrentLayerContext(attention, key is None)

    def bwd(self, dout: ArrayT, ctx: RecurrentLayerContext) -> RecurrentLayerGrads[ArrayT]:
        """The gradients of inputs (None for those that were not given), parameters and states."""
        checks.context("ctx", ctx, RecurrentLayerContext)
        grads = recurrent_attention_bwd(dout, ctx.attention)
        names = ("weight_ih", "gate_bias", "weight_hh", "output_weight", "score_vector")
        params = {name: getattr(grads, name) for name in names}
        query, key = (grads.query + grads.key, None) if ctx.is_self_attention else (grads.query, grads.key)
        check_gradients(self, params)
        return RecurrentLayerGrads(query, key, grads.value, params, grads.h0, grads.c0, grads.bias)
