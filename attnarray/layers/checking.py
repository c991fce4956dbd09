"""Validation of the arguments of layers and models: fields, parameters, inputs, generators and contexts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.backend import Array, dtype_name
from attnarray.layers.initial import Params
from attnarray.ops.rotary import Rotary
from attnarray.random import Philox

COUNTS = {  # meanings of integer fields
    "num_layers": "the number of blocks",
    "k": "the number of selected keys",
    "memory": "the largest number of memory positions",
    "padding_token": "the token of padding",
    "position_offset": "the rows before that of position 0",
    "shift": "the positions that windows are moved by",
}
FROM_ZERO = ("memory", "padding_token", "position_offset", "shift")


class Checked(dict[str, Any]):
    """Validated parameters of a layer; its parts do not validate theirs again."""


def check_params(params: Any, layer: Any) -> None:
    """Check that the parameters fit the layer: no entry missing, none unknown, each of the expected shape.

    Raises
    ------
    TypeError
        If a branch is not a dict or list, a leaf is not a floating array, or dtypes or libraries of leaves differ.
    ValueError
        If entries are missing or unknown, or one has a wrong shape. The message names the path.

    Examples
    --------
    >>> import attnarray as aa
    >>> layer = aa.layers.Linear(3, 2)
    >>> aa.layers.check_params(layer.init(aa.Philox(0)), layer)
    """
    checked_params(params, layer)


def checked_params(params: Any, layer: Any, others: tuple[Any, ...] = ()) -> tuple[Checked, Array | None]:
    """The parameters, and one of their leaves, if any; `others` are the arguments after them."""
    if isinstance(layer, type) or not hasattr(layer, "shapes"):
        raise TypeError(f"`layer` is {checks.shown(layer)}, expected a layer or model, such as layers.Linear(3, 2).")
    shapes = getattr(layer, "_shapes", None) or layer.shapes()
    leaves: list[Array] = []
    checked = _take(params, shapes, leaves)
    if checked is None:
        found: dict[str, Array] = {}
        checked = _compare("params", params, shapes, found, type(layer).__name__, others)
        leaves = list(found.values())
    return checked, leaves[0] if leaves else None


def _take(params: Any, shapes: Any, leaves: list[Array]) -> Any:
    """The parameters if they are NumPy arrays and valid, else None: the fast path, without error messages."""
    if type(shapes) is list:
        if not isinstance(params, list | tuple) or len(params) != len(shapes):
            return None
        parts = [_take(part, expected, leaves) for part, expected in zip(params, shapes, strict=True)]
        return None if None in parts else parts
    if not isinstance(params, dict) or params.keys() != shapes.keys():
        return None
    taken = Checked()
    for name, expected in shapes.items():
        leaf = params[name]
        if type(expected) is not tuple:
            leaf = _take(leaf, expected, leaves)
            if leaf is None:
                return None
        elif type(leaf) is not np.ndarray or leaf.shape != expected:
            return None
        elif not leaves:
            if not _is_floating(leaf.dtype):
                return None
            leaves.append(leaf)
        elif leaf.dtype != leaves[0].dtype:
            return None
        taken[name] = leaf
    return taken


@functools.lru_cache(maxsize=32)
def _is_floating(dtype: Any) -> bool:
    return dtype_name(dtype) in checks.FLOATS


def _compare(
    path: str, params: Any, shapes: Any, leaves: dict[str, Array], layer: str, others: tuple[Any, ...] = ()
) -> Any:
    """The parameters of any library, with errors that name the path; `leaves` are those already checked."""
    if isinstance(shapes, list):
        if not isinstance(params, list | tuple) or len(params) != len(shapes):
            raise TypeError(
                f"`{path}` is {_shown(params)}, expected a list of {len(shapes)}, as {layer}.init makes it."
            )
        return [_compare(f"{path}.{n}", params[n], own, leaves, layer) for n, own in enumerate(shapes)]
    if not isinstance(shapes, dict):
        checks.shape(path, params, shapes, f"the shape of that parameter of {layer}")
        if leaves:
            first, like = next(iter(leaves.items()))
            check_together({path: params, first: like})
        checks.namespace(**{path: params})
        checks.floating(**{path: params})
        leaves[path] = params
        return params
    if not isinstance(params, dict):
        swapped = any(isinstance(other, dict) for other in others)
        order = f" The parameters come first, and then the inputs of {layer}." if swapped else ""
        made = f"{_shown(shapes)}, as {layer}.init makes it"
        raise TypeError(f"`{path}` is {checks.shown(params)}, expected {made}.{order}")
    missing, unknown = [name for name in shapes if name not in params], [name for name in params if name not in shapes]
    if missing:
        raise ValueError(f"`{path}` lacks {_listed(missing)}, which {layer} needs. It has {_listed(params)}.")
    if unknown:
        raise ValueError(f"`{path}` has {_listed(unknown)}, which {layer} does not know, besides {_listed(shapes)}.")
    return Checked({name: _compare(f"{path}.{name}", params[name], own, leaves, layer) for name, own in shapes.items()})


def check_together(arrays: dict[str, Array]) -> None:
    """Check that two arrays are of one library and one floating dtype."""
    one, other = arrays.values()
    if type(one) is not type(other) or type(one) is not np.ndarray or one.dtype != other.dtype:
        checks.namespace(**arrays)
        checks.floating(**arrays)


def check_input(layer: Any, name: str, given: Any, fields: tuple[str, ...], like: Array | None) -> None:
    """Check the features of an input against the fields, and its library and dtype against the parameters."""
    if type(given) is not np.ndarray:
        checks.require_array(name, given)
    field = next((field for field in fields if getattr(layer, field) is not None), None)
    if field is None:  # a layer without such an input raises itself
        return
    if len(given.shape) < layer.axes or given.shape[-1] != getattr(layer, field):
        width, shape = getattr(layer, field), tuple(given.shape)
        axes = f"(*batch, positions, {width})" if layer.axes > 1 else f"(..., {width})"
        count = "1 axis" if len(shape) == 1 else f"{len(shape)} axes"
        found = f"{shape[-1]} features" if len(shape) >= layer.axes else count
        raise ValueError(
            f"`{name}` has {found}, but {type(layer).__name__} has `{field}` {width}: expected {axes}, given {shape}."
        )
    if like is not None:
        check_together({name: given, "params": like})


def check_rng(layer: Any, rng: Any) -> None:
    """Check the generator of a call; None is an error here: in training with dropout or sampling."""
    name = type(layer).__name__
    if rng is None:
        raise ValueError(
            f"`rng` is None, but this {name} needs one in training, for dropout or sampling: pass "
            "rng=attnarray.Philox(seed), a new one for each step. For inference call the layer or model itself; to "
            "train without dropout, set it to 0.0 by dataclasses.replace."
        )
    if not isinstance(rng, Philox):
        raise TypeError(f"`rng` is {checks.shown(rng)}, but {name} expects attnarray.Philox(seed).")


def check_init(layer: Any, owner: str, rng: Any, dtype: Any) -> None:
    """Check the arguments of `init` of the class `owner`, and that it is called on an instance."""
    is_layer = hasattr(layer, "_shapes")
    if not is_layer or not isinstance(rng, Philox):
        name, rng = (type(layer).__name__, rng) if is_layer else (owner, layer)
        raise TypeError(f"`rng` is {checks.shown(rng)}, expected {name}(...).init(attnarray.Philox(seed)).")
    if dtype is None or dtype_name(dtype) not in checks.FLOATS:
        raise ValueError(f"`dtype` is {checks.shown(dtype)}, expected one of {', '.join(map(repr, checks.FLOATS))}.")


def check_same(layer: Any, name: str, given: Any, own: Any) -> None:
    """Check that a context comes from a layer with the same configuration."""
    if given != own:
        kind = type(layer).__name__
        raise ValueError(
            f"`ctx` is from another {kind}: its {name} is {given}, expected {own}. Give the context from the forward "
            "pass of the same layer."
        )


def check_gradients(layer: Any, params: Params) -> Params:
    """Return the gradients of the parameters, checked to have their shapes: a context may be from another layer."""
    if not _fit(params, layer._shapes):
        path, given, own = _difference("params", params, layer._shapes)
        check_same(layer, f"`{path}`", given, own)
    return params


def _fit(params: Any, shapes: Any) -> bool:
    if type(shapes) is tuple:
        return bool(getattr(params, "shape", None) == shapes)
    if type(shapes) is list:
        return isinstance(params, list) and len(params) == len(shapes) and all(map(_fit, params, shapes))
    if not isinstance(params, dict) or params.keys() != shapes.keys():
        return False
    return all([_fit(params[name], shape) for name, shape in shapes.items()])  # noqa: C419 - half the time


def _difference(path: str, params: Any, shapes: Any) -> tuple[str, str, str]:
    """The path where both differ first, and the two entries there."""
    if isinstance(params, list) and isinstance(shapes, list) and len(params) == len(shapes):
        n = next(n for n, shape in enumerate(shapes) if not _fit(params[n], shape))
        return _difference(f"{path}.{n}", params[n], shapes[n])
    if isinstance(params, dict) and isinstance(shapes, dict) and params.keys() == shapes.keys():
        name = next(name for name in shapes if not _fit(params[name], shapes[name]))
        return _difference(f"{path}.{name}", params[name], shapes[name])
    return path, _shown(params), f"an array of shape {shapes}" if isinstance(shapes, tuple) else _shown(shapes)


def _shown(node: Any) -> str:
    """A branch or a leaf in an error message."""
    if isinstance(node, dict):
        return f"a dict with {_listed(node)}"
    return f"a list of {len(node)}" if isinstance(node, list) else checks.shown(node)


def check_field(name: str, kind: str, value: Any) -> None:
    """Check a field of a configuration by its name and its annotation."""
    if value is None and kind.endswith(" | None"):
        return
    kind = kind.removesuffix(" | None")
    if kind == "int":
        highest, meaning = 10**6 if name == "num_layers" else 2**31, COUNTS.get(name, "a size of the layer")
        checks.whole(name, value, 0 if name in FROM_ZERO else 1, highest, meaning)
    elif kind == "bool":
        checks.flag(name, value)
    elif kind == "Rotary" and not isinstance(value, Rotary):
        raise TypeError(f"`{name}` is {checks.shown(value)}, expected attnarray.Rotary(...).")
    elif name.endswith("dropout") and not 0 <= checks.real(value) < 1:
        raise ValueError(f"`{name}` is {checks.shown(value)}, expected a probability from 0 to below 1.")
    elif name.endswith("eps"):
        checks.positive(name, value)
    elif name == "init_std":
        checks.not_negative(name, value)


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
