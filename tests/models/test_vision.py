"""The classifier of images by patches: gradients, patches, dropout, bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import PatchClassifier
from tests.support.libraries import Library, assert_close, assert_trees_close
from tests.support.messages import says

RNG = np.random.default_rng(0)
GREY, COLOR = RNG.standard_normal((2, 4, 6)), RNG.standard_normal((2, 4, 6, 3))
MODELS = {
    "gray": (PatchClassifier((4, 6), 2, 5, dim=8, num_layers=2, num_heads=2), GREY),
    "gray with an axis": (PatchClassifier((4, 6), 2, 5, dim=8, num_layers=1, num_heads=2), GREY[..., None]),
    "color": (PatchClassifier((4, 6), 2, 5, 3, dim=8, num_layers=1, num_heads=4, pre_norm=False), COLOR),
}
each_model = pytest.mark.parametrize(("model", "images"), MODELS.values(), ids=list(MODELS))


def moved(params: Any) -> Any:
    """Parameters that are nowhere 0 or 1, so that wrong gradients show."""
    return tree.map(lambda leaf: leaf + 0.3 * RNG.standard_normal(leaf.shape), params)


@each_model
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_the_whole_model(model: PatchClassifier, images: np.ndarray, recompute: bool) -> None:
    model = dataclasses.replace(model, dropout=0.2, attention_dropout=0.1, recompute=recompute)
    params = moved(model.init(aa.Philox(1), "float64"))
    report = aa.gradcheck(model, params, images, rng=aa.Philox(5), max_elements=3)
    assert report, str(report)
    names = {"images", *(f"params.{tree.format_path(p)}" for p, _ in tree.flatten(params))}
    assert {check.name for check in report.inputs} == names


@each_model
def test_gradients_along_random_directions(model: PatchClassifier, images: np.ndarray) -> None:
    params = moved(model.init(aa.Philox(1), "float64"))
    logits, ctx = model.fwd(params, images)
    grads = model.bwd(logits, ctx)
    direction = tree.map(lambda leaf: RNG.standard_normal(leaf.shape), (images, params))
    slope = sum(np.sum(g * d) for (_, g), (_, d) in zip(tree.flatten(grads), tree.flatten(direction), strict=True))
    found = 0.0
    for steps, weight in ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)):
        x, p = tree.map(lambda leaf, d, steps=steps: leaf + steps * 1e-4 * d, (images, params), direction)
        found += weight * np.sum(logits * model(p, x)) / 1e-4
    assert abs(found - slope) < 1e-8 * max(1.0, abs(slope))  # rounding over the step of 1e-4


def test_a_patch_is_a_word() -> None:
    # Without positions, permuted patches do not change the logits: the encoder is permutation invariant.
    model, _ = MODELS["color"]
    params = moved(model.init(aa.Philox(2), "float64"))
    params["position"]["weight"] = np.zeros_like(params["position"]["weight"])
    rows = COLOR[:, [2, 3, 0, 1]][:, :, [4, 5, 0, 1, 2, 3]]  # whole patches of 2 x 2
    assert_close(model(params, rows), model(params, COLOR), 1e-12)
    assert np.max(np.abs(model(params, COLOR[:, [1, 0, 3, 2]]) - model(params, COLOR))) > 1e-3


def test_images_are_independent() -> None:
    model, images = MODELS["gray"]
    params = moved(model.init(aa.Philox(2), "float64"))
    both = model(params, images)
    assert_close(model(params, images[1:]), both[1:], 1e-12)
    assert model(params, images[:0]).shape == (0, 5)


def test_dropout_is_drawn_by_the_key() -> None:
    model = dataclasses.replace(MODELS["gray"][0], dropout=0.3)
    params = model.init(aa.Philox(0), "float64")
    expected = "`rng` is None, but this PatchClassifier needs one"
    says(ValueError, expected, lambda: model.fwd(params, GREY))
    first, again, other = (model(params, GREY, rng=aa.Philox(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


def test_results_are_equal_on_every_library(library: Library) -> None:
    model, images = MODELS["gray"]
    params = model.init(aa.Philox(0), "float64")
    logits, ctx = model.fwd(params, images)
    found, its = model.fwd(library.moved(params), library.moved(images))
    assert_close(found, logits, 1e-12)  # rounding of sums in another order
    assert_trees_close(model.bwd(found, its), model.bwd(logits, ctx), 1e-11)


def test_bad_input_is_named() -> None:
    model, _ = MODELS["color"]
    params = model.init(aa.Philox(0), "float64")
    bad: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "`size` is (4, 6), expected a height and width that `patch` (4) divides.",
         lambda: dataclasses.replace(model, patch=4)),
        (ValueError, "`images` has shape (2, 4, 6), expected (2, 4, 6, 3): (B, height, width), with a last",
         lambda: model(params, GREY)),
        (TypeError, "`images` has dtype int64, expected one of float16", lambda: model(params, COLOR.astype(int))),
        (ValueError, "`classes` is 0, expected an integer >= 1", lambda: dataclasses.replace(model, classes=0)),
        (TypeError, "`ctx` is None, expected the PatchContext", lambda: model.bwd(COLOR, None)),  # type: ignore[arg-type]
    ]  # fmt: skip
    for error, expected, call in bad:
        says(error, expected, call)
