"""Models in one GGUF file, the format of llama.cpp: its tensors under their published names, in float32.

The names and the metadata are those of the `specification <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>`_.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.checkpoints.config import Config, Unsupported

# Architecture -> the class of its config.json. Files of "llama" have their queries and keys in another order.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Metadata below the architecture -> entry of config.json.
SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
OPTIONS = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
OTHERS = {"attention.value_length", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "vocab_size"}
FREQUENCIES = "rope_freqs.weight"  # a factor of each wave length, in files of LLaMA 3


def package() -> Any:
    """Import the package gguf."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"GGUF files need the package gguf, which cannot be imported ({error}). Install it: pip install "
            "'attnarray[gguf]'."
        ) from error


class GGUFFile:
    """A file of tensors, read like one of safetensors; `config` is its config.json."""

    def __init__(self, path: Path) -> None:
        library = package()
        if not path.is_file():
            raise FileNotFoundError(f"There is no file `{path}`. Nothing is downloaded.")
        try:
            reader = library.GGUFReader(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ValueError(f"`{path}` is not a valid GGUF file ({error}). Get another copy of it.") from error
        self.path = path
        self.metadata: dict[str, str] = {}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = self.fields.get("general.architecture")
        try:
            self.config = self._config()
        except Unsupported as error:
            raise Unsupported(f"`{path}` {error}.") from None
        self.stored = {_name(name): name for name in self.tensors if name != FREQUENCIES}
        self.names = list(self.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self.tensors[self.stored[name]].shape))

    def mapped(self, name: str) -> np.ndarray:
        """Return a tensor in float32, dequantized."""
        library, tensor = package(), self.tensors[self.stored[name]]
        try:
            found = library.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ValueError(
                f"`{tensor.name}` in `{self.path}` is quantized as {kind}, which gguf cannot read ({error})."
            ) from error
        array = np.array(found, dtype=np.float32).reshape(self.shape(name))
        projection = name.removesuffix(".weight").removesuffix(".bias")
        if self.architecture == "llama" and projection.endswith(("self_attn.q_proj", "self_attn.k_proj")):
            entry = "num_attention_heads" if projection.endswith("q_proj") else "num_key_value_heads"
            return _halves(array, self.config[entry])
        return array

    def _config(self) -> Config:
        name = self.architecture
        if name not in ARCHITECTURES:
            listed = ", ".join(map(repr, ARCHITECTURES))
            raise Unsupported(f"has general.architecture = {checks.shown(name)}, but of GGUF files {listed} are read")
        if self.fields.get("split.count", 1) > 1:
            raise Unsupported(
                f"is one of {self.fields['split.count']} parts: join them by llama.cpp's gguf-split first"
            )
        own = {key.removeprefix(f"{name}."): x for key, x in self.fields.items() if key.startswith(f"{name}.")}
        unknown = own.keys() - {*SIZES, *OPTIONS, *OTHERS}
        if unknown:
            raise Unsupported(f"has {name}.{min(unknown)} = {checks.shown(own[min(unknown)])}, which is not supported")
        missing = [f"{name}.{key}" for key in SIZES if key not in own]
        if missing or "token_embd.weight" not in self.tensors:
            raise Unsupported(f"lacks {(missing or ['token_embd.weight'])[0]}")
        config: Config = {entry: _plain(own[key]) for key, entry in {**SIZES, **OPTIONS}.items() if key in own}
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        width = config["head_dim"]
        for key in ("attention.value_length", "rope.dimension_count"):
            if own.get(key, width) != width:
                raise Unsupported(f"has {name}.{key} = {own[key]}, but only {width}, the width of a head, is supported")
        kind = own.get("rope.scaling.type", "none")
        if kind not in ("none", "linear"):
            raise Unsupported(f"has {name}.rope.scaling.type = {kind!r}, but only 'none' and 'linear' are supported")
        if kind == "linear":
            config["rope_scaling"] = {"rope_type": "linear", "factor": _plain(own.get("rope.scaling.factor"))}
        if FREQUENCIES in self.tensors:
            factors = [float(factor) for factor in self.tensors[FREQUENCIES].data]
            length = config["max_position_embeddings"]
            config["rope_scaling"] = {
                "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
                "original_max_position_embeddings": length,
            }  # fmt: skip
        return {
            **config,
            "architectures": [ARCHITECTURES[str(name)]],
            "model_type": name,
            "vocab_size": int(self.tensors["token_embd.weight"].shape[1]),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            **({"attention_bias": "blk.0.attn_q.bias" in self.tensors} if name != "qwen2" else {}),
        }


def _name(name: str) -> str:
    """The published name of a tensor; an unknown one stays as it is."""
    module, _, leaf = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{leaf}"
    first, _, rest = module.partition(".")
    layer, _, part = rest.partition(".")
    return f"model.layers.{layer}.{BLOCK[part]}.{leaf}" if first == "blk" and part in BLOCK else name


def _halves(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head whose rotated pairs are neighbors, in the order in which they are in two halves."""
    pairs = array.reshape(num_heads, -1, 2, *array.shape[1:])
    return np.ascontiguousarray(np.swapaxes(pairs, 1, 2)).reshape(array.shape)


def _plain(number: Any) -> Any:
    """A number as it was written: the shortest decimal that is the same in float32."""
    return float(str(np.float32(number))) if isinstance(number, float) and math.isfinite(number) else number
