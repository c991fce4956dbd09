"""What the tensors of a published checkpoint are called, and where in a tree of parameters they belong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from attnarray import tree
from attnarray.checkpoints.config import Config


class Tensor(NamedTuple):
    """A tensor of a checkpoint: the leaves at `paths` one below the other, all of it transposed where it says so.

    Most are one leaf as it is: ``Tensor("pooler.dense.weight", ("pooler.weight",))``. The map to queries, keys and
    values in one, stored as (in, out), is ``Tensor("attn.c_attn.weight", ("query.weight", "key.weight",
    "value.weight"), transposed=True)``.
    """

    name: str  # without the prefix
    paths: tuple[str, ...]
    transposed: bool = False

    def leaves(self) -> list[tree.Path]:
        """The paths as `tree.get` takes them."""
        return [tuple(int(key) if key.isdigit() else key for key in path.split(".")) for path in self.paths]


def as_it_is(name: str, path: str) -> list[Tensor]:
    """The weight and the bias of a linear map or a norm that are stored as they are."""
    return [Tensor(f"{name}.{leaf}", (f"{path}.{leaf}",)) for leaf in ("weight", "bias")]


@dataclass(frozen=True)
class Names:
    """The tensors of one model.

    Parameters
    ----------
    tensors : tuple of Tensor
        All that the model needs.
    prefix : str
        What stands before the names, such as "bert.". Files with it and without it are read; it is written.
    heads : tuple of str
        Beginnings of names that have no prefix, such as "cls.".
    renamed : tuple of (pattern, name)
        Regular expressions of older names, and what is put in their place.
    copies : dict
        Tensors that a file may hold once more under another name, because they are tied: that name to the tensor's own.
    ignored : tuple of str
        Regular expressions of names with nothing in them that the model needs, such as buffers.
    """

    tensors: tuple[Tensor, ...]
    prefix: str = ""
    heads: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    copies: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def plain(self, name: str) -> str:
        """A name in a file without the prefix, and by its newer name."""
        name = name.removeprefix(self.prefix)
        for pattern, newer in self.renamed:
            name = re.sub(pattern, newer, name)
        return name

    def full(self, name: str) -> str:
        """The name that is written to a file."""
        return name if name.startswith(self.heads) else self.prefix + name

    def is_ignored(self, name: str) -> bool:
        """Whether a plain name is one of those with nothing in them."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


class Pretrained(NamedTuple):
    """How models of one kind are published.

    `fields` gives the fields of the model for a config.json and the names in the file, and raises `Unsupported` for
    what the model cannot be; `config` gives the config.json of a model, `names` its tensors.
    """

    fields: Callable[[Config, Iterable[str]], dict[str, Any]]
    config: Callable[[Any], Config]
    names: Callable[[Any], Names]
