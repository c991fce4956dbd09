"""The base class of layers and models: their parts, and the validation of their arguments."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeAlias

from attnarray import checks
from attnarray.backend import ArrayT
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
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
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


class LayerGrads(NamedTuple, Generic[ArrayT]):
    """The gradients of a layer with one input."""

    x: ArrayT
    params: Params


class Layer:
    """A frozen configuration, whose parameters are those of its parts, by name.

    Arguments of users are validated once, before anything is computed:

    - the fields, in the constructor, by their types and names (`check_field`);
    - the arguments of `init`;
    - those of every public method whose first argument is `params`: the parameters, the features of the inputs in
      `widths`, and `rng`, which `fwd` (training) requires for dropout. A layer calls its parts with `Checked`
      parameters, which are not validated again;
    - the context in each `bwd`.
    """

    # Inputs with features, and the fields with their number: the first one that is not None.
    widths: ClassVar[dict[str, tuple[str, ...]]] = {}
    # The smallest number of axes of such inputs.
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
        """The layers of which this one consists, by name."""
        return {}

    @functools.cached_property
    def _parts(self) -> dict[str, Any]:
        return self.parts()

    @functools.cached_property
    def _shapes(self) -> Shapes:
        return self.shapes()

    @_with_checked_init
    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Return initial parameters of all parts, each from its own generator."""
        parts = self._parts
        rngs = rng.split(len(parts))
        return {name: part.init(own, dtype) for (name, part), own in zip(parts.items(), rngs, strict=True)}

    def shapes(self) -> Shapes:
        """Return the shapes of all parameters, as a tree like them."""
        return {name: part.shapes() for name, part in self._parts.items()}

    def summary(self, dtype: str = "float32") -> str:
        """Return a table of the parameters: names, shapes and bytes, those of a list of equal parts once.

        Examples
        --------
        >>> import attnarray as aa
        >>> print(aa.layers.FeedForward(4, 6, bias=False).summary())
        FeedForward               shape   bytes
        hidden.weight             (6, 4)     96
        out.weight                (4, 6)     96
        48 parameters, 192 bytes in float32
        """
        checks.choice("dtype", dtype, checks.FLOATS)
        size = {"float64": 8, "float32": 4}.get(dtype, 2)
        rows = list(_rows(self.shapes(), ""))
        lines = [(name, str(shape), f"{count * math.prod(shape) * size:,}") for name, shape, count in rows]
        widths = [max(len(line[n]) for line in (("", "shape", "bytes"), *lines)) for n in range(3)]
        first = max(widths[0], len(type(self).__name__), 24)
        table = [(type(self).__name__, "shape", "bytes"), *lines]
        text = [f"{name:<{first}}  {shape:<{widths[1]}}  {number:>{widths[2]}}" for name, shape, number in table]
        total = sum(count * math.prod(shape) for _, shape, count in rows)
        return "\n".join([*text, f"{total:,} parameters, {total * size:,} bytes in {dtype}"])

    @property
    def drops(self) -> bool:
        """Whether training needs an `rng`: for dropout or sampling."""
        return any(getattr(self, name, 0.0) > 0 for name in ("dropout", "attention_dropout", "hidden_dropout"))


def _rows(shapes: Any, path: str) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """The names, shapes and numbers of all leaves; equal neighbors in a list are one, "blocks.0-11"."""
    if isinstance(shapes, tuple):
        yield path, shapes, 1
    elif isinstance(shapes, dict):
        for name, part in shapes.items():
            yield from _rows(part, f"{path}.{name}" if path else name)
    else:
        first = 0
        for past in range(1, len(shapes) + 1):
            if past == len(shapes) or shapes[past] != shapes[first]:
                name = f"{first}" if past == first + 1 else f"{first}-{past - 1}"
                for below, shape, count in _rows(shapes[first], f"{path}.{name}" if path else name):
                    yield below, shape, count * (past - first)
                first = past


def _with_checked_call(method: Callable[..., Any], arguments: list[str]) -> Callable[..., Any]:
    """The method with validation; `arguments` are the names of those after the parameters."""
    order, trains = {name: n for n, name in enumerate(arguments)}, method.__name__ == "fwd"

    @functools.wraps(method)
    def checked(self: Layer, params: Params, *args: Any, **options: Any) -> Any:
        if type(params) is Checked:
            return method(self, params, *args, **options)
        params, like = checked_params(params, self, args)
        for name, fields in self.widths.items():
            n = order.get(name)
            given = options.get(name) if n is None or n >= len(args) else args[n]
            if given is not None:
                check_input(self, name, given, fields, like)
            elif n == 0:
                checks.required(**{name: given})
        if hasattr(self, "dropout") and (options.get("rng") is not None or (trains and self.drops)):
            check_rng(self, options.get("rng"))
        return method(self, params, *args, **options)

    return checked
