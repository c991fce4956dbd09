"""What the families of encoder-decoders share: names of tensors from paths, and the reading of common entries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from attnarray.checkpoints.config import Config, Unsupported, size
from attnarray.checkpoints.names import Names, Tensor


def names(
    model: Any, ends: Mapping[str, str], block: Mapping[str, str], *, copies: Mapping[str, str],
    ignored: tuple[str, ...] = (), prefix: str = "", heads: tuple[str, ...] = (),
) -> Names:  # fmt: skip
    """Return the tensors of a model.

    `ends` maps paths of modules and single parameters to their names, `block` those below "encoder.blocks.{n}." and
    "decoder.blocks.{n}." to templates with {side} and {n}.
    """
    tensors = tuple(Tensor(_name(path, ends, block), (path,)) for path in paths(model.shapes()))
    return Names(tensors, prefix, heads, (), dict(copies), ignored)


def same(config: Config, *entries: str) -> int:
    """Return a size that the encoder and the decoder must share, by both entries."""
    first, second = (size(config, entry) for entry in entries)
    if first != second:
        raise Unsupported(f"asks for {entries[0]} = {first} and {entries[1]} = {second}, but only equal ones are read")
    return first


def paths(shapes: Any, path: str = "") -> Iterator[str]:
    """The paths of all leaves."""
    if isinstance(shapes, tuple):
        yield path
        return
    for key, inner in shapes.items() if isinstance(shapes, dict) else enumerate(shapes):
        yield from paths(inner, f"{path}.{key}" if path else str(key))


def _name(path: str, ends: Mapping[str, str], block: Mapping[str, str]) -> str:
    module, _, leaf = path.rpartition(".")
    if found := re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)", module):
        key = found[3] if found[3] in block else f"{found[1]}.{found[3]}"
        template = block.get(key)
    else:
        template = ends.get(path) or ends.get(module)
    if template is None:
        raise ValueError(f"has a parameter {path}")
    if found:
        return f"{template.format(side=found[1], n=found[2])}.{leaf}"
    return template if path in ends else f"{template}.{leaf}"
