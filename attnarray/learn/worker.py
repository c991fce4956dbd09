"""Grade a file in this process, which the parent may end: see process.py."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from attnarray.learn.calls import quiet
from attnarray.learn.course import load
from attnarray.learn.exercise import Exercise
from attnarray.learn.grading import grade
from attnarray.learn.report import Report


def main(name: str, file: str, folder: str, seconds: float, seed: int) -> None:
    """Write the report to `result` in a folder; where the time is over, the traceback to `stalled`."""
    import attnarray.gradient_check  # noqa: F401 - all imports are done before the clock starts

    exercise = load(name)
    with open(Path(folder, "stalled"), "w", encoding="utf-8") as stalled:
        faulthandler.dump_traceback_later(seconds, exit=True, file=stalled)
        report = grade_source(exercise, Path(file), seed)
        faulthandler.cancel_dump_traceback_later()
    partial = Path(folder, "partial")
    partial.write_text(json.dumps(report.as_json()), encoding="utf-8")
    partial.rename(Path(folder, "result"))
    os._exit(0)  # whatever threads the file has started


def grade_source(exercise: Exercise, path: Path, seed: int) -> Report:
    """Run a file and grade the function in it that has the name of the exercise."""

    def unreadable(says: str, where: str = "") -> Report:
        return Report(exercise.name, "unreadable", says, where, printed=printed.getvalue())

    namespace: dict[str, Any] = {"__name__": exercise.name, "__file__": str(path)}
    sys.path.insert(0, str(path.resolve().parent))  # a file may import another exercise's
    with quiet() as printed:
        try:
            exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), namespace)
        except SyntaxError as error:
            return unreadable(
                f"{type(error).__name__}: {error.msg}.", f"line {error.lineno}: {(error.text or '').strip()}"
            )
        except SystemExit:
            return unreadable("The file ends the program (sys.exit or quit) before it can be graded.")
        except BaseException as error:
            return unreadable(f"The file raises {type(error).__name__}: {error}.", _line(error, path))
    function = namespace.get(exercise.name)
    if not callable(function):
        return unreadable(f"The file defines no function `{exercise.name}`. Expected: {exercise.signature().strip()}")
    report = grade(exercise, function, seed)
    return dataclasses.replace(report, printed=printed.getvalue() + report.printed)


def _line(error: BaseException, path: Path) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
