"""GGUF files: the model of a folder again, dequantized; tokenizers; files that are refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.models import GPT, load_tokenizer

gguf = pytest.importorskip("gguf")
LLAMA = GPT(
    34, 16, 32, 2, 4, 64, positions="rotary", rotary=aa.Rotary(base=500.0), norm="rms", eps=1e-5, activation="silu",
    gated=True, bias=False, num_kv_heads=2,
)  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, tie_embeddings=False),
    "qwen3": dataclasses.replace(LLAMA, qk_norm="head", head_dim=10),
}
NAMES = {
    "attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.out": "attn_output", "attention.query_norm": "attn_q_norm", "attention.key_norm": "attn_k_norm",
    "feed_forward_norm": "ffn_norm", "feed_forward.hidden": "ffn_gate", "feed_forward.gate": "ffn_up",
    "feed_forward.out": "ffn_down", "token": "token_embd", "norm": "output_norm", "logits": "output",
}  # fmt: skip
TOKENS = np.array([[3, 5, 2, 7, 30, 1], [4, 4, 9, 0, 8, 8]])


def random_params(model: GPT) -> Any:
    rng = np.random.default_rng(0)
    return aa.tree.map(lambda x: (x + 0.3 * rng.standard_normal(x.shape)).astype("float32"), model.init(aa.Philox(0)))


def write(path: Path, name: str, params: Any, quantized: Any = None, **changes: Any) -> Path:
    """A file as llama.cpp converts a folder: rotated pairs of the rows of LLaMA are neighbors."""
    model, writer = MODELS[name], gguf.GGUFWriter(path, name)
    width = model.head_dim or model.dim // model.num_heads
    own = {
        "block_count": 2, "context_length": 16, "embedding_length": 32, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": width,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500.0, "vocab_size": 34,
        **changes,
    }  # fmt: skip
    for key, value in own.items():
        if isinstance(value, str):
            writer.add_string(f"{name}.{key}", value)
        elif value is not None:
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{name}.{key}", value)
    for keys, leaf in aa.tree.flatten(params):
        *module, kind = keys
        layer, part = (f"blk.{module[1]}.", module[2:]) if module[0] == "blocks" else ("", module)
        full = f"{layer}{NAMES['.'.join(map(str, part))]}.{kind}"
        if name == "llama" and part[-1] in ("query", "key"):
            heads = [leaf[n : n + width] for n in range(0, len(leaf), width)]
            leaf = np.concatenate([np.stack([h[: width // 2], h[width // 2 :]], 1).reshape(h.shape) for h in heads])
        if quantized is not None and leaf.ndim == 2:
            writer.add_tensor(full, gguf.quants.quantize(leaf, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(full, leaf)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_the_model(name: str, tmp_path: Path) -> None:
    params = random_params(MODELS[name])
    model, loaded = aa.models.from_pretrained(write(tmp_path / "model.gguf", name, params))
    assert model == MODELS[name]
    aa.tree.map(np.testing.assert_array_equal, loaded, params)
    assert aa.models.from_pretrained(tmp_path / "model.gguf", dtype="float64")[1]["norm"]["weight"].dtype == "float64"


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_0", 0.2), ("F16", 1e-3), ("BF16", 0.01)])
def test_tensors_are_dequantized(kind: str, error: float, tmp_path: Path) -> None:
    params = random_params(LLAMA)
    path = write(tmp_path / "model.gguf", "llama", params, gguf.GGMLQuantizationType[kind])
    _, loaded = aa.models.from_pretrained(path)
    for (_, one), (_, other) in zip(aa.tree.flatten(params), aa.tree.flatten(loaded), strict=True):
        assert other.dtype == "float32"
        np.testing.assert_allclose(one, other, rtol=0, atol=error)


def test_rotations_of_llama_3_have_factors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    params = {**random_params(LLAMA), "factors": {"weight": np.array([1.0, 2.0, 4.0, 8.0], np.float32)}}
    NAMES["factors"] = "rope_freqs"
    model, loaded = aa.models.from_pretrained(write(path, "llama", params))
    rotation = aa.LongRoPE((1.0, 2.0, 4.0, 8.0), (1.0, 2.0, 4.0, 8.0), 16, 1.0, 1.0)
    assert model.rotary == aa.Rotary(base=500.0, scaling=rotation)
    assert loaded.keys() == LLAMA.shapes().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, r"lacks llama\.block_count"),
        ({"expert_count": 8}, r"has llama\.expert_count = 8, which is not supported"),
        ({"rope.dimension_count": 4}, r"has llama\.rope\.dimension_count = 4, but only 8"),
        ({"rope.scaling.type": "yarn"}, r"has llama\.rope\.scaling\.type = 'yarn', but only 'none' and 'linear'"),
        ({"attention.head_count": 3}, "does not describe a GPT"),
        ({"embedding_length": 40}, "has shape"),
    ],
    ids=str,
)
def test_files_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", "llama", random_params(LLAMA), **changes)
    with pytest.raises(ValueError, match=message) as caught:
        aa.models.from_pretrained(path)
    assert str(path) in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(FileNotFoundError, match=r"no file `.*model\.gguf`"):
        aa.models.from_pretrained(path)
    path.write_bytes(b"GGUF but nothing else")
    with pytest.raises(ValueError, match="is not a valid GGUF file"):
        aa.models.from_pretrained(path)
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"general\.architecture = 'rwkv7', but of GGUF files 'llama', 'qwen2'"):
        aa.models.from_pretrained(path)
    whole = write(tmp_path / "whole.gguf", "llama", random_params(LLAMA)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a valid GGUF file"):
        aa.models.from_pretrained(path)


def test_without_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"attnarray\[gguf\]"):
        aa.models.from_pretrained(tmp_path / "model.gguf")


def with_tokenizer(path: Path, kind: str = "gpt2", before: str = "smollm", first: bool = False) -> Path:
    """A file with the tokenizer of a few letters, and no tensors but one."""
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(before)
    writer.add_token_list(["<s>", "a", "b", "1", "2", "Ġ", "ab", "12", "<user>"])
    writer.add_token_types([3, 1, 1, 1, 1, 1, 1, 1, 4])
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(first)
    writer.add_tensor("token_embd.weight", np.zeros((9, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_its_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "model.gguf"
    smollm = load_tokenizer(with_tokenizer(path), LLAMA)
    assert smollm.encode("ab 12<s>b<user>").ids == [6, 5, 3, 4, 0, 2, 8]
    assert smollm.decode([6, 5, 3, 4, 0, 8]) == "ab 12<user>"
    assert load_tokenizer(with_tokenizer(path, before="gpt-2")).encode("12ab").ids == [7, 6]
    assert load_tokenizer(with_tokenizer(path, first=True)).encode("ab").ids == [0, 6]
    with pytest.raises(ValueError, match=r"a tokenizer 'llama' with pre = 'smollm', but only 'gpt2'"):
        load_tokenizer(with_tokenizer(path, kind="llama"))
    with pytest.raises(ValueError, match=r"tokens up to 8, but the model has `vocab_size` 5"):
        load_tokenizer(with_tokenizer(path), dataclasses.replace(LLAMA, vocab_size=5))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_same(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers needs it to read GGUF files")
    path = write(tmp_path / "model.gguf", "llama", random_params(LLAMA), gguf.GGMLQuantizationType.Q8_0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    model, params = aa.models.from_pretrained(path)
    expected = theirs(torch.from_numpy(TOKENS)).logits.detach().numpy()
    np.testing.assert_allclose(model(params, TOKENS), expected, rtol=0, atol=1e-4)
