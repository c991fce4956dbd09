"""The learner's folder and progress: one JSON file, replaced atomically; a broken one is kept aside and reported."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from attnarray.checkpoints.replacing import replacing
from attnarray.console import UsageError
from attnarray.learn.course import NAMES

FOLDER = "attnarray-learn"
FILE = "attnarray-learn.json"
FORMAT = 1


class Record(NamedTuple):
    """What is known about one exercise: gradings, hints shown, and whether the solution was shown before it passed."""

    passed: bool = False
    checks: int = 0
    hints: int = 0
    solution: bool = False


class Progress(NamedTuple):
    """The state of all exercises: `current` is the one started or graded last."""

    records: dict[str, Record]
    current: str | None = None

    def of(self, name: str) -> Record:
        return self.records.get(name, Record())

    def passed(self) -> list[str]:
        return [name for name in NAMES if self.of(name).passed]

    def next(self) -> str | None:
        """The first exercise after the current one, or before it, that has not been passed; None if all have."""
        first = NAMES.index(self.current) + 1 if self.current else 0
        return next((name for name in (*NAMES[first:], *NAMES) if not self.of(name).passed), None)

    def to_do(self) -> str | None:
        """The current exercise, or the next one where it has been passed."""
        return self.current if self.current and not self.of(self.current).passed else self.next()


def folder() -> Path:
    """The learner's folder: this one or one above with the progress in it, or a subfolder of these; else a new one."""
    here = Path.cwd()
    for above in (here, *here.parents):
        for candidate in (above, above / FOLDER):
            if (candidate / FILE).is_file():
                return candidate
    return here / FOLDER


def read(place: Path) -> Progress:
    """The progress in a folder. A broken file is renamed, with a line on standard error, and nothing has been done."""
    path = place / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Progress({})
    except UnicodeDecodeError:
        text = ""
    try:
        return _parse(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        aside = _free_name(path)
        os.replace(path, aside)
        print(
            f"attnarray learn: {path} could not be read ({type(error).__name__}). It is kept as {aside.name}; progress "
            "starts again. Your exercise files are unchanged: attnarray learn check --all grades them again.",
            file=sys.stderr,
        )
        write(place, Progress({}))
        return Progress({})


def _parse(fields: dict[str, Any]) -> Progress:
    if isinstance(fields["format"], int) and fields["format"] > FORMAT:
        raise UsageError(f"attnarray learn: {FILE} was written by a newer attnarray. Upgrade, or use another folder.")
    if fields["format"] != FORMAT:
        raise ValueError("another format")
    records = {}
    for name, record in fields["exercises"].items():
        passed, checks, hints, solution = (record[field] for field in Record._fields)
        if type(passed) is not bool or type(solution) is not bool or type(checks) is not int or type(hints) is not int:
            raise TypeError(name)
        records[name] = Record(passed, checks, hints, solution)
    current = fields["current"]
    return Progress(records, current if current in NAMES else None)


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.broken{'' if n == 1 else n}") for n in range(1, 10**6))
    return next(name for name in names if not name.exists())


def write(place: Path, progress: Progress) -> None:
    """Replace the file: at any moment it is the old one or the new one."""
    place.mkdir(parents=True, exist_ok=True)
    records = {name: record._asdict() for name, record in progress.records.items()}
    text = json.dumps({"format": FORMAT, "current": progress.current, "exercises": records}, indent=1)
    with replacing(place / FILE) as new:
        new.write([text.encode("utf-8")])
        new.commit()


def update(place: Path, name: str, **changes: Any) -> Progress:
    """Change the record of one exercise, which becomes the current one."""
    progress = read(place)
    changed = progress._replace(records={**progress.records, name: progress.of(name)._replace(**changes)}, current=name)
    write(place, changed)
    return changed
