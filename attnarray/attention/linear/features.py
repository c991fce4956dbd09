r"""Feature maps: functions of queries and keys whose dot products take the place of exp(q·k).

Each is a NamedTuple of its arrays, with `features` and, directly below it, `backward`, whose last result is the
gradient of the arrays as a value of the same type. `linear_attention` also takes one of a caller.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from attnarray import checks, tree
from attnarray.attention.products import sum_to_shape
from attnarray.backend import Array, asarray, namespace_of, to_numpy
from attnarray.ops.softmax import softmax_bwd, softmax_fwd
from attnarray.random import Philox

FeatureName = Literal["elu+1", "relu", "squared", "exp", "softmax"]
FEATURE_NAMES: tuple[FeatureName, ...] = get_args(FeatureName)
Side = Literal["query", "key"]


class FeatureMap(Protocol):
    """A feature map of a caller; arrays are (B, H, T, D) in the dtype of sums."""

    def features(self, x: Any, side: Side) -> Any:
        """From the queries or the keys (B, H, T, D) their features (B, H, T, F)."""

    def backward(self, dfeatures: Any, x: Any, side: Side) -> tuple[Any, Any]:
        """The gradients of x and of the arrays, as a value of the same type."""


class Elementwise(NamedTuple):
    """A map of each number without arrays: elu(x) + 1, relu(x), x^2, exp(x), or the softmax of each vector."""

    name: FeatureName

    def features(self, x: Array, side: Side) -> Any:
        xp = namespace_of(x)
        if self.name == "softmax":
            return softmax_fwd(x)[0]
        if self.name == "elu+1":
            return xp.where(x > 0, x + 1.0, xp.exp(xp.where(x > 0, xp.zeros_like(x), x)))
        if self.name == "relu":
            return xp.where(x > 0, x, xp.zeros_like(x))
        return x * x if self.name == "squared" else xp.exp(x)

    def backward(self, dfeatures: Array, x: Array, side: Side) -> tuple[Any, Elementwise]:
        """The slope is min(1, exp(x)), 1 or 0, 2 x, or exp(x); that of the softmax is in `softmax_bwd`."""
        xp = namespace_of(dfeatures, x)
        if self.name == "softmax":
            return softmax_bwd(dfeatures, softmax_fwd(x)[1]).x, self
        if self.name == "relu":
            return xp.where(x > 0, dfeatures, xp.zeros_like(x)), self
        if self.name == "elu+1":
            return dfeatures * xp.exp(xp.where(x > 0, xp.zeros_like(x), x)), self
        return dfeatures * (2.0 * x if self.name == "squared" else xp.exp(x)), self


class FAVOR(NamedTuple):
    r"""Positive random features, whose dot products estimate exp(q·k / sqrt(D)) without bias.

    .. math:: \phi(x)_f = F^{-1/2} \exp\bigl(w_f \cdot y - |y|^2 / 2\bigr), \qquad y = x / D^{1/4}

    `FAVOR.draw` draws w, whose blocks of D rows are orthogonal; redraw it with another seed from time to time. The
    paper subtracts a maximum from the exponent, which here is at most :math:`|w_f|^2 / 2` in any case.

    References
    ----------
    Choromanski et al., "Rethinking attention with Performers", 2020, arXiv:2009.14794.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k = 0.5 * np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8))
    >>> random = aa.FAVOR.draw(aa.Philox(0), 8, 4096)
    >>> estimate = random.features(q, "query") @ random.features(k, "key").mT
    >>> bool(abs(estimate.item() / np.exp((q @ k.mT).item() / np.sqrt(8)) - 1) < 0.05)
    True
    """

    projection: Array  # (F, D)

    @classmethod
    def draw(cls, rng: Philox | int, dim: int, count: int, dtype: str = "float64") -> FAVOR:
        """`count` random features of vectors of `dim` numbers, on the current backend (see `use_backend`)."""
        dim = checks.whole("dim", dim, 1, 2**31, "the number of features of each query and key")
        count = checks.whole("count", count, 1, 2**31, "the number of random features")
        checks.choice("dtype", dtype, checks.FLOATS)
        blocks = -(-count // dim)
        philox = rng if isinstance(rng, Philox) else Philox(rng)
        normal = to_numpy(philox.normal((2, blocks * dim, dim), dtype="float64"))
        orthogonal, r = np.linalg.qr(normal[0].reshape(blocks, dim, dim))
        orthogonal *= np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]  # else signs of rows were not random
        directions = orthogonal.reshape(blocks * dim, dim)
        rows = directions * np.linalg.norm(normal[1], axis=1, keepdims=True)  # of the lengths of independent rows
        return cls(asarray(rows[:count], dtype=dtype))

    def features(self, x: Array, side: Side) -> Any:
        xp, w = namespace_of(x), self._fitting(x)
        y = x / x.shape[-1] ** 0.25
        exponent = xp.matmul(y, w.mT) - xp.sum(y * y, axis=-1, keepdims=True) / 2.0
        return xp.exp(exponent) / math.sqrt(w.shape[0])

    def backward(self, dfeatures: Array, x: Array, side: Side) -> tuple[Any, FAVOR]:
        r"""With h = dphi phi: dw_f = sum h_f y and dy = sum_f h_f (w_f - y)."""
        xp, w = namespace_of(dfeatures, x), self._fitting(x)
        y = x / x.shape[-1] ** 0.25
        h = dfeatures * self.features(x, side)
        dy = xp.matmul(h, w) - y * xp.sum(h, axis=-1, keepdims=True)
        rows = xp.reshape(h, (-1, h.shape[-1])) if math.prod(h.shape) else xp.reshape(h, (0, h.shape[-1]))
        return dy / x.shape[-1] ** 0.25, FAVOR(xp.matmul(rows.mT, xp.reshape(y, (rows.shape[0], y.shape[-1]))))

    def _fitting(self, x: Array) -> Array:
        if self.projection.ndim != 2 or self.projection.shape[1] != x.shape[-1]:
            raise ValueError(
                f"`FAVOR.projection` has shape {tuple(self.projection.shape)}, expected (F, {x.shape[-1]}), as queries "
                "and keys have so many features: draw it with `dim` of that number."
            )
        return self.projection


class Hedgehog(NamedTuple):
    r"""Learned features that can imitate the weights of a softmax, for each head.

    .. math:: \phi(x) = [\mathrm{softmax}(W x), \mathrm{softmax}(-W x)]

    References
    ----------
    Zhang et al., "The hedgehog & the porcupine: expressive linear attentions with softmax mimicry", 2024,
    arXiv:2402.04347.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((1, 2, 5, 4))
    >>> learned = aa.Hedgehog(np.ones((2, 3, 4)), np.ones((2, 3, 4)))
    >>> aa.linear_attention(x, x, x, feature_map=learned, normalize=True).out.shape
    (1, 2, 5, 4)
    """

    query_weight: Array  # (H, F, D)
    key_weight: Array  # (Hkv, F, D)

    def features(self, x: Array, side: Side) -> Any:
        xp = namespace_of(x)
        y = xp.matmul(x, self._weight(x, side).mT)
        return xp.concat([softmax_fwd(y)[0], softmax_fwd(-y)[0]], axis=-1)

    def backward(self, dfeatures: Array, x: Array, side: Side) -> tuple[Any, Hedgehog]:
        """With the gradients dy of y = W x by both softmaxes: dx = W^T dy, dW = sum dy x^T."""
        xp, weight = namespace_of(dfeatures, x), self._weight(x, side)
        y = xp.matmul(x, weight.mT)
        half = y.shape[-1]
        dy = softmax_bwd(dfeatures[..., :half], softmax_fwd(y)[1]).x
        dy = dy - softmax_bwd(dfeatures[..., half:], softmax_fwd(-y)[1]).x
        dweight = sum_to_shape(xp.matmul(dy.mT, x), weight.shape)
        zero = tree.map(xp.zeros_like, self)
        return xp.matmul(dy, weight), zero._replace(**{f"{side}_weight": dweight})

    def _weight(self, x: Array, side: Side) -> Array:
        weight = self.query_weight if side == "query" else self.key_weight
        expected = (x.shape[1], weight.shape[1] if weight.ndim == 3 else -1, x.shape[-1])
        if tuple(weight.shape) != expected:
            raise ValueError(
                f"`Hedgehog.{side}_weight` has shape {tuple(weight.shape)}, expected ({x.shape[1]}, F, {x.shape[-1]}): "
                "a matrix for each head."
            )
        return weight


def resolve_feature_map(given: Any) -> FeatureMap | None:
    """The option `feature_map` as a value, checked: a name, or a value with `features` and `backward`."""
    if given is None or (hasattr(given, "features") and hasattr(given, "backward") and not isinstance(given, type)):
        found: FeatureMap | None = given
        return found
    if not isinstance(given, str) or given not in FEATURE_NAMES:
        listed = ", ".join(map(repr, FEATURE_NAMES))
        raise ValueError(
            f"`feature_map` is {checks.shown(given)}, expected one of {listed}, or a value with `features` and "
            "`backward` such as attnarray.FAVOR.draw(rng, dim, count)."
        )
    return Elementwise(given)
