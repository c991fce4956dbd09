"""Local attention with its parameters (Luong, Pham and Manning, 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, NamedTuple, Unpack, get_args

from attnarray import checks
from attnarray.attention.positional.local import (
    ALIGNMENTS,
    Alignment,
    LocalContext,
    LocalOptions,
    local_attention_bwd,
    local_attention_fwd,
)
from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, glorot
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.random import Philox

LocalScore = Literal["general", "dot"]
SCORES: tuple[LocalScore, ...] = get_args(LocalScore)


class LocalLayerContext(NamedTuple):
    attention: LocalContext
    has_value: bool


class LocalLayerGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT | None
    params: Params
    bias: ArrayT | None


@dataclass(frozen=True)
class LocalAttention(Layer):
    r"""Attention of decoder states h over the encoder states :math:`\bar h` in a window around a position p per state.

    .. math::
        c_t = \sum_{|s - p_t| \le D} \mathrm{softmax}_s(\mathrm{score}(h_t, \bar h_s))\, g_{ts}\, \bar h_s

    .. math::
        \text{monotonic:} \quad & p_t = t, \quad g_{ts} = 1 \\
        \text{predictive:} \quad & p_t = S\, \mathrm{sigmoid}(v_p^T \tanh(W_p h_t)), \quad
        g_{ts} = e^{-(s - p_t)^2 / 2 \sigma^2}

    Parameters
    ----------
    query_dim : int
        Size of the queries, the decoder states h.
    key_dim : int
        Size of the keys, the encoder states; equal to `query_dim` for "dot".
    window : int
        The paper's D: the number of keys on either side of p.
    alignment : {"predictive", "monotonic"}
        The paper's local-p and local-m.
    sigma : float, optional
        Standard deviation of the Gaussian in keys; D / 2 by default, as in the paper.
    score : {"general", "dot"}
        h^T W h_s or h^T h_s.
    hidden_dim : int, optional
        Size A of the hidden layer that predicts positions; query_dim by default, as in the paper.

    Raises
    ------
    ValueError
        If the alignment or the score is unknown, sigma is not positive or given for "monotonic", or a size or the
        window is not a positive integer.

    References
    ----------
    Luong, Pham and Manning, arXiv:1508.04025, section 3.2.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.LocalAttention(query_dim=6, key_dim=8, window=2)
    >>> params = layer.init(aa.Philox(0))
    >>> rng = np.random.default_rng(0)
    >>> h, source = rng.standard_normal((2, 5, 6), np.float32), rng.standard_normal((2, 9, 8), np.float32)
    >>> context, ctx = layer.fwd(params, h, source, kv_lengths=[9, 4])
    >>> context.shape, ctx.attention.position.share.out.shape, sorted(layer.bwd(context, ctx).params)
    ((2, 5, 8), (2, 5, 1), ['position', 'weight'])

    The paper's attentional hidden state is `attentional_hidden_state` of the context and h:

    >>> weights = np.ones((6, 8), np.float32), np.eye(6, dtype=np.float32)
    >>> state = aa.attentional_hidden_state(context, h, *weights, activation="tanh")
    >>> state.shape
    (2, 5, 6)
    """

    widths: ClassVar = {"query": ("query_dim",), "key": ("key_dim",)}

    query_dim: int
    key_dim: int
    window: int
    alignment: Alignment = "predictive"
    sigma: float | None = None
    score: LocalScore = "general"
    hidden_dim: int | None = None

    def __post_init__(self) -> None:
        checks.choice("alignment", self.alignment, ALIGNMENTS)
        checks.choice("score", self.score, SCORES)
        super().__post_init__()
        checks.whole("window", self.window, 1, 2**30, "the keys on either side of a position")
        if self.sigma is not None:
            checks.positive("sigma", self.sigma)
        for name in ("sigma", "hidden_dim"):
            if getattr(self, name) is not None and self.alignment == "monotonic":
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but the alignment 'monotonic' predicts no positions and has "
                    "no Gaussian. Leave it out, or use alignment='predictive'."
                )
        if self.score == "dot" and self.query_dim != self.key_dim:
            raise ValueError(
                f"`key_dim` is {self.key_dim} and `query_dim` {self.query_dim}; for the score 'dot' they must be "
                "equal. Use 'general'."
            )

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters, those that apply: weight (query_dim, key_dim), position {weight (A, query_dim),
        vector (A,)}."""
        weight, position, vector = rng.split(3)
        params: Params = {}
        if self.score == "general":
            params["weight"] = glorot(weight, (self.query_dim, self.key_dim), dtype)
        if self.alignment == "predictive":
            hidden = self.hidden_dim or self.query_dim
            params["position"] = {
                "weight": glorot(position, (hidden, self.query_dim), dtype),
                "vector": glorot(vector, (1, hidden), dtype)[0, :],
            }
        return params

    def shapes(self) -> Shapes:
        shapes: Shapes = {"weight": (self.query_dim, self.key_dim)} if self.score == "general" else {}
        hidden = self.hidden_dim or self.query_dim
        position = {"position": {"weight": (hidden, self.query_dim), "vector": (hidden,)}}
        return {**shapes, **position} if self.alignment == "predictive" else shapes

    def __call__(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[LocalOptions],
    ) -> ArrayT:
        """Contexts (*batch, T, Dv) of queries (*batch, T, query_dim).

        The values are the keys (*batch, S, key_dim) unless given. Options as in `local_attention`.
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
        **options: Unpack[LocalOptions],
    ) -> tuple[ArrayT, LocalLayerContext]:
        """The same, and the context for `bwd`."""
        position = params.get("position", {})
        out, attention = local_attention_fwd(
            query, key, key if value is None else value, position.get("weight"), position.get("vector"), attn_mask,
            dropout_p, is_causal, window=self.window, alignment=self.alignment, sigma=self.sigma,
            weight=params.get("weight"), **options,
        )  # fmt: skip
        return out, LocalLayerContext(attention, value is not None)

    def bwd(self, dout: ArrayT, ctx: LocalLayerContext) -> LocalLayerGrads[ArrayT]:
        """The gradients of query, key, value (None where the keys were the values), parameters and bias."""
        checks.context("ctx", ctx, LocalLayerContext)
        grads = local_attention_bwd(dout, ctx.attention)
        params: Params = {} if grads.weight is None else {"weight": grads.weight}
        if grads.position_weight is not None:
            params["position"] = {"weight": grads.position_weight, "vector": grads.position_vector}
        check_gradients(self, params)
        if ctx.has_value:
            return LocalLayerGrads(grads.query, grads.key, grads.value, params, grads.bias)
        return LocalLayerGrads(grads.query, grads.key + grads.value, None, params, grads.bias)
