"""benchmarks/cold.py: each command with an empty cache and again with the same one, by a fake clock."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def _beside_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_second_run_finds_what_the_first_one_left() -> None:
    from benchmarks import cold

    ticks = itertools.accumulate(itertools.count())  # 0, 1, 3, 6, 10 ...: each time is another
    found: list[tuple[str, bool]] = []
    heard: list[str] = []

    def run(command: str, folder: Path) -> None:
        found.append((command, (folder / "compiled").exists()))
        (folder / "compiled").touch()

    seconds = cold.measured(["check", "bench --quick"], heard.append, run, lambda: float(next(ticks)))
    assert found == [("check", False), ("check", True), ("bench --quick", False), ("bench --quick", True)]
    assert heard == [f"attnarray {command}, {run}" for command in ("check", "bench --quick") for run in cold.RUNS]
    assert seconds == {"check": {"cold": 1.0, "warm": 3.0}, "bench --quick": {"cold": 5.0, "warm": 7.0}}


def test_a_command_runs_with_its_caches_in_the_folder(tmp_path: Path) -> None:
    from benchmarks import cold

    pytest.importorskip("numba")
    cold.run("check --only relu", tmp_path)
    assert list((tmp_path / "numba_cache_dir").rglob("*.nbc"))
    with pytest.raises(SystemExit, match="attnarray check --only nothing ended with code 2:"):
        cold.run("check --only nothing", tmp_path)


def test_the_table_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import cold

    monkeypatch.setattr(cold, "RESULTS", tmp_path)
    monkeypatch.setattr(
        cold, "measured", lambda commands, heard: {name: {"cold": 12.0, "warm": 0.5} for name in commands}
    )
    cold.main(["info", "--output", "cold"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["attnarray", "info", "12.0", "s", "0.5", "s"]
    saved = json.loads((tmp_path / "cold.json").read_text(encoding="utf-8"))
    assert saved["seconds"] == {"info": {"cold": 12.0, "warm": 0.5}}
    assert saved["cpu"]
