"""The published Vision Transformer."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of
from attnarray.checkpoints.names import Family
from attnarray.checkpoints.pretrained import load_pretrained
from attnarray.layers.block import TransformerBlock
from attnarray.layers.checking import check_gradients, check_same
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer, Shapes
from attnarray.layers.linear import Linear
from attnarray.magnitude import sum_wide
from attnarray.models.bert.heads import Pooler, PoolerContext
from attnarray.models.encoder_decoder.side import stack
from attnarray.models.logits import check_gradient
from attnarray.models.transformer.encoder import Encoder
from attnarray.models.transformer.stack import StackContext
from attnarray.models.vit.published import PRETRAINED
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.conv2d import Conv2dContext, conv2d_bwd, conv2d_fwd
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox


class ViTResult(NamedTuple):
    """States of the class token and all patches, and what heads make of the first: None without the head."""

    states: Any  # (B, 1 + N, E)
    pooled: Any  # (B, E)
    class_logits: Any  # (B, C)


class ViTContext(NamedTuple):
    patches: Conv2dContext
    dropout: DropoutContext
    body: StackContext
    pooler: PoolerContext | None
    classifier: LinearContext | None


class ViTGrads(NamedTuple):
    images: Any
    params: Params


@dataclass(frozen=True)
class Patches(Layer):
    """The convolution that embeds patches: weight (dim, channels, height, width) and bias (dim,)."""

    channels: int
    height: int
    width: int
    dim: int
    init_std: float

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        return {
            "weight": rng.normal(self.shapes()["weight"], self.init_std, dtype),
            "bias": zeros(self.dim, dtype=dtype),
        }

    def shapes(self) -> Shapes:
        return {"weight": (self.dim, self.channels, self.height, self.width), "bias": (self.dim,)}


@dataclass(frozen=True)
class Rows(Layer):
    """A vector for each of `count` positions: weight (1, count, dim), as it is published."""

    count: int
    dim: int
    init_std: float

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        return {"weight": rng.normal((1, self.count, self.dim), self.init_std, dtype)}

    def shapes(self) -> Shapes:
        return {"weight": (1, self.count, self.dim)}


@dataclass(frozen=True)
class ViT(Layer):
    r"""A Transformer encoder over a class token and the patches of an image.

    .. math::
        x = \mathrm{drop}([w;\; E\,\mathrm{patch}_1 + b;\; \dots;\; E\,\mathrm{patch}_N + b] + p), \qquad
        \mathrm{states} = \mathrm{norm}(\mathrm{blocks}(x)), \\
        \mathrm{pooled} = \tanh(V\, \mathrm{states}_0 + a), \qquad \mathrm{logits} = W\, \mathrm{states}_0 + c

    with pre-norm `TransformerBlock`s. Patches are in row-major order. `from_pretrained` reads published
    ones.

    Parameters
    ----------
    image_size : int or (int, int)
        Height and width of an image.
    patch_size : int or (int, int)
        Height and width of a patch, which must divide those of an image.
    dim, num_layers, num_heads : int
        E, the blocks, and H.
    channels : int
        Channels of an image.
    hidden_dim, activation, eps, qkv_bias, attention_dropout, recompute
        See `TransformerBlock`.
    dropout : float
        Dropout of x and of the branches of the blocks, with an `rng`.
    pooler : bool
        Whether there are pooled vectors.
    num_labels : int, optional
        C, the number of classes; None for no logits.
    init_std : float
        Standard deviation of the initial weights.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid.

    References
    ----------
    Dosovitskiy et al., "An image is worth 16x16 words: Transformers for image recognition at scale", 2020,
    arXiv:2010.11929.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.ViT(image_size=8, patch_size=4, dim=8, num_layers=2, num_heads=2, num_labels=3)
    >>> params, images = model.init(aa.Philox(0)), np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    >>> result, ctx = model.fwd(params, images)
    >>> result.states.shape, result.class_logits.shape
    ((2, 5, 8), (2, 3))
    >>> loss, loss_ctx = aa.cross_entropy_fwd(result.class_logits, np.array([0, 2]))
    >>> dlogits = aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits
    >>> model.bwd(aa.models.ViTResult(None, None, dlogits), ctx).images.shape
    (2, 8, 8, 3)
    """

    pretrained: ClassVar[tuple[Family, ...]] = PRETRAINED

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    dim: int
    num_layers: int
    num_heads: int
    channels: int = 3
    hidden_dim: int | None = None
    activation: Activation = "gelu"
    eps: float = 1e-12
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    pooler: bool = False
    num_labels: int | None = None
    recompute: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("image_size", "patch_size")
        if any(n % by for n, by in zip(*(pair(name, getattr(self, name)) for name in names), strict=True)):
            raise ValueError(f"`patch_size` ({self.patch_size}) must divide `image_size` ({self.image_size}).")
        self.parts()  # validates the fields of the parts

    @property
    def grid(self) -> tuple[int, int]:
        """The number of rows and columns of patches."""
        (height, width), (down, across) = pair("image_size", self.image_size), pair("patch_size", self.patch_size)
        return height // down, width // across

    @functools.cached_property
    def body(self) -> Encoder:
        """The blocks and the final norm."""
        block = TransformerBlock(
            self.dim, self.num_heads, self.hidden_dim, eps=self.eps, activation=self.activation, dropout=self.dropout,
            attention_dropout=self.attention_dropout, recompute=self.recompute, init_std=self.init_std,
            qkv_bias=self.qkv_bias,
        )  # fmt: skip
        body: Any = stack(block, self.num_layers, True)
        return body

    def parts(self) -> dict[str, Any]:
        """patches, class_token, position, blocks, norm, pooler, classifier."""
        down, across = self.grid
        parts: dict[str, Any] = {
            "patches": Patches(self.channels, *pair("patch_size", self.patch_size), self.dim, self.init_std),
            "class_token": Rows(1, self.dim, self.init_std),
            "position": Rows(1 + down * across, self.dim, self.init_std),
            **self.body.parts(),
        }
        if self.pooler:
            parts["pooler"] = Pooler(self.dim, self.dim, init_std=self.init_std)
        if self.num_labels is not None:
            parts["classifier"] = Linear(self.dim, self.num_labels, init_std=self.init_std)
        return parts

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: str | None = None, ignore: Sequence[str] = ()
    ) -> tuple[ViT, Params]:
        """Load the model and its parameters from a folder with config.json and model.safetensors.

        Arguments as in `BERT.from_pretrained`. Images have channels last here, weights of patches are as published.
        """
        model, params = load_pretrained(cls, folder, dtype=dtype, ignore=ignore)
        return model, params

    def __call__(self, params: Params, images: Array, *, rng: Philox | None = None) -> ViTResult:
        """Return states, pooled vectors and logits of images (B, height, width, channels); no dropout without `rng`."""
        return writable(self.fwd(params, images, rng=rng)[0])

    def fwd(self, params: Params, images: Array, *, rng: Philox | None = None) -> tuple[ViTResult, ViTContext]:
        """Return the same, and the context for `bwd`; dropout requires an `rng`."""
        xp, parts, rngs = checks.namespace(images=images), self._parts, rng.split(2) if rng else (None, None)
        checks.required(images=images)
        weight = params["patches"]["weight"]
        checks.namespace(images=images, params=weight)
        checks.floating(images=images, params=weight)
        batch = images.shape[:1] if images.ndim == 4 else (1,)
        expected = (*batch, *pair("image_size", self.image_size), self.channels)
        checks.shape("images", images, expected, "(B, height, width, channels), channels last")
        patches, patches_ctx = conv2d_fwd(
            images, **params["patches"], stride=pair("patch_size", self.patch_size), padding="valid"
        )
        B, (down, across) = images.shape[0], self.grid
        first = xp.broadcast_to(params["class_token"]["weight"], (B, 1, self.dim))
        x = xp.concat([first, xp.reshape(patches, (B, down * across, self.dim))], axis=1)
        x, dropout_ctx = dropout_fwd(x + params["position"]["weight"], self.dropout if rng else 0.0, rng=rngs[0])
        own = type(params)({name: params[name] for name in self.body._parts})
        states, body_ctx = self.body.fwd(own, x, rng=rngs[1])
        pooled, pooler_ctx, logits, logits_ctx = None, None, None, None
        if self.pooler:
            pooled, pooler_ctx = parts["pooler"].pool(params["pooler"], states[:, 0, :])
        if self.num_labels is not None:
            logits, logits_ctx = parts["classifier"].fwd(params["classifier"], states[:, 0, :])
        result = ViTResult(read_only(states), pooled, logits)
        return result, ViTContext(patches_ctx, dropout_ctx, body_ctx, pooler_ctx, logits_ctx)

    def bwd(self, dout: ViTResult, ctx: ViTContext) -> ViTGrads:
        """Return the gradients of images and parameters; `dout` has those of all results, None for 0.

        The class token is in all images, and each position too: their gradients are sums over the images.
        """
        checks.context("ctx", ctx, ViTContext)
        for name, own in (("pooler", ctx.pooler), ("classifier", ctx.classifier)):
            check_same(self, name, own is not None, name in self._parts)
        images, parts = ctx.patches.x, self._parts
        check_same(self, "dim", ctx.patches.weight.shape[0], self.dim)
        labels = None if ctx.classifier is None else ctx.classifier.weight.shape[0]
        check_same(self, "num_labels", labels, self.num_labels)
        B, (down, across) = images.shape[0], self.grid
        xp, shapes = namespace_of(images), {"states": (B, 1 + down * across, self.dim), "pooled": (B, self.dim)}
        shapes["class_logits"] = (B, self.num_labels or 0)
        if not isinstance(dout, ViTResult) or all(given is None for given in dout):
            raise TypeError(
                f"`dout` is {checks.shown(dout)}, expected ViTResult(states, pooled, class_logits), None for 0."
            )
        for name, given in dout._asdict().items():
            if given is not None:
                check_gradient(f"dout.{name}", given, shapes[name], images)
        params: Params = {}
        dfirst: Any = None
        for name, dhead, own, backward in (
            ("pooler", dout.pooled, ctx.pooler, "pool_bwd"), ("classifier", dout.class_logits, ctx.classifier, "bwd")
        ):  # fmt: skip
            if own is not None and dhead is not None:
                grads = getattr(parts[name], backward)(dhead, own)
                params[name], dfirst = grads.params, grads.x if dfirst is None else dfirst + grads.x
            elif own is not None:
                params[name] = {n: self._zeros(shape, images) for n, shape in parts[name].shapes().items()}
        dstates = self._zeros(shapes["states"], images) if dout.states is None else dout.states
        if dfirst is not None:
            rest = self._zeros((B, down * across, self.dim), images)
            dstates = dstates + xp.concat([dfirst[:, None, :], rest], axis=1)
        body = self.body.bwd(dstates, ctx.body)
        dx = dropout_bwd(body.x, ctx.dropout).x
        patches = conv2d_bwd(xp.reshape(dx[:, 1:, :], (B, down, across, self.dim)), ctx.patches)
        params |= {
            "patches": {"weight": patches.weight, "bias": patches.bias},
            "position": {"weight": sum_wide(dx, 0)[None, :, :]},
            "class_token": {"weight": sum_wide(dx[:, :1, :], 0)[None, :, :]}, **body.params,
        }  # fmt: skip
        return ViTGrads(patches.x, check_gradients(self, {name: params[name] for name in parts}))

    def _zeros(self, shape: tuple[int, ...], like: Array) -> Any:
        return namespace_of(like).zeros(shape, dtype=like.dtype, device=device_of(like))


def pair(name: str, size: Any) -> tuple[int, int]:
    """Height and width of a size, which is both if it is one number."""
    sizes = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sizes) != 2:
        raise ValueError(f"`{name}` is {checks.shown(size)}, expected an integer, or height and width.")
    return tuple(checks.whole(name, n, 1, 2**31, "a height or width") for n in sizes)  # type: ignore[return-value]
