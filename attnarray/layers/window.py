"""Attention in windows of images, with its parameters, and a block of such (Swin, NAT)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.attention.spatial.neighborhood import (
    NeighborhoodContext,
    neighborhood_attention_bwd,
    neighborhood_attention_fwd,
)
from attnarray.attention.spatial.shifted_window import (
    ShiftedWindowContext,
    shifted_window_attention_bwd,
    shifted_window_attention_fwd,
)
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.layers.checking import check_gradients
from attnarray.layers.feed_forward import FeedForward
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, LayerGrads, Shapes
from attnarray.layers.linear import Linear
from attnarray.layers.norm import LayerNorm
from attnarray.layers.residual import Residual, ResidualContext
from attnarray.numpy_arrays import writable
from attnarray.random import Philox

WindowKind = Literal["shifted", "neighborhood"]
KINDS: tuple[WindowKind, ...] = get_args(WindowKind)


class WindowLayerContext(NamedTuple):
    qkv: Any
    attention: ShiftedWindowContext | NeighborhoodContext
    out: Any


@dataclass(frozen=True)
class WindowAttention(Layer):
    r"""Self-attention of an image in windows, by heads, with a relative bias.

    .. math:: Q, K, V = W_{qkv} x + b_{qkv}, \qquad y = W_o\, \mathrm{attention}(Q, K, V) + b_o

    Parameters
    ----------
    dim : int
        E, features of x.
    num_heads : int
        Divides E.
    window_size : int
        Positions of a window along each axis.
    kind : {"shifted", "neighborhood"}
        `shifted_window_attention` or `neighborhood_attention`.
    shift : int
        Of shifted windows: half of the window in every other layer.
    dilation : int
        Of neighborhoods.
    relative_bias : bool
        Whether there is one.

    Raises
    ------
    ValueError
        If a size is not a positive integer, `num_heads` does not divide `dim`, or an option of the other kind is given.

    References
    ----------
    Liu et al., arXiv:2103.14030; Hassani et al., arXiv:2204.07143.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.WindowAttention(dim=8, num_heads=2, window_size=4, shift=2)
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((1, 8, 12, 8), np.float32)
    >>> y, ctx = layer.fwd(params, x)
    >>> y.shape, layer.bwd(y, ctx).params["relative_bias"].shape
    ((1, 8, 12, 8), (2, 7, 7))
    """

    widths: ClassVar = {"x": ("dim",)}
    axes: ClassVar = 4

    dim: int
    num_heads: int
    window_size: int
    kind: WindowKind = "shifted"
    shift: int = 0
    dilation: int = 1
    relative_bias: bool = True

    def __post_init__(self) -> None:
        checks.choice("kind", self.kind, KINDS)
        super().__post_init__()
        if self.shift and self.kind == "neighborhood":
            raise ValueError(
                "`shift` is given, but neighborhoods are not shifted. Leave it out, or use kind='shifted'."
            )
        if self.dilation != 1 and self.kind == "shifted":
            raise ValueError("`dilation` is given, but shifted windows have none. Use kind='neighborhood'.")
        if self.dim % self.num_heads:
            raise ValueError(f"`num_heads` ({self.num_heads}) must divide `dim` ({self.dim}).")

    def parts(self) -> dict[str, Any]:
        return {"qkv": Linear(self.dim, 3 * self.dim), "out": Linear(self.dim, self.dim)}

    @property
    def _bias_shape(self) -> tuple[int, int, int]:
        return self.num_heads, 2 * self.window_size - 1, 2 * self.window_size - 1

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """qkv {weight (3 E, E), bias}, out {weight (E, E), bias}, relative_bias (heads, 2 M - 1, 2 M - 1)."""
        qkv, out, bias = rng.split(3)
        params = {"qkv": self._parts["qkv"].init(qkv, dtype), "out": self._parts["out"].init(out, dtype)}
        return {**params, "relative_bias": bias.normal(self._bias_shape, 0.02, dtype)} if self.relative_bias else params

    def shapes(self) -> Shapes:
        shapes = {name: part.shapes() for name, part in self._parts.items()}
        return {**shapes, "relative_bias": self._bias_shape} if self.relative_bias else shapes

    def __call__(self, params: Params, x: ArrayT) -> ArrayT:
        """y (B, H, W, E) of x (B, H, W, E)."""
        return writable(self.fwd(params, x)[0])

    def fwd(self, params: Params, x: ArrayT) -> tuple[ArrayT, WindowLayerContext]:
        """The same, and the context for `bwd`."""
        if x.ndim != 4:
            raise ValueError(f"`x` has shape {tuple(x.shape)}, expected (B, H, W, E) with E = {self.dim}.")
        qkv, qkv_ctx = self._parts["qkv"].fwd(params["qkv"], x)
        qkv = namespace_of(x).reshape(qkv, (*x.shape[:3], 3, self.num_heads, self.dim // self.num_heads))
        q, k, v = (qkv[:, :, :, n, :, :] for n in range(3))
        attended, attention = self._attend(q, k, v, params.get("relative_bias"))
        y, out_ctx = self._parts["out"].fwd(params["out"], namespace_of(x).reshape(attended, x.shape))
        return y, WindowLayerContext(qkv_ctx, attention, out_ctx)

    def _attend(self, q: Array, k: Array, v: Array, bias: Array | None) -> tuple[Any, Any]:
        if self.kind == "shifted":
            return shifted_window_attention_fwd(q, k, v, self.window_size, bias, shift=self.shift)
        return neighborhood_attention_fwd(q, k, v, self.window_size, bias, dilation=self.dilation)

    def bwd(self, dout: ArrayT, ctx: WindowLayerContext) -> LayerGrads[ArrayT]:
        """The gradients of x and the parameters."""
        checks.context("ctx", ctx, WindowLayerContext)
        out, xp = self._parts["out"].bwd(dout, ctx.out), namespace_of(dout)
        heads = xp.reshape(out.x, (*out.x.shape[:3], self.num_heads, self.dim // self.num_heads))
        backward: Any = shifted_window_attention_bwd if self.kind == "shifted" else neighborhood_attention_bwd
        grads = backward(heads, ctx.attention)
        dqkv = xp.stack([grads.query, grads.key, grads.value], axis=3)  # (B, H, W, 3, heads, D)
        qkv = self._parts["qkv"].bwd(xp.reshape(dqkv, (*dqkv.shape[:3], 3 * self.dim)), ctx.qkv)
        params = {"qkv": qkv.params, "out": out.params}
        if grads.relative_bias is not None:
            params["relative_bias"] = grads.relative_bias
        return LayerGrads(qkv.x, check_gradients(self, params))


class WindowBlockContext(NamedTuple):
    attention: ResidualContext
    feed_forward: ResidualContext


@dataclass(frozen=True)
class WindowBlock(Layer):
    r"""A block of Swin or NAT: attention in windows and a feed-forward network, each after a norm.

    .. math:: x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x)), \qquad x \leftarrow x + f(\mathrm{norm}'(x))

    Parameters
    ----------
    dim, num_heads, window_size, kind, shift, dilation, relative_bias
        See `WindowAttention`. A stage of Swin has blocks without and with a shift by turns.
    hidden_dim : int, optional
        Hidden features of the feed-forward network; 4 E by default.

    Raises
    ------
    ValueError
        As `WindowAttention`.

    References
    ----------
    Liu et al., arXiv:2103.14030.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> stage = [aa.layers.WindowBlock(8, 2, window_size=4, shift=shift) for shift in (0, 2)]
    >>> params = [block.init(rng) for block, rng in zip(stage, aa.Philox(0).split(2))]
    >>> x, contexts = np.random.default_rng(0).standard_normal((1, 8, 12, 8), np.float32), []
    >>> for block, own in zip(stage, params):
    ...     x, ctx = block.fwd(own, x)
    ...     contexts.append(ctx)
    >>> dx = np.ones_like(x)
    >>> for block, ctx in zip(stage[::-1], contexts[::-1]):
    ...     dx, grads = block.bwd(dx, ctx)
    >>> dx.shape, sorted(grads)
    ((1, 8, 12, 8), ['attention', 'attention_norm', 'feed_forward', 'feed_forward_norm'])
    """

    widths: ClassVar = {"x": ("dim",)}
    axes: ClassVar = 4

    dim: int
    num_heads: int
    window_size: int
    kind: WindowKind = "shifted"
    shift: int = 0
    dilation: int = 1
    relative_bias: bool = True
    hidden_dim: int | None = None

    def __post_init__(self) -> None:
        self._attention()
        super().__post_init__()

    def _attention(self) -> WindowAttention:
        return WindowAttention(
            self.dim, self.num_heads, self.window_size, self.kind, self.shift, self.dilation, self.relative_bias
        )

    def parts(self) -> dict[str, Any]:
        return {
            "attention_norm": LayerNorm(self.dim), "attention": self._attention(),
            "feed_forward_norm": LayerNorm(self.dim),
            "feed_forward": FeedForward(self.dim, self.hidden_dim or 4 * self.dim),
        }  # fmt: skip

    def _residual(self, name: str) -> Residual:
        return Residual(name, self._parts[f"{name}_norm"], pre_norm=True, dropout=0.0)

    def __call__(self, params: Params, x: ArrayT) -> ArrayT:
        """y (B, H, W, E) of x (B, H, W, E)."""
        return writable(self.fwd(params, x)[0])

    def fwd(self, params: Params, x: ArrayT) -> tuple[ArrayT, WindowBlockContext]:
        """The same, and the context for `bwd`."""
        contexts = []
        for name in WindowBlockContext._fields:
            branch = functools.partial(self._parts[name].fwd, params[name])
            x, ctx = self._residual(name).fwd(params, x, branch, None)
            contexts.append(ctx)
        return x, WindowBlockContext(*contexts)

    def bwd(self, dout: ArrayT, ctx: WindowBlockContext) -> LayerGrads[ArrayT]:
        """The gradients of x and the parameters."""
        checks.context("ctx", ctx, WindowBlockContext)
        params: Params = {}
        for name in reversed(WindowBlockContext._fields):
            grads = self._residual(name).bwd(dout, getattr(ctx, name), self._parts[name].bwd)
            params |= {name: grads.branch, **grads.params}
            dout = grads.x
        return LayerGrads(dout, check_gradients(self, params))
