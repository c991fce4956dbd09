"""The blocks of `GPT`, which may differ, and its final norm."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from attnarray import checks
from attnarray.layers.block import TransformerBlock
from attnarray.models.transformer.encoder import Encoder
from attnarray.models.transformer.stack import shortest
from attnarray.ops.rotary import Rotary


@dataclass(frozen=True)
class Body(Encoder):
    """An `Encoder` of given blocks; its own fields describe what they have in common."""

    each_block: tuple[TransformerBlock, ...] = ()

    @functools.cached_property
    def blocks(self) -> tuple[TransformerBlock, ...]:
        """The configuration of each block."""
        return self.each_block


def check_rotary(model: Any) -> None:
    """Check the field `rotary`: a rotation, one for each layer, or None."""
    if isinstance(model.rotary, list | tuple):
        check_pattern(model, "rotary", (Rotary,), "attnarray.Rotary(...) or None")
    elif model.rotary is not None and not isinstance(model.rotary, Rotary):
        raise TypeError(f"`rotary` is {checks.shown(model.rotary)}, expected attnarray.Rotary(...).")
    if model.rotary is not None and model.positions != "rotary":
        raise ValueError(f'`rotary` is given, but `positions` is {model.positions!r}. Give positions="rotary" too.')


def check_windows(model: Any, meaning: str) -> None:
    """Check the field `windows`: a number or None for each layer."""
    check_pattern(model, "windows", (int,), "a number of keys >= 1 or None")
    for window in model.windows:
        if window is not None:
            checks.whole("windows", window, 1, 2**31, meaning)


def check_pattern(model: Any, name: str, kinds: tuple[type, ...], expected: str) -> None:
    """Check a field with a value for each layer, repeated over the layers; the shortest such tuple takes its place."""
    given = getattr(model, name)
    values = tuple(given) if isinstance(given, list | tuple) else given
    if not isinstance(values, tuple) or not 0 < len(values) <= model.num_layers:
        raise ValueError(
            f"`{name}` is {checks.shown(given)}, expected a tuple of 1 to {model.num_layers}, repeated over the "
            f"{model.num_layers} layers, each {expected}."
        )
    for value in values:
        if value is not None and not isinstance(value, kinds):
            raise TypeError(f"`{name}` holds {checks.shown(value)}, expected {expected}.")
    object.__setattr__(model, name, shortest(values, model.num_layers))
