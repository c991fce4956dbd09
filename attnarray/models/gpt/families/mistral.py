"""Mistral and Mixtral: LLaMA with a sliding window, and with a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray.checkpoints.config import Config, only, size
from attnarray.checkpoints.names import Family, Names
from attnarray.models.gpt.families.llama import BLOCK, ENDS, base_config, base_fields, heads, llama_names, windows
from attnarray.models.gpt.families.tensors import decoder_names

EXPERTS = {
    "block_sparse_moe.gate": "feed_forward.router",
    "block_sparse_moe.experts.{}.w1": "feed_forward.experts.{}.hidden",
    "block_sparse_moe.experts.{}.w3": "feed_forward.experts.{}.gate",
    "block_sparse_moe.experts.{}.w2": "feed_forward.experts.{}.out",
}


def _windows(config: Config, num_layers: int, default: int | None) -> tuple[int | None, ...]:
    """The sliding window of all layers."""
    only(config, layer_types=(["sliding_attention"] * num_layers, ["full_attention"] * num_layers, None))
    types = config.get("layer_types") or ["sliding_attention"] * num_layers
    return windows({**config, "layer_types": types}, num_layers, types, default)


def mistral_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    fields = base_fields(config, names)
    return {**fields, "windows": _windows(config, fields["num_layers"], 4096)}


def mistral_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    config = base_config(model, "mistral", MISTRAL.architectures[0])
    del config["layer_types"]
    return config


def mixtral_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, router_jitter_noise=0.0)
    config = {"num_local_experts": 8, "num_experts_per_tok": 2, **config}
    fields = base_fields(config, names, eps=1e-5, base=1_000_000.0)
    return {
        **fields,
        "windows": _windows(config, fields["num_layers"], None),
        "num_experts": size(config, "num_local_experts"),
        "experts_per_token": size(config, "num_experts_per_tok"),
    }


def mixtral_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    config = base_config(model, "mixtral", MIXTRAL.architectures[0])
    del config["layer_types"]
    return {**config, "num_local_experts": model.num_experts or 1, "num_experts_per_tok": model.experts_per_token}


def mixtral_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, ENDS, {**BLOCK, **EXPERTS})


MISTRAL: Family = Family("mistral", heads("Mistral"), mistral_fields, mistral_config, llama_names)
MIXTRAL: Family = Family("mixtral", heads("Mixtral"), mixtral_fields, mixtral_config, mixtral_names)
