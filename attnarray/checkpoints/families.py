"""The choice of a family of published models: by a config.json when reading, by the fields of a model when saving."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from typing import Any

from attnarray import checks
from attnarray.checkpoints.config import Config, Unsupported
from attnarray.checkpoints.names import Family

TRAINING = ("recompute",)  # fields that no config.json has, as they do not change results


def choose(config: Config, kinds: Sequence[Any]) -> tuple[Any, Family]:
    """Return the class and the family of a config.json, by its model_type and architectures.

    One with neither is of the first family of the class, if there is only one class.
    """
    families = [(kind, family) for kind in kinds for family in kind.pretrained]
    reader = kinds[0].__name__ if len(kinds) == 1 else "attnarray"
    model_type, given = config.get("model_type"), config.get("architectures")
    names = [] if given is None else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Unsupported(f"has architectures = {checks.shown(given)}, expected a list of names")
    known = list(dict.fromkeys(family.model_type for _, family in families))
    if model_type is not None and model_type not in known:
        raise Unsupported(
            f"has model_type = {checks.shown(model_type)}, but {reader} reads {_listed(model_type, known)}"
        )
    families = [pair for pair in families if model_type in (None, pair[1].model_type)]
    for name in names:
        fitting = [pair for pair in families if name in pair[1].architectures]
        if not fitting:
            known = list(dict.fromkeys(name for _, family in families for name in family.architectures))
            raise Unsupported(f"has the architecture {name!r}, but {reader} reads {_listed(name, known)}")
        families = fitting
    if model_type is None and not names and len(kinds) > 1:
        raise Unsupported(f"has neither a model_type nor architectures, but {reader} reads {_listed('', known)}")
    return families[0]


def expressed(model: Any, model_type: str | None) -> tuple[Family, Config]:
    """Return the family of `model_type`, or the first one whose config.json can express the model, and that config.

    Raises
    ------
    ValueError
        With a field of the model that it cannot express: of the family that expresses most fields, if none can.
    """
    families = {family.model_type: family for family in model.pretrained}
    if model_type is not None:
        checks.choice("model_type", model_type, tuple(families))
        families = {model_type: families[model_type]}
    reasons: list[tuple[int, str]] = []
    for name, family in families.items():
        config = json.loads(json.dumps(family.config(model), default=lambda number: number.item()))  # NumPy's too
        try:
            read = type(model)(**family.fields(config, [tensor.name for tensor in family.names(model).tensors]))
        except ValueError as error:
            reasons.append((len(dataclasses.fields(model)), f"has options that {name} does not have: it {error}"))
            continue
        differing = _differing(model, read)
        if not differing:
            return family, config
        first = differing[0]
        reasons.append((
            len(differing),
            f"has {first}={getattr(model, first)!r}, which the config.json of {name} cannot express, only "
            f"{getattr(read, first)!r}",
        ))  # fmt: skip
    reason = min(reasons, key=lambda found: found[0])[1]
    raise ValueError(f"`model` {reason}. Save its parameters with save_state.")


def _differing(model: Any, read: Any) -> list[str]:
    """The fields of a model that differ from those that were read; None is a default, which shows in the shapes."""
    names = [field.name for field in dataclasses.fields(model) if field.name not in TRAINING]
    given = [name for name in names if getattr(model, name) is not None]
    differing = [name for name in given if getattr(model, name) != getattr(read, name)]
    if not differing and read.shapes() != model.shapes():
        return [name for name in names if getattr(model, name) != getattr(read, name)]
    return differing


def _listed(name: Any, known: list[str]) -> str:
    """The known names, and the nearest to this one."""
    near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return ", ".join(map(repr, known)) + (f"; the nearest is {near[0]!r}" if near else "")
