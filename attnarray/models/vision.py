"""An image classifier: a Transformer encoder over patches and a class token (ViT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of
from attnarray.layers.checking import check_same
from attnarray.layers.embedding import Embedding
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.magnitude import sum_wide
from attnarray.models.logits import check_dlogits
from attnarray.models.transformer.encoder import Encoder
from attnarray.models.transformer.stack import StackContext
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox


class PatchContext(NamedTuple):
    patches: LinearContext
    dropout: DropoutContext
    encoder: StackContext
    logits: LinearContext
    shape: tuple[int, ...]  # of the images


class PatchGrads(NamedTuple):
    images: Any
    params: Params


@dataclass(frozen=True)
class PatchClassifier(Layer):
    r"""A Transformer over the patches of an image.

    .. math::
        x = \mathrm{drop}([w;\; E\,\mathrm{patch}_1 + b;\; \dots;\; E\,\mathrm{patch}_N + b] + p), \qquad
        \mathrm{logits} = W\, \mathrm{encoder}(x)_0 + c

    with a class token w before the patches and learned positions p. Patches are in row-major order.

    Parameters
    ----------
    size : int, or (int, int)
        Height and width of an image; one number for a square.
    patch : int
        Height and width of a patch, which must divide both.
    classes : int
        Number of classes.
    channels : int
        Number of channels.
    dim, num_layers, num_heads, hidden_dim, pre_norm, activation, attention_dropout, hidden_dropout, recompute
        Of the encoder, see `Encoder`.
    dropout : float
        Dropout of the branches, and of x; only with an `rng`.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid, the patches do not tile the image, or `fwd` has dropout and no
        `rng`.

    References
    ----------
    Dosovitskiy et al., "An image is worth 16x16 words: Transformers for image recognition at scale", 2020,
    arXiv:2010.11929.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.PatchClassifier(size=8, patch=2, classes=10, dim=16, num_layers=2, num_heads=4)
    >>> params = model.init(aa.Philox(0))
    >>> images = np.random.default_rng(0).standard_normal((3, 8, 8), np.float32)
    >>> logits, ctx = model.fwd(params, images)
    >>> logits.shape, model.bwd(logits, ctx).images.shape
    ((3, 10), (3, 8, 8))

    The attention weights of the class token in the last block:

    >>> aa.attention_weights(ctx.encoder.blocks[-1].attention.branch, slice(0, 1))[:, :, 0, 1:].shape  # 16 patches
    (3, 4, 16)
    """

    size: int | tuple[int, int]
    patch: int
    classes: int
    channels: int = 1
    dim: int = 64
    num_layers: int = 4
    num_heads: int = 4
    hidden_dim: int | None = None
    pre_norm: bool = True
    activation: Activation = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        for size in sizes:
            checks.whole("size", size, 1, 2**31, "height and width of an image")
        if (isinstance(self.size, tuple) and len(sizes) != 2) or any(size % self.patch for size in sizes):
            raise ValueError(f"`size` is {self.size}, expected a height and width that `patch` ({self.patch}) divides.")
        self.parts()  # validates the fields of the parts

    @property
    def image(self) -> tuple[int, int]:
        """Height and width."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def grid(self) -> tuple[int, int]:
        """The number of rows and columns of patches."""
        height, width = self.image
        return height // self.patch, width // self.patch

    def parts(self) -> dict[str, Any]:
        fields = ("dim", "num_layers", "num_heads", "hidden_dim", "pre_norm", "activation", "dropout",
                  "attention_dropout", "hidden_dropout", "recompute")  # fmt: skip
        down, across = self.grid
        return {
            "patches": Linear(self.patch * self.patch * self.channels, self.dim),
            "word": Embedding(1, self.dim, 0.02),
            "position": Embedding(1 + down * across, self.dim, 0.02),
            "encoder": Encoder(**{name: getattr(self, name) for name in fields}),
            "logits": Linear(self.dim, self.classes),
        }

    def __call__(self, params: Params, images: Array, *, rng: Philox | None = None) -> Any:
        """Return logits (B, classes) of images (B, height, width), or (B, height, width, channels)."""
        parts, rngs = self._parts, rng.split(2) if rng else (None, None)
        x, _, _ = self._embed(params, images, rngs[0])
        y = parts["encoder"](params["encoder"], x, rng=rngs[1])
        return parts["logits"](params["logits"], y[:, 0, :])

    def fwd(self, params: Params, images: Array, *, rng: Philox | None = None) -> tuple[Any, PatchContext]:
        """Return the same, and the context for `bwd`; dropout requires an `rng`."""
        parts, rngs = self._parts, rng.split(2) if rng else (None, None)
        x, patches_ctx, dropout_ctx = self._embed(params, images, rngs[0])
        y, encoder_ctx = parts["encoder"].fwd(params["encoder"], x, rng=rngs[1])
        logits, logits_ctx = parts["logits"].fwd(params["logits"], y[:, 0, :])
        return logits, PatchContext(patches_ctx, dropout_ctx, encoder_ctx, logits_ctx, tuple(images.shape))

    def bwd(self, dlogits: Array, ctx: PatchContext) -> PatchGrads:
        """Return the gradients of images and parameters."""
        checks.context("ctx", ctx, PatchContext)
        check_same(self, "size of images", ctx.shape[1:3], self.image)
        check_dlogits(dlogits, ctx.logits)
        xp, parts = namespace_of(dlogits), self._parts
        logits = parts["logits"].bwd(dlogits, ctx.logits)
        rest = xp.zeros((dlogits.shape[0], self._count, self.dim), dtype=dlogits.dtype, device=device_of(dlogits))
        encoder = parts["encoder"].bwd(xp.concat([logits.x[:, None, :], rest], axis=1), ctx.encoder)
        dx = dropout_bwd(encoder.x, ctx.dropout).x  # (B, 1 + N, E)
        patches = parts["patches"].bwd(dx[:, 1:, :], ctx.patches)
        params = {
            "patches": patches.params, "word": {"weight": sum_wide(dx[:, :1, :], 0)},
            "position": {"weight": sum_wide(dx, 0)}, "encoder": encoder.params, "logits": logits.params,
        }  # fmt: skip
        return PatchGrads(xp.reshape(self._pixels(patches.x), ctx.shape), params)

    @property
    def _count(self) -> int:
        down, across = self.grid
        return down * across

    def _embed(self, params: Params, images: Array, rng: Philox | None) -> tuple[Array, LinearContext, DropoutContext]:
        """The embedded class token and patches x (B, 1 + N, dim)."""
        xp = checks.namespace(images=images)
        checks.required(images=images)
        weight = params["patches"]["weight"]
        checks.namespace(images=images, params=weight)
        checks.floating(images=images, params=weight)
        pixel = (self.channels,) if images.ndim == 4 or self.channels > 1 else ()
        shape = (*images.shape[:1], *self.image, *pixel)
        checks.shape("images", images, shape, "(B, height, width), with a last axis of channels if there are several")
        x, patches_ctx = self._parts["patches"].fwd(params["patches"], self._patches(images))  # (B, N, E)
        word = xp.broadcast_to(params["word"]["weight"][None, :, :], (images.shape[0], 1, self.dim))
        x = xp.concat([word, x], axis=1) + params["position"]["weight"]
        x, dropout_ctx = dropout_fwd(x, self.dropout if rng else 0.0, rng=rng)
        return x, patches_ctx, dropout_ctx

    def _patches(self, images: Array) -> Array:
        """(B, height, width[, C]) -> (B, N, P P C)."""
        xp, (down, across), P = namespace_of(images), self.grid, self.patch
        cut = xp.reshape(images, (images.shape[0], down, P, across, P, self.channels))
        cut = xp.permute_dims(cut, (0, 1, 3, 2, 4, 5))  # (B, down, across, P, P, C)
        return xp.reshape(cut, (images.shape[0], self._count, P * P * self.channels))

    def _pixels(self, patches: Array) -> Array:
        """(B, N, P P C) -> (B, down, P, across, P, C), the order of an image."""
        xp, (down, across), P = namespace_of(patches), self.grid, self.patch
        cut = xp.reshape(patches, (patches.shape[0], down, across, P, P, self.channels))
        return xp.permute_dims(cut, (0, 1, 3, 2, 4, 5))
