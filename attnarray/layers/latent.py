"""Multi-head latent attention with its parameters, and its cache of latent vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.dot_product.heads import join_heads, split_heads, transpose_heads
from attnarray.attention.dot_product.latent import (
    LatentContext,
    latent_attention,
    latent_attention_bwd,
    latent_attention_fwd,
)
from attnarray.attention.dot_product.multi_head import HeadOptions
from attnarray.backend import Array, ArrayT, namespace_of, write_rows
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.layers.norm import RMSNorm
from attnarray.masks import Mask
from attnarray.ops.rotary import Rotary, RotaryContext, rotary_bwd, rotary_fwd


class LatentCache(NamedTuple):
    """A latent vector and a rotated key of each position (B, S, C + Dr); the first `length` positions are filled."""

    latent: Array
    length: int


class LatentLayerContext(NamedTuple):
    """What the backward needs: the contexts of all parts, by name, of both rotations and of the attention."""

    parts: dict[str, Any]
    rotations: tuple[RotaryContext, RotaryContext]  # of queries and of keys
    attention: LatentContext


class LatentLayerGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    params: Params
    bias: ArrayT | None
    sinks: ArrayT | None


@dataclass(frozen=True)
class LatentAttention(Layer):
    r"""Multi-head latent attention (MLA): self-attention that keeps one latent vector for each position.

    .. math::
        c_j = \mathrm{norm}(W_C x_j), \qquad \bar k_j = R_j \bar W_K x_j, \qquad
        [q_i; \bar q_i] = W_Q x_i \;\; \text{or} \;\; W_Q\, \mathrm{norm}(W_D x_i)

    with :math:`\bar q_i` rotated, too, attention as in `latent_attention`, and a projection of all heads.

    Parameters
    ----------
    dim : int
        Features of the inputs and of the output.
    num_heads : int
        H.
    latent_dim : int
        C: features of the latent vectors.
    nope_dim, rope_dim : int
        Dn and Dr: features of each head that are not rotated, and those that are.
    value_dim : int, optional
        Dv: features of the values of a head; `nope_dim` by default.
    query_latent_dim : int, optional
        Features of W_D; by default queries are projected at once.
    rotary : Rotary, optional
        `Rotary()` by default.
    bias : bool
        Whether W_C, W_D and the last projection have biases.
    norm_eps : float
        Epsilon of the RMS norms.
    init_std : float, optional
        Standard deviation of the initial weights; see `Linear`.

    Raises
    ------
    ValueError
        If a size is not a positive integer, or `rope_dim` is odd.

    References
    ----------
    DeepSeek-AI, "DeepSeek-V2", 2024, arXiv:2405.04434, section 2.1.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.LatentAttention(dim=16, num_heads=4, latent_dim=6, nope_dim=4, rope_dim=2)
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    >>> out, ctx = layer.fwd(params, x, is_causal=True)
    >>> out.shape, layer.bwd(out, ctx).params["key_up"]["weight"].shape
    ((2, 5, 16), (16, 6))

    Of each position the cache holds 8 numbers, where keys and values of all heads would be 40:

    >>> next_out, cache = layer.step(params, x[:, :1], layer.cache(batch=2, max_seq_len=5))
    >>> cache.latent.shape, bool(np.allclose(next_out, out[:, :1], atol=1e-6))
    ((2, 5, 8), True)
    """

    dim: int
    num_heads: int
    latent_dim: int
    nope_dim: int
    rope_dim: int
    value_dim: int | None = None
    query_latent_dim: int | None = None
    rotary: Rotary | None = None
    bias: bool = False
    norm_eps: float = 1e-6
    init_std: float | None = None

    widths: ClassVar = {"x": ("dim",)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rotary.check_width("rope_dim", self.rope_dim)

    @property
    def _rotary(self) -> Rotary:
        return Rotary() if self.rotary is None else self.rotary

    def parts(self) -> dict[str, Any]:
        H, C, Dv = self.num_heads, self.latent_dim, self.value_dim or self.nope_dim
        found: dict[str, Any] = {}
        if self.query_latent_dim is not None:
            found["query_down"] = Linear(self.dim, self.query_latent_dim, self.bias, self.init_std)
            found["query_norm"] = RMSNorm(self.query_latent_dim, self.norm_eps)
        inputs = self.query_latent_dim or self.dim
        return {
            **found,
            "query": Linear(inputs, H * (self.nope_dim + self.rope_dim), False, self.init_std),
            "latent": Linear(self.dim, C + self.rope_dim, self.bias, self.init_std),
            "latent_norm": RMSNorm(C, self.norm_eps),
            "key_up": Linear(C, H * self.nope_dim, False, self.init_std),
            "value_up": Linear(C, H * Dv, False, self.init_std),
            "out": Linear(H * Dv, self.dim, self.bias, self.init_std),
        }

    def __call__(
        self,
        params: Params,
        x: ArrayT,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[HeadOptions],
    ) -> ArrayT:
        """Return (*batch, T, dim) of x (*batch, T, dim). Options as in `latent_attention`, without `q_offset`."""
        return self.fwd(params, x, attn_mask, dropout_p, is_causal, **options)[0]

    def fwd(
        self,
        params: Params,
        x: ArrayT,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[HeadOptions],
    ) -> tuple[ArrayT, LatentLayerContext]:
        """The same, and the context for `bwd`."""
        if "q_offset" in options:
            raise TypeError(
                "`q_offset` is given, but LatentAttention attends from x to itself: use `step` with a cache."
            )
        parts, contexts = self._parts, dict[str, Any]()

        def run(name: str, given: Any) -> Any:
            out, contexts[name] = parts[name].fwd(params[name], given)
            return out

        query, latent, rotations = self._project(run, x, 0)
        out, attention = latent_attention_fwd(
            query, latent, *self._up(params), attn_mask, dropout_p, is_causal, **options
        )
        out = run("out", join_heads(transpose_heads(out)))
        return out, LatentLayerContext(contexts, rotations, attention)

    def bwd(self, dout: ArrayT, ctx: LatentLayerContext) -> LatentLayerGrads[ArrayT]:
        """Return the gradients of x, the parameters, bias and sinks."""
        checks.context("ctx", ctx, LatentLayerContext)
        xp, parts, params = namespace_of(ctx.attention.query), self._parts, dict[str, Any]()

        def back(name: str, grad: Any) -> Any:
            found = parts[name].bwd(grad, ctx.parts[name])
            params[name] = found.params
            return found.x

        dheads = split_heads(back("out", dout), self.num_heads)
        grads = latent_attention_bwd(transpose_heads(dheads), ctx.attention)
        for name in ("key_up", "value_up"):
            weight = getattr(grads, name)
            params[name] = {"weight": xp.reshape(weight, (weight.shape[0] * weight.shape[1], weight.shape[2]))}
        C, (q_rotation, k_rotation) = self.latent_dim, ctx.rotations
        dquery = transpose_heads(grads.query)  # (*batch, T, H, D)
        rotated = rotary_bwd(dquery[..., self.nope_dim :], q_rotation).x
        dquery = join_heads(xp.concat([dquery[..., : self.nope_dim], rotated], axis=-1))
        dx = back("query", dquery)
        if self.query_latent_dim is not None:
            dx = back("query_down", back("query_norm", dx))
        shared = rotary_bwd(grads.latent[..., C:], k_rotation).x
        dx = dx + back("latent", xp.concat([back("latent_norm", grads.latent[..., :C]), shared], axis=-1))
        params = {name: params[name] for name in parts}
        return LatentLayerGrads(dx, check_gradients(self, params), grads.bias, grads.sinks)

    def cache(self, batch: int, max_seq_len: int, dtype: str = "float32") -> LatentCache:
        """Return an empty cache for `batch` sequences of up to `max_seq_len` positions, on the current backend."""
        checks.choice("dtype", dtype, checks.FLOATS)
        batch = checks.whole("batch", batch, 0, 2**31, "the number of sequences")
        max_seq_len = checks.whole("max_seq_len", max_seq_len, 1, 2**31, "the largest number of positions")
        return LatentCache(zeros(batch, max_seq_len, self.latent_dim + self.rope_dim, dtype=dtype), 0)

    def step(
        self, params: Params, x: Array, cache: LatentCache, attn_mask: Array | Mask | None = None, *,
        bias: Array | None = None, absorb: bool | None = None,
    ) -> tuple[Array, LatentCache]:  # fmt: skip
        """Attend from the next positions x (B, T, dim) causally to themselves and to the positions in the cache.

        Latent vectors are written *into the cache*, whose array the returned cache shares. The result equals that of
        one call over all positions. `absorb` as in `latent_attention`.
        """
        _check_cache(self, cache, x)
        start = cache.length
        query, latent, _ = self._project(lambda name, given: self._parts[name](params[name], given), x, start)
        cache = LatentCache(write_rows(cache.latent, start, latent), start + x.shape[1])
        out = latent_attention(
            query, cache.latent[:, : cache.length, :], *self._up(params), attn_mask, is_causal=True, q_offset=start,
            bias=bias, absorb=absorb,
        )  # fmt: skip
        return self._parts["out"](params["out"], join_heads(transpose_heads(out))), cache

    def _project(self, run: Any, x: Array, offset: int) -> tuple[Array, Array, tuple[RotaryContext, RotaryContext]]:
        """Queries (*batch, H, T, D), what is kept of each position (*batch, T, C + Dr), and the rotations."""
        xp, C, Dn = namespace_of(x), self.latent_dim, self.nope_dim
        given = x if self.query_latent_dim is None else run("query_norm", run("query_down", x))
        query = split_heads(run("query", given), self.num_heads)  # (*batch, T, H, D)
        how: dict[str, Any] = {**asdict(self._rotary), "offset": offset}
        rotated, q_ctx = rotary_fwd(query[..., Dn:], layout="BTHD", **how)
        query = xp.concat([query[..., :Dn], rotated], axis=-1)
        latent = run("latent", x)
        shared, k_ctx = rotary_fwd(latent[..., C:], **how)
        latent = xp.concat([run("latent_norm", latent[..., :C]), shared], axis=-1)
        return transpose_heads(query), latent, (q_ctx, k_ctx)

    def _up(self, params: Params) -> tuple[Array, Array]:
        """The projections of each head (H, features, C)."""
        weights = (params[name]["weight"] for name in ("key_up", "value_up"))
        key_up, value_up = (
            namespace_of(w).reshape(w, (self.num_heads, w.shape[0] // self.num_heads, w.shape[1])) for w in weights
        )
        return key_up, value_up


def _check_cache(layer: LatentAttention, cache: Any, x: Array) -> None:
    if not isinstance(cache, LatentCache):
        raise TypeError(f"`cache` is {checks.shown(cache)}, expected a LatentCache from the layer's `cache`.")
    batch, max_seq_len, width = cache.latent.shape
    if x.ndim != 3 or x.shape[0] != batch or width != layer.latent_dim + layer.rope_dim:
        raise ValueError(
            f"`x` has shape {tuple(x.shape)}, expected (B, T, dim): the next T positions of the {batch} sequences of "
            f"`cache`, which has {width} features, expected {layer.latent_dim} + {layer.rope_dim}."
        )
    if cache.length + x.shape[1] > max_seq_len:
        raise ValueError(
            f"`cache` has `max_seq_len` {max_seq_len}, holds {cache.length} positions and was given {x.shape[1]} more. "
            "Make one with a larger `max_seq_len`."
        )
