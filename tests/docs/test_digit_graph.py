"""The graph of digits of docs/examples runs, with right gradients; its splits and methods are what it states."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnarray import gradcheck
from tests.support.example_programs import EXAMPLES, as_layer, example
from tests.support.paths import ROOT

METHODS = ["label propagation", "logistic regression", "product of both", "the same network, equal weights"]


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Any:
    for needed in ("sklearn", "matplotlib"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(EXAMPLES)
    return example("digit_graph")


def test_digit_graph(graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = graph.main(["--quick", "--output", str(tmp_path)])
    assert list(found) == [*METHODS, "graph attention"]
    assert found["graph attention"][0] > 0.7  # a guess: 0.1
    assert json.loads((tmp_path / "digit_graph.json").read_text())["methods"] == found
    assert (tmp_path / "digit_graph.png").stat().st_size > 20_000
    printed = capsys.readouterr().out
    for row in found:
        assert re.search(rf"{row}.* \d+\.\d%", printed), printed


def test_the_stated_figures_are_those_of_the_full_run(graph: Any) -> None:
    path = ROOT / "benchmarks" / "results" / "2026-12-01-digit-graph.json"
    full = json.loads(path.read_text(encoding="utf-8"))["methods"]
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if path.name in line)
    for name, shares in full.items():
        assert len(shares) == graph.SEEDS
        assert f"{name} {np.mean(shares):.1%}" in row
    assert f"{np.mean(full['graph attention']):.1%}" in graph.FULL_RUN


def test_parts_are_apart_and_labels_of_the_test_are_not_used(graph: Any) -> None:
    data = graph.digits()
    nodes = graph.split(data.classes, 1)
    for one, other in itertools.combinations(nodes, 2):
        assert not np.intersect1d(one, other).size
    assert sum(map(len, nodes)) == len(data.classes)
    assert np.bincount(data.classes[nodes.known]).tolist() == [graph.KNOWN] * graph.CLASSES
    hidden = data._replace(classes=data.classes.copy())
    hidden.classes[nodes.test] = 0
    params = [graph.train(given, nodes, 0, graph.EVERY, lambda _: None) for given in (data, hidden)]
    for one, other in zip(*(dict(graph.aa.tree.flatten(own)).values() for own in params), strict=True):
        np.testing.assert_array_equal(one, other)
    spread = [graph.propagate(given.links, given.classes, nodes.known, 0.9) for given in (data, hidden)]
    np.testing.assert_array_equal(*spread)


def test_without_scores_all_neighbors_weigh_the_same(graph: Any) -> None:
    data = graph.digits()
    params = graph.train(data, graph.split(data.classes, 0), 0, graph.EVERY, lambda _: None, attend=False)
    count = np.bincount(data.edges[1])
    np.testing.assert_allclose(graph.edge_weights(params, data), 1 / count[data.edges[1]], rtol=1e-5)


def test_the_gradient_of_the_network(graph: Any) -> None:
    rng = np.random.default_rng(0)
    x, edges = rng.standard_normal((6, 32)), rng.integers(6, size=(2, 15))
    params = graph.aa.tree.map(lambda leaf: leaf.astype("float64"), graph.init(graph.aa.Philox(0)))
    network = as_layer(lambda p: graph.forward(p, x, edges, graph.aa.Philox(3)), graph.backward)
    report = gradcheck(network, params, max_elements=3)
    assert report, str(report)
