"""LLaMA, and what the families with its blocks share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray import checks
from attnarray.checkpoints.config import (
    ACTIVATIONS,
    PUBLISHED,
    Config,
    Unsupported,
    chosen,
    given,
    init_std,
    only,
    positive,
    probability,
    size,
    sizes,
)
from attnarray.checkpoints.names import Family, Names
from attnarray.models.gpt.families.rope import read_rotary, write_rotary
from attnarray.models.gpt.families.tensors import Table, decoder_names

# Field -> entry of config.json.
SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
ENDS: Table = {"embed_tokens": "token", "norm": "norm"}
BLOCK: Table = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "input_layernorm": "attention_norm",
    "mlp.gate_proj": "feed_forward.hidden",  # its activation is the gate
    "mlp.up_proj": "feed_forward.gate",
    "mlp.down_proj": "feed_forward.out",
    "post_attention_layernorm": "feed_forward_norm",
}


def heads(name: str) -> tuple[str, ...]:
    """Return the architectures of a family with all heads, such as "LlamaForCausalLM"; all have the same blocks."""
    tasks = "ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
    return tuple(f"{name}{task}" for task in tasks)


def flag(config: Config, name: str, default: bool) -> bool:
    return checks.flag(name, given(config, name, default))


def base_fields(
    config: Config, names: Iterable[str], *, eps: float = 1e-6, base: float = 10_000.0, tied: bool = False,
    activation: str = "hidden_act", act: str = "silu", head_dim: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the fields that are read alike in all families; the options are the defaults of a family."""
    only(config, quantization_config=None, compression_config=None)
    found = sizes(config, SIZES, names)
    width = found["dim"] // found["num_heads"]
    if config.get("head_dim", head_dim) is not None:
        config = {"head_dim": head_dim, **config}
        width = size(config, "head_dim")
    return {
        **found,
        "head_dim": None if width * found["num_heads"] == found["dim"] else width,
        "num_kv_heads": None if config.get("num_key_value_heads") is None else size(config, "num_key_value_heads"),
        "positions": "rotary",
        "rotary": read_rotary(config, width, base=base),
        "norm": "rms",
        "eps": positive(config, "rms_norm_eps", eps),
        "activation": chosen(config, activation, ACTIVATIONS, act),
        "gated": True,
        "bias": False,
        "dropout": probability(config, "resid_pdrop", 0.0),
        "attention_dropout": probability(config, "attention_dropout", 0.0),
        "tie_embeddings": flag(config, "tie_word_embeddings", tied),
        "init_std": init_std(config),
    }


def windows(config: Config, num_layers: int, default: list[str], window: int | None = None) -> tuple[int | None, ...]:
    """Return the window of each layer, by "layer_types" and "sliding_window"; `default` are the types of the family."""
    types = given(config, "layer_types", default)
    kinds = {"full_attention", "sliding_attention"}
    if not isinstance(types, list) or len(types) != num_layers or not set(types) <= kinds:
        raise Unsupported(f"has layer_types = {checks.shown(types)}, expected one of {sorted(kinds)} for each layer")
    if "sliding_attention" not in types:
        return (None,)
    config = {"sliding_window": window, **config}
    sliding = None if config["sliding_window"] is None else size(config, "sliding_window")
    return tuple(sliding if kind == "sliding_attention" else None for kind in types)


def biases(config: Config) -> dict[str, bool]:
    """Return the fields of "attention_bias" and "mlp_bias"."""
    attention, feed_forward = flag(config, "attention_bias", False), flag(config, "mlp_bias", False)
    return {"bias": feed_forward, "qkv_bias": attention, "out_bias": attention}


def base_config(model: Any, model_type: str, architecture: str) -> Config:
    """Return the entries of config.json that are written alike in all families."""
    width = model.head_dim or model.dim // model.num_heads
    rotary = next((one for one in model.rotary if one is not None), None) if isinstance(model.rotary, tuple) else None
    each = [model.windows[n % len(model.windows)] for n in range(model.num_layers)]
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **{name: getattr(model, field) for field, name in SIZES.items()},
        "intermediate_size": model.hidden_dim or 4 * model.dim,
        "num_key_value_heads": model.num_kv_heads or model.num_heads,
        "head_dim": width,
        "hidden_act": PUBLISHED[model.activation],
        "rms_norm_eps": model.eps,
        **write_rotary(rotary or (None if isinstance(model.rotary, tuple) else model.rotary), width),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in each],
        "sliding_window": next((window for window in each if window is not None), None),
        "attention_bias": model.bias if model.qkv_bias is None else model.qkv_bias,
        "attention_dropout": model.attention_dropout,
        "resid_pdrop": model.dropout,  # these families have none; other readers ignore it
        "mlp_bias": model.bias,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def llama_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, sliding_window=None)
    return {**base_fields(config, names), **biases(config)}


def llama_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    return base_config(model, "llama", LLAMA.architectures[0])


def llama_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, ENDS, BLOCK)


LLAMA: Family = Family("llama", heads("Llama"), llama_fields, llama_config, llama_names)
