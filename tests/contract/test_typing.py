"""Type checkers: the types of results, and the errors of wrong calls."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from attnarray.attention.selection.estimators import ESTIMATORS, Estimator
from attnarray.layers.block import NORMS, Norm
from attnarray.layers.feed_forward import ACTIVATIONS, Activation
from attnarray.models.seq2seq.cell import CELLS, CellKind
from tests.support.paths import ROOT

RIGHT, WRONG = ROOT / "tests/support/right_types.py", ROOT / "tests/support/wrong_types.py"
REFUSED = {n: line.split("# E: ")[1] for n, line in enumerate(WRONG.read_text().splitlines(), 1) if "# E: " in line}
PYRIGHT = shutil.which("pyright", path=Path(sys.executable).parent) or shutil.which("pyright")
CALLS = ast.parse(WRONG.read_text()).body


@pytest.fixture(scope="module")
def found_by_mypy() -> list[tuple[str, int, str]]:
    """The errors of mypy in both files: file, line, code."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed; it comes with the extra lint")
    command = [sys.executable, "-m", "mypy", "--no-pretty", "--show-error-codes", RIGHT, WRONG]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = re.findall(r"^(.+?):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(errors) == done.stdout.count(" error: "), done.stdout
    return [(Path(file).name, int(line), code) for file, line, code in errors]


def test_mypy_finds_the_types_of_results(found_by_mypy: list[tuple[str, int, str]]) -> None:
    assert [error for error in found_by_mypy if error[0] != WRONG.name] == []


def test_mypy_refuses_wrong_calls(found_by_mypy: list[tuple[str, int, str]]) -> None:
    assert {line: code for file, line, code in found_by_mypy if file == WRONG.name} == REFUSED


@pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed")
def test_pyright_finds_the_same() -> None:
    command = [str(PYRIGHT), "--outputjson", "--pythonpath", sys.executable, RIGHT, WRONG]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [entry for entry in json.loads(done.stdout)["generalDiagnostics"] if entry["severity"] == "error"]
    assert [entry for entry in found if Path(entry["file"]) != WRONG] == []
    assert {entry["range"]["start"]["line"] + 1 for entry in found} == REFUSED.keys()


def test_right_uses_run() -> None:
    runpy.run_path(str(RIGHT))


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_call_raises_an_error(line: int) -> None:
    given, wrong = ([s for s in CALLS if (s.lineno in REFUSED) == refused] for refused in (False, True))
    namespace: dict[str, object] = {}
    _run(given, namespace)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        _run([s for s in wrong if s.lineno == line], namespace)


def _run(statements: list[ast.stmt], namespace: dict[str, object]) -> None:
    exec(compile(ast.Module(statements, []), WRONG, "exec"), namespace)


@pytest.mark.parametrize(
    ("words", "table"),
    [(Estimator, ESTIMATORS), (Activation, ACTIVATIONS), (Norm, NORMS), (CellKind, CELLS)],
    ids=["Estimator", "Activation", "Norm", "CellKind"],
)
def test_a_table_has_an_entry_for_each_word(words: object, table: dict[str, object]) -> None:
    assert typing.get_args(words) == tuple(table)


def test_type_checkers_are_told_that_there_are_types() -> None:
    assert (ROOT / "attnarray/py.typed").is_file()  # the wheel takes every file of the package
