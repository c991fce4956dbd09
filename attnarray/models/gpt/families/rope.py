"""The rotation of queries and keys in a config.json, from and to `Rotary`."""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.checkpoints.config import Config, Unsupported, size
from attnarray.ops.rotary import Rotary
from attnarray.ops.rotary_scaling import DynamicNTK, Llama3RoPE, LongRoPE, YaRN

ENTRIES = ("rope_scaling", "rope_parameters")
# Option here -> entry there, of each rope_type.
LLAMA3 = {
    "factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}  # fmt: skip
YARN = {
    "factor": "factor", "original_max_seq_len": "original_max_position_embeddings", "beta_fast": "beta_fast",
    "beta_slow": "beta_slow", "attention_factor": "attention_factor", "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim", "truncate": "truncate",
}  # fmt: skip
LONG = {
    "short_factor": "short_factor", "long_factor": "long_factor", "factor": "factor",
    "original_max_seq_len": "original_max_position_embeddings", "attention_factor": "attention_factor",
}  # fmt: skip
DYNAMIC = {"factor": "factor"}  # its max_seq_len is that of the model
SCALINGS: dict[str, tuple[Any, dict[str, str]]] = {
    "default": (None, {}), "linear": (None, {"factor": "factor"}), "llama3": (Llama3RoPE, LLAMA3), "yarn": (YaRN, YARN),
    "dynamic": (DynamicNTK, DYNAMIC), "longrope": (LongRoPE, LONG),
}  # fmt: skip
NAMES = {"rope_theta", "rope_type", "partial_rotary_factor"}


def read_rotary(config: Config, width: int, *, base: float = 10_000.0, partial: float = 1.0) -> Rotary:
    """Return the rotation of heads of `width` features; `base` and `partial` are the defaults of the family.

    Newer files have rope_parameters; rope_scaling of older ones takes precedence.
    """
    entries = [_options(name, config[name]) for name in ENTRIES if config.get(name) is not None]
    bases = [found for options in (*entries, config) if (found := options.get("rope_theta")) is not None]
    if any(found != bases[0] for found in bases):
        raise Unsupported(f"says rope_theta twice, {bases[0]!r} and {bases[-1]!r}: it must be the same")
    base = checks.positive("rope_theta", bases[0] if bases else base)
    options: Config = next((options for options in entries if options.keys() - {"rope_theta"}), {})
    parts = [found for options in (*entries, config) if (found := options.get("partial_rotary_factor")) is not None]
    dims = int(width * checks.positive("partial_rotary_factor", parts[0] if parts else partial))
    if dims % 2 or dims > width or not dims:
        raise Unsupported(
            f"asks for heads of {dims} features of {width} to be rotated, but rotary positions are of an even number"
        )
    rotated = None if dims == width else dims
    kind = options.get("rope_type") or "default"
    scaling, fields = SCALINGS[kind]
    if kind == "linear":
        factor: Any = options.get("factor")
        return Rotary(rotated, base, scaling="linear", factor=checks.positive("factor", factor))
    if scaling is None:
        return Rotary(rotated, base)
    given = {ours: options[theirs] for ours, theirs in fields.items() if options.get(theirs) is not None}
    given = {ours: tuple(value) if isinstance(value, list) else value for ours, value in given.items()}
    longest = size(config, "max_position_embeddings")
    if scaling is DynamicNTK:
        given["max_seq_len"] = longest
    elif "original_max_seq_len" not in given:
        older = "original_max_position_embeddings"  # of Phi-3, beside the rotation
        given["original_max_seq_len"] = longest if config.get(older) is None else size(config, older)
    if scaling is LongRoPE:
        given.setdefault("factor", longest / given["original_max_seq_len"])
    missing = [fields[ours] for ours in scaling._fields if ours not in {**given, **scaling._field_defaults}]
    if missing:
        raise Unsupported(f"lacks {missing[0]!r}, an option of rope_type = {kind!r}")
    return Rotary(rotated, base, scaling=scaling(**given))


def write_rotary(rotary: Rotary | None, width: int) -> Config:
    """Return the entries of a rotation."""
    rotary = rotary or Rotary()
    kind = "linear" if rotary.scaling == "linear" else "default"
    options: Config = {"factor": rotary.factor} if kind == "linear" else {}
    for name, (scaling, fields) in SCALINGS.items():
        if scaling is not None and isinstance(rotary.scaling, scaling):
            kind = name
            found = {theirs: getattr(rotary.scaling, ours) for ours, theirs in fields.items()}
            options = {theirs: value for theirs, value in found.items() if value is not None}
    part = {} if rotary.dims is None else {"partial_rotary_factor": rotary.dims / width}
    entries: Config = {"rope_parameters": {"rope_type": kind, **options, "rope_theta": rotary.base, **part}, **part}
    older = {"type": kind, "rope_type": kind, **options} if kind != "default" else None
    return {**entries, "rope_theta": rotary.base, "rope_scaling": older}  # for readers without rope_parameters


def _options(name: str, entry: Any) -> Config:
    """The options of one entry, each of them supported."""
    if not isinstance(entry, dict):
        raise Unsupported(f"has {name} = {checks.shown(entry)}, expected an object with a rope_type")
    options = {option: value for option, value in entry.items() if value is not None}
    older = options.pop("type", None)
    kind = options.setdefault("rope_type", older) if older is not None else options.get("rope_type")
    if kind is None and options.keys() - NAMES:
        raise Unsupported(f"has {name} = {checks.shown(entry)}, expected a rope_type in it")
    if kind is not None and (not isinstance(kind, str) or kind not in SCALINGS):
        listed = ", ".join(map(repr, SCALINGS))
        raise Unsupported(f"asks for rope_type = {checks.shown(kind)}, but only {listed} are supported")
    if older not in (None, kind):
        raise Unsupported(f"says in {name} that rope_type is {kind!r} and type is {checks.shown(older)}")
    others = options.keys() - {*NAMES, *SCALINGS[kind or "default"][1].values()}
    if others:
        raise Unsupported(f"has {min(others)} in {name}, which is none of the options of rope_type = {kind!r}")
    return options
