"""What layers have in common: parts with parameters of their own, and the shapes of all parameters."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

from attnarray import checks
from attnarray.backend import Array
from attnarray.layers.initial import Params
from attnarray.random import Philox

Shapes: TypeAlias = dict[str, Any]  # a tree like the parameters, with shapes for arrays


class LayerGrads(NamedTuple):
    """The gradients of a layer of one input."""

    x: Array
    params: Params


class Part(Protocol):
    """What has parameters."""

    def init(self, rng: Philox, dtype: str = "float32") -> Params: ...

    def shapes(self) -> Shapes: ...


class Layer:
    """A layer whose parameters are those of its parts, by their names."""

    def parts(self) -> dict[str, Any]:
        raise NotImplementedError

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Fresh parameters of all parts, each from a generator of its own."""
        parts = self.parts()
        rngs = rng.split(len(parts))
        return {name: part.init(own, dtype) for (name, part), own in zip(parts.items(), rngs, strict=True)}

    def shapes(self) -> Shapes:
        """The shapes of all parameters, as a tree like them."""
        return {name: part.shapes() for name, part in self.parts().items()}


def check_params(params: Any, layer: Part) -> None:
    """Check that the parameters are those of the layer: no entry missing, none too many, each of its shape.

    Raises
    ------
    TypeError
        If a branch is no dict, or a leaf no array.
    ValueError
        If entries are missing or unknown, or one has another shape. The message names the path.

    Examples
    --------
    >>> import attnarray as aa
    >>> layer = aa.layers.Linear(3, 2)
    >>> aa.layers.check_params(layer.init(aa.Philox(0)), layer)
    """
    _check("params", params, layer.shapes(), type(layer).__name__)


def _check(path: str, params: Any, shapes: Any, layer: str) -> None:
    if not isinstance(shapes, dict):
        checks.shape(path, params, shapes, f"the shape of that parameter of {layer}")
        return
    if not isinstance(params, dict):
        raise TypeError(
            f"`{path}` is {checks.shown(params)}, expected a dict with {_listed(shapes)}, as {layer}.init makes it."
        )
    missing, unknown = [name for name in shapes if name not in params], [name for name in params if name not in shapes]
    if missing:
        raise ValueError(f"`{path}` lacks {_listed(missing)}, which {layer} needs. It has {_listed(params)}.")
    if unknown:
        raise ValueError(f"`{path}` has {_listed(unknown)}, which {layer} does not know, beside {_listed(shapes)}.")
    for name, expected in shapes.items():
        _check(f"{path}.{name}", params[name], expected, layer)


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
