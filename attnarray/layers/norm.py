"""Layer norm and RMS norm with their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from attnarray.backend import ArrayT, asarray
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer, LayerGrads, Shapes
from attnarray.ops.norm import (
    LayerNormContext,
    RMSNormContext,
    layer_norm,
    layer_norm_bwd,
    layer_norm_fwd,
    rms_norm,
    rms_norm_bwd,
    rms_norm_fwd,
)
from attnarray.random import Philox


@dataclass(frozen=True)
class LayerNorm(Layer):
    r"""Layer norm over the last axis.

    .. math:: y = w\, \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}} + b

    Parameters
    ----------
    dim : int
        Features.
    eps : float
        epsilon.
    bias : bool
        Whether to add b.

    Raises
    ------
    ValueError
        If `dim` is not a positive integer, or `eps` is not positive.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.LayerNorm(4)
    >>> y, ctx = layer.fwd(layer.init(aa.Philox(0)), np.eye(4, dtype=np.float32))
    >>> sorted(layer.bwd(y, ctx).params)
    ['bias', 'weight']
    """

    widths: ClassVar = {"x": ("dim",)}
    axes: ClassVar = 1

    dim: int
    eps: float = 1e-5
    bias: bool = True

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """weight (dim,), which is 1, and with `bias` bias (dim,), which is 0."""
        weight = {"weight": asarray(np.ones(self.dim), dtype=dtype)}
        return {**weight, "bias": zeros(self.dim, dtype=dtype)} if self.bias else weight

    def shapes(self) -> Shapes:
        weight = {"weight": (self.dim,)}
        return {**weight, "bias": (self.dim,)} if self.bias else weight

    def __call__(self, params: Params, x: ArrayT) -> ArrayT:
        """y (..., dim) of x (..., dim)."""
        return layer_norm(x, **params, eps=self.eps)

    def fwd(self, params: Params, x: ArrayT) -> tuple[ArrayT, LayerNormContext]:
        """The same, and the context for `bwd`."""
        return layer_norm_fwd(x, **params, eps=self.eps)

    def bwd(self, dout: ArrayT, ctx: LayerNormContext) -> LayerGrads[ArrayT]:
        """The gradients of x and the parameters."""
        grads = layer_norm_bwd(dout, ctx)
        params = {"weight": grads.weight} if grads.bias is None else {"weight": grads.weight, "bias": grads.bias}
        return LayerGrads(grads.x, check_gradients(self, params))


@dataclass(frozen=True)
class RMSNorm(Layer):
    r"""Root mean square norm over the last axis.

    .. math:: y = w\, \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}, \qquad
        \text{zero-centered:} \quad y = (1 + w)\, \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}

    Parameters
    ----------
    dim : int
        Features.
    eps : float
        epsilon.
    zero_centered : bool
        Whether the factor is 1 + w, as in Gemma, so that w is 0 at first and weight decay draws the factor to 1.

    Raises
    ------
    ValueError
        If `dim` is not a positive integer, or `eps` is not positive.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.RMSNorm(4)
    >>> y, ctx = layer.fwd(layer.init(aa.Philox(0)), np.eye(4, dtype=np.float32))
    >>> layer.bwd(y, ctx).params["weight"].shape
    (4,)
    """

    widths: ClassVar = {"x": ("dim",)}
    axes: ClassVar = 1

    dim: int
    eps: float = 1e-6
    zero_centered: bool = False

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """weight (dim,), which is 1, or 0 if zero-centered."""
        return {"weight": asarray(np.full(self.dim, 0.0 if self.zero_centered else 1.0), dtype=dtype)}

    def shapes(self) -> Shapes:
        return {"weight": (self.dim,)}

    def __call__(self, params: Params, x: ArrayT) -> ArrayT:
        """y (..., dim) of x (..., dim)."""
        return rms_norm(x, self._factor(params), eps=self.eps)

    def fwd(self, params: Params, x: ArrayT) -> tuple[ArrayT, RMSNormContext]:
        """The same, and the context for `bwd`."""
        return rms_norm_fwd(x, self._factor(params), eps=self.eps)

    def bwd(self, dout: ArrayT, ctx: RMSNormContext) -> LayerGrads[ArrayT]:
        """The gradients of x and the parameters."""
        grads = rms_norm_bwd(dout, ctx)
        return LayerGrads(grads.x, check_gradients(self, {"weight": grads.weight}))

    def _factor(self, params: Params) -> Any:
        return params["weight"] + 1.0 if self.zero_centered else params["weight"]
