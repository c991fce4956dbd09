"""A linear map with its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attnarray.backend import ArrayT
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params, glorot, zeros
from attnarray.layers.layer import Layer, LayerGrads, Shapes
from attnarray.ops.linear import LinearContext, linear, linear_bwd, linear_fwd
from attnarray.random import Philox


@dataclass(frozen=True)
class Linear(Layer):
    r"""A linear map of the last axis.

    .. math:: y = W x + b

    Parameters
    ----------
    in_dim, out_dim : int
        Features of x and y.
    bias : bool
        Whether to add b.
    init_std : float, optional
        Standard deviation of the initial weights, which are normal; by default they are uniform, as Glorot's.

    Raises
    ------
    ValueError
        If a size is not a positive integer, or `init_std` is negative.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.Linear(3, 2)
    >>> params = layer.init(aa.Philox(0))
    >>> y, ctx = layer.fwd(params, np.ones((5, 3), np.float32))
    >>> y.shape, layer.bwd(y, ctx).params["weight"].shape
    ((5, 2), (2, 3))
    """

    widths: ClassVar = {"x": ("in_dim",)}
    axes: ClassVar = 1

    in_dim: int
    out_dim: int
    bias: bool = True
    init_std: float | None = None

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """weight (out_dim, in_dim) and, with `bias`, bias (out_dim,), which is 0."""
        shape = (self.out_dim, self.in_dim)
        weight = glorot(rng, shape, dtype) if self.init_std is None else rng.normal(shape, self.init_std, dtype)
        return {"weight": weight, "bias": zeros(self.out_dim, dtype=dtype)} if self.bias else {"weight": weight}

    def shapes(self) -> Shapes:
        weight = {"weight": (self.out_dim, self.in_dim)}
        return {**weight, "bias": (self.out_dim,)} if self.bias else weight

    def __call__(self, params: Params, x: ArrayT) -> ArrayT:
        """y (..., out_dim) of x (..., in_dim)."""
        return linear(x, **params)

    def fwd(self, params: Params, x: ArrayT) -> tuple[ArrayT, LinearContext]:
        """The same, and the context for `bwd`."""
        return linear_fwd(x, **params)

    def bwd(self, dout: ArrayT, ctx: LinearContext) -> LayerGrads[ArrayT]:
        """The gradients of x and the parameters."""
        grads = linear_bwd(dout, ctx)
        params = {"weight": grads.weight} if grads.bias is None else {"weight": grads.weight, "bias": grads.bias}
        return LayerGrads(grads.x, check_gradients(self, params))
