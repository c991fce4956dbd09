"""Sentence embeddings and tokenizers: folders of sentence-transformers, gradients, wrong folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.checkpoints import save_pretrained
from attnarray.models import BERT, SentenceEncoder, load_tokenizer
from tests.support.libraries import assert_close

ENCODER = BERT(13, 9, 8, 2, 2, 10, pooler=False, mask_head=False)
TOKENS, LENGTHS = np.array([[3, 5, 2, 7, 1], [4, 4, 9, 0, 0]]), [5, 3]
PARAMS = aa.tree.map(lambda x: x + 0.1, ENCODER.init(aa.Philox(0), "float64"))
each_pooling = pytest.mark.parametrize("pooling", ["mean", "cls", "max"])


@each_pooling
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_pooled_states_and_have_gradients(pooling: Any, normalize: bool) -> None:
    model = SentenceEncoder(ENCODER, pooling, normalize)
    states = ENCODER(PARAMS, TOKENS, lengths=LENGTHS).states
    pool = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.max(0)}[pooling]
    expected = np.stack([pool(x[:n]) for x, n in zip(states, LENGTHS, strict=True)])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = model(PARAMS, TOKENS, lengths=LENGTHS)
    assert_close(vectors, expected, 1e-14)
    assert aa.gradcheck(model, PARAMS, tokens=TOKENS, lengths=LENGTHS)


def folder_of(path: Path, modules: list[str], pooling: dict[str, Any]) -> Path:
    kinds = [f"sentence_transformers.models.{kind}" for kind in modules]
    paths = ["", "1_Pooling", "2_Normalize", "3_Dense"]
    listed = [{"idx": n, "name": str(n), "path": paths[n], "type": kind} for n, kind in enumerate(kinds)]
    save_pretrained(path, ENCODER, PARAMS)
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **pooling}))
    return path


@each_pooling
def test_a_folder_of_sentence_transformers(pooling: str, tmp_path: Path) -> None:
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("cls_token", "mean_tokens", "max_tokens")}
    for modules in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        model, params = SentenceEncoder.from_pretrained(folder_of(tmp_path / str(len(modules)), modules, modes))
        assert model == SentenceEncoder(ENCODER, pooling, len(modules) == 3)  # type: ignore[arg-type]
        aa.tree.map(np.testing.assert_array_equal, params, PARAMS)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    mean, last = {"pooling_mode_mean_tokens": True}, {"pooling_mode_lasttoken": True}
    with pytest.raises(ValueError, match="Dense, but only Transformer"):
        SentenceEncoder.from_pretrained(folder_of(tmp_path / "dense", ["Transformer", "Pooling", "Dense"], mean))
    with pytest.raises(ValueError, match="pooling_mode_lasttoken, but"):
        SentenceEncoder.from_pretrained(folder_of(tmp_path / "last", ["Transformer", "Pooling"], last))
    with pytest.raises(ValueError, match="asks for no pooling"):
        SentenceEncoder.from_pretrained(folder_of(tmp_path / "none", ["Transformer", "Pooling"], {}))
    save_pretrained(tmp_path / "plain", ENCODER, PARAMS)
    with pytest.raises(FileNotFoundError, match=r"modules\.json"):
        SentenceEncoder.from_pretrained(tmp_path / "plain")
    model = SentenceEncoder(ENCODER)
    with pytest.raises(ValueError, match="at least one token"):
        model(PARAMS, TOKENS, lengths=[5, 0])
    with pytest.raises(TypeError, match="`encoder`"):
        SentenceEncoder("bert")  # type: ignore[arg-type]


def test_a_tokenizer_fits_its_model(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: n for n, word in enumerate(["[UNK]", "attention", "is", "all", "you", "need"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path, SentenceEncoder(ENCODER))
    assert found.encode("attention is all they need").ids == [1, 2, 3, 0, 5]
    small = BERT(5, 9, 8, 1, 2)
    with pytest.raises(ValueError, match=r"tokens up to 5, but the model has `vocab_size` 5"):
        load_tokenizer(tmp_path, small)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "none")


def test_without_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"attnarray\[tokenizers\]"):
        load_tokenizer(tmp_path)
