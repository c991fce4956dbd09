"""Grade a file in a process of its own, with a time limit: a learner's code may loop forever, crash or exit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from attnarray.learn.report import Report

SECONDS = 30.0
STARTING = 120.0  # seconds more until the process is killed: for a slow start of Python on a busy machine
CODE = "import sys; sys.path[:] = {path!r}; from attnarray.learn.worker import main; main({arguments})"


def grade_file(name: str, path: Path, seconds: float = SECONDS, seed: int = 0) -> Report:
    """Grade the function of an exercise in a file."""
    with tempfile.TemporaryDirectory(prefix="attnarray-learn-", ignore_cleanup_errors=True) as folder:
        arguments = ", ".join(map(repr, (name, str(path), folder, float(seconds), seed)))
        code = CODE.format(path=[os.path.abspath(entry) for entry in sys.path], arguments=arguments)
        with open(Path(folder, "errors"), "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=os.name == "posix",
            )
            try:
                process.wait(seconds + STARTING)
            except subprocess.TimeoutExpired:
                return _too_long(name, seconds, "")
            finally:
                _end(process)
        return _result(name, path, Path(folder), seconds, process.returncode)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, and on POSIX all that it has started."""
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _result(name: str, path: Path, folder: Path, seconds: float, code: int) -> Report:
    try:
        return Report.from_json(json.loads((folder / "result").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    stalled = _text(folder / "stalled")
    if "Timeout" in stalled:
        found = re.search(rf'File "{re.escape(str(path))}", line (\d+)', stalled)
        lines = _text(path).splitlines()
        line = int(found[1]) if found else 0
        return _too_long(name, seconds, f"line {line}: {lines[line - 1].strip()}" if 0 < line <= len(lines) else "")
    last = _text(folder / "errors").strip().splitlines()[-1:]
    said = f" Its last words: {last[0]}" if last else ""
    return Report(
        name,
        "error",
        f"The process ended without a result (exit code {code}). Does the file call os._exit, or crash?{said}",
    )


def _too_long(name: str, seconds: float, where: str) -> Report:
    says = f"It was still running after {seconds:g} s, and was stopped. Does a loop never end?"
    return Report(name, "timeout", says, where)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
