"""ViT: equal to transformers in outputs and gradients; files, wrong input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.checkpoints import save_pretrained
from attnarray.models import ViT, ViTResult
from tests.models.test_published import GRADIENTS, OUTPUTS, SINGLE, saved
from tests.references.make_published import directions, formula
from tests.support.frozen import frozen
from tests.support.messages import says

pytest.importorskip("safetensors")

REFERENCES = frozen("vision.npz")
each_reference = pytest.mark.parametrize("name", list(REFERENCES))
SMALL = ViT(6, 3, 8, 1, 2, channels=2, num_labels=3)
PARAMS, IMAGES = SMALL.init(aa.Philox(0), "float64"), np.random.default_rng(0).standard_normal((2, 6, 6, 2))


def loaded(name: str, seed: int, folder: Path, **options: Any) -> tuple[ViT, Any, dict[str, np.ndarray]]:
    saved(folder, REFERENCES[name], seed)
    model, params = aa.models.from_pretrained(folder, **options)
    return model, params, REFERENCES[name].below(f"{seed} ")


def found(result: ViTResult) -> dict[str, np.ndarray]:
    return {key: x for key, x in result._asdict().items() if x is not None}


@each_reference
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_that_of_transformers(name: str, seed: int, tmp_path: Path) -> None:
    model, params, arrays = loaded(name, seed, tmp_path)
    result, ctx = dataclasses.replace(model, recompute=seed == 1).fwd(params, arrays["images"])
    given = {key: x for key, x in found(result).items() if key in arrays}
    assert given
    for key, x in given.items():
        np.testing.assert_allclose(x, arrays[key], rtol=0, atol=OUTPUTS, err_msg=key)
    douts = {key: formula(f"d{key}", x.shape) for key, x in given.items()}
    grads = model.bwd(ViTResult(*(douts.get(key) for key in ViTResult._fields)), ctx).params
    expected = {key.removeprefix("grad_"): x for key, x in arrays.items() if "grad_" in key}
    names = model.pretrained[0].names(model)
    for tensor in names.tensors:
        full, gradient = names.full(tensor.name), tensor.joined(grads)
        ours = [np.sum(gradient * v) for v in directions(full, gradient.shape)]
        np.testing.assert_allclose(ours, expected.pop(full), rtol=0, atol=GRADIENTS, err_msg=full)
    assert not expected


@each_reference
def test_single_precision_is_close(name: str, tmp_path: Path) -> None:
    model, params, arrays = loaded(name, 0, tmp_path, dtype="float32")
    for key, x in found(model(params, arrays["images"].astype("f4"))).items():
        np.testing.assert_allclose(x, arrays.get(key, x), rtol=0, atol=SINGLE)


@each_reference
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    model, params, _ = loaded(name, 0, tmp_path / "first")
    save_pretrained(tmp_path / "second", model, params)
    again, others = ViT.from_pretrained(tmp_path / "second")
    assert again == model
    aa.tree.map(np.testing.assert_array_equal, params, others)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    save_pretrained(tmp_path, SMALL, PARAMS)
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path, dtype=torch.float64)
    logits = theirs(pixel_values=torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).logits
    np.testing.assert_allclose(SMALL(PARAMS, IMAGES).class_logits, logits.detach().numpy(), rtol=0, atol=OUTPUTS)


def test_a_head_without_a_cotangent_has_the_gradient_0() -> None:
    result, ctx = SMALL.fwd(PARAMS, IMAGES)
    grads = SMALL.bwd(ViTResult(np.ones_like(result.states), None, None), ctx).params
    np.testing.assert_array_equal(grads["classifier"]["weight"], 0)


def test_wrong_input() -> None:
    result, ctx = SMALL.fwd(PARAMS, IMAGES)
    says(ValueError, "`images` has shape (2, 2, 6, 6), expected (2, 6, 6, 2): (B, height, width, channels)",
         lambda: SMALL(PARAMS, IMAGES.transpose(0, 3, 1, 2)))  # fmt: skip
    says(
        TypeError,
        "expected ViTResult(states, pooled, class_logits)",
        lambda: SMALL.bwd(ViTResult(None, None, None), ctx),
    )
    says(ValueError, "`dout.class_logits` has shape (2, 2)",
         lambda: SMALL.bwd(ViTResult(None, None, result.class_logits[:, :2]), ctx))  # fmt: skip
    says(ValueError, "`patch_size` (4) must divide `image_size` (6).", lambda: ViT(6, 4, 8, 1, 2))
    says(ValueError, "`image_size` is (1, 2, 3), expected an integer, or height", lambda: ViT((1, 2, 3), 1, 8, 1, 2))  # type: ignore[arg-type]
