"""The notebooks that docs/notebooks.py makes: they run with NumPy alone, as in a browser, and print what they hold."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnarray import learn
from attnarray.learn.course import LECTURES
from tests.support.paths import ROOT

PROGRAM = runpy.run_path(str(ROOT / "docs" / "notebooks.py"))
NOTEBOOKS: dict[str, Any] = PROGRAM["notebooks"]()
PAGES = [name for name in NOTEBOOKS if not name.startswith("lecture-")]
EXERCISES = [name for name in NOTEBOOKS if name.startswith("lecture-")]

# Pyodide has one thread, no processes and, here, no package but NumPy and array-api-compat.
ALONE = """
import contextlib, io, json, sys, traceback
for name in ("numba", "llvmlite", "scipy", "matplotlib", "torch", "jax", "rich", "safetensors", "ml_dtypes"):
    sys.modules[name] = None
import _thread, subprocess, threading
import numpy

def forbidden(*args, **options):
    raise RuntimeError("can't start new thread")

threading.Thread.start = _thread.start_new_thread = threading._start_new_thread = subprocess.Popen.__init__ = forbidden
sys.platform = "emscripten"

def run(cells):
    space, printed = {"__name__": "__main__"}, []
    for cell in cells:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(cell, "cell", "exec"), space)
        printed.append(out.getvalue())
    return printed

found = {}
for name, cells in json.load(sys.stdin).items():
    try:
        found[name] = run(cells)
    except Exception:
        found[name] = traceback.format_exc()
json.dump(found, sys.stdout)
"""


def run_alone(cells: dict[str, list[str]]) -> dict[str, Any]:
    """Notebook -> what each cell printed, or a traceback."""
    ran = subprocess.run(
        [sys.executable, "-c", ALONE], input=json.dumps(cells), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def code_cells(name: str) -> list[dict[str, Any]]:
    """Without that which installs the package, a command of Jupyter."""
    cells = [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]
    assert cells[0]["source"] == "%pip install --quiet attnarray"
    return cells[1:]


@pytest.fixture(scope="module")
def printed() -> dict[str, Any]:
    return run_alone({name: [cell["source"] for cell in code_cells(name)] for name in PAGES})


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_with_numpy_alone(name: str, printed: dict[str, Any]) -> None:
    assert isinstance(printed[name], list), printed[name]
    outputs = [cell["outputs"] for cell in code_cells(name)]
    assert outputs[0] or outputs[1]
    for shown, found in zip(outputs, printed[name], strict=True):
        if shown:
            assert found == shown[0]["text"]


def test_threads_processes_and_numba_are_out_of_reach() -> None:
    """Where the notebooks run."""
    cells = {
        "threads": ["import threading\nthreading.Thread(target=print).start()"],
        "processes": ["import subprocess\nsubprocess.run(['true'])"],
        "numba": ["import numba"],
    }
    found = run_alone(cells)
    assert "can't start new thread" in found["threads"]
    assert "can't start new thread" in found["processes"]
    assert "ModuleNotFoundError" in found["numba"]


def test_exercises_are_graded_with_numpy_alone() -> None:
    """As they are given they are unfinished or wrong; with the solution in the place of the given code they pass."""
    given = {name: [graded(cell["source"]) for cell in code_cells(name)] for name in EXERCISES}
    begun = run_alone(given)
    for name in EXERCISES:
        assert isinstance(begun[name], list), begun[name]
        assert "passed" not in "".join(begun[name])
    solved = run_alone({name: [solution(cell) for cell in cells] for name, cells in given.items()})
    for name, (title, exercises) in zip(EXERCISES, LECTURES.items(), strict=True):
        assert isinstance(solved[name], list), solved[name]
        assert "".join(solved[name]).count("passed") == len(exercises), title


def graded(cell: str) -> str:
    """What a notebook shows of a last line, a script prints."""
    return re.sub(r"^(aa\.learn\.check\(.*\))$", r"print(\1)", cell, flags=re.MULTILINE)


def solution(cell: str) -> str:
    """The solution in place of the function that an exercise begins with."""
    functions = re.findall(r"^def (\w+)\(", cell, re.MULTILINE)
    named = [name for name in functions if name in learn.names()]
    return str(learn.solution(named[-1])) if named else cell


def test_notebooks_have_the_format() -> None:
    assert len(EXERCISES) == len(LECTURES) == 6
    for name, notebook in NOTEBOOKS.items():
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5), name
        ids = [cell["id"] for cell in notebook["cells"]]
        assert len(set(ids)) == len(ids)
        for cell in notebook["cells"]:
            needed = {"cell_type", "id", "metadata", "source"}
            needed |= {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
            assert set(cell) == needed
            assert cell["source"].strip()


def test_links_of_notebooks_lead_somewhere() -> None:
    """To a notebook beside it, or to a page of the site."""
    seen = set()
    for notebook in NOTEBOOKS.values():
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                seen |= set(re.findall(r"\]\(([^)\s]+)\)", cell["source"]))
    site = "https://attnarray.github.io/attnarray/"
    for link in seen:
        if link.startswith(site):
            page = ROOT / "docs" / link.removeprefix(site).partition("#")[0]
            assert page.with_suffix(".md").exists(), link
        elif not link.startswith(("https:", "#")):
            assert link in NOTEBOOKS, link
    assert any(link.startswith(site) for link in seen)
    assert "softmax.ipynb" in seen


def test_all_are_written(tmp_path: Path) -> None:
    PROGRAM["write"](tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(NOTEBOOKS)
    softmax = json.loads((tmp_path / "new" / "softmax.ipynb").read_text(encoding="utf-8"))
    assert softmax == NOTEBOOKS["softmax.ipynb"]
