"""Published encoder-decoders: equal to transformers in logits, gradients and tokens; steps, files, wrong input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.checkpoints import save_pretrained
from attnarray.models import EncoderDecoder
from tests.models.test_published import GRADIENTS, OUTPUTS, SINGLE, saved
from tests.references.make_published import (
    BEAMS,
    COUNT,
    ENCODER_DECODERS,
    SEEDS,
    directions,
    formula,
    pair_outputs,
    results,
)
from tests.support.frozen import frozen

safetensors_numpy = pytest.importorskip("safetensors.numpy")

REFERENCES = frozen("encoder_decoders.npz")
each_reference = pytest.mark.parametrize("name", list(REFERENCES))
DROPOUTS = {"dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0}
SMALL = EncoderDecoder(13, 9, 8, 1, 2, hidden_dim=10)
SOURCE, TARGET = np.array([[3, 5, 2, 7], [4, 4, 9, 0]]), np.array([[1, 8, 6], [1, 3, 3]])


def loaded(name: str, seed: int, folder: Path, **changes: Any) -> tuple[EncoderDecoder, Any, dict[str, np.ndarray]]:
    saved(folder, REFERENCES[name], seed)
    model, params = aa.models.from_pretrained(folder, dtype=changes.pop("dtype", None))
    return dataclasses.replace(model, **DROPOUTS, **changes), params, REFERENCES[name].below(f"{seed} ")


def check(model: EncoderDecoder, params: Any, arrays: dict[str, np.ndarray], model_type: str) -> None:
    """Compare logits, products of gradients with their directions, and tokens with those of transformers."""
    lengths = arrays["exists"].astype(bool).sum(1)
    logits, ctx = model.fwd(params, arrays["tokens"], arrays["target"], source_lengths=lengths)
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=OUTPUTS)
    grads = model.bwd(formula("dlogits", logits.shape), ctx).params
    family = next(family for family in model.pretrained if family.model_type == model_type)
    names = family.names(model)
    expected = {names.plain(key.removeprefix("grad_")): (key, x) for key, x in arrays.items() if "grad_" in key}
    for tensor in names.tensors:
        gradient = tensor.joined(grads)
        if tensor.name == "final_logits_bias":  # a buffer, without a gradient in transformers
            np.testing.assert_allclose(gradient, formula("dlogits", logits.shape).sum((0, 1))[None], atol=GRADIENTS)
            continue
        key, products = expected.pop(tensor.name)
        ours = [np.sum(gradient * v) for v in directions(key.removeprefix("grad_"), gradient.shape)]
        np.testing.assert_allclose(ours, products, rtol=0, atol=GRADIENTS, err_msg=key)
    assert not expected
    options: Any = {"start": 0, "lengths": lengths, "end": 2}
    greedy = model.generate(params, arrays["tokens"], COUNT, **options)
    np.testing.assert_array_equal(greedy, arrays["greedy"])
    options |= {"method": "beam", "beams": BEAMS, "early_stopping": False}
    np.testing.assert_array_equal(model.generate(params, arrays["tokens"], COUNT, **options), arrays["beams"])


@each_reference
@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_that_of_transformers(name: str, seed: int, tmp_path: Path) -> None:
    model, params, arrays = loaded(name, seed, tmp_path, recompute=seed == 1)
    check(model, params, arrays, REFERENCES[name].options["config"]["model_type"])


@each_reference
def test_single_precision_is_close(name: str, tmp_path: Path) -> None:
    model, params, arrays = loaded(name, 0, tmp_path, dtype="float32")
    logits = model(params, arrays["tokens"], arrays["target"], source_lengths=arrays["exists"].astype(bool).sum(1))
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=SINGLE)


@each_reference
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    saved(tmp_path / "first", REFERENCES[name], 0)
    model, params = EncoderDecoder.from_pretrained(tmp_path / "first")
    save_pretrained(tmp_path / "second", model, params)
    again, others = EncoderDecoder.from_pretrained(tmp_path / "second")
    assert again == model
    aa.tree.map(np.testing.assert_array_equal, params, others)


@each_reference
def test_steps_are_one_call(name: str, tmp_path: Path) -> None:
    model, params, arrays = loaded(name, 0, tmp_path)
    lengths, target = arrays["exists"].astype(bool).sum(1), arrays["target"]
    whole = model(params, arrays["tokens"], target, source_lengths=lengths)
    cache = model.cache(params, arrays["tokens"], 5, lengths=lengths)
    first, cache = model.step(params, target[:, :3], cache)
    last, cache = model.step(params, target[:, 3:], cache)
    np.testing.assert_allclose(np.concatenate([first, last], axis=1), whole, rtol=0, atol=1e-13)
    assert cache.length == 5
    turned = cache.rows(np.array([1, 1]))
    np.testing.assert_array_equal(turned.lengths, lengths[[1, 1]])
    np.testing.assert_array_equal(turned.blocks[0].own.key, cache.blocks[0].own.key[[1, 1]])
    with pytest.raises(ValueError, match="max_seq_len"):
        model.step(params, target[:, :1], cache)


@pytest.mark.parametrize(
    "changes",
    [{}, {"positions": "sinusoidal", "scale_embedding": True, "embedding_norm": False},
     {"positions": "relative", "buckets": 8, "max_distance": 6, "tie_embeddings": False, "scale_logits": True}],
    ids=["learned", "sinusoidal", "relative"],
)  # fmt: skip
def test_gradients(changes: dict[str, Any]) -> None:
    model = dataclasses.replace(SMALL, vocab_size=10, dim=4, hidden_dim=5, **changes)
    params = model.init(aa.Philox(1), "float64")
    rng = np.random.default_rng(0)
    params = aa.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape), params)
    assert aa.gradcheck(model, params, source=SOURCE, target=TARGET, source_lengths=[4, 3])


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stem", list(ENCODER_DECODERS))
def test_other_weights_agree_with_transformers_too(stem: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    options, (suffix,) = ENCODER_DECODERS[stem]
    theirs, contents, arrays = results(stem, suffix, options, 7, pair_outputs)
    theirs.save_pretrained(tmp_path)
    model, params = aa.models.from_pretrained(tmp_path)
    check(dataclasses.replace(model, **DROPOUTS), params, arrays, contents["config"]["model_type"])


def test_wrong_input(tmp_path: Path) -> None:
    params = SMALL.init(aa.Philox(0))
    with pytest.raises(ValueError, match="`max_seq_len` 9"):
        SMALL(params, np.zeros((1, 10), int), TARGET[:1])
    with pytest.raises(ValueError, match="`max_seq_len` 9"):
        SMALL.generate(params, SOURCE, 20, start=1)
    with pytest.raises(ValueError, match="`start`"):
        SMALL.generate(params, SOURCE, 2, start=13)
    with pytest.raises(ValueError, match="source_lengths"):
        SMALL(params, SOURCE, TARGET, source_lengths=[4, 5])
    with pytest.raises(ValueError, match="positions"):
        dataclasses.replace(SMALL, positions="other")  # type: ignore[arg-type]
    name = "BartForConditionalGeneration"
    for changes, message in (
        ({"decoder_attention_heads": 4}, "only equal ones"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"activation_function": "quick"}, "activation_function"),
    ):
        saved(tmp_path, REFERENCES[name], 0)
        (tmp_path / "config.json").write_text(json.dumps({**REFERENCES[name].options["config"], **changes}))
        with pytest.raises(ValueError, match=message):
            aa.models.from_pretrained(tmp_path)
