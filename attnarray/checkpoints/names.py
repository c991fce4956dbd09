"""The mapping between tensors of published checkpoints and trees of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from attnarray import tree
from attnarray.backend import to_numpy
from attnarray.checkpoints.config import Config


class Tensor(NamedTuple):
    """A tensor of a checkpoint: the concatenation of the leaves at `paths`, transposed if `transposed`.

    With several `groups`, as many equal parts of each leaf alternate: first parts of all, second parts of all, ... With
    `one_channel` the tensor has an axis of one number more, the second one, as the filters of separate channels have.

    Most are one leaf: ``Tensor("pooler.dense.weight", ("pooler.weight",))``. The joint projection to
    queries, keys and values, stored as (in, out), is ``Tensor("attn.c_attn.weight", ("query.weight", "key.weight",
    "value.weight"), transposed=True)``.
    """

    name: str  # without the prefix
    paths: tuple[str, ...]
    transposed: bool = False
    groups: int = 1
    one_channel: bool = False

    def leaves(self) -> list[tree.Path]:
        """The paths as `tree.get` takes them."""
        return [tuple(int(key) if key.isdigit() else key for key in path.split(".")) for path in self.paths]

    def split(self, whole: np.ndarray, rows: list[int]) -> list[np.ndarray]:
        """Return the leaves, which have so many rows, of the tensor as it is stored."""
        whole = whole.T if self.transposed else whole[:, 0] if self.one_channel else whole
        if len(rows) == 1:
            return [whole]
        grouped = whole.reshape(self.groups, -1, *whole.shape[1:])
        parts = np.split(grouped, np.cumsum(rows)[:-1] // self.groups, axis=1)
        return [part.reshape(-1, *whole.shape[1:]) for part in parts]

    def joined(self, params: Any) -> np.ndarray:
        """Return the tensor as it is stored, from the leaves in `params`."""
        leaves = [to_numpy(tree.get(params, path)) for path in self.leaves()]
        grouped = [leaf.reshape(self.groups, -1, *leaf.shape[1:]) for leaf in leaves]
        whole = np.concatenate(grouped, axis=1).reshape(-1, *leaves[0].shape[1:]) if len(leaves) > 1 else leaves[0]
        return whole.T if self.transposed else whole[:, None] if self.one_channel else whole

    def shape(self, pieces: list[tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the tensor as it is stored, from those of the leaves."""
        rows, others = sum(piece[0] for piece in pieces), pieces[0][1:]
        return (*others, rows) if self.transposed else (rows, 1, *others) if self.one_channel else (rows, *others)


def unchanged(name: str, path: str) -> list[Tensor]:
    """Return the weight and bias of a linear layer or norm that are stored unchanged."""
    return [Tensor(f"{name}.{leaf}", (f"{path}.{leaf}",)) for leaf in ("weight", "bias")]


@dataclass(frozen=True)
class Names:
    """The tensors of one model.

    Parameters
    ----------
    tensors : tuple of Tensor
        All tensors that the model needs.
    prefix : str
        Prefix of the names, such as "bert.". It is optional in files that are read, and always written.
    heads : tuple of str
        Beginnings of names without the prefix, such as "cls.".
    renamed : tuple of (pattern, name)
        Regular expressions of older names, and their replacements.
    copies : dict
        Names of tied tensors that a file may hold again, to the name of the tensor.
    ignored : tuple of str
        Regular expressions of tensors that the model does not need, such as buffers.
    """

    tensors: tuple[Tensor, ...]
    prefix: str = ""
    heads: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    copies: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def plain(self, name: str) -> str:
        """A name in a file, without the prefix and renamed."""
        name = name.removeprefix(self.prefix)
        for pattern, newer in self.renamed:
            name = re.sub(pattern, newer, name)
        return name

    def full(self, name: str) -> str:
        """The name as written to a file."""
        return name if name.startswith(self.heads) else self.prefix + name

    def is_ignored(self, name: str) -> bool:
        """Whether a plain name is to be ignored."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


class Family(NamedTuple):
    """How one family of models is published; a class of models lists its families in `pretrained`.

    `fields` returns the fields of the model for a config.json and the tensor names of the file, and raises
    `Unsupported`; `config` returns the config.json of a model, `names` its tensors.
    """

    model_type: str  # of config.json
    architectures: tuple[str, ...]  # the first one is written
    fields: Callable[[Config, Iterable[str]], dict[str, Any]]
    config: Callable[[Any], Config]
    names: Callable[[Any], Names]
