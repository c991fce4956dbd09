"""benchmarks/inference.py: its table, its files, and a quick run with all peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def benchmarks_beside_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(ROOT)


def found() -> dict[str, Any]:
    """A result with artificial figures."""
    ratios = {"attnarray": (1.0, None), "transformers": (2.5, 2.25)}
    return {
        "cpu": "A",
        "cases": {
            "encoder": {
                "samples": {},
                "seconds": {"attnarray": 0.002, "transformers": 0.005},
                "ratios": {name: {"value": value, "low": low, "high": 3.0} for name, (value, low) in ratios.items()},
            }
        },
    }


def test_the_table_and_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import inference

    lines = [["encoder", "attnarray", "2.00", "1.00"], ["encoder", "transformers", "5.00", "2.50 (2.25 to 3.00)"]]
    assert inference.rows(found()["cases"]) == lines
    monkeypatch.setattr(inference, "RESULTS", tmp_path)
    inference.write("run-1.5", found())
    assert json.loads((tmp_path / "run-1.5.json").read_text(encoding="utf-8")) == found()
    page = (tmp_path / "run-1.5.md").read_text(encoding="utf-8").splitlines()
    assert "- CPU: A" in page
    assert "| encoder | transformers | 5.00 | 2.50 (2.25 to 3.00) |" in page


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize("kind", ["encoder", "decoding", "whisper"])
def test_a_quick_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "transformers", "onnx", "onnxruntime"):
        pytest.importorskip(name)
    from benchmarks import inference

    monkeypatch.setattr(inference, "RESULTS", tmp_path)
    result = inference.main(["--quick", "--only", kind, "--rounds", "1", "--threads", "1", "--output", "quick"])
    (case,) = result["cases"].values()
    assert len(case["seconds"]) == (2 if kind == "whisper" else 3)
    assert {path.name for path in tmp_path.iterdir()} == {"quick.json", "quick.md"}
