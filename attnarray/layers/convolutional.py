"""Convolutional attention with its parameters: pairs of windows, or convolutional queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, NamedTuple, Unpack, get_args

from attnarray import checks
from attnarray.attention.composed.convolutional import (
    PADDINGS,
    ConvolutionalContext,
    PairPadding,
    convolutional_attention_bwd,
    convolutional_attention_fwd,
)
from attnarray.attention.options import ScoreOptions
from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, glorot, zeros
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.random import Philox

Kind = Literal["pairs", "dot"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class ConvolutionalLayerGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    value: ArrayT | None
    params: Params
    bias: ArrayT | None


@dataclass(frozen=True)
class ConvolutionalAttention(Layer):
    r"""Self-attention whose scores compare windows of a sequence.

    .. math::
        o_t = \sum_{t'} \mathrm{softmax}_{t'}(e_{tt'})\, x_{t'}, \qquad q = W^q * x + b_q, \qquad k = W^k * x

    with e_tt' = v^T tanh(q_t + k_t') for "pairs" and e_tt' = q_t k_t' / sqrt(A) for "dot".

    Parameters
    ----------
    dim : int
        Size D of the positions x_t.
    hidden_dim : int
        Size A of queries and keys.
    width : int
        Width of the windows; odd with padding "same".
    kind : {"pairs", "dot"}
        v^T tanh(W_c * [x_t; x_t']), or scaled dot products of convolutional queries and keys.
    padding : {"same", "causal"}
        Whether a window is centered at its position, or ends there. A causal layer needs is_causal=True in calls too.

    Raises
    ------
    ValueError
        If a size is not a positive integer, the width is even with padding "same", or `kind` or `padding` is unknown.

    References
    ----------
    For "dot": Li et al., arXiv:1907.00235.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.ConvolutionalAttention(dim=3, hidden_dim=8, width=5)
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 7, 3), np.float32)
    >>> out, ctx = layer.fwd(params, x, kv_lengths=[7, 4])
    >>> out.shape, sorted(layer.bwd(out, ctx).params)
    ((2, 7, 3), ['key', 'query', 'score_vector'])
    """

    widths: ClassVar = {"x": ("dim",)}

    dim: int
    hidden_dim: int
    width: int
    kind: Kind = "pairs"
    padding: PairPadding = "same"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("kind", self.kind, KINDS)
        checks.choice("padding", self.padding, PADDINGS)
        if self.padding == "same" and self.width % 2 == 0:
            raise ValueError(
                f"`width` is {self.width}, and with padding='same' a window of even width has no center. Use an odd "
                "width, or padding='causal'."
            )

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters: query {weight (A, D, width), bias (A,)}, key {weight}; for pairs score_vector (A,)."""
        query, key, score = rng.split(3)
        shape = (self.hidden_dim, self.dim, self.width)
        params: Params = {
            "query": {"weight": glorot(query, shape, dtype), "bias": zeros(self.hidden_dim, dtype=dtype)},
            "key": {"weight": glorot(key, shape, dtype)},
        }
        if self.kind == "pairs":
            params["score_vector"] = glorot(score, (1, self.hidden_dim), dtype)[0, :]
        return params

    def shapes(self) -> Shapes:
        weight = (self.hidden_dim, self.dim, self.width)
        shapes: Shapes = {"query": {"weight": weight, "bias": (self.hidden_dim,)}, "key": {"weight": weight}}
        return {**shapes, "score_vector": (self.hidden_dim,)} if self.kind == "pairs" else shapes

    def __call__(
        self,
        params: Params,
        x: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> ArrayT:
        """Return (*batch, T, D or Dv) of x (*batch, T, D), which is the value too unless `value` is given.

        Options as in `convolutional_attention`.
        """
        return writable(self.fwd(params, x, value, attn_mask, dropout_p, is_causal, **options)[0])

    def fwd(
        self,
        params: Params,
        x: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> tuple[ArrayT, ConvolutionalContext]:
        """The same, and the context for `bwd`."""
        return convolutional_attention_fwd(
            x, params["query"]["weight"], params["key"]["weight"], value, params.get("score_vector"),
            params["query"]["bias"], attn_mask, dropout_p, is_causal, padding=self.padding, **options,
        )  # fmt: skip

    def bwd(self, dout: ArrayT, ctx: ConvolutionalContext) -> ConvolutionalLayerGrads[ArrayT]:
        """The gradients of x, value (None where it was not given), parameters and bias."""
        grads = convolutional_attention_bwd(dout, ctx)
        params: Params = {
            "query": {"weight": grads.query_weight, "bias": grads.query_bias},
            "key": {"weight": grads.key_weight},
        }
        if grads.score_vector is not None:
            params["score_vector"] = grads.score_vector
        return ConvolutionalLayerGrads(grads.x, grads.value, check_gradients(self, params), grads.bias)
