"""OPT: learned positions whose table begins with two rows for padding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray import checks
from attnarray.checkpoints.config import (
    ACTIVATIONS,
    PUBLISHED,
    Config,
    chosen,
    given,
    only,
    probability,
    sizes,
)
from attnarray.checkpoints.names import Family, Names
from attnarray.models.gpt.families.llama import flag, heads
from attnarray.models.gpt.families.tensors import Table, decoder_names

# Field -> entry of config.json.
SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "ffn_dim",
}
ENDS: Table = {
    "decoder.embed_tokens": "token",
    "decoder.embed_positions": "position",
    "decoder.final_layer_norm": "norm",
}
BLOCK: Table = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.out",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "feed_forward.hidden",
    "fc2": "feed_forward.out",
    "final_layer_norm": "feed_forward_norm",
}


def opt_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, do_layer_norm_before=True, _remove_final_layer_norm=False, layer_norm_elementwise_affine=True)
    only(config, quantization_config=None, word_embed_proj_dim=(None, config.get("hidden_size")))
    return {
        **sizes(config, SIZES, names),
        "position_offset": 2,
        "activation": chosen(config, "activation_function", ACTIVATIONS, "relu"),
        "bias": flag(config, "enable_bias", True),
        "dropout": probability(config, "dropout", 0.1),
        "attention_dropout": probability(config, "attention_dropout", 0.0),
        "tie_embeddings": flag(config, "tie_word_embeddings", True),
        "init_std": checks.not_negative("init_std", given(config, "init_std", 0.02)),
    }


def opt_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    return {
        "architectures": [OPT.architectures[0]],
        "model_type": "opt",
        **{name: getattr(model, field) for field, name in SIZES.items()},
        "ffn_dim": model.hidden_dim or 4 * model.dim,
        "word_embed_proj_dim": model.dim,
        "activation_function": PUBLISHED[model.activation],
        "enable_bias": model.bias,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "init_std": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def opt_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, ENDS, BLOCK, layers="decoder.layers.{}.")


OPT: Family = Family("opt", heads("OPT"), opt_fields, opt_config, opt_names)
