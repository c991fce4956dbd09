"""Runs each recipe of CONTRIBUTING.md, with its commands, in a copy of the package."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import array_api_strict
import pytest

from tests.support.paths import ROOT
from tests.support.tiers import first

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = {text.partition("\n")[0]: text for text in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
COPIED = ("attnarray", "tests", "docs", "README.md", "CONTRIBUTING.md", "pyproject.toml")
STRICT = Path(array_api_strict.__file__).parent
PROGRAMS = {"attnarray": ["-m", "attnarray"], "pytest": ["-m", "pytest", "-p", "no:cacheprovider"]}


class Step(NamedTuple):
    """A file to write, a change of a file, or commands to run."""

    code: str
    path: str = ""
    where: str = ""  # "below" or "in place of" the text `anchor`; else the file is new
    anchor: str = ""


def steps(recipe: str) -> Iterator[Step]:
    """The blocks of a recipe, each with the instruction of the line above."""
    for above, language, code in re.findall(r"([^\n]*)\n\n```(\w+)\n(.*?)^```$", recipe, re.MULTILINE | re.DOTALL):
        if language == "sh":
            yield Step(code)
            continue
        said = re.fullmatch(r"(?:Write|In) `([^`]+)`(?:, (below|in place of) `([^`]+)`)?:", above)
        assert said, f"the line above a block says `Write `path`:` or `In `path`, below `text`:`, not {above!r}"
        yield Step(code, said[1], said[2] or "", said[3] or "")


def do(step: Step, copy: Path) -> None:
    path = copy / step.path
    if not step.where:
        assert not path.exists(), f"{step.path} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.code, encoding="utf-8")
        return
    before = path.read_text(encoding="utf-8")
    anchor = f"{step.anchor}\n" if step.where == "below" else step.anchor
    assert before.count(anchor) == 1, f"{step.path} has {step.anchor!r} {before.count(anchor)} times, expected once"
    new = anchor + step.code if step.where == "below" else step.code.rstrip("\n")
    path.write_text(before.replace(anchor, new), encoding="utf-8")


def run(command: str, copy: Path) -> str:
    name, *arguments = shlex.split(command)
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *PROGRAMS[name], *arguments],
        cwd=copy, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its tests, without compiled code, and with an unknown array library."""
    folder = tmp_path / "copy"
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(STRICT, folder / "yourlib", ignore=shutil.ignore_patterns("__pycache__", "tests"))
    for path in (folder / "yourlib").rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").replace("array_api_strict", "yourlib"), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", first(1, RECIPES))
def test_recipe(name: str, copy: Path) -> None:
    todo = list(steps(RECIPES[name]))
    commands = [line for step in todo if not step.path for line in step.code.splitlines()]
    assert commands, "a recipe ends with the commands that prove it"
    for step in todo:
        if step.path:
            do(step, copy)
    for command in commands:
        run(command, copy)


def test_a_wrong_gradient_fails_its_recipe(copy: Path) -> None:
    """The commands of a recipe must be able to fail."""
    step = next(steps(RECIPES["A scorer"]))
    wrong = step.code.replace("Cosine(dtemperature)", "Cosine(2.0 * dtemperature)")
    assert wrong != step.code
    do(step._replace(code=wrong), copy)
    with pytest.raises(AssertionError, match=r"scorer\.temperature.*ok=False"):
        run("attnarray check --cases cosine.py --kernels reference", copy)
