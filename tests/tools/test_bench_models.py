"""benchmarks/models.py: its tables, its files, and memory measured in a new process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from attnarray import tree
from attnarray.bench import memory
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def benchmarks_beside_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(ROOT)


def found(low: float | None = 0.9) -> dict[str, Any]:
    """A result of `measure` with artificial figures."""
    rates = {"attnarray": 1234.5, "PyTorch eager": 1000.0}
    case = {"samples": {}, "tokens": 8, "tokens per second": rates, "ratio": {"value": 1.2345, "low": low, "high": 1.5}}
    return {
        "cpu": "A", "cases": {"training": case},
        "training memory": {"attnarray": {"held": 2_000_000, "peak": 3_456_789}, "PyTorch eager": None},
    }  # fmt: skip


def test_tables_and_files(tmp_path: Path) -> None:
    from benchmarks import models

    assert models.speed_rows(found()) == [["training", "1,234.5", "1,000.0", "1.23 (0.90 to 1.50)"]]
    assert models.speed_rows(found(None))[0][-1] == "1.23*"  # too few rounds for an interval
    expected = [["attnarray", "2.0", "3.5"], ["PyTorch eager", "not meas.", "not meas."]]
    assert models.memory_rows(found()) == expected
    models.write(tmp_path / "run-1.5", found())
    assert json.loads((tmp_path / "run-1.5.json").read_text(encoding="utf-8")) == found()
    page = (tmp_path / "run-1.5.md").read_text(encoding="utf-8")
    for line in ("- CPU: A", "| training | 1,234.5 | 1,000.0 | 1.23 (0.90 to 1.50) |", "| attnarray | 2.0 | 3.5 |"):
        assert line in page.splitlines()


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="the system does not tell what is resident")
def test_the_memory_of_training_is_at_least_what_it_holds() -> None:
    from benchmarks import model_cases, model_memory

    memory_of = model_memory.measured("attnarray", True, 1)
    if memory_of is None:
        pytest.skip("this container does not let the peak be set back")
    shapes = model_cases.random_params(model_cases.trained_model(True))
    numbers = tree.nbytes(shapes)
    # Parameters and two moments are held, up to pages; the step allocates new ones and the gradients.
    assert 0.7 * 3 * numbers < memory_of["held"] < 2 * 3 * numbers
    assert memory_of["peak"] > memory_of["held"] + numbers


def test_the_memory_of_what_fails_is_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import model_memory

    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(SystemExit, match="Measuring the memory of attnarray failed"):
        model_memory.measured("attnarray", True, 1)


@pytest.mark.peers
def test_a_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from benchmarks import models

    monkeypatch.setattr(models, "RESULTS", tmp_path)
    result = models.main(["--quick", "--rounds", "1", "--threads", "1", "--output", "quick"])
    assert len(result["cases"]) == 3
    assert list(result["training memory"]) == ["attnarray", "attnarray, recompute", "PyTorch eager"]
    assert "Models in float32 on 1 threads" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"quick.json", "quick.md"}
