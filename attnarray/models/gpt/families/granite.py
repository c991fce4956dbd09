"""Granite, OLMo 2 and SmolLM3: LLaMA with multipliers, with norms of branches, with layers without positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray import checks
from attnarray.checkpoints.config import Config, Unsupported, given, positive
from attnarray.checkpoints.names import Family, Names
from attnarray.models.gpt.families.llama import (
    BLOCK,
    ENDS,
    base_config,
    base_fields,
    biases,
    flag,
    heads,
    llama_names,
    windows,
)
from attnarray.models.gpt.families.tensors import decoder_names

BRANCH_NORMS = {
    **{module: path for module, path in BLOCK.items() if module != "input_layernorm"},
    "post_attention_layernorm": "attention_branch_norm",
    "post_feedforward_layernorm": "feed_forward_branch_norm",
}


def granite_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    return {
        **base_fields(config, names),
        **biases(config),
        "scale": positive(config, "attention_multiplier", 1.0),
        "embedding_scale": positive(config, "embedding_multiplier", 1.0),
        "residual_scale": positive(config, "residual_multiplier", 1.0),
        "logits_scale": 1.0 / positive(config, "logits_scaling", 1.0),
    }


def granite_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    return {
        **base_config(model, "granite", GRANITE.architectures[0]),
        "attention_multiplier": model.scale,
        "embedding_multiplier": model.embedding_scale,
        "residual_multiplier": model.residual_scale,
        "logits_scaling": 1.0 / model.logits_scale,
    }


def olmo2_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    fields = {**base_fields(config, names, eps=1e-5), **biases({**config, "mlp_bias": False})}
    return {**fields, "pre_norm": False, "branch_norm": True, "qk_norm": "all"}


def olmo2_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, ENDS, BRANCH_NORMS)


def smollm3_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    fields = {**base_fields(config, names, base=2_000_000.0, tied=True), **biases(config)}
    n, every = fields["num_layers"], given(config, "no_rope_layer_interval", 4)
    rotated = given(config, "no_rope_layers", [int((layer + 1) % every != 0) for layer in range(n)])  # 1 if rotated
    if not isinstance(rotated, list) or len(rotated) != n or not set(rotated) <= {0, 1}:
        raise Unsupported(f"has no_rope_layers = {checks.shown(rotated)}, expected 0 or 1 for each layer")
    slides = flag(config, "use_sliding_window", False) and config.get("sliding_window") is not None
    types = ["full_attention" if one or not slides else "sliding_attention" for one in rotated]
    rotary = fields["rotary"]
    return {
        **fields,
        "windows": windows(config, n, types),
        "rotary": tuple(rotary if one else None for one in rotated) if 0 in rotated else rotary,
    }


def smollm3_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    config = base_config(model, "smollm3", SMOLLM3.architectures[0])
    rotary = model.rotary if isinstance(model.rotary, tuple) else (model.rotary or True,)
    rotated = [int(rotary[n % len(rotary)] is not None) for n in range(model.num_layers)]
    own = {"no_rope_layers": rotated, "use_sliding_window": config["sliding_window"] is not None}
    return {**config, **own, "pad_token_id": None}  # whose default exceeds small vocabularies


def olmo2_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    return base_config(model, "olmo2", OLMO2.architectures[0])


GRANITE: Family = Family("granite", heads("Granite"), granite_fields, granite_config, llama_names)
OLMO2: Family = Family("olmo2", heads("Olmo2"), olmo2_fields, olmo2_config, olmo2_names)
SMOLLM3: Family = Family("smollm3", heads("SmolLM3"), smollm3_fields, smollm3_config, llama_names)
