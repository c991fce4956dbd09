"""Statements of the pages about the sources: the files that they name exist, and one call takes the described path."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.docs.test_contributing import RECIPES, steps
from tests.support.paths import ROOT

PACKAGE = ROOT / "attnarray"
PAGE = ROOT / "docs" / "architecture.md"
PAGES = [PAGE, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "attend.md", ROOT / "docs" / "testing.md"]
WRITTEN = {step.path for recipe in RECIPES.values() for step in steps(recipe)}  # by a recipe
OF_PATTERNS = re.compile(r"[*<]|/x/")  # such as tests/x/test_y.py


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`([\w./*<>-]+(?:\.(?:pyi?|md|toml|npz)|/))`", page.read_text(encoding="utf-8")))
    named = {name for name in named if not OF_PATTERNS.search(name)} - WRITTEN
    assert named
    folders = (ROOT, PACKAGE, PACKAGE / "attention")
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []


def test_the_files_of_the_picture_exist() -> None:
    layers, inside, *_ = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for picture, folder in ((layers, PACKAGE), (inside, PACKAGE / "attention")):
        named = re.findall(r"[\w/]+(?:\.pyi?\b|/(?= |\n))", picture)
        assert named
        assert [name for name in named if not (folder / name).exists()] == []


def test_one_call_runs_what_the_page_tells() -> None:
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 2, 16, 8), dtype=np.float32)
    out, ctx = aa.scaled_dot_product_attention_fwd(query, key, value)
    dout = np.ones_like(out)

    def backward() -> Any:
        return aa.scaled_dot_product_attention_bwd(dout, ctx)

    def forward() -> Any:
        return aa.scaled_dot_product_attention(query, key, value)

    told = PAGE.read_text(encoding="utf-8").partition("## The life of one call")[2].partition("\n## ")[0]
    for call, most in ((forward, 15), (backward, 40)):
        if not any(choice.kernel in ("compiled", "numba") for choice in aa.explain(call).choices):
            pytest.skip("without Numba the array code runs")
        call()  # the first one compiles, and finds plans
        calls = calls_within(call)
        assert len(calls) <= most, calls  # hops: a few more than today
        files = {path for path, _ in calls}
        assert [path for path in sorted(files) if f"`{path}`" not in told] == []


def calls_within(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """The file and the name of every function of the package that runs, in order."""
    calls: list[tuple[str, str]] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<"):
            calls.append((path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return calls
