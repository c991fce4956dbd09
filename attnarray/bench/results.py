"""The results of a run, as values and as a JSON file with a versioned schema."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from attnarray.bench.statistics import Ratio, Spread
from attnarray.checkpoints.replacing import replacing
from attnarray.console import UsageError

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One peer on one case. `problem` says why there are no figures, and is empty when there are.

    `samples` are seconds per call, one per round and each over `repeats` calls; `first_call` is the very first call,
    compilation included; `error` is the largest difference from float64, relative to the largest entry.
    """

    case: str
    group: str
    text: str
    function: str
    direction: str
    dtype: str
    size: int
    peer: str
    problem: str = ""
    kernels: str = ""
    samples: tuple[float, ...] = ()
    repeats: int = 0
    first_call: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    time: Spread | None = None
    ratio: Ratio | None = None
    roofline: float | None = None
    flops: float = 0.0
    bytes: float = 0.0
    exps: float = 0.0


@dataclass
class Results:
    """A run: its rows, environment and ceilings. `crossover` names the case whose sizes were varied."""

    environment: dict[str, Any]
    ceilings: dict[str, Any]
    baseline: str
    rows: list[Row] = field(default_factory=list)
    crossover: str = ""
    complete: bool = False

    def cases(self) -> dict[str, list[Row]]:
        """The rows by case, in the order in which they were measured."""
        by_case: dict[str, list[Row]] = {}
        for row in self.rows:
            by_case.setdefault(row.case, []).append(row)
        return by_case

    def peers(self) -> list[str]:
        return list(dict.fromkeys(row.peer for row in self.rows))


def save(results: Results, path: str | os.PathLike[str]) -> None:
    """Write the JSON file atomically: a file of this name is always complete."""
    write_whole(path, json.dumps({"schema": SCHEMA, **asdict(results)}, indent=1, allow_nan=False) + "\n")


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically, replacing an earlier one."""
    with replacing(Path(path)) as new:
        new.write([text.encode()])
        new.commit()


def load(path: str | os.PathLike[str]) -> Results:
    """Read a file that `save` wrote.

    Raises
    ------
    UsageError
        If there is no such file, it is not one of ours, or its schema is another.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"attnarray bench: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"attnarray bench: {path} is not JSON ({error}); expected what --json wrote") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        given = "no schema" if schema is None else f"schema {schema}"
        raise UsageError(
            f"attnarray bench: {path} has {given}, but this version reads schema {SCHEMA}; "
            "read it with the version that wrote it, or measure again"
        )
    try:
        return _restored(found)
    except (KeyError, TypeError) as error:
        raise UsageError(f"attnarray bench: {path} says schema {SCHEMA} but does not follow it ({error})") from error


def _restored(found: Mapping[str, Any]) -> Results:
    rest = {item.name: found[item.name] for item in fields(Results) if item.name != "rows"}
    return Results(**rest, rows=[_row(row) for row in found["rows"]])


def _row(found: dict[str, Any]) -> Row:
    time, ratio = found["time"], found["ratio"]
    return Row(
        **{
            **found,
            "samples": tuple(found["samples"]),
            "time": None if time is None else Spread(*time),
            "ratio": None if ratio is None else Ratio(*ratio),
        }
    )
