"""Multi-head attention with its parameters: any number and width of heads, grouped heads, self- and cross-attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from attnarray import checks
from attnarray.attention.heads import HeadOptions
from attnarray.attention.multi_head import (
    MultiHeadContext,
    MultiHeadGrads,
    multi_head_attention_bwd,
    multi_head_attention_fwd,
)
from attnarray.backend import Array
from attnarray.layers.initial import Params, dense
from attnarray.masks import Mask
from attnarray.random import Philox

OPTIONAL = ("kv_heads", "key_dim", "value_dim", "key_input_dim", "value_input_dim", "out_dim")


@dataclass(frozen=True)
class MultiHeadAttention:
    r"""Multi-head attention.

    .. math::
        y_i = W_O\, [o^1_i; \dots; o^H_i] + b_O, \qquad
        o^h_i = \sum_j \mathrm{softmax}_j\Bigl(\frac{q^h_i \cdot k^h_j}{\sqrt{D_k}}\Bigr)\, v^h_j

    with q, k and v the projections of queries, keys and values; `multi_head_attention` has the whole formula.

    Parameters
    ----------
    dim : int
        Width of the queries, and of everything else that is not given.
    heads : int
        H.
    kv_heads : int, optional
        Heads of keys and values: H by default, fewer for grouped heads, 1 for multi-query attention.
    key_dim, value_dim : int, optional
        Dk and Dv, the width of *one head* of queries and keys, and of values; dim / heads by default. For queries and
        keys that all heads together make half as wide as the model, and values of its full width:
        ``key_dim=dim // heads // 2``.
    key_input_dim, value_input_dim : int, optional
        Width of the sequences that keys and values are made of: `dim`, and that of the keys, by default.
    bias : bool
        Whether the four projections have biases. That of the keys moves all scores of a query alike, so without sinks
        and softcap it changes nothing.
    out_dim : int, optional
        Width of the output.

    Raises
    ------
    ValueError
        If a size is not a positive integer, or `heads` does not divide `dim` where a width is to follow from them.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.MultiHeadAttention(dim=16, heads=4, kv_heads=2)
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    >>> out, ctx = layer.fwd(params, x, is_causal=True)
    >>> out.shape, aa.attention_weights(ctx).shape, layer.bwd(out, ctx).query.shape
    ((2, 5, 16), (2, 4, 5, 5), (2, 5, 16))

    Attention of 6 words to 9 regions of a picture, with queries and keys of half the width:

    >>> across = aa.layers.MultiHeadAttention(dim=16, heads=4, key_dim=2, key_input_dim=24)
    >>> words, regions = (np.ones(shape, np.float32) for shape in ((6, 16), (9, 24)))
    >>> across(across.init(aa.Philox(1)), words, regions).shape
    (6, 16)
    """

    dim: int
    heads: int
    kv_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    key_input_dim: int | None = None
    value_input_dim: int | None = None
    bias: bool = True
    out_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("dim", "heads", *OPTIONAL):
            if name in ("dim", "heads") or getattr(self, name) is not None:
                checks.whole(name, getattr(self, name), 1, 2**31, "a size of the layer")
        if None in (self.key_dim, self.value_dim) and self.dim % self.heads:
            raise ValueError(
                f"`dim` is {self.dim}, which `heads`, {self.heads}, does not divide. Give `key_dim` and `value_dim`, "
                "the widths of one head."
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"`kv_heads` is {self.kv_heads}, which does not divide `heads`, {self.heads}.")

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Fresh parameters: query, key, value and out, each {weight (outputs, inputs), bias (outputs,)}."""
        kv_heads, width = self.kv_heads or self.heads, self.dim // self.heads
        Dk, Dv = self.key_dim or width, self.value_dim or width
        key_input = self.key_input_dim or self.dim
        sizes = {
            "query": (self.heads * Dk, self.dim),
            "key": (kv_heads * Dk, key_input),
            "value": (kv_heads * Dv, self.value_input_dim or key_input),
            "out": (self.out_dim or self.dim, self.heads * Dv),
        }
        rngs = rng.split(len(sizes))
        return {name: dense(own, *sizes[name], dtype, bias=self.bias) for name, own in zip(sizes, rngs, strict=True)}

    def __call__(
        self,
        params: Params,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[HeadOptions],
    ) -> Array:
        """(*batch, T, out_dim) of queries (*batch, T, dim), which are the keys too, as the keys are the values.

        Options as in `multi_head_attention`.
        """
        return self.fwd(params, query, key, value, attn_mask, dropout_p, is_causal, **options)[0]

    def fwd(
        self,
        params: Params,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[HeadOptions],
    ) -> tuple[Array, MultiHeadContext]:
        """The same, and the context for `bwd`."""
        return multi_head_attention_fwd(
            query, key, value, params, attn_mask, dropout_p, is_causal, heads=self.heads, kv_heads=self.kv_heads,
            **options,
        )  # fmt: skip

    def bwd(self, dout: Array, ctx: MultiHeadContext) -> MultiHeadGrads:
        """The gradients of query, key, value (None where they were not given), parameters, bias and sinks."""
        return multi_head_attention_bwd(dout, ctx)
