"""Attention with relative positions and its parameters, over a sequence and a memory of the previous segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypedDict, Unpack

from attnarray import checks, tree
from attnarray.attention.options import known_options
from attnarray.attention.positional.relative import RelativeContext, relative_attention_bwd, relative_attention_fwd
from attnarray.attention.sequences import narrow, one_sequence_layout, project, project_backward, wide
from attnarray.backend import Array, ArrayT, device_of, dtype_name, namespace_of
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, dense, glorot
from attnarray.layers.layer import Layer, Shapes
from attnarray.masks import Mask
from attnarray.ops.linear import LinearContext, LinearGrads
from attnarray.ops.positions import even, sinusoidal
from attnarray.random import Philox

PROJECTED = ("query", "key", "value")


class LayerOptions(TypedDict, total=False):
    """The keyword-only options; `relative_attention` documents each."""

    scale: float | None
    bias: Array | None
    window: tuple[int | None, int | None] | None
    kv_lengths: Any
    sinks: Array | None
    rng: Philox | int | None
    dropout_mask: Array | None


class RelativeLayerContext(NamedTuple):
    query: LinearContext
    key: LinearContext
    value: LinearContext
    position: LinearContext
    attention: RelativeContext
    out: LinearContext
    memory_length: int


class RelativeLayerGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    params: Params
    bias: ArrayT | None
    sinks: ArrayT | None


@dataclass(frozen=True)
class RelativeAttention(Layer):
    r"""Self-attention with relative positions, as in Transformer-XL.

    .. math::
        y_i = W_O\, [o^1_i; \dots; o^H_i], \qquad
        s_{ij} = \frac{(W_q x_i + u) \cdot W_k z_j + (W_q x_i + v) \cdot W_r R_{i-j}}{\sqrt{D}}

    for each head, with z = [memory; x] and R the sinusoids of the distances. Values are W_v z.

    Parameters
    ----------
    dim : int
        E, the width of x, even.
    num_heads : int
        H.
    head_dim : int, optional
        D; dim / num_heads by default.

    Raises
    ------
    ValueError
        If a size is not a positive integer, `dim` is odd, or `num_heads` does not divide `dim` and `head_dim` is not
        given.

    Notes
    -----
    There is no gradient of the memory, which holds states of previous segments. Its rows are keys and values like
    others, so they contribute to the gradients of the weights.

    References
    ----------
    Dai et al., "Transformer-XL: attentive language models beyond a fixed-length context", 2019, arXiv:1901.02860.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.RelativeAttention(dim=16, num_heads=4)
    >>> params = layer.init(aa.Philox(0))
    >>> segments = np.random.default_rng(0).standard_normal((2, 3, 5, 16), np.float32)
    >>> y, ctx = layer.fwd(params, segments[1], memory=segments[0], is_causal=True)
    >>> y.shape, aa.attention_weights(ctx).shape, sorted(layer.bwd(y, ctx).params)
    ((3, 5, 16), (3, 4, 5, 10), ['content_bias', 'key', 'out', 'position', 'position_bias', 'query', 'value'])
    """

    widths: ClassVar = {"x": ("dim",), "memory": ("dim",)}

    dim: int
    num_heads: int
    head_dim: int | None = None

    def __post_init__(self) -> None:
        even("dim", self.dim, "a sine and a cosine for each frequency")
        super().__post_init__()
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(f"`num_heads` ({self.num_heads}) must divide `dim` ({self.dim}). Or give `head_dim`.")

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters: query, key, value, position {weight (H D, E)}, out {weight (E, H D)}, the biases (H,
        D).
        """
        D = self.head_dim or self.dim // self.num_heads
        width, keys = self.num_heads * D, rng.split(7)
        maps = zip((*PROJECTED, "position"), keys, strict=False)
        return {
            **{name: dense(key, width, self.dim, dtype, bias=False) for name, key in maps},
            "content_bias": glorot(keys[4], (self.num_heads, D), dtype),
            "position_bias": glorot(keys[5], (self.num_heads, D), dtype),
            "out": dense(keys[6], self.dim, width, dtype, bias=False),
        }

    def shapes(self) -> Shapes:
        D = self.head_dim or self.dim // self.num_heads
        maps: Shapes = {name: {"weight": (self.num_heads * D, self.dim)} for name in (*PROJECTED, "position")}
        biases = dict.fromkeys(("content_bias", "position_bias"), (self.num_heads, D))
        return {**maps, **biases, "out": {"weight": (self.dim, self.num_heads * D)}}

    def __call__(
        self,
        params: Params,
        x: ArrayT,
        memory: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[LayerOptions],
    ) -> ArrayT:
        """Return outputs (*batch, T, E) of x (*batch, T, E), preceded by an optional memory (*batch, M, E).

        Masks and biases broadcast to (*batch, H, T, M + T), `kv_lengths` include the memory. Options as in
        `relative_attention`.
        """
        return self.fwd(params, x, memory, attn_mask, dropout_p, is_causal, **options)[0]

    def fwd(
        self,
        params: Params,
        x: ArrayT,
        memory: ArrayT | None = None,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[LayerOptions],
    ) -> tuple[ArrayT, RelativeLayerContext]:
        """The same, and the context for `bwd`."""
        known_options(options, LayerOptions)
        added: dict[str, Any] = {name: options.get(name) for name in ("bias", "sinks")}
        xp = checks.namespace(x=x, memory=memory, **added)
        checks.floating(x=x, **added)
        wide_options: Any = {**options, **{name: wide(array) for name, array in added.items() if array is not None}}
        form = one_sequence_layout("x", x)
        T, M = x.shape[-2], 0
        if memory is not None:
            M = memory.shape[-2] if memory.ndim > 1 else 0
            checks.floating(x=x, memory=memory)
            checks.shape("memory", memory, (*form.batch, M, x.shape[-1]), "as x, with any number of positions")
        keys = x if memory is None else xp.concat([memory, x], axis=-2)  # (*batch, M + T, E)
        q, query_ctx = project(x, **params["query"])
        k, key_ctx = project(keys, **params["key"])
        v, value_ctx = project(keys, **params["value"])
        r, position_ctx = project(self._distances(x, T, M, is_causal), **params["position"])  # (R, H D)
        q, k, v = (self._split(array) for array in (q, k, v))  # (*batch, T, H, D)
        r = xp.permute_dims(self._split(r), (1, 0, 2))  # (H, R, D)
        out, attention = relative_attention_fwd(
            q, k, v, r, wide(params["content_bias"]), wide(params["position_bias"]), attn_mask, dropout_p, is_causal,
            q_offset=M, layout="BTHD", **wide_options,
        )  # fmt: skip
        out, out_ctx = project(xp.reshape(out, (*x.shape[:-1], params["out"]["weight"].shape[1])), **params["out"])
        return narrow(out, x), RelativeLayerContext(query_ctx, key_ctx, value_ctx, position_ctx, attention, out_ctx, M)

    def bwd(self, dout: ArrayT, ctx: RelativeLayerContext) -> RelativeLayerGrads[ArrayT]:
        """The gradients of x, the parameters, the bias and the sinks (None where not given); none of the memory."""
        checks.context("ctx", ctx, RelativeLayerContext)
        x, attention = ctx.query.x, ctx.attention
        xp = checks.cotangent(dout, (*x.shape[:-1], ctx.out.weight.shape[0]), x)
        out = project_backward(wide(dout), ctx.out)
        grads = relative_attention_bwd(xp.reshape(out.x, attention.out_shape), attention)
        query = self._through(grads.query, ctx.query)
        key, value = self._through(grads.key, ctx.key), self._through(grads.value, ctx.value)
        position = self._through(xp.permute_dims(grads.position_key, (1, 0, 2)), ctx.position)
        maps = {"query": query, "key": key, "value": value, "position": position, "out": out}
        params = {
            **{name: {"weight": grad.weight} for name, grad in maps.items()},
            "content_bias": grads.content_bias,
            "position_bias": grads.position_bias,
        }
        dx = query.x + (key.x + value.x)[..., ctx.memory_length :, :]
        check_gradients(self, params)
        found = RelativeLayerGrads(dx, params, grads.bias, grads.sinks)
        narrowed: RelativeLayerGrads = tree.map(lambda grad: narrow(grad, x), found)
        return narrowed

    def _split(self, x: Array) -> Array:
        """(*batch, T, H D) -> (*batch, T, H, D)."""
        return namespace_of(x).reshape(x, (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads))

    def _through(self, dout: Array, ctx: LinearContext) -> LinearGrads:
        """The gradients of a projection, from that of its output by heads (*batch, T, H, D)."""
        return project_backward(namespace_of(dout).reshape(dout, (*dout.shape[:-2], ctx.weight.shape[0])), ctx)

    def _distances(self, like: Array, T: int, M: int, is_causal: bool) -> Array:
        """The sinusoids of all distances between a query and a key, in descending order: (R, E)."""
        xp = namespace_of(like)
        distances = xp.arange(T - 1 + M, -1 if is_causal else -T, -1, device=device_of(like))
        return sinusoidal(distances, self.dim, interleaved=False, dtype=dtype_name(wide(like).dtype))
