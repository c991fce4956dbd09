"""GPT-NeoX (Pythia) and Phi: parallel residual connections, and rotations of a part of each head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray.checkpoints.config import (
    ACTIVATIONS,
    PUBLISHED,
    Config,
    chosen,
    init_std,
    only,
    positive,
    probability,
    size,
    sizes,
)
from attnarray.checkpoints.names import Family, Names
from attnarray.models.gpt.families.llama import SIZES, flag, heads
from attnarray.models.gpt.families.rope import read_rotary, write_rotary
from attnarray.models.gpt.families.tensors import Table, decoder_names

NEOX_ENDS: Table = {"embed_in": "token", "final_layer_norm": "norm"}
NEOX_BLOCK: Table = {
    "attention.query_key_value": ("attention.query", "attention.key", "attention.value"),
    "attention.dense": "attention.out",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.dense_h_to_4h": "feed_forward.hidden",
    "mlp.dense_4h_to_h": "feed_forward.out",
}
PHI_ENDS: Table = {"embed_tokens": "token", "final_layernorm": "norm"}
PHI_BLOCK: Table = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.dense": "attention.out",
    "input_layernorm": "attention_norm",
    "mlp.fc1": "feed_forward.hidden",
    "mlp.fc2": "feed_forward.out",
}


def _fields(config: Config, names: Iterable[str], partial: float, dropout: str, act: str) -> dict[str, Any]:
    """The fields of both."""
    only(config, quantization_config=None)
    found = sizes(config, SIZES, names)
    return {
        **found,
        "positions": "rotary",
        "rotary": read_rotary(config, found["dim"] // found["num_heads"], partial=partial),
        "activation": chosen(config, "hidden_act", ACTIVATIONS, act),
        "dropout": probability(config, dropout, 0.0),
        "attention_dropout": probability(config, "attention_dropout", 0.0),
        "eps": positive(config, "layer_norm_eps", 1e-5),
        "tie_embeddings": flag(config, "tie_word_embeddings", False),
        "init_std": init_std(config),
    }


def _config(model: Any, family: Family) -> Config:
    return {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        **{name: getattr(model, field) for field, name in SIZES.items()},
        "intermediate_size": model.hidden_dim or 4 * model.dim,
        "hidden_act": PUBLISHED[model.activation],
        **dict.fromkeys(("hidden_dropout", "resid_pdrop", "embd_pdrop"), model.dropout),
        "attention_dropout": model.attention_dropout,
        "layer_norm_eps": model.eps,
        **write_rotary(None if isinstance(model.rotary, tuple) else model.rotary, model.dim // model.num_heads),
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def neox_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    older = {"rope_theta": config.get("rotary_emb_base"), "partial_rotary_factor": config.get("rotary_pct")}
    config = {**{name: entry for name, entry in older.items() if entry is not None}, **config}
    bias = flag(config, "attention_bias", True)
    parallel = "two_norms" if flag(config, "use_parallel_residual", True) else None
    return {
        **_fields(config, names, 0.25, "hidden_dropout", "gelu"),
        "qkv_bias": bias,
        "out_bias": bias,
        "parallel_residual": parallel,
    }


def neox_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    part = (getattr(model.rotary, "dims", None) or model.dim // model.num_heads) / (model.dim // model.num_heads)
    config = {**_config(model, NEOX), "partial_rotary_factor": part, "rotary_pct": part}
    config["rope_parameters"] = {**config["rope_parameters"], "partial_rotary_factor": part}
    bias = model.bias if model.qkv_bias is None else model.qkv_bias
    return {**config, "attention_bias": bias, "use_parallel_residual": model.parallel_residual is not None}


def neox_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    options = {"prefix": "gpt_neox.", "groups": model.num_heads, "head": "embed_out"}
    return decoder_names(model, NEOX_ENDS, NEOX_BLOCK, **options)


def phi_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, qk_layernorm=False)
    fields = _fields(config, names, 0.5, "resid_pdrop", "gelu_new")
    kv_heads = None if config.get("num_key_value_heads") is None else size(config, "num_key_value_heads")
    own = {"num_kv_heads": kv_heads, "parallel_residual": "one_norm", "logits_bias": not fields["tie_embeddings"]}
    return {**fields, **own}


def phi_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    part = (getattr(model.rotary, "dims", None) or model.dim // model.num_heads) / (model.dim // model.num_heads)
    config = {**_config(model, PHI), "partial_rotary_factor": part}
    config["rope_parameters"] = {**config["rope_parameters"], "partial_rotary_factor": part}
    return {**config, "num_key_value_heads": model.num_kv_heads or model.num_heads}


def phi_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, PHI_ENDS, PHI_BLOCK)


NEOX: Family = Family("gpt_neox", heads("GPTNeoX"), neox_fields, neox_config, neox_names)
PHI: Family = Family("phi", heads("Phi"), phi_fields, phi_config, phi_names)
