"""Qwen2, with biases of queries, keys and values, and Qwen3, with norms of the heads of queries and keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray.checkpoints.config import Config, given
from attnarray.checkpoints.names import Family
from attnarray.models.gpt.families.llama import base_config, base_fields, biases, flag, heads, llama_names, windows


def _fields(config: Config, names: Iterable[str], head_dim: int | None) -> dict[str, Any]:
    """The fields of both, with windows in the upper layers if "use_sliding_window"."""
    fields = base_fields(config, names, head_dim=head_dim)
    n = fields["num_layers"]
    first = given(config, "max_window_layers", 28) if flag(config, "use_sliding_window", False) else n
    types = ["full_attention" if layer < first else "sliding_attention" for layer in range(n)]
    return {**fields, "windows": windows(config, n, types, 4096)}


def _config(model: Any, family: Family) -> Config:
    config = base_config(model, family.model_type, family.architectures[0])
    return {**config, "use_sliding_window": config["sliding_window"] is not None}


def qwen2_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    return {**_fields(config, names, None), "qkv_bias": True, "out_bias": False}


def qwen3_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    return {**_fields(config, names, 128), **biases({**config, "mlp_bias": False}), "qk_norm": "head"}


QWEN2: Family = Family("qwen2", heads("Qwen2"), qwen2_fields, lambda model: _config(model, QWEN2), llama_names)
QWEN3: Family = Family("qwen3", heads("Qwen3"), qwen3_fields, lambda model: _config(model, QWEN3), llama_names)
