"""Multi-head attention with its parameters: any number and size of heads, grouped heads, self- and cross-attention."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.dot_product.heads import heads, output, split_heads
from attnarray.attention.dot_product.multi_head import (
    MultiHeadContext,
    MultiHeadGrads,
    MultiHeadOptions,
    multi_head_attention_bwd,
    multi_head_attention_fwd,
)
from attnarray.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from attnarray.attention.options import check_window
from attnarray.backend import Array, ArrayT, asarray, namespace_of
from attnarray.layers.cache import KVCache, check_cache, empty_cache
from attnarray.layers.checking import check_gradients, check_same
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, Shapes
from attnarray.layers.linear import Linear
from attnarray.layers.norm import RMSNorm
from attnarray.layers.paged_cache import PagedKVCache
from attnarray.masks import Mask
from attnarray.ops.linear import linear
from attnarray.ops.rotary import Rotary, rotary
from attnarray.random import Philox

QKNorm = Literal["head", "all"]
Gate = Literal["head", "element"]


@dataclass(frozen=True)
class MultiHeadAttention(Layer):
    r"""Multi-head attention.

    .. math::
        y_i = W_O\, [o^1_i; \dots; o^H_i] + b_O, \qquad
        o^h_i = \sum_j \mathrm{softmax}_j\Bigl(\frac{q^h_i \cdot k^h_j}{\sqrt{D_k}}\Bigr)\, v^h_j

    with q, k and v the projections of queries, keys and values; `multi_head_attention` has the complete formula.

    Parameters
    ----------
    dim : int
        Features of the queries, and the default of the sizes below.
    num_heads : int
        H.
    num_kv_heads : int, optional
        Heads of keys and values: H by default, fewer for grouped heads, 1 for multi-query attention.
    key_dim, value_dim : int, optional
        Dk and Dv, features of *one head* of queries and keys, and of values; dim / num_heads by default.
    key_input_dim, value_input_dim : int, optional
        Features of the inputs of keys and values; by default `dim`, and those of the keys.
    bias : bool
        Whether the four projections have biases. That of the keys shifts all scores of a query alike, so it has an
        effect only with sinks or a softcap.
    out_dim : int, optional
        Features of the output; `dim` by default.
    rotary : Rotary, optional
        Rotates queries and keys by their positions: see `rotary`.
    init_std : float, optional
        Standard deviation of the initial weights; see `Linear`.
    qk_norm : {"head", "all"}, optional
        RMS norms of queries and keys before their rotation: of each head, with scales that all heads share (Qwen3,
        Gemma 3), or of the features of all heads at once (OLMo 2).
    cosine : bool
        Whether scores are cosines times a learned scale of each head, at most 100 (Swin v2). Not with `qk_norm`.
    gate : {"head", "element"}, optional
        Multiplies the output of each head, or each number of it, by a sigmoid of a projection of the queries' inputs,
        before the last projection.
    out_bias : bool, optional
        Whether the last projection has a bias; `bias` by default.
    norm_eps : float
        Epsilon of the norms.

    scale, softcap, window : float, float and (left, right), optional
        As in `scaled_dot_product_attention`; defaults of each call.
    sinks : bool
        Whether each head has a learned logit in the denominator of its softmax, without a value ("sinks.weight", (H,)).
    zero_centered : bool
        Whether the factors of the norms of `qk_norm` are 1 + w: see `RMSNorm`.

    Raises
    ------
    ValueError
        If a size is not a positive integer, `num_heads` does not divide `dim` and the sizes of one head are not given,
        or `cosine` and `qk_norm` are both given.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762; those of the options are in
    `multi_head_attention`.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.MultiHeadAttention(dim=16, num_heads=4, num_kv_heads=2)
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    >>> out, ctx = layer.fwd(params, x, is_causal=True)
    >>> out.shape, aa.attention_weights(ctx).shape, layer.bwd(out, ctx).query.shape
    ((2, 5, 16), (2, 4, 5, 5), (2, 5, 16))

    Cross-attention of 6 words to 9 regions of an image, with smaller queries and keys:

    >>> across = aa.layers.MultiHeadAttention(dim=16, num_heads=4, key_dim=2, key_input_dim=24)
    >>> words, regions = (np.ones(shape, np.float32) for shape in ((6, 16), (9, 24)))
    >>> across(across.init(aa.Philox(1)), words, regions).shape
    (6, 16)

    Heads of any size, with norms and a gate:

    >>> gated = aa.layers.MultiHeadAttention(16, 4, key_dim=6, value_dim=6, qk_norm="head", gate="element")
    >>> {name: part["weight"].shape for name, part in gated.init(aa.Philox(2)).items() if "norm" in name}
    {'query_norm': (6,), 'key_norm': (6,)}
    """

    dim: int
    num_heads: int
    num_kv_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    key_input_dim: int | None = None
    value_input_dim: int | None = None
    bias: bool = True
    out_dim: int | None = None
    rotary: Rotary | None = None
    init_std: float | None = None
    qk_norm: QKNorm | None = None
    cosine: bool = False
    gate: Gate | None = None
    out_bias: bool | None = None
    norm_eps: float = 1e-6
    scale: float | None = None
    softcap: float | None = None
    window: tuple[int | None, int | None] | None = None
    sinks: bool = False
    zero_centered: bool = False

    widths: ClassVar = {
        "query": ("dim",),
        "key": ("key_input_dim", "dim"),
        "value": ("value_input_dim", "key_input_dim", "dim"),
        "x": ("dim",),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if None in (self.key_dim, self.value_dim) and self.dim % self.num_heads:
            raise ValueError(
                f"`num_heads` ({self.num_heads}) must divide `dim` ({self.dim}), unless `key_dim` and `value_dim` of "
                "MultiHeadAttention, the features of one head, are given."
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(f"`num_kv_heads` ({self.num_kv_heads}) must divide `num_heads` ({self.num_heads}).")
        checks.choice("qk_norm", self.qk_norm, (None, "head", "all"))
        checks.choice("gate", self.gate, (None, "head", "element"))
        if self.cosine and self.qk_norm is not None:
            raise ValueError(
                f"`qk_norm` is {self.qk_norm!r} and `cosine` is True: cosines do not depend on lengths. Choose one."
            )
        for name in ("scale", "softcap"):
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))
        if self.window is not None:
            check_window(self.window)
        if self.rotary is not None:
            self.rotary.check_width("key_dim", self.key_dim or self.dim // self.num_heads)

    def parts(self) -> dict[str, Any]:
        num_kv_heads, Dk, Dv = self._sizes
        key_input = self.key_input_dim or self.dim
        sizes = {
            "query": (self.dim, self.num_heads * Dk),
            "key": (key_input, num_kv_heads * Dk),
            "value": (self.value_input_dim or key_input, num_kv_heads * Dv),
        }
        found: dict[str, Any] = {name: Linear(*size, self.bias, self.init_std) for name, size in sizes.items()}
        out_bias = self.bias if self.out_bias is None else self.out_bias
        found["out"] = Linear(self.num_heads * Dv, self.out_dim or self.dim, out_bias, self.init_std)
        if self.qk_norm is not None:
            counts = (1, 1) if self.qk_norm == "head" else (self.num_heads, num_kv_heads)
            found |= {
                f"{n}_norm": RMSNorm(count * Dk, self.norm_eps, self.zero_centered)
                for n, count in zip(("query", "key"), counts, strict=True)
            }
        if self.cosine:
            found["logit_scale"] = PerHead(self.num_heads, math.log(10.0))
        if self.gate is not None:
            gates = self.num_heads * (Dv if self.gate == "element" else 1)
            found["gate"] = Linear(self.dim, gates, self.bias, self.init_std)
        if self.sinks:
            found["sinks"] = PerHead(self.num_heads, 0.0)
        return found

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Hkv, Dk and Dv."""
        width = self.dim // self.num_heads
        return self.num_kv_heads or self.num_heads, self.key_dim or width, self.value_dim or width

    @property
    def default_scale(self) -> float:
        """What scores are multiplied by."""
        if self.scale is not None:
            return self.scale
        return 1.0 if self.cosine else 1.0 / math.sqrt(self._sizes[1])

    def __call__(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT | None = None,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[MultiHeadOptions],
    ) -> ArrayT:
        """Return (*batch, T, out_dim) of queries (*batch, T, dim). By default `key` is `query`, and `value` is `key`.

        Options as in `multi_head_attention`.
        """
        return self.fwd(params, query, key, value, attn_mask, dropout_p, is_causal, **options)[0]

    def fwd(
        self,
        params: Params,
        query: ArrayT,
        key: ArrayT | None = None,
        value: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[MultiHeadOptions],
    ) -> tuple[ArrayT, MultiHeadContext]:
        """The same, and the context for `bwd`."""
        if key is None and self.key_input_dim not in (None, self.dim):
            raise ValueError(f"`key` is None, but the layer has `key_input_dim` {self.key_input_dim}: give a `key`.")
        if value is None and self.value_input_dim not in (None, self.key_input_dim or self.dim):
            width = self.value_input_dim
            raise ValueError(f"`value` is None, but the layer has `value_input_dim` {width}: give a `value`.")
        params, own = self._own(params)
        return multi_head_attention_fwd(
            query, key, value, params, attn_mask, dropout_p, is_causal, num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads, rotary=self.rotary, norm_eps=self.norm_eps, **{**own, **options},
        )  # fmt: skip

    def bwd(self, dout: ArrayT, ctx: MultiHeadContext) -> MultiHeadGrads[ArrayT]:
        """Return the gradients of query, key, value (None for those not given), parameters, bias and sinks."""
        checks.context("ctx", ctx, MultiHeadContext)
        if ctx.context_parallel is None:
            counts = ctx.attention.q.shape[1], ctx.attention.k.shape[1]
            check_same(self, "number of heads", counts, (self.num_heads, self.num_kv_heads or self.num_heads))
        grads = multi_head_attention_bwd(dout, ctx)
        if self.sinks:
            check_same(self, "sinks", grads.sinks is not None, True)
            grads = grads._replace(params={**grads.params, "sinks": {"weight": grads.sinks}}, sinks=None)
        check_gradients(self, grads.params)
        return grads

    def _own(self, params: Params) -> tuple[Params, Any]:
        """The parameters of the function, and the options that the layer sets."""
        named = {"scale": self.scale, "softcap": self.softcap, "window": self.window}
        options: Any = {name: option for name, option in named.items() if option is not None}
        if self.sinks:
            options["sinks"] = params["sinks"]["weight"]
            params = {name: part for name, part in params.items() if name != "sinks"}
        if self.zero_centered and self.qk_norm is not None:
            norms = {name: {"weight": params[name]["weight"] + 1.0} for name in ("query_norm", "key_norm")}
            params = {**params, **norms}
        return params, options

    def cache(self, batch: int, max_seq_len: int, dtype: str = "float32") -> KVCache:
        """Return an empty cache for `batch` sequences of up to `max_seq_len` positions, on the current backend."""
        return empty_cache(batch, max_seq_len, *self._sizes, dtype)

    def step(
        self, params: Params, x: Array, cache: KVCache | PagedKVCache, attn_mask: Array | Mask | None = None, *,
        bias: Array | None = None, positions: Array | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        """Attend from the next positions x (B, T, dim) causally to themselves and to the positions in the cache.

        The keys and values of x are written *into the cache*, whose arrays the returned cache shares. Masks and biases
        broadcast to (B, H, T, length + T); `positions` (B, T) or (B, T, A) rotate
        x. The result equals that of one call over all positions.
        """
        check_cache(cache, x)
        params, own = self._own(params)
        xp, start, (num_kv_heads, *_) = namespace_of(x), cache.length, self._sizes
        q, k, v = (linear(x, **params[name]) for name in ("query", "key", "value"))
        q, _ = heads(q, self.num_heads, params, "query", self.norm_eps)  # (B, T, H, D)
        k, _ = heads(k, num_kv_heads, params, "key", self.norm_eps)
        v = split_heads(v, num_kv_heads)
        if self.rotary is not None:
            options = {**asdict(self.rotary), "layout": "BTHD", "offset": start if positions is None else 0}
            q, k = rotary(q, positions, **options), rotary(k, positions, **options)
        q, k, v = (xp.permute_dims(y, (0, 2, 1, 3)) for y in (q, k, v))  # (B, H, T, D)
        cache = cache.with_next(k, v)
        out = scaled_dot_product_attention(
            q, cache.key[:, :, : cache.length, :], cache.value[:, :, : cache.length, :], attn_mask, is_causal=True,
            q_offset=start, bias=bias, **{"scale": self.default_scale, **own},
        )  # fmt: skip
        return output(xp.permute_dims(out, (0, 2, 1, 3)), x, params), cache


@dataclass(frozen=True)
class PerHead(Layer):
    """One number for each head: the logarithm of the scale of cosine attention, or the logit of a sink."""

    num_heads: int
    initial: float

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """weight (H,)."""
        return {"weight": asarray(np.full(self.num_heads, self.initial), dtype=dtype)}

    def shapes(self) -> Shapes:
        return {"weight": (self.num_heads,)}
