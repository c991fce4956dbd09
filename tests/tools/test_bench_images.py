"""benchmarks/images.py and benchmarks/approximations.py: their calls, and the figures in the pages."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def benchmarks_beside_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.peers
def test_results_equal_those_of_pytorch() -> None:
    pytest.importorskip("torch")
    from benchmarks import images as bench

    calls = {**bench.neighborhood_calls(14), **bench.window_calls(14), **bench.deformable_calls()}  # compared when made
    assert len(calls) == 18


def test_more_scores_are_nearer_to_exact_attention() -> None:
    from benchmarks import approximations as bench

    found = {name: bench.errors(*make(128), 128) for name, make in bench.SEQUENCES.items()}
    for sequences, method in (("clustered", "LSH"), ("smooth", "Nyström"), ("smooth", "LSH"), ("smooth", "Linformer")):
        points = found[sequences][method]
        assert [scores for scores, _ in points] == sorted(scores for scores, _ in points)
        assert points[-1][1] < 0.5 * points[0][1], (sequences, method)


def test_the_page_has_the_figures_of_the_file() -> None:
    page = (ROOT / "docs" / "how-to" / "images.md").read_text(encoding="utf-8")
    name = re.findall(r"results/([\w.-]*-images\.json)", page)[0]
    times = json.loads((ROOT / "benchmarks" / "results" / name).read_text())["milliseconds"]
    rows = re.findall(r"^\| ([^|]*), against ([^|]*) \|((?: [\d.]+ \|){4})$", page, re.MULTILINE)
    assert len(rows) == 5
    for row, how, figures in rows:
        own = row.replace("with a relative bias", "with bias")
        peer = f"PyTorch, {how.replace('a dense', 'dense').replace('`', '')}"
        keys = [f"{own}, {part}{end}" for end in ("", f", {peer}") for part in ("forward", "forward and backward")]
        assert [f"{times[key]:.1f}" for key in keys] == figures.replace("|", "").split(), row
