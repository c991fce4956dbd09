"""Small configurations of the families of decoders, as transformers names their options."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

LLAMA = {
    "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12,
    "num_hidden_layers": 2, "max_position_embeddings": 32,
}  # fmt: skip
WIDE = {**LLAMA, "head_dim": 6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 100.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 100.0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.5], "rope_theta": 100.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
GPT = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32}
PLAIN = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}

# Name -> model_type and options.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4, "n_inner": 20}),
    "llama": ("llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {**LLAMA, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "yarn": ("llama", {**LLAMA, "rope_parameters": YARN}),
    "longrope": ("llama", {**LLAMA, "rope_parameters": LONG}),
    "dynamic": ("llama", {**LLAMA, "rope_parameters": DYNAMIC, "max_position_embeddings": 8}),
    "mistral": ("mistral", {**WIDE, "sliding_window": 3}),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3": ("qwen3", WIDE),
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", {**WIDE, "sliding_window": 3, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", {**WIDE, "sliding_window": 3, "query_pre_attn_scalar": 9,
                               "layer_types": ["sliding_attention", "full_attention"]}),
    "granite": ("granite", {**LLAMA, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
                            "attention_multiplier": 0.3}),
    "olmo2": ("olmo2", LLAMA),
    "smollm3": ("smollm3", {**LLAMA, "no_rope_layers": [1, 0]}),
    "gpt_neox": ("gpt_neox", {**PLAIN, "intermediate_size": 24, "max_position_embeddings": 32}),
    "gpt_neox serial": ("gpt_neox", {**PLAIN, "intermediate_size": 24, "use_parallel_residual": False,
                                     "attention_bias": False}),
    "phi": ("phi", {**PLAIN, "intermediate_size": 24, "max_position_embeddings": 32}),
    "opt": ("opt", {**PLAIN, "ffn_dim": 24, "max_position_embeddings": 32}),
    "bloom": ("bloom", {"hidden_size": 12, "n_head": 3, "n_layer": 2}),
    "mpt": ("mpt", {"d_model": 12, "n_heads": 3, "n_layers": 2, "max_seq_len": 32}),
    "falcon": ("falcon", {**PLAIN, "ffn_hidden_size": 24}),
    "falcon new": ("falcon", {**PLAIN, "num_attention_heads": 4, "new_decoder_architecture": True, "num_kv_heads": 2,
                              "bias": True}),
    "falcon serial": ("falcon", {**PLAIN, "parallel_attn": False, "multi_query": False, "bias": True}),
    "qwen3_next": ("qwen3_next", {
        **WIDE, "head_dim": 8, "full_attention_interval": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 3, "linear_value_head_dim": 5, "linear_conv_kernel_dim": 3, "moe_intermediate_size": 6,
        "shared_expert_intermediate_size": 7, "num_experts": 3, "num_experts_per_tok": 2}),
}  # fmt: skip
V, B, T, NEW = 30, 2, 7, 4
STARTS = [3, 0]  # of left-padded sequences


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a tensor, by its name in the file."""
    size = int(np.prod(shape))
    return np.round(0.6 * np.cos(1.7 * np.arange(size) ** 1.1 + zlib.crc32(name.encode()) % 1000), 3).reshape(shape)


def direction(shape: tuple[int, ...]) -> np.ndarray:
    """What gradients are projected on."""
    return np.cos(np.arange(int(np.prod(shape)))).reshape(shape)
