"""What `attnarray learn` does, and prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attnarray
from attnarray.console import FAINT, GOOD, UsageError, print_line, print_table, width
from attnarray.console import progress as progress_bar
from attnarray.learn.course import LECTURES, NAMES, lecture_number, load
from attnarray.learn.exercise import Exercise, checked_name
from attnarray.learn.process import SECONDS, grade_file
from attnarray.learn.progress import Progress, folder, read, update
from attnarray.learn.report import FORMAT, Report
from attnarray.tables import Cell, Line, paragraphs

Row = list[str | Cell]
POLL = 0.3  # seconds between two looks at the files


def run(kind: str, options: argparse.Namespace) -> int:
    """Run one command; the exit code."""
    if kind == "NAME":
        return _show(checked_name(options.command, NAMES), options)
    if kind == "check":
        return _check(options)
    if kind in ("list", "watch"):
        if options.names:
            raise UsageError(f"attnarray learn {kind}: unexpected argument {options.names[0]!r}.")
        return _list(options.json) if kind == "list" else _watch(options.time_limit or SECONDS)
    if len(options.names) > 1:
        raise UsageError(f"attnarray learn {kind}: expected one exercise, {len(options.names)} were given.")
    name = checked_name(options.names[0], NAMES) if options.names else read(folder()).to_do()
    if name is None:
        print_line("All exercises are done. Give the name of one to see it again.")
        return 0
    return {"start": _start, "hint": _hint, "solution": _solution}[kind](name, options)


def _list(as_json: bool) -> int:
    progress = read(folder())
    if as_json:
        print(json.dumps({"format": FORMAT, "exercises": list(_listed(progress))}, indent=1))
        return 0
    done, following = progress.passed(), progress.to_do()
    print_line(
        [Cell("Write the backward of attention, step by step. "), Cell(f"{len(done)} of {len(NAMES)} done", "bold")]
    )
    for n, (title, names) in enumerate(LECTURES.items(), 1):
        rows = [_row(name, progress, following) for name in names]
        print_table(f"Lecture {n}: {title}", ["", "", "", ""], rows, spare=[3])
    print_line("")
    if following is None:
        print_line("All exercises are done.")
    elif (folder() / f"{following}.py").exists():
        print_line(f"Next: edit {_shown(folder() / f'{following}.py')}, then  attnarray learn check")
    else:
        print_line(f"Next:  attnarray learn start{'' if following == progress.next() else f' {following}'}")
    return 0


def _listed(progress: Progress) -> Iterator[dict[str, Any]]:
    for name in NAMES:
        exercise = load(name)
        yield {
            "name": name,
            "lecture": lecture_number(name),
            "title": exercise.title,
            "kind": exercise.kind,
            **progress.of(name)._asdict(),
        }


def _row(name: str, progress: Progress, following: str | None) -> Row:
    """The columns are as wide in each table: names and marks are padded."""
    exercise = load(name)
    padded = name.ljust(max(map(len, NAMES)))
    return [_mark(name, progress, following), padded, Cell(exercise.kind.ljust(8), FAINT), Cell(exercise.title, FAINT)]


def _mark(name: str, progress: Progress, following: str | None) -> Cell:
    if progress.of(name).passed:
        return Cell("done", FAINT if progress.of(name).solution else GOOD)
    return Cell("next" if name == following else "    ", "bold")


def _shown(path: Path) -> str:
    """The path from here, if it is below."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _print_text(text: str) -> None:
    """Formulas as they are; everything else wrapped."""
    for paragraph in text.split("\n\n"):
        lines = (
            paragraph.splitlines()
            if paragraph.startswith("    ")
            else paragraphs(paragraph.replace("\n", " "), width())
        )
        for line in [*lines, ""]:
            print_line([Cell(line)])


def _show(name: str, options: argparse.Namespace) -> int:
    if options.solution:
        return _solution(name, options)
    exercise = load(name)
    print_line([Cell(f"{name}, exercise {NAMES.index(name) + 1} of {len(NAMES)}", "bold")])
    print_line("")
    _print_text(exercise.text())
    print_line([Cell(exercise.signature().rstrip())])
    print_line("")
    print_line(f"Write its file:  attnarray learn start {name}")
    return 0


def _start(name: str, options: argparse.Namespace) -> int:
    exercise, place = load(name), folder()
    path = place / f"{name}.py"
    if path.exists() and options.reset:
        kept = next(kept for n in range(1, 10**6) if not (kept := path.with_name(f"{path.name}.{n}")).exists())
        os.replace(path, kept)
        print_line(f"Your file is kept as {_shown(kept)}.")
    new = _write_file(exercise, path)
    update(place, name)
    print_line([Cell(f"{name}, exercise {NAMES.index(name) + 1} of {len(NAMES)}", "bold")])
    print_line("")
    _print_text(exercise.text())
    there = "" if new else " It was there already, and is unchanged (--reset begins again)."
    print_line([Cell("Edit   "), Cell(_shown(path), "bold"), Cell(there)])
    print_line("Then   attnarray learn check")
    return 0


def _write_file(exercise: Exercise, path: Path) -> bool:
    """Write the starting file, unless there is a file of that name; whether it was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(exercise.starting_file())
    except FileExistsError:
        return False
    return True


def _hint(name: str, _: argparse.Namespace) -> int:
    exercise, place = load(name), folder()
    seen = min(read(place).of(name).hints + 1, len(exercise.hints))
    update(place, name, hints=seen)
    for n, hint in enumerate(exercise.hints[:seen], 1):
        print_line([Cell(f"Hint {n} of {len(exercise.hints)} for {name}", "bold")])
        print_line(hint)
    left = len(exercise.hints) - seen
    print_line("")
    print_line(
        "One hint more:  attnarray learn hint"
        if left
        else f"That was the last one. The solution:  attnarray learn solution {name}"
    )
    return 0


def _solution(name: str, options: argparse.Namespace) -> int:
    place = folder()
    record = read(place).of(name)
    if not record.passed and not options.yes and not _agreed(name, record.hints):
        return 0
    if not record.passed and (place / f"{name}.py").exists():
        update(place, name, solution=True)
    print_line([Cell(load(name).solution_file().rstrip())])
    return 0


def _agreed(name: str, hints: int) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("attnarray learn: it asks before it shows a solution, and nobody can answer here. Give --yes.")
    left = f" {3 - hints} of 3 hints are left." if hints < 3 else ""
    print(f"Show the solution of {name}?{left} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _check(options: argparse.Namespace) -> int:
    targets = _targets(options)
    seconds, seed = options.time_limit or SECONDS, options.seed or 0
    reports = []
    with contextlib.ExitStack() as stack:
        many = len(targets) > 1
        bar = stack.enter_context(progress_bar("grading", len(targets))) if many else None
        for name, path in targets:
            report = grade_file(name, path, seconds, seed)
            reports.append(report)
            _record(report, path)
            if bar is not None:
                bar.advance(name)
    if options.json:
        print(json.dumps(_as_json(reports), indent=1))
    elif len(reports) == 1:
        _print_report(reports[0], targets[0][1])
    else:
        _print_summary(reports)
    return 0 if all(reports) else 1


def _targets(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """The exercises to grade, and their files."""
    place = folder()
    if options.all:
        found = [(name, place / f"{name}.py") for name in NAMES if (place / f"{name}.py").exists()]
        if options.names or options.exercise or not found:
            given = f"{_shown(place)} has no exercise file" if not found else "give either --all or names"
            raise UsageError(f"attnarray learn check --all: {given}.")
        return found
    if options.exercise is not None and len(options.names) != 1:
        raise UsageError(
            "attnarray learn check: --exercise NAME needs one file, as in: check homework.py --exercise NAME."
        )
    if not options.names:
        name = read(place).to_do()
        if name is None:
            raise UsageError("attnarray learn check: all exercises are done. Give the name of one to grade it again.")
        return [(name, _existing(name, place / f"{name}.py"))]
    return [_target(given, options.exercise, place) for given in options.names]


def _target(given: str, exercise: str | None, place: Path) -> tuple[str, Path]:
    path = Path(given)
    if path.suffix == ".py" or os.sep in given:
        name = checked_name(exercise or given, NAMES)
        return name, _existing(name, path)
    if exercise is not None:
        raise UsageError(f"attnarray learn check: --exercise {exercise} needs a file, not {given!r}.")
    name = checked_name(given, NAMES)
    return name, _existing(name, place / f"{name}.py")


def _existing(name: str, path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"attnarray learn: {_shown(path)} is not there. Write it by:  attnarray learn start {name}")
    return path


def _record(report: Report, path: Path) -> None:
    """Keep the result, if the file is one of the learner's folder."""
    place = folder()
    if not _is_own(report.exercise, path):
        return
    record = read(place).of(report.exercise)
    update(place, report.exercise, passed=record.passed or report.passed, checks=record.checks + 1)


def _is_own(name: str, path: Path) -> bool:
    """Whether a file is that of an exercise in the learner's folder."""
    return path.resolve() == (folder() / f"{name}.py").resolve()


def _as_json(reports: Sequence[Report]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "attnarray": attnarray.__version__,
        "passed": all(reports),
        "score": sum(report.score for report in reports) / len(reports),
        "exercises": [report.as_json() for report in reports],
    }


def _print_report(report: Report, path: Path) -> None:
    for line in report.lines():
        _print_wrapped(line)
    if not _is_own(report.exercise, path):
        return
    print_line("")
    if report.passed:
        progress = read(folder())
        following = progress.next()
        then = f"Next:  attnarray learn start {following}" if following else "That was all of them!"
        print_line(f"{len(progress.passed())} of {len(NAMES)} done. {then}")
    else:
        print_line([Cell(f"Edit {_shown(path)}, then  attnarray learn check", FAINT)])
        print_line([Cell("A hint:  attnarray learn hint", FAINT)])


def _print_wrapped(line: Line) -> None:
    text = "".join(cell.text for cell in line)
    if len(text) <= width():
        print_line(line)
        return
    indent = " " * (len(text) - len(text.lstrip()))
    for part in paragraphs(text.strip(), max(width() - len(indent), 20)):
        print_line([Cell(indent + part, line[0].style)])


def _print_summary(reports: Sequence[Report]) -> None:
    rows: list[Row] = [
        [report.exercise, Cell(report.status, GOOD if report else "bold red"), _summary(report)] for report in reports
    ]
    print_table(f"{sum(map(bool, reports))} of {len(reports)} passed", ["", "", ""], rows)


def _summary(report: Report) -> str:
    wrong = ", ".join(result.name for result in report.results if not result.ok)
    return wrong or report.says


def _watch(seconds: float) -> int:
    """Grade each exercise file of the folder when it is saved, until Ctrl-C."""
    place = folder()
    if not place.is_dir():
        raise UsageError("attnarray learn watch: there is no exercise yet. Write the first by:  attnarray learn start")
    print_line(f"Watching {_shown(place)}: save a file to grade it. Ctrl-C ends.")
    seen = _saved(place)
    try:
        while True:
            _pause()
            now = _saved(place)
            for name in [name for name, saved in now.items() if seen.get(name) != saved]:
                written = _grade_saved(name, place, seconds)
                now |= {next_name: _saved(place)[next_name] for next_name in written}
            seen = now
    except KeyboardInterrupt:
        print_line("")
        return 0


def _pause() -> None:
    time.sleep(POLL)


def _saved(place: Path) -> dict[str, tuple[int, int]]:
    """When each exercise file was saved, and its size."""
    found = {}
    for name in NAMES:
        with contextlib.suppress(OSError):
            status = (place / f"{name}.py").stat()
            found[name] = (status.st_mtime_ns, status.st_size)
    return found


def _grade_saved(name: str, place: Path, seconds: float) -> list[str]:
    """Grade one file; when it passes, the file of the next exercise is written, whose name is returned."""
    path = place / f"{name}.py"
    print_line("")
    print_line([Cell(f"{path.name} was saved", FAINT)])
    report = grade_file(name, path, seconds)
    _record(report, path)
    _print_report(report, path)
    following = read(place).next()
    if report.passed and following is not None and _write_file(load(following), place / f"{following}.py"):
        print_line([Cell("Its file is written: "), Cell(_shown(place / f"{following}.py"), "bold")])
        return [following]
    return []
