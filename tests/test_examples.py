"""The programs in docs/examples run, and find what they say they find."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from attnarray import gradcheck

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def example(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def karate() -> Any:
    pytest.importorskip("networkx")
    return example("karate")


def test_karate(karate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    accuracy = karate.main(["--quick", "--output", str(tmp_path / "new")])
    assert accuracy > 0.85  # the side of most members: 0.5
    assert (tmp_path / "new" / "karate.png").stat().st_size > 50_000
    printed = capsys.readouterr().out
    for row in ("the side of most members", "the nearest leader", "label propagation", "graph attention"):
        assert re.search(rf"{row}.* \d+\.\d%", printed), printed


def test_the_baselines_of_karate(karate: Any) -> None:
    data = karate.club()
    found = karate.baselines(data)
    assert found["the side of most members"] == 0.5  # 16 and 16 of those who do not lead
    assert 0.85 < found["the nearest leader"] < found["label propagation"] < 1.0
    assert data.edges.shape == (2, 2 * 78 + 34)


def test_the_gradient_of_the_network_of_karate(karate: Any) -> None:
    data = karate.club()

    class Network:
        """In the form that gradcheck takes."""

        def __call__(self, params: Any) -> Any:
            return self.fwd(params)[0]

        def fwd(self, params: Any) -> Any:
            return karate.forward(params, data._replace(x=data.x.astype("float64")), seed=3)

        def bwd(self, dout: Any, ctx: Any) -> Any:
            return type("Grads", (tuple,), {"_fields": ("params",)})((karate.backward(dout, ctx),))

    first, last = karate.aa.Philox(0).split(2)
    params = {"first": karate.FIRST.init(first, "float64"), "last": karate.LAST.init(last, "float64")}
    params["first"]["bias"] += 0.1  # where everything is dropped, the argument of ReLU is the bias: not its kink at 0
    # A small step: no argument of a ReLU may cross its kink within it.
    report = gradcheck(Network(), params, step=1e-6, tolerance=1e-5, max_elements=20)
    assert report, str(report)
