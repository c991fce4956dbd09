"""The segmentation of docs/examples runs, with right gradients; its data and measure are what it states."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnarray import gradcheck
from tests.support.example_programs import EXAMPLES, as_layer, example


@pytest.fixture
def segmentation(monkeypatch: pytest.MonkeyPatch) -> Any:
    for needed in ("sklearn", "matplotlib"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(EXAMPLES)
    return example("segmentation")


def test_segmentation(segmentation: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = segmentation.main(["--quick", "--output", str(tmp_path)])
    assert set(found) == {
        "ink is the most frequent digit", "logistic regression on 9 x 9 pixels", "neighborhood attention"
    }  # fmt: skip
    assert json.loads((tmp_path / "segmentation.json").read_text())["methods"] == found
    for picture in ("segmentation.png", "segmentation-loss.png"):
        assert (tmp_path / picture).stat().st_size > 20_000
    printed = capsys.readouterr().out
    for row in found:
        assert re.search(rf"{row}.* \d+\.\d%", printed), printed


def test_without_attention_a_patch_knows_only_the_pixels_that_it_reads(segmentation: Any) -> None:
    canvas = np.random.default_rng(0).standard_normal((1, 24, 24))
    changed = canvas.copy()
    changed[0, 12, 12] += 1.0
    reached = {}
    for window in (1, segmentation.WINDOW):
        params = segmentation.init(segmentation.aa.Philox(0), window)
        params = segmentation.tree.map(lambda x: x.astype("float64"), params)
        before, after = (
            segmentation.forward(params, segmentation.overlapping(x), window)[0] for x in (canvas, changed)
        )
        reached[window] = np.any(before != after, axis=(0, 3))
    inside = np.zeros((24, 24), bool)
    inside[8:16, 8:16] = True  # patches of 2 x 2 that read 3 pixels more on each side
    assert not np.any(reached[1] & ~inside)
    assert np.any(reached[segmentation.WINDOW] & ~inside)


def test_the_gradient_of_the_segmentation(segmentation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "SIZE", 12)
    monkeypatch.setattr(segmentation, "BLOCK_COUNT", 1)
    numbers = np.arange(12 * 12 * 3.0).reshape(1, 12, 12, 3)
    np.testing.assert_array_equal(segmentation.pixels(segmentation.patches(numbers)), numbers)
    canvases = segmentation.overlapping(np.random.default_rng(0).standard_normal((1, 12, 12)))
    params = segmentation.tree.map(lambda x: x.astype("float64"), segmentation.init(segmentation.aa.Philox(0)))
    network = as_layer(lambda p: segmentation.forward(p, canvases), segmentation.backward)
    report = gradcheck(network, params, max_elements=2)
    assert report, str(report)


def test_canvases_and_their_measure(segmentation: Any) -> None:
    known, new = segmentation.digits()
    made = segmentation.compose(np.random.default_rng(0), *new, 20)
    assert set(np.unique(made.classes)) == set(range(segmentation.CLASSES))
    ink = made.pixels > 0.5  # five deviations of the noise below a full pixel
    assert np.mean(made.classes[ink] > 0) > 0.95
    assert segmentation.mean_iou(made.classes, made.classes) == 1.0
    half = np.where(np.arange(24) < 12, made.classes, 0)
    assert 0.3 < segmentation.mean_iou(half, made.classes) < 0.7
    assert not {image.tobytes() for image in known[0]} >= {image.tobytes() for image in new[0]}
