"""Published encoders: read, equal to transformers in outputs and gradients, written again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.checkpoints import save_pretrained
from attnarray.models import BERT, BERTResult
from tests.references.make_published import ENCODERS, SEEDS, directions, formula, results, weight
from tests.support.frozen import Frozen, frozen

safetensors_numpy = pytest.importorskip("safetensors.numpy")

# float64: sums of some hundred products through two blocks, in another order. Gradients go through them twice.
OUTPUTS, GRADIENTS, SINGLE = 1e-12, 1e-10, 1e-5
REFERENCES = frozen("encoders.npz")
each_reference = pytest.mark.parametrize("name", list(REFERENCES))


def saved(folder: Path, reference: Frozen, seed: int) -> None:
    """The folder of a published model, with the weights of the formula."""
    tensors = {name: weight(name, tuple(shape), seed) for name, shape in reference.options["tensors"].items()}
    safetensors_numpy.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()},
                                folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps(reference.options["config"]))


def without_dropout(model: BERT) -> BERT:
    return dataclasses.replace(model, dropout=0.0, attention_dropout=0.0)


def run(model: BERT, params: Any, name: str, arrays: dict[str, np.ndarray], **changes: Any) -> tuple[Any, Any]:
    """The outputs, and the gradients of the parameters for the cotangents of the formula."""
    exists, dtype = arrays["exists"].astype(bool), params["token"]["weight"].dtype
    model = dataclasses.replace(without_dropout(model), **changes)
    result, ctx = model.fwd(params, arrays["tokens"], lengths=exists.sum(1))
    found = {"states": result.states, "pooled": result.pooled}
    logits_ctx: Any = None
    if name.endswith("MaskedLM"):
        found["logits"], logits_ctx = model.mask_logits_fwd(params, result.states)
    elif "For" in name:
        found["logits"], logits_ctx = model.class_logits_fwd(params, result)
    found = {key: x * exists[:, :, None] if x.ndim == 3 else x for key, x in found.items() if key in arrays}
    douts: dict[str, Any] = {key: formula(f"d{key}", x.shape).astype(dtype) for key, x in found.items()}
    douts = {key: x * exists[:, :, None] if x.ndim == 3 else x for key, x in douts.items()}
    if "logits" not in found:
        return found, model.bwd(BERTResult(douts.get("states"), douts.get("pooled")), ctx).params
    if name.endswith("MaskedLM"):
        head = model.mask_logits_bwd(douts["logits"], logits_ctx)
        return found, model.bwd(BERTResult(head.states, None), ctx, head.params).params
    classes = model.class_logits_bwd(douts["logits"], logits_ctx)
    return found, model.bwd(BERTResult(classes.states, classes.pooled), ctx, classes.params).params


def check(name: str, model: BERT, params: Any, arrays: dict[str, np.ndarray], config: Any, **changes: Any) -> None:
    """Compare outputs, and products of gradients with their directions, with those of transformers."""
    found, grads = run(model, params, name, arrays, **changes)
    assert found
    for key, x in found.items():
        np.testing.assert_allclose(x, arrays[key], rtol=0, atol=OUTPUTS, err_msg=key)
    family = next(family for family in model.pretrained if family.model_type == config["model_type"])
    names = family.names(model)
    expected = {names.plain(key.removeprefix("grad_")): (key, x) for key, x in arrays.items() if "grad_" in key}
    compared = set()
    for tensor in names.tensors:
        key, products = expected[tensor.name]
        gradient, original = tensor.joined(grads), key.removeprefix("grad_")
        ours = [np.sum(gradient * v) for v in directions(original, gradient.shape)]
        np.testing.assert_allclose(ours, products, rtol=0, atol=GRADIENTS, err_msg=original)
        compared.add(key)
    assert compared == {key for key in arrays if "grad_" in key}


@each_reference
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_outputs_and_gradients_are_those_of_transformers(name: str, seed: int, recompute: bool, tmp_path: Path) -> None:
    reference = REFERENCES[name]
    saved(tmp_path, reference, seed)
    model, params = aa.models.from_pretrained(tmp_path)
    check(name, model, params, reference.below(f"{seed} "), reference.options["config"], recompute=recompute)


@each_reference
def test_single_precision_is_close(name: str, tmp_path: Path) -> None:
    saved(tmp_path, REFERENCES[name], 0)
    model, params = aa.models.from_pretrained(tmp_path, dtype="float32")
    arrays = REFERENCES[name].below("0 ")
    found, _ = run(model, params, name, arrays)
    for key, x in found.items():
        assert x.dtype == "float32"
        np.testing.assert_allclose(x, arrays[key], rtol=0, atol=SINGLE, err_msg=key)


@each_reference
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    saved(first, REFERENCES[name], 0)
    model, params = aa.models.from_pretrained(first)
    model_type = REFERENCES[name].options["config"]["model_type"]
    save_pretrained(second, model, params, model_type=model_type)
    again, others = aa.models.from_pretrained(second)
    assert again == model
    aa.tree.map(np.testing.assert_array_equal, params, others)
    plain = next(family for family in model.pretrained if family.model_type == model_type).names(model).plain
    before, after = (safetensors_numpy.load_file(folder / "model.safetensors") for folder in (first, second))
    assert {plain(key) for key in before} == {plain(key) for key in after}


@each_reference
def test_a_prepared_model_is_the_model(name: str, tmp_path: Path) -> None:
    saved(tmp_path, REFERENCES[name], 0)
    model, params = aa.models.from_pretrained(tmp_path, dtype="float32")
    arrays = REFERENCES[name].below("0 ")
    lengths = arrays["exists"].astype(bool).sum(1)
    expected, found = model(params, arrays["tokens"], lengths=lengths), model.prepare(params)
    states, pooled = found(arrays["tokens"], lengths=lengths)
    exists = arrays["exists"].astype(bool)
    np.testing.assert_allclose(states[exists], expected.states[exists], rtol=0, atol=1e-5)  # float32
    if pooled is not None:
        np.testing.assert_allclose(pooled, expected.pooled, rtol=0, atol=1e-5)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stem", list(ENCODERS))
def test_other_weights_agree_with_transformers_too(stem: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    options, suffixes = ENCODERS[stem]
    for suffix in suffixes:
        theirs, _, arrays = results(stem, suffix, options, seed=7)
        theirs.save_pretrained(tmp_path)
        model, params = aa.models.from_pretrained(tmp_path)
        check(f"{stem}{suffix}", model, params, arrays, {"model_type": theirs.config.model_type})


def test_options_that_a_family_does_not_have_are_named(tmp_path: Path) -> None:
    for name, changes, message in (
        ("AlbertModel", {"num_hidden_groups": 2}, "num_hidden_groups = 2"),
        ("MPNetModel", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets = 16"),
        ("RobertaForMaskedLM", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("RobertaForMaskedLM", {"tie_word_embeddings": False}, r"ignore=\(\"lm_head.\",\)"),
        ("ElectraModel", {"embedding_size": 0}, "embedding_size"),
        ("RobertaModel", {"pad_token_id": -1}, "pad_token_id"),
    ):
        saved(tmp_path, REFERENCES[name], 0)
        (tmp_path / "config.json").write_text(json.dumps({**REFERENCES[name].options["config"], **changes}))
        with pytest.raises(ValueError, match=message):
            aa.models.from_pretrained(tmp_path)


def test_positions_skip_padding_wherever_it_is() -> None:
    model = BERT(vocab_size=9, max_seq_len=6, dim=4, num_layers=1, num_heads=2, padding_token=1, types=None)
    params = model.init(aa.Philox(0), "float64")
    left, right = np.array([[1, 1, 5, 6, 7]]), np.array([[5, 6, 7, 1, 1]])
    mask = (left != 1)[:, None, None, :]
    first = model(params, left, attn_mask=mask).states[:, 2:]
    np.testing.assert_allclose(first, model(params, right, lengths=[3]).states[:, :3], rtol=0, atol=1e-14)


CLASSES = BERT(vocab_size=9, max_seq_len=6, dim=4, num_layers=1, num_heads=2, num_labels=3, mask_head=False)


def test_wrong_heads_are_errors() -> None:
    params = CLASSES.init(aa.Philox(0), "float64")
    result, ctx = CLASSES.fwd(params, np.array([[1, 2]]))
    logits, logits_ctx = CLASSES.class_logits_fwd(params, result)
    grads = CLASSES.class_logits_bwd(logits, logits_ctx)
    with pytest.raises(TypeError, match="`head` is a dict with token"):
        CLASSES.bwd(BERTResult(None, grads.pooled), ctx, {"token": grads.params["classifier"]})
    with pytest.raises(ValueError, match="dlogits"):
        CLASSES.class_logits_bwd(logits[:, :2], logits_ctx)
    plain, typeless = dataclasses.replace(CLASSES, num_labels=None), dataclasses.replace(CLASSES, types=None)
    with pytest.raises(ValueError, match="num_labels"):
        plain.class_logits(plain.init(aa.Philox(0)), result)
    with pytest.raises(ValueError, match="pooler"):
        dataclasses.replace(CLASSES, pooler=False)
    with pytest.raises(ValueError, match="padding_token"):
        dataclasses.replace(CLASSES, padding_token=9)
    with pytest.raises(ValueError, match="`share_blocks` is True, but so is `pre_norm`"):
        dataclasses.replace(CLASSES, share_blocks=True, pre_norm=True)
    with pytest.raises(ValueError, match="types"):
        typeless(typeless.init(aa.Philox(0)), np.array([[1, 2]]), np.array([[0, 0]]))
