"""Validation of the entries of a config.json, and errors for unsupported ones.

Errors of `checks` name an entry like an argument; the reader of the file adds its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attnarray import checks
from attnarray.magnitude import check_number

Config = dict[str, Any]

# Name in transformers -> name here; of synonyms the first is written.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
    "swish": "silu", "gelu_python": "gelu", "gelu_fast": "gelu_tanh",
}  # fmt: skip
PUBLISHED = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


class Unsupported(ValueError):
    """A config.json has an option that is not supported; the message continues "`path/config.json`"."""


def sizes(config: Config, fields: Mapping[str, str], names: Iterable[str]) -> dict[str, int]:
    """Return the sizes of the model, all of which must be given; `fields` maps fields to entries."""
    missing = [theirs for theirs in fields.values() if config.get(theirs) is None]
    if missing:
        raise Unsupported(f"lacks {', '.join(map(repr, missing))}, which determine the shapes of the model")
    found = {ours: size(config, theirs) for ours, theirs in fields.items()}
    tensors = sum(1 for _ in names)
    if found["num_layers"] > tensors:  # before they are allocated
        raise Unsupported(
            f"asks for {fields['num_layers']} = {found['num_layers']}, but the weights are {tensors} tensors"
        )
    return found


def size(config: Config, name: str) -> int:
    return checks.whole(name, config[name], 1, 2**31 - 1, "a size of the model")


def given(config: Config, name: str, default: Any) -> Any:
    """Return the entry, or a default if it is absent or null."""
    value = config.get(name)
    return default if value is None else value


def probability(config: Config, name: str, default: float) -> float:
    return checks.probability(name, given(config, name, default))


def positive(config: Config, name: str, default: float) -> float:
    """Return the entry, checked to be positive and in the range of float32."""
    return check_number(name, checks.positive(name, given(config, name, default)), "float32")


def init_std(config: Config) -> float:
    """Return the standard deviation of the initial weights."""
    return checks.not_negative("initializer_range", given(config, "initializer_range", 0.02))


def only(config: Config, **supported: Any) -> None:
    """Check that entries, if present, have the supported value, or one of a tuple of them."""
    for name, value in supported.items():
        choices = value if isinstance(value, tuple) else (value,)
        if name in config and config[name] not in choices:
            listed = " or ".join(map(repr, choices))
            raise Unsupported(f"asks for {name} = {checks.shown(config[name])}, but only {listed} is supported")


def chosen(config: Config, name: str, choices: Mapping[str, str], default: str) -> str:
    """Return the entry by its name here."""
    value = config.get(name, default)
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise Unsupported(f"asks for {name} = {checks.shown(value)}, but only {listed} are supported")
    return choices[value]
