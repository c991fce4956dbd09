"""Damaged folders of checkpoints: one clear error that names the file or tensor."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.checkpoints import Unsupported, load_pretrained, save_pretrained
from attnarray.models import BERT, GPT
from tests.support.published import PARAMS, SMALL_BERT, fails, reconfigure, rewrite, saved, shard

QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def without(name: str) -> Any:
    return lambda tensors: {other: array for other, array in tensors.items() if other != name}


def changed(name: str, function: Any) -> Any:
    return lambda tensors: {**tensors, name: function(tensors.get(name))}


WORDS = "bert.embeddings.word_embeddings.weight"
WRONG_TENSORS: dict[str, tuple[Any, str]] = {
    "missing": (without(QUERY), f"lacks the tensor `{QUERY}`, which is `params.blocks.1.attention.query.w"),
    "misshapen": (changed(QUERY, lambda _: np.ones((6, 5))), "has shape (6, 5), expected (6, 6) for `params.blocks"),
    "twice": (changed(QUERY.removeprefix("bert."), lambda _: np.ones(3)), "is duplicated as `"),
    "untied": (changed("cls.predictions.decoder.weight", lambda _: np.ones((11, 6))), f"differs from `{WORDS}`"),
    "integers": (changed(QUERY, lambda a: a.astype(np.int8)), "has dtype int8, expected one of float16"),
    "mixed": (changed(QUERY, lambda a: a.astype(np.float16)), "have different dtypes: float16, float32. Give one"),
    "eight bits": (changed(QUERY, lambda a: a.astype(ml_dtypes.float8_e4m3fn)), "which cannot be read."),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), WRONG_TENSORS.values(), ids=list(WRONG_TENSORS))
def test_wrong_tensors_are_named(change: Any, expected: str, tmp_path: Path) -> None:
    fails(ValueError, expected, lambda: BERT.from_pretrained(rewrite(saved(tmp_path), change)))


WRONG_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model_type": "brt"}, "has model_type = 'brt', but BERT reads 'bert'"),
    "a near model": ({"model_type": "brt"}, "; the nearest is 'bert'."),
    "positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key', but only"),
    "decoder": ({"is_decoder": True}, "asks for is_decoder = True, but only False is supported."),
    "activation": ({"hidden_act": "mish"}, "asks for hidden_act = 'mish', but only 'gelu', 'gelu_new'"),
    "missing": ({"hidden_size": "absent"}, "lacks 'hidden_size', which determine the shapes of the model."),
    "untied": ({"tie_word_embeddings": False}, "asks for tie_word_embeddings = False"),
    "quantized": ({"quantization_config": {"bits": 4}}, "asks for quantization_config = {'bits': 4}"),
    "heads": ({"num_attention_heads": 4}, "does not describe a BERT: `num_heads` (4) must divide `dim` (6)"),
    "a text": ({"num_hidden_layers": "two"}, "does not describe a BERT: `num_hidden_layers` is 'two', expected"),
    "another size": ({"vocab_size": 12}, "has shape (11, 6), expected (12, 6) for `params.token.weight`."),
    "fewer layers": ({"num_hidden_layers": 1}, "`bert.encoder.layer.1.attention.output.LayerNorm.bias` in"),
    "a million layers": ({"num_hidden_layers": 10**6}, "asks for num_hidden_layers = 1000000, but the weights are 44"),
    "no layers": ({"num_hidden_layers": 0}, "does not describe a BERT: `num_hidden_layers` is 0, expected an integer"),
    "half a layer": ({"num_hidden_layers": 1.5}, "`num_hidden_layers` is 1.5, expected an integer >= 1"),
    "a true size": ({"type_vocab_size": True}, "`type_vocab_size` is True, expected an integer >= 1"),
    "a list of heads": ({"num_attention_heads": [2]}, "`num_attention_heads` is [2], expected an integer >= 1"),
    "no heads": ({"num_attention_heads": 0}, "`num_attention_heads` is 0, expected an integer >= 1"),
    "more than any": ({"vocab_size": 10**30}, "expected an integer from 1 to 2147483647: a size of the model."),
    "another architecture": ({"architectures": ["RbertaModel"]}, "has the architecture 'RbertaModel', but BERT"),
    "and no type": ({"architectures": ["RbertaModel"], "model_type": "absent"}, "has the architecture 'Rberta"),
    "two of them": ({"architectures": ["BertModel", "XLMRbertaModel"]}, "has the architecture 'XLMRbertaModel'"),
    "a decoder": ({"architectures": ["BertLMHeadModel"]}, "has the architecture 'BertLMHeadModel'"),
    "a text of them": ({"architectures": "BertModel"}, "has architectures = 'BertModel', expected a list of names."),
    "a list of lists": ({"architectures": [["BertModel"]]}, "has architectures = [['BertModel']], expected a list"),
    "a list of types": ({"model_type": ["bert"]}, "has model_type = ['bert'], but BERT reads 'bert'"),
    "a list of functions": ({"hidden_act": ["gelu"]}, "asks for hidden_act = ['gelu'], but only 'gelu', 'gelu_new'"),
    "no function": ({"hidden_act": None}, "asks for hidden_act = None, but only 'gelu', 'gelu_new'"),
    "eps": ({"layer_norm_eps": float("nan")}, "does not describe a BERT: `layer_norm_eps` is nan, expected a"),
    "a huge eps": ({"layer_norm_eps": 1e39}, "`layer_norm_eps` is 1e+39, expected a number of a size from"),
    "a tiny eps": ({"layer_norm_eps": 1e-300}, "`layer_norm_eps` is 1e-300, expected a number of a size from"),
    "no eps": ({"layer_norm_eps": 0}, "does not describe a BERT: `layer_norm_eps` is 0, expected a finite"),
    "dropout": ({"hidden_dropout_prob": "0.1"}, "`hidden_dropout_prob` is '0.1', expected a probability from 0 to 1."),
    "std": ({"initializer_range": float("inf")}, "`initializer_range` is inf, expected a finite number >= 0."),
    "compressed": ({"compression_config": {}}, "asks for compression_config = {}, but only None is supported."),
    "cross attention": ({"add_cross_attention": True}, "asks for add_cross_attention = True, but only False"),
    "pruned": ({"pruned_heads": {"0": [1]}}, "asks for pruned_heads = {'0': [1]}, but only {} or None is supported."),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), WRONG_CONFIGS.values(), ids=list(WRONG_CONFIGS))
def test_configurations_that_are_not_supported(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    fails(ValueError, expected, lambda: BERT.from_pretrained(reconfigure(saved(tmp_path), **changes)))


GPT2, LLAMA = (
    GPT(11, 8, 6, 1, 2),
    GPT(
        11,
        8,
        8,
        1,
        4,
        12,
        positions="rotary",
        norm="rms",
        activation="silu",
        gated=True,
        bias=False,
        tie_embeddings=False,
    ),
)
WRONG_GPTS: dict[str, tuple[GPT, dict[str, Any], str]] = {
    "another model": (GPT2, {"model_type": "gpt9"}, "has model_type = 'gpt9', but GPT reads 'gpt2', 'llama'"),
    "scale": (GPT2, {"scale_attn_weights": False}, "asks for scale_attn_weights = False, but only True is supported."),
    "no sizes": (GPT2, {"n_embd": "absent", "n_head": None}, "lacks 'n_embd', 'n_head', which determine"),
    "another width": (GPT2, {"n_inner": 5}, "`transformer.h.0.mlp.c_fc.weight` in"),
    "long rotation": (
        LLAMA,
        {"rope_parameters": {"rope_type": "llama3"}},
        "lacks 'factor', an option of rope_type = 'llama3'",
    ),
    "biases": (LLAMA, {"attention_bias": True}, "lacks the tensor `model.layers.0.self_attn.q_proj.bias` (and 3 more)"),
    "heads": (
        LLAMA,
        {"head_dim": 16},
        "has shape (8, 8), expected (64, 8) for `params.blocks.0.attention.query.weight`",
    ),
    "a list of heads": (LLAMA, {"num_attention_heads": [4]}, "`num_attention_heads` is [4], expected an integer >= 1"),
    "no heads": (
        LLAMA,
        {"num_attention_heads": 0},
        "does not describe a GPT: `num_attention_heads` is 0, expected an integer",
    ),
    "odd heads": (
        LLAMA,
        {"num_attention_heads": 8, "head_dim": None},
        "asks for heads of 1 features of 1 to be rotated, but rotary positions are of an even",
    ),
    "uneven heads": (
        LLAMA,
        {"num_attention_heads": 3, "head_dim": None},
        "does not describe a GPT: `num_kv_heads` (4) must divide `num_heads` (3)",
    ),
    "key heads": (LLAMA, {"num_key_value_heads": 3}, "`num_kv_heads` (3) must divide `num_heads` (4)."),
    "no key heads": (LLAMA, {"num_key_value_heads": 0}, "`num_key_value_heads` is 0, expected an integer >= 1"),
    "num_layers": (
        LLAMA,
        {"num_hidden_layers": 10**6},
        "asks for num_hidden_layers = 1000000, but the weights are 12 tensors",
    ),
    "layers of GPT-2": (GPT2, {"n_layer": 10**6}, "asks for n_layer = 1000000, but the weights are 16 tensors."),
    "no width": (GPT2, {"n_inner": 0}, "does not describe a GPT: `n_inner` is 0, expected an integer >= 1"),
    "scales": (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "asks for scale_attn_by_inverse_layer_idx = True, but"),
    "window": (LLAMA, {"sliding_window": 4}, "asks for sliding_window = 4, but only None is supported."),
    "biases of maps": (LLAMA, {"mlp_bias": True}, "lacks the tensor `model.layers.0.mlp.gate_proj.bias` (and 2 more)"),
    "part of a head": (
        LLAMA,
        {"partial_rotary_factor": 0.5},
        "asks for heads of 1 features of 2 to be rotated, but",
    ),
    "tie_embeddings": (
        LLAMA,
        {"tie_word_embeddings": "no"},
        "does not describe a GPT: `tie_word_embeddings` is 'no', expected True or",
    ),
    "architecture": (
        LLAMA,
        {"architectures": ["MistralForCausalLM"]},
        "has the architecture 'MistralForCausalLM', but",
    ),
    "no type": (
        LLAMA,
        {"architectures": ["PfiForCausalLM"], "model_type": "absent"},
        "has the architecture 'PfiForCausalLM', but",
    ),
    "of another type": (
        GPT2,
        {"architectures": ["LlamaForCausalLM"]},
        "has the architecture 'LlamaForCausalLM', but",
    ),
}
ROTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a word": ({"rope_scaling": "x"}, "has rope_scaling = 'x', expected an object with a rope_type."),
    "zero": ({"rope_scaling": 0}, "has rope_scaling = 0, expected an object with a rope_type."),
    "no type": ({"rope_scaling": {"factor": 8}}, "has rope_scaling = {'factor': 8}, expected a rope_type in it."),
    "two types": (
        {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2}},
        "rope_type is 'linear' and ty",
    ),
    "a list of types": (
        {"rope_scaling": {"type": ["linear"]}},
        "asks for rope_type = ['linear'], but only 'default', 'linear'",
    ),
    "of lengths": (
        {"rope_scaling": {"type": "axial", "factor": 2}},
        "asks for rope_type = 'axial', but only 'default'",
    ),
    "no factors": (
        {"rope_scaling": {"rope_type": "longrope", "factor": 2}},
        "lacks 'short_factor', an option of rope_type = 'longrope'",
    ),
    "too few factors": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0, 3.0]}},
        "factor` is",
    ),
    "proportional": (
        {"rope_scaling": {"rope_type": "proportional", "factor": 2}},
        "'default', 'linear', 'llama3', 'yarn', 'dynamic', 'longrope' are supported.",
    ),
    "no factor": (
        {"rope_scaling": {"type": "linear"}},
        "does not describe a GPT: `factor` is None, expected a finite number",
    ),
    "a word for a factor": ({"rope_scaling": {"type": "linear", "factor": "2"}}, "`factor` is '2', expected a finite"),
    "a true factor": (
        {"rope_scaling": {"type": "linear", "factor": True}},
        "`factor` is True, expected a finite number",
    ),
    "an idle factor": (
        {"rope_scaling": {"type": "default", "factor": 2}},
        "has factor in rope_scaling, which is none of",
    ),
    "part of a head": (
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "asks for heads of 1 features of 2 to be rotated, but",
    ),
    "bases": ({"rope_theta": 50.0}, "says rope_theta twice, 10000.0 and 50.0: it must be the same."),
    "no base": (
        {"rope_parameters": None, "rope_theta": 0},
        "does not describe a GPT: `rope_theta` is 0, expected a finite",
    ),
    "a list of bases": ({"rope_parameters": None, "rope_theta": [1]}, "`rope_theta` is [1], expected a finite number"),
}
WRONG_GPTS |= {f"rotation: {name}": (LLAMA, *case) for name, case in ROTATIONS.items()}


@pytest.mark.parametrize(("model", "changes", "expected"), WRONG_GPTS.values(), ids=list(WRONG_GPTS))
def test_configurations_of_gpts(model: GPT, changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, model, model.init(aa.Philox(0)))
    GPT.from_pretrained(folder)
    fails(ValueError, expected, lambda: GPT.from_pretrained(reconfigure(folder, **changes)))


def test_the_class_is_chosen_by_the_configuration(tmp_path: Path) -> None:
    for model, name in ((SMALL_BERT, "bert"), (GPT2, "gpt2"), (LLAMA, "llama")):
        folder = saved(tmp_path / name, model, model.init(aa.Philox(0)))
        assert type(aa.models.from_pretrained(folder)[0]) is type(model)
        reconfigure(folder, model_type="absent")
        assert type(aa.models.from_pretrained(folder, dtype="float64")[0]) is type(model)
        reconfigure(folder, architectures="absent")

        def load(folder: Path = folder) -> Any:
            return aa.models.from_pretrained(folder)

        fails(Unsupported, "has neither a model_type nor architectures", load)
        reconfigure(folder, architectures=["LlamaForCasualLM"])
        fails(Unsupported, "the nearest is 'LlamaForCausalLM'", load)
        reconfigure(folder, model_type="lama")
        fails(Unsupported, "has model_type = 'lama', but attnarray reads 'bert', ", load)
        fails(Unsupported, "; the nearest is 'llama'.", load)


def test_a_family_can_be_chosen_when_saving(tmp_path: Path) -> None:
    params = LLAMA.init(aa.Philox(0))
    save_pretrained(tmp_path, LLAMA, params, model_type="llama")
    fails(ValueError, "`model_type` is 'bert', expected ",
          lambda: save_pretrained(tmp_path, LLAMA, params, model_type="bert"))  # fmt: skip
    fails(ValueError, "which the config.json of gpt2 cannot express",
          lambda: save_pretrained(tmp_path, LLAMA, params, model_type="gpt2"))  # fmt: skip


def test_what_is_not_supported_can_be_caught(tmp_path: Path) -> None:
    with pytest.raises(Unsupported):
        BERT.from_pretrained(reconfigure(saved(tmp_path), is_decoder=True))


def test_missing_files(tmp_path: Path) -> None:
    load = BERT.from_pretrained
    fails(FileNotFoundError, "`folder` is 'bert-base-uncased', which is not a folder. Nothing is downloaded",
          lambda: load("bert-base-uncased"))  # fmt: skip
    fails(FileNotFoundError, f"There is no file `{tmp_path / 'config.json'}`.", lambda: load(tmp_path))
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    fails(
        FileNotFoundError,
        "pytorch_model.bin is not read, as reading it may run code that it holds. Convert it",
        lambda: load(tmp_path),
    )
    (tmp_path / "pytorch_model.bin").unlink()
    fails(FileNotFoundError, "has neither model.safetensors nor model.safetensors.index.json.", lambda: load(tmp_path))


def test_damaged_files(tmp_path: Path) -> None:
    weights, config = saved(tmp_path) / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    for part in (whole[:-1], whole[:1000], whole[:5], b"", b"{" + whole, whole + b"x"):
        weights.write_bytes(part)
        fails(
            ValueError,
            f"`{weights}` is not a valid safetensors file",
            lambda: BERT.from_pretrained(tmp_path),
        )
    weights.write_bytes(whole)
    for wrong, expected in (
        (text[:-5], "is not valid JSON ("),
        ("[1]", "holds list, expected a JSON object"),
        ("", "is not valid JSON"),
        ("\ufeff" + text, "is not valid JSON (Unexpected UTF-8 BOM"),
        ("[" * 100_000 + "]" * 100_000, "is nested too deeply."),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "is nested too deeply."),
        (
            text.replace("{", '{"model_type": "roberta",', 1),
            "is not valid JSON (an object has the name 'model_type' twice)",
        ),
        ('{"vocab_size": ' + "1" * 5000 + "}", "is not valid JSON ("),
    ):
        config.write_text(wrong)
        fails(ValueError, f"`{config}` {expected}", lambda: BERT.from_pretrained(tmp_path))
    config.write_bytes(b"\xff\xfe")
    fails(ValueError, f"`{config}` is not valid JSON", lambda: BERT.from_pretrained(tmp_path))
    config.unlink()
    config.mkdir()
    fails(FileNotFoundError, f"There is no file `{config}`.", lambda: BERT.from_pretrained(tmp_path))


def test_wrong_indices(tmp_path: Path) -> None:
    index = shard(saved(tmp_path)) / "model.safetensors.index.json"
    part = "model-00002-of-00003.safetensors"
    content = json.loads(index.read_text())
    (tmp_path / part).rename(tmp_path / "aside")
    fails(
        FileNotFoundError, f"lacks {part}, which model.safetensors.index.json", lambda: BERT.from_pretrained(tmp_path)
    )
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "x": "../other/model.safetensors"}}))
    fails(ValueError, "names '../other/model.safetensors', expected", lambda: BERT.from_pretrained(tmp_path))
    kept = {name: file for name, file in content["weight_map"].items() if file != part}
    index.write_text(json.dumps({"weight_map": kept}))
    fails(ValueError, "lacks the tensor `bert.", lambda: BERT.from_pretrained(tmp_path))
    index.write_text(json.dumps({"weight_map": [1]}))
    fails(ValueError, "has no weight_map of tensors to files", lambda: BERT.from_pretrained(tmp_path))


def test_saving_options_that_a_config_cannot_express(tmp_path: Path) -> None:
    alibi = GPT(11, 8, 6, 1, 3, positions="none")
    fails(ValueError, "`model` has positions='none', which the config.json of gpt2 cannot express, only 'learned'",
          lambda: save_pretrained(tmp_path, alibi, alibi.init(aa.Philox(0))))  # fmt: skip
    fails(ValueError, "`params` lacks 'position'", lambda: save_pretrained(tmp_path, GPT2, alibi.init(aa.Philox(0))))
    fails(TypeError, "`model` is 3, which has no known published names", lambda: save_pretrained(tmp_path, 3, {}))
    said = "expected a BERT or a GPT. The order is kind, folder."
    fails(TypeError, said, lambda: load_pretrained(tmp_path, GPT))
    fails(TypeError, "`model` is the class GPT, expected an instance: GPT(...).",
          lambda: save_pretrained(tmp_path, GPT, {}))  # fmt: skip
    params = GPT2.init(aa.Philox(0))
    mixed = {**params, "norm": tree.map(lambda leaf: leaf.astype(np.float64), params["norm"])}
    fails(
        TypeError,
        "The arrays have different dtypes: params.norm.weight float64, params.token.weight float32.",
        lambda: save_pretrained(tmp_path, GPT2, mixed),
    )
    whole = tree.map(lambda leaf: leaf.astype(np.int32), params)
    fails(
        TypeError,
        "`params.token.weight` has dtype int32, expected one of",
        lambda: save_pretrained(tmp_path, GPT2, whole),
    )
    fails(ValueError, "`key_dim` is 3, the width of one head", lambda: dataclasses.replace(LLAMA, dim=12))
    ntk = dataclasses.replace(LLAMA, rotary=aa.Rotary(scaling="ntk", factor=2.0))
    fails(ValueError, "which the config.json of llama cannot express, only Rotary(",
          lambda: save_pretrained(tmp_path, ntk, ntk.init(aa.Philox(0))))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(tmp_path, SMALL_BERT, SMALL_BERT.init(aa.Philox(9)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    expected = "Checkpoints need the package `safetensors`, which cannot be imported"
    for call in (lambda: BERT.from_pretrained(tmp_path), lambda: save_pretrained(tmp_path / "new", SMALL_BERT, PARAMS)):
        fails(ModuleNotFoundError, expected, call)
        fails(ModuleNotFoundError, "Install it: pip install 'attnarray[checkpoints]'.", call)
    assert not (tmp_path / "new").exists()
