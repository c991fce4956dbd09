"""Every family of decoders: logits, gradients, caches and greedy tokens as transformers has them; files come back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.checkpoints import save_pretrained
from tests.support.decoders import DECODERS, NEW, STARTS, direction, values
from tests.support.libraries import assert_close
from tests.support.paths import ROOT

safetensors_numpy = pytest.importorskip("safetensors.numpy")

ROUNDING = 1e-12  # of logits of a size of 1 to 10
each_decoder = pytest.mark.parametrize("name", DECODERS)


def load(name: str, folder: Path, dtype: str = "float64") -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """The model and its parameters from a folder, the reference, and the shapes of the tensors."""
    with np.load(ROOT / f"tests/references/decoders/{name.replace(' ', '_')}.npz") as file:
        reference = dict(file)
    described = json.loads(str(reference.pop("model")))
    (folder / "config.json").write_text(json.dumps(described["config"]))
    tensors = {key: values(key, tuple(shape)).astype(dtype) for key, shape in described["shapes"].items()}
    safetensors_numpy.save_file(tensors, folder / "model.safetensors")
    return *aa.models.from_pretrained(folder), reference, described["shapes"]


@each_decoder
def test_logits_and_all_gradients(name: str, tmp_path: Path) -> None:
    model, params, reference, shapes = load(name, tmp_path)
    model = dataclasses.replace(model, dropout=0.0, attention_dropout=0.0)
    with aa.use_kernels("reference"):
        logits, ctx = model.fwd(params, reference["tokens"])
        assert_close(logits, reference["logits"], ROUNDING)
        grads = model.bwd(direction(logits.shape), ctx).params
        padded = model(params, reference["tokens"], starts=np.array(STARTS))
    for row, start in enumerate(STARTS):
        assert_close(padded[row, start:], reference["padded"][row, start:], ROUNDING)
    family = next(family for family in model.pretrained if family.model_type == DECODERS[name][0])
    names = family.names(model)
    found = {names.full(tensor.name): tensor.joined(grads) for tensor in names.tensors}
    assert found.keys() == shapes.keys()
    projections = [np.sum(found[key] * direction(found[key].shape)) for key in sorted(found)]
    assert_close(np.array(projections), reference["gradients"], 1e-10)


@each_decoder
def test_steps_and_greedy_tokens_of_left_padded_prompts(name: str, tmp_path: Path) -> None:
    model, params, reference, _ = load(name, tmp_path)
    tokens = reference["tokens"]
    with aa.use_kernels("reference"):
        cache = model.cache(len(tokens), dtype="float64")
        for n in range(tokens.shape[1]):
            logits, cache = model.step(params, tokens[:, n : n + 1], cache)
            assert_close(logits[:, 0], reference["logits"][:, n], ROUNDING)
        assert aa.models.generate(model, params, tokens, NEW, starts=STARTS).tolist() == reference["greedy"].tolist()


@each_decoder
def test_float32(name: str, tmp_path: Path) -> None:
    model, params, reference, _ = load(name, tmp_path, "float32")
    with aa.use_kernels("reference"):
        logits = model(params, reference["tokens"])
    scale = max(1.0, float(np.abs(reference["logits"]).max()))
    assert_close(logits / scale, reference["logits"] / scale, 1e-5)


@each_decoder
def test_a_model_comes_back(name: str, tmp_path: Path) -> None:
    model, params, _, _ = load(name, tmp_path)
    save_pretrained(tmp_path / "again", model, params, model_type=DECODERS[name][0])
    again, loaded = aa.models.from_pretrained(tmp_path / "again")
    assert again == model
    for (path, one), (_, other) in zip(tree.flatten(params), tree.flatten(loaded), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=tree.format_path(path))
    save_pretrained(tmp_path / "first", model, params)  # the first family that has all its options
    assert aa.models.from_pretrained(tmp_path / "first")[0] == model
