"""What a config.json says, and the error for what it asks for in vain."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


class Unsupported(ValueError):
    """A config.json asks for what the model here does not do; the message goes on from "The config.json"."""


def required(config: Config, *names: str) -> list[Any]:
    """The entries from which the shape of the model follows."""
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise Unsupported(f"lacks {', '.join(map(repr, missing))}, from which the shape of the model follows")
    return [config[name] for name in names]


def only(config: Config, **supported: Any) -> None:
    """Check that the entries that are there have the one value, or one of a tuple, that is supported."""
    for name, value in supported.items():
        choices = value if isinstance(value, tuple) else (value,)
        if name in config and config[name] not in choices:
            listed = " or ".join(map(repr, choices))
            raise Unsupported(f"asks for {name} = {config[name]!r}, but only {listed} is supported")


def chosen(config: Config, name: str, choices: dict[str, str], default: str) -> str:
    """The entry, by its name here."""
    value = config.get(name, default)
    if value not in choices:
        raise Unsupported(f"asks for {name} = {value!r}, but only {', '.join(map(repr, choices))} are supported")
    return choices[value]


def must_be(model: Any, published: str, **fields: Any) -> None:
    """Check that fields of a model have the one value, or one of a tuple, that such a config.json can say."""
    for name, value in fields.items():
        choices = value if isinstance(value, tuple) else (value,)
        if getattr(model, name) not in choices:
            raise ValueError(
                f"`model` has {name}={getattr(model, name)!r}, which the config.json of a {published} cannot say, only "
                f"{choices[0]!r}. Save its parameters by save_state."
            )
