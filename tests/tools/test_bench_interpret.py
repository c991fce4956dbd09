"""benchmarks/interpret.py: it runs, and reports both sides."""

from __future__ import annotations

import pytest

from tests.support.paths import ROOT


def test_a_quick_run_has_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import interpret as bench

    result = bench.main(["--quick"])
    (row,) = result["rows"]
    assert row["ratio"] > 0
    assert row["bytes"] > 0
    assert "64x2: forward" in capsys.readouterr().out
