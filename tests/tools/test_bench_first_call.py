"""benchmarks/first_call.py: medians of processes in turn, by fake processes and by one real one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def _beside_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_first_run_does_not_count() -> None:
    from benchmarks import first_call

    heard: list[str] = []
    count = 0

    def run(python: str, code: str) -> Any:
        nonlocal count
        if code == first_call.SIZES:
            return {"numpy": 7, python: 1}
        count += 1
        return {"seconds": {"forward": float(count), "backward": 2.0 * count}, "kernels": python, "version": "1"}

    found = first_call.measured({"with": "a", "without": "b"}, 3, heard.append, run)
    assert heard == ["with", "without"] * 4
    assert found["with"]["seconds"] == {"forward": 5.0, "backward": 10.0, "all": 15.0}  # of the runs 3, 5 and 7
    assert found["without"]["seconds"]["all"] == 18.0
    assert (found["without"]["kernels"], found["without"]["bytes"]) == ("b", {"numpy": 7, "b": 1})


def test_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import first_call

    assert first_call.run(sys.executable, "print('[1, 2]')") == [1, 2]
    assert first_call.run(sys.executable, first_call.SIZES)["numpy"] > 1e6
    with pytest.raises(SystemExit, match=r"ended with code 1:(.|\n)*ZeroDivisionError"):
        first_call.run(sys.executable, "1 / 0")


def test_the_table_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import first_call

    def measured(environments: dict[str, str], runs: int, advance: Any) -> dict[str, Any]:
        seconds = {"forward": 0.25, "all": 0.5}
        return {name: {"seconds": seconds, "kernels": "numba", "bytes": {"x": 3e6}} for name in environments}

    monkeypatch.setattr(first_call, "RESULTS", tmp_path)
    monkeypatch.setattr(first_call, "measured", measured)
    first_call.main(["wheel=python", "--output", "first"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["wheel", "numba", "250", "ms", "500", "ms", "3", "MB"]
    assert json.loads((tmp_path / "first.json").read_text(encoding="utf-8"))["environments"].keys() == {"wheel"}
    with pytest.raises(SystemExit):
        first_call.main(["no interpreter"])
