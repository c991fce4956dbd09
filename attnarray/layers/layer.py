"""What all layers and models share: their parts, and when what they are given is checked."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

from attnarray import checks
from attnarray.backend import Array
from attnarray.layers.checking import Checked, check_field, check_init, check_input, check_rng, checked_params
from attnarray.layers.initial import Params
from attnarray.random import Philox

Shapes: TypeAlias = dict[str, Any]  # a tree like the parameters, with shapes for arrays: its tuples are leaves

# Fields by their names before version 0.1.0.
RENAMED = {
    "vocabulary": "vocab_size",
    "source_vocabulary": "source_vocab_size",
    "target_vocabulary": "target_vocab_size",
    "longest": "max_seq_len",
    "layers": "num_layers",
    "tied": "tie_embeddings",
    "std": "init_std",
}


def _with_checked_init(method: Callable[..., Params]) -> Callable[..., Params]:
    owner = method.__qualname__.partition(".")[0]

    @functools.wraps(method)
    def checked(self: Layer, rng: Philox | None = None, dtype: str = "float32") -> Params:
        check_init(self, owner, rng, dtype)
        return method(self, rng, dtype)

    return checked


class LayerGrads(NamedTuple):
    """The gradients of a layer of one input."""

    x: Array
    params: Params


class Layer:
    """A frozen configuration, whose parameters are those of its parts, by their names.

    What users give is checked where it comes in, once, before anything is computed:

    - the fields, when the layer is made, by their types and names (`check_field`);
    - the arguments of `init`;
    - those of every public method whose first argument is `params`: the parameters, the number of features of the
      inputs in `widths`, and `rng`, which `fwd`, as it is training, needs where something is dropped. A layer calls its
      parts with parameters that are `Checked`, and these check nothing again;
    - the context in each `bwd`.
    """

    # The inputs that have features, and the fields that say how many: the first one that is not None.
    widths: ClassVar[dict[str, tuple[str, ...]]] = {}
    # The least number of axes of such inputs.
    axes: ClassVar[int] = 2

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, method in list(vars(cls).items()):
            if inspect.isfunction(method) and (name == "__call__" or not name.startswith("_")):
                arguments = list(inspect.signature(method).parameters)[1:]
                if name == "init":
                    setattr(cls, name, _with_checked_init(method))
                elif arguments[:1] == ["params"]:
                    setattr(cls, name, _with_checked_call(method, arguments[1:]))

    def __new__(cls, *_: Any, **fields: Any) -> Self:
        for name in RENAMED.keys() & fields.keys():
            raise TypeError(f"{cls.__name__} has no field `{name}`: it is called `{RENAMED[name]}`.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        checks.plain_fields(self)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            check_field(field.name, str(field.type), getattr(self, field.name))

    def parts(self) -> dict[str, Any]:
        """The layers that this one is made of."""
        return {}

    @functools.cached_property
    def _parts(self) -> dict[str, Any]:
        return self.parts()

    @functools.cached_property
    def _shapes(self) -> Shapes:
        return self.shapes()

    @_with_checked_init
    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Fresh parameters of all parts, each from a generator of its own."""
        parts = self._parts
        rngs = rng.split(len(parts))
        return {name: part.init(own, dtype) for (name, part), own in zip(parts.items(), rngs, strict=True)}

    def shapes(self) -> Shapes:
        """The shapes of all parameters, as a tree like them."""
        return {name: part.shapes() for name, part in self._parts.items()}

    @property
    def drops(self) -> bool:
        """Whether there is something to drop or draw in training."""
        return any(getattr(self, name, 0.0) > 0 for name in ("dropout", "attention_dropout", "hidden_dropout"))


def _with_checked_call(method: Callable[..., Any], arguments: list[str]) -> Callable[..., Any]:
    """The method with its checks; `arguments` are the names of those behind the parameters."""
    places, trains = {name: place for place, name in enumerate(arguments)}, method.__name__ == "fwd"

    @functools.wraps(method)
    def checked(self: Layer, params: Params, *args: Any, **options: Any) -> Any:
        if type(params) is Checked:
            return method(self, params, *args, **options)
        params, like = checked_params(params, self, args)
        for name, fields in self.widths.items():
            place = places.get(name)
            given = options.get(name) if place is None or place >= len(args) else args[place]
            if given is not None:
                check_input(self, name, given, fields, like)
            elif place == 0:
                checks.required(**{name: given})
        if hasattr(self, "dropout") and (options.get("rng") is not None or (trains and self.drops)):
            check_rng(self, options.get("rng"))
        return method(self, params, *args, **options)

    return checked
