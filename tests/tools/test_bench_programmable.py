"""benchmarks/modifiers.py and benchmarks/drafts.py run, with small sizes."""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize(("name", "line"), [("modifiers", "compiled modifier, forward"), ("drafts", "the same tokens")])
def test_the_program_runs(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    importlib.import_module(f"benchmarks.{name}").main()
    assert line in capsys.readouterr().out
