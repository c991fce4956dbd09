"""Low-rank adaptation (LoRA) of some weights of any layer or model."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import Any

from attnarray import checks, tree
from attnarray.backend import Array, accumulator_dtype, asarray, namespace_of
from attnarray.layers.checking import check_params
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer, Shapes
from attnarray.random import Philox


@dataclass(frozen=True)
class LoRA(Layer):
    r"""Low-rank adaptation: a trained matrix of rank r is added to some weights, which stay as they are.

    .. math:: W' = W + \frac{\alpha}{r} B A

    with A (r, in) and B (out, r) for a weight W (out, in). B is 0 at first, so that training begins with the model as
    it is. `merge` returns the parameters of the model with all W' in place of W; other arrays are shared, not copied.
    Any `fwd`, `bwd`, `step` and `generate` of the model takes them, and they are what is saved as a merged model.
    `gradients` turns the gradients of the model's parameters into those of A and B, so that the optimizer's state is
    small. The model's backward still computes the gradient of each W.

    Parameters
    ----------
    model : layer or model
    targets : tuple of str
        Patterns, in which "*" stands for anything, of the paths of weights with two axes, without ".weight", such as
        "blocks.*.attention.query".
    rank : int
        r.
    alpha : float
        The factor is alpha / r.

    Raises
    ------
    TypeError
        If `model` is no layer or model.
    ValueError
        If a pattern fits no weight, or `rank` or `alpha` is not positive.

    References
    ----------
    Hu et al., "LoRA: low-rank adaptation of large language models", 2021, arXiv:2106.09685.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=11, max_seq_len=8, dim=4, num_layers=2, num_heads=2)
    >>> base = model.init(aa.Philox(0))
    >>> lora = aa.layers.LoRA(model, ("*.attention.query", "*.attention.value"), rank=2)
    >>> params = lora.init(aa.Philox(1))
    >>> sorted(params)[:2], params["blocks.0.attention.query"]["a"].shape
    (['blocks.0.attention.query', 'blocks.0.attention.value'], (2, 4))

    A training step:

    >>> tokens = np.array([[1, 2, 3, 4]])
    >>> logits, ctx = model.fwd(lora.merge(params, base), tokens[:, :-1])
    >>> loss, loss_ctx = aa.cross_entropy_fwd(logits, tokens[:, 1:])
    >>> grads = model.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params
    >>> params, state = aa.optim.adamw(params, lora.gradients(params, grads), aa.optim.adamw_init(params), lr=1e-2)
    """

    model: Any
    targets: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.model, type) or not hasattr(self.model, "shapes"):
            raise TypeError(
                f"`model` is {checks.shown(self.model)}, expected a layer or model, such as models.GPT(...)."
            )
        if not isinstance(self.targets, tuple | list) or not all(isinstance(name, str) for name in self.targets):
            raise TypeError(f"`targets` is {checks.shown(self.targets)}, expected a tuple of patterns of paths.")
        object.__setattr__(self, "targets", tuple(self.targets))
        checks.positive("alpha", self.alpha)
        known = list(_matrices(self.model.shapes()))
        for pattern in self.targets or ("",):
            if not fnmatch.filter(known, pattern):
                raise ValueError(
                    f"`targets` has {pattern!r}, which fits no weight of two axes of {type(self.model).__name__}: "
                    f"expected patterns of {', '.join(map(repr, known[:8]))}{', ...' if len(known) > 8 else ''}."
                )

    def shapes(self) -> Shapes:
        """{path: {"a": (rank, in), "b": (out, rank)}} of all targets."""
        found = _matrices(self.model.shapes())
        paths = [path for path in found if any(fnmatch.fnmatchcase(path, pattern) for pattern in self.targets)]
        return {path: {"a": (self.rank, found[path][1]), "b": (found[path][0], self.rank)} for path in paths}

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """A is uniform in +-1 / sqrt(in), and B is 0."""
        rngs = rng.split(len(self._shapes))
        params: Params = {}
        for own, (path, shapes) in zip(rngs, self._shapes.items(), strict=True):
            bound = 1.0 / math.sqrt(shapes["a"][1])
            a = asarray(own.uniform(shapes["a"], -bound, bound), dtype=dtype)
            params[path] = {"a": a, "b": zeros(*shapes["b"], dtype=dtype)}
        return params

    def merge(self, params: Params, base: Params) -> Params:
        """Return the parameters of the model, with the adapted weights in place of those of `base`."""
        check_params(base, self.model)
        for path, own in params.items():
            keys = _keys(path)
            base = tree.replace(base, keys, self._merged(tree.get(base, keys), own))
        return base

    def gradients(self, params: Params, grads: Params) -> Params:
        r"""Return the gradients of A and B, from those of the model's parameters, with `merge`'s in their place.

        .. math:: dA = \frac{\alpha}{r} B^T dW', \qquad dB = \frac{\alpha}{r} dW' A^T
        """
        check_params(grads, self.model)
        found: Params = {}
        for path, own in params.items():
            dweight, a, b = (_wide(x) for x in (tree.get(grads, _keys(path)), own["a"], own["b"]))
            xp, scale = namespace_of(a), self.alpha / self.rank
            found[path] = {
                "a": xp.astype(scale * xp.matmul(b.mT, dweight), own["a"].dtype, copy=False),
                "b": xp.astype(scale * xp.matmul(dweight, a.mT), own["b"].dtype, copy=False),
            }
        return found

    def _merged(self, weight: Array, own: Params) -> Array:
        xp, a, b = namespace_of(weight, own["a"]), _wide(own["a"]), _wide(own["b"])
        delta = self.alpha / self.rank * xp.matmul(b, a)
        return xp.astype(xp.astype(weight, delta.dtype, copy=False) + delta, weight.dtype, copy=False)


def _wide(array: Array) -> Any:
    xp = namespace_of(array)
    return xp.astype(array, accumulator_dtype(xp, array.dtype), copy=False)


def _matrices(shapes: Any, path: str = "") -> dict[str, tuple[int, int]]:
    """The shapes of weights with two axes, by their paths without ".weight"."""
    found: dict[str, tuple[int, int]] = {}
    for key, inner in shapes.items() if isinstance(shapes, dict) else enumerate(shapes):
        if not isinstance(inner, tuple):
            found |= _matrices(inner, f"{path}.{key}" if path else str(key))
        elif key == "weight" and len(inner) == 2:
            found[path] = inner
    return found


def _keys(path: str) -> tree.Path:
    """The path of a weight, as `tree.get` takes it."""
    keys = [*path.split("."), "weight"] if path else ["weight"]
    return tuple(int(key) if key.isdigit() else key for key in keys)
