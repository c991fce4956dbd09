"""Grading a file in its own process: code that loops forever, exits, crashes or cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnarray.learn.course import load
from attnarray.learn.process import grade_file
from tests.support.paths import ROOT

HEAD = "import numpy as np\n"
RIGHT = "def softmax_bwd(dout, p):\n    return p * (dout - np.sum(dout * p, axis=-1, keepdims=True))\n"
LOOP = "while True:\n    pass\n"
IN_FUNCTION = "def softmax_bwd(dout, p):\n    "

# By name: the file, the status, and words of the report.
FILES = {
    "right": (HEAD + RIGHT, "passed", "softmax_bwd: passed"),
    "exits at once": ("import sys\nsys.exit(0)\n" + RIGHT, "unreadable", "ends the program"),
    "exits": (IN_FUNCTION + "raise SystemExit", "error", "ends the program"),
    "ends without a word": (f"import os\n{IN_FUNCTION}os._exit(0)", "error", "ended without a result (exit code 0)"),
    "no Python": ("def softmax_bwd(dout, p:\n", "unreadable", "SyntaxError"),
    "no text": (b"\xff\xfe\x00\x01".decode("latin-1"), "unreadable", "SyntaxError"),
    "tabs": ("def softmax_bwd(dout, p):\n\tx = 1\n        return x\n", "unreadable", "TabError"),
    "import": ("import nothing_of_that_name\n" + RIGHT, "unreadable", "ModuleNotFoundError"),
    "another name": (
        "def softmax_backward(dout, p):\n    return p\n",
        "unreadable",
        "defines no function `softmax_bwd`",
    ),
    "no function": ("softmax_bwd = 3\n", "unreadable", "defines no function `softmax_bwd`"),
    "empty": ("", "unreadable", "defines no function `softmax_bwd`"),
    "asks": (IN_FUNCTION + "return input()\n", "error", "input() has nobody to ask here"),
    "talks": (HEAD + "print('hello')\n" + RIGHT, "passed", "It printed:\n  hello"),
    "threads": (
        HEAD + "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()\n" + RIGHT,
        "passed",
        "softmax_bwd: passed",
    ),
    "by a neighbor": ("from neighbor import softmax_bwd\n", "passed", "softmax_bwd: passed"),
}


def grade_text(folder: Path, text: str, **options: float) -> tuple[str, str]:
    path = folder / "softmax_bwd.py"
    path.write_text(text, encoding="latin-1" if "\xff" in text else "utf-8")
    report = grade_file("softmax_bwd", path, **options)  # type: ignore[arg-type]
    return report.status, str(report)


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_a_clear_report(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, status, words = FILES[name]
    (tmp_path / "neighbor.py").write_text(HEAD + RIGHT)
    found, report = grade_text(tmp_path, text)
    assert found == status, report
    assert words in report
    assert capfd.readouterr() == ("", ""), "a file may not write into the output of the command"


@pytest.mark.parametrize("text", [LOOP, IN_FUNCTION + LOOP.replace("\n  ", "\n      ")], ids=["file", "function"])
def test_an_endless_loop_is_stopped(text: str, tmp_path: Path) -> None:
    status, report = grade_text(tmp_path, text, seconds=1.0)
    assert status == "timeout"
    assert "still running after 1 s, and was stopped. Does a loop never end?" in report
    assert "pass" in report or "while True" in report, "the line is named"


def test_errors_name_the_line(tmp_path: Path) -> None:
    _, report = grade_text(tmp_path, f"{HEAD}\n{IN_FUNCTION}x = 1 / 0\n")
    assert "at line 4: x = 1 / 0" in report
    _, report = grade_text(tmp_path, f"{HEAD}\n\nx = 1 / 0\n")
    assert "at line 4: x = 1 / 0" in report


ALONE = """
import sys
for name in ("numba", "rich", "safetensors", "ml_dtypes", "llvmlite", "threadpoolctl"):
    sys.modules[name] = None
import numpy as np
import attnarray
from attnarray import cli
assert attnarray.learn.check("softmax_bwd", lambda dout, p: p * (dout - np.sum(dout * p, axis=-1, keepdims=True)))
assert cli.main(["learn", "start", "softmax"]) == 0
assert cli.main(["learn", "check"]) == 1
"""


def test_numpy_alone_is_needed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "not written yet" in done.stdout


def test_seeds_reach_the_process(tmp_path: Path) -> None:
    wrong = HEAD + "def softmax_bwd(dout, p):\n    return p * dout\n"
    assert grade_text(tmp_path, wrong, seed=1) != grade_text(tmp_path, wrong, seed=2)
    assert grade_text(tmp_path, wrong, seed=1) == grade_text(tmp_path, wrong, seed=1)


def test_the_starting_file_is_not_written_yet(tmp_path: Path) -> None:
    status, report = grade_text(tmp_path, load("softmax_bwd").starting_file())
    assert status == "unfinished"
    assert "not written yet" in report
