"""A linear map with its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from attnarray import checks
from attnarray.backend import Array
from attnarray.layers.initial import Params, glorot, zeros
from attnarray.layers.layer import LayerGrads, Shapes
from attnarray.ops.linear import LinearContext, linear, linear_bwd, linear_fwd
from attnarray.random import Philox


@dataclass(frozen=True)
class Linear:
    r"""A linear map of the last axis.

    .. math:: y = W x + b

    Parameters
    ----------
    in_dim, out_dim : int
        Features of x and y.
    bias : bool
        Whether there is a b.
    std : float, optional
        The weights are normal numbers of this deviation in the beginning; Glorot's uniform ones by default.

    Raises
    ------
    ValueError
        If a size is no positive integer, or `std` negative.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.Linear(3, 2)
    >>> params = layer.init(aa.Philox(0))
    >>> y, ctx = layer.fwd(params, np.ones((5, 3), np.float32))
    >>> y.shape, layer.bwd(y, ctx).params["weight"].shape
    ((5, 2), (2, 3))
    """

    in_dim: int
    out_dim: int
    bias: bool = True
    std: float | None = None

    def __post_init__(self) -> None:
        checks.plain_fields(self)
        for name in ("in_dim", "out_dim"):
            checks.whole(name, getattr(self, name), 1, 2**31, "a size of the layer")
        if self.std is not None:
            checks.not_negative("std", self.std)

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """weight (out_dim, in_dim) and, with `bias`, bias (out_dim,), which is 0."""
        shape = (self.out_dim, self.in_dim)
        weight = glorot(rng, shape, dtype) if self.std is None else rng.normal(shape, self.std, dtype)
        return {"weight": weight, "bias": zeros(self.out_dim, dtype=dtype)} if self.bias else {"weight": weight}

    def shapes(self) -> Shapes:
        weight = {"weight": (self.out_dim, self.in_dim)}
        return {**weight, "bias": (self.out_dim,)} if self.bias else weight

    def __call__(self, params: Params, x: Array) -> Array:
        """y (..., out_dim) of x (..., in_dim)."""
        return linear(x, **params)

    def fwd(self, params: Params, x: Array) -> tuple[Array, LinearContext]:
        """The same, and the context for `bwd`."""
        return linear_fwd(x, **params)

    def bwd(self, dout: Array, ctx: LinearContext) -> LayerGrads:
        """The gradients of x and the parameters."""
        grads = linear_bwd(dout, ctx)
        params = {"weight": grads.weight} if grads.bias is None else {"weight": grads.weight, "bias": grads.bias}
        return LayerGrads(grads.x, params)
