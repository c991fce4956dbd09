"""Published checkpoints: read, written, in parts, in every dtype; and damaged folders."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import attnarray as aa
from attnarray import tree
from attnarray.checkpoints import save_pretrained
from attnarray.models import BERT, GPT
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import Library, assert_close, assert_trees_close
from tests.support.published import PARAMS, SMALL_BERT, reconfigure, rewrite, safetensors_numpy, saved, shard

MODELS: dict[str, Any] = {
    "BERT": SMALL_BERT,
    "BERT without heads": BERT(11, 8, 6, 1, 3, types=3, activation="relu", pooler=False, mask_head=False, dropout=0.1),
    "GPT-2": GPT(11, 8, 6, 2, 2, 7, dropout=0.1, attention_dropout=0.2),
    "GPT-2, untied": GPT(11, 8, 6, 1, 3, activation="gelu", tie_embeddings=False),
    "LLaMA": GPT(11, 8, 8, 2, 4, 12, positions="rotary", rotary=aa.Rotary(base=30.0), norm="rms", activation="silu",
                 gated=True, bias=False, num_kv_heads=2, tie_embeddings=False),
    "LLaMA, longer": GPT(11, 40, 8, 2, 4, 12, positions="rotary", rotary=aa.Rotary(scaling="linear", factor=4.0),
                         norm="rms", activation="gelu_tanh", gated=True, bias=False, num_kv_heads=4, dropout=0.1,
                         attention_dropout=0.2),
}  # fmt: skip
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))


@each_model
def test_what_is_saved_comes_back(model: Any, tmp_path: Path) -> None:
    params = model.init(aa.Philox(3))
    again, loaded = type(model).from_pretrained(saved(tmp_path / "new" / "folder", model, params))
    expected = dataclasses.replace(model, hidden_dim=again.hidden_dim) if model.hidden_dim is None else model
    assert again == expected
    assert_trees_close(loaded, params, 0)
    assert [path for path, _ in tree.flatten(loaded)] == [path for path, _ in tree.flatten(params)]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_dtype_and_library(library: Library, dtype: str, tmp_path: Path) -> None:
    if dtype not in library.dtypes:
        pytest.skip(f"{library.name} has no {dtype}")
    params = library.moved(SMALL_BERT.init(aa.Philox(0), dtype))
    saved(tmp_path, SMALL_BERT, params)
    with aa.use_backend(library.name):
        _, loaded = BERT.from_pretrained(tmp_path)
        _, wide = BERT.from_pretrained(tmp_path, dtype="float32")
    for (_, leaf), (_, other), (_, mine) in zip(*map(tree.flatten, (loaded, wide, params)), strict=True):
        assert type(leaf) is type(mine)
        assert (aa.backend.dtype_name(leaf.dtype), aa.backend.dtype_name(other.dtype)) == (dtype, "float32")
        np.testing.assert_array_equal(aa.to_numpy(leaf), aa.to_numpy(mine))
        np.testing.assert_array_equal(aa.to_numpy(other), aa.to_numpy(mine).astype(np.float32))


def test_bfloat16_of_a_safetensors_that_gives_numpy_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SMALL_BERT.init(aa.Philox(0), "bfloat16")
    saved(tmp_path, SMALL_BERT, params)
    file = aa.checkpoints.files.TensorFile

    class Older:
        """A file as of versions before 0.6."""

        def __init__(self, inner: Any) -> None:
            self.inner, self.keys, self.metadata, self.get_slice = inner, inner.keys, inner.metadata, inner.get_slice

        def get_tensor(self, name: str) -> Any:
            raise AttributeError("module 'numpy' has no attribute 'bfloat16'")

    initial = file.__init__
    monkeypatch.setattr(file, "__init__", lambda self, path, inner, _: initial(self, path, Older(inner), None))
    _, loaded = BERT.from_pretrained(tmp_path)
    assert_trees_close(loaded, params, 0)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ModuleNotFoundError, match=r"bfloat16, .*pip install 'attnarray\[checkpoints\]'"):
        BERT.from_pretrained(tmp_path)


FROZEN = {f"{file}: {name}": case for file in ("bert", "gpt2") for name, case in frozen(f"{file}.npz").items()}


@pytest.mark.parametrize("case", FROZEN.values(), ids=list(FROZEN))
def test_checkpoints_of_transformers_give_its_states(case: Frozen, tmp_path: Path) -> None:
    bert = case.below("param_")
    weights = bert or {name: a for name, a in case.arrays.items() if name.startswith(("transformer.", "model.", "lm_"))}
    safetensors_numpy.save_file({name: a.copy() for name, a in weights.items()}, tmp_path / "model.safetensors")
    if bert:
        (tmp_path / "config.json").write_text(json.dumps(case.options["config"]))
        kind, options = BERT, {"types": case.arrays["types"]}
        options["attn_mask"] = case.arrays["exists"].astype(bool)[:, None, None, :]
    else:
        save_pretrained(tmp_path / "aside", GPT(**case.options), GPT(**case.options).init(aa.Philox(0)))
        (tmp_path / "aside" / "config.json").rename(tmp_path / "config.json")
        kind, options = GPT, case.given("starts", "lengths")
    model, params = kind.from_pretrained(tmp_path)
    exists = case.arrays["exists"][..., None] if not bert else 1
    for n, state in enumerate(model.states(params, case.arrays["tokens"], **options)):
        assert_close(state * exists, case.arrays[f"state_{n}"], 1e-10)


def test_tensors_in_parts(tmp_path: Path) -> None:
    assert_trees_close(BERT.from_pretrained(shard(saved(tmp_path)))[1], PARAMS, 0)


def older_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, array in tensors.items():
        name = name.removeprefix("bert.")
        found[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = array
    return {**found, "embeddings.position_ids": np.arange(8)[None]}


def with_copies(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    words = {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
    pairs = {"cls.seq_relationship.weight": np.ones((2, 6)), "cls.seq_relationship.bias": np.ones(2)}
    return {**tensors, **words, **pairs, "cls.predictions.decoder.bias": tensors["cls.predictions.bias"]}


@pytest.mark.parametrize("change", [older_names, with_copies])
def test_harmless_differences_are_understood(change: Any, tmp_path: Path) -> None:
    model, params = BERT.from_pretrained(rewrite(saved(tmp_path), change))
    assert model == SMALL_BERT
    assert_trees_close(params, PARAMS, 0)


def test_harmless_differences_of_gpt2(tmp_path: Path) -> None:
    model = MODELS["GPT-2"]
    params = model.init(aa.Philox(0))

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        plain = {name.removeprefix("transformer."): array for name, array in tensors.items()}
        buffers = {"h.0.attn.bias": np.ones((1, 1, 8, 8), bool), "h.1.attn.masked_bias": np.full((), -1e4)}
        return {**plain, **buffers, "lm_head.weight": plain["wte.weight"]}

    again, loaded = GPT.from_pretrained(rewrite(saved(tmp_path, model, params), change))
    assert again == model
    assert_trees_close(loaded, params, 0)


EXTRA = {
    "classifier.weight": (3, 6),
    "classifier.bias": (3,),
    "bert.extra.a.b": (2,),
    "bert.pooler.gate": (1,),
    "top": (1,),
}


def test_what_is_not_needed_can_be_ignored(tmp_path: Path) -> None:
    rewrite(saved(tmp_path), lambda tensors: {**tensors, **{name: np.ones(shape) for name, shape in EXTRA.items()}})
    with pytest.raises(ValueError, match=r"\(and 4 more\) is unknown to BERT. If it is not needed") as caught:
        BERT.from_pretrained(tmp_path)
    ignore = ast.literal_eval(str(caught.value).rpartition("ignore=")[2].removesuffix("."))
    assert sorted(ignore) == ["bert.extra.", "bert.pooler.gate", "classifier.", "top"]
    assert_trees_close(BERT.from_pretrained(tmp_path, ignore=ignore)[1], PARAMS, 0)
    with pytest.raises(ValueError, match=r"\(and 1 more\) is unknown .*: ignore=\('classifier.',\)"):
        BERT.from_pretrained(tmp_path, ignore=[name for name in ignore if name != "classifier."])


def test_what_is_ignored_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    other = {"cls.predictions.decoder.weight": np.ones((11, 6), np.float32)}
    reconfigure(rewrite(saved(tmp_path), lambda tensors: {**tensors, **other}), tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"tie_word_embeddings = False.* ignore=\(\"cls.\",\)"):
        BERT.from_pretrained(tmp_path)
    model, params = BERT.from_pretrained(tmp_path, ignore="cls.")
    assert model == dataclasses.replace(SMALL_BERT, mask_head=False)
    assert_trees_close(params, {name: leaf for name, leaf in PARAMS.items() if name != "mask_head"}, 0)
    model, _ = BERT.from_pretrained(tmp_path, ignore=("cls.", "bert.pooler."))
    assert model == dataclasses.replace(SMALL_BERT, mask_head=False, pooler=False)
    reconfigure(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"differs from .* ignore=\('cls.',\)"):
        BERT.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the tensor `bert.embeddings.word_embeddings.weight`"):
        BERT.from_pretrained(tmp_path, ignore=("bert.embeddings.",))


HARMLESS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a head": ("BERT", {"architectures": ["BertForSequenceClassification"]}, {}),
    "no architecture": ("BERT", {"architectures": None}, {}),
    "no type": ("BERT", {"model_type": "absent", "architectures": "absent"}, {}),
    "unused": ("BERT", {"classifier_dropout": float("nan"), "is_decoder": False, "use_cache": True, "x": [{}]}, {}),
    "no dropout": ("BERT", {"hidden_dropout_prob": None}, {"dropout": 0.1}),
    "two dropouts": ("GPT-2", {"embd_pdrop": 0.3}, {}),
    "wider sums": ("GPT-2", {"reorder_and_upcast_attn": True}, {}),
    "by architecture": ("LLaMA", {"model_type": "absent"}, {}),
    "parts of maps": ("LLaMA", {"pretraining_tp": 2, "head_dim": 2, "rope_scaling": {}}, {}),
    "linear": ("LLaMA", {"rope_scaling": {"rope_type": "linear", "factor": 2}},
               {"rotary": aa.Rotary(base=30.0, scaling="linear", factor=2.0)}),
    "older linear": ("LLaMA", {"rope_scaling": {"type": "linear", "factor": 2.5}, "rope_parameters": "absent"},
                     {"rotary": aa.Rotary(base=30.0, scaling="linear", factor=2.5)}),
    "newer linear": ("LLaMA", {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 30.0}},
                     {"rotary": aa.Rotary(base=30.0, scaling="linear", factor=2.0)}),
    "no base": ("LLaMA", {"rope_parameters": "absent", "rope_theta": "absent"}, {"rotary": aa.Rotary()}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "expected"), HARMLESS.values(), ids=list(HARMLESS))
def test_what_does_not_matter_in_a_configuration(
    name: str, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    model = MODELS[name]
    folder = reconfigure(saved(tmp_path, model, model.init(aa.Philox(0))), **changes)
    assert type(model).from_pretrained(folder)[0] == dataclasses.replace(model, **expected)


def test_linear_scaling_divides_positions(tmp_path: Path) -> None:
    model = MODELS["LLaMA, longer"]
    params = model.init(aa.Philox(1), "float64")
    again, loaded = GPT.from_pretrained(saved(tmp_path, model, params))
    tokens = np.random.default_rng(0).integers(11, size=(2, 9))
    assert_close(again(loaded, tokens), model(params, tokens), 0)
    plain = dataclasses.replace(model, rotary=aa.Rotary())
    spread = np.repeat(tokens, 4, axis=1)[:, ::4]
    assert np.abs(plain(params, spread) - model(params, tokens)).max() > 1e-6


OPTIONS: dict[str, list[Any]] = {
    "dim": [4, 8, 12, np.int64(8)],
    "num_layers": [1, 3],
    "num_heads": [1, 2, 4],
    "hidden_dim": [None, 0, 5],
    "positions": ["learned", "rotary", "none", "alibi"],
    "rotary": [None, aa.Rotary(), aa.Rotary(base=7.0, scaling="linear", factor=2.0), aa.Rotary(dims=2),
               aa.Rotary(scaling="ntk", factor=2.0), aa.Rotary(interleaved=True), aa.Rotary(factor=3.0)],
    "norm": ["layer", "rms"],
    "activation": ["gelu", "gelu_tanh", "relu", "silu"],
    "gated": [False, True],
    "bias": [False, True],
    "num_kv_heads": [None, 1, 2],
    "tie_embeddings": [False, True],
    "eps": [1e-5, np.float32(1e-3), 1],
    "dropout": [0, 0.1],
    "init_std": [0, 0.3],
}  # fmt: skip


@pytest.mark.parametrize("base", [MODELS["GPT-2"], MODELS["LLaMA"]], ids=["GPT-2", "LLaMA"])
@given(st.data())
def test_a_model_is_refused_or_comes_back(base: GPT, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(list(OPTIONS)), max_size=3, unique=True))
    changes = {name: data.draw(st.sampled_from(OPTIONS[name])) for name in names}
    try:
        model = dataclasses.replace(base, **changes)
    except ValueError:  # no model
        assume(False)
    params = model.init(aa.Philox(0))
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_pretrained(folder, model, params)
        except ValueError:
            assert list(Path(folder).iterdir()) == []
            assert set(names) & {
                "positions",
                "rotary",
                "norm",
                "gated",
                "bias",
                "num_kv_heads",
                "dim",
                "num_heads",
                "hidden_dim",
            }
            return
        again, loaded = GPT.from_pretrained(folder)
    tokens = np.arange(7)[None]
    assert_close(again(loaded, tokens), model(params, tokens), 0)
    assert (again.dropout, again.init_std) == (model.dropout, model.init_std)


CLASSES = {"BERT": "BertForMaskedLM", "GPT-2": "GPT2LMHeadModel", "GPT-2, untied": "GPT2LMHeadModel",
           "LLaMA": "LlamaForCausalLM", "LLaMA, longer": "LlamaForCausalLM"}  # fmt: skip


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_reads_what_is_written_and_the_other_way_round(name: str, tmp_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = dataclasses.replace(MODELS[name], **({"pooler": False} if name == "BERT" else {}))
    params = model.init(aa.Philox(5))
    theirs, report = getattr(transformers, CLASSES[name]).from_pretrained(
        saved(tmp_path / "ours", model, params), output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.eval().save_pretrained(tmp_path / "theirs")
    again, loaded = type(model).from_pretrained(tmp_path / "theirs")
    assert again == dataclasses.replace(model, hidden_dim=again.hidden_dim)
    assert_trees_close(loaded, params, 0)
    tokens = np.random.default_rng(0).integers(11, size=(2, 5))
    logits = model.mask_logits(params, model(params, tokens).states) if name == "BERT" else model(params, tokens)
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens)).logits.numpy()
    assert_close(logits, expected, 1e-5)
