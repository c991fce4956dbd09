"""BLOOM, MPT and Falcon: joint projections, the first two with ALiBi."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray.checkpoints.config import (
    ACTIVATIONS,
    PUBLISHED,
    Config,
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
from attnarray.models.gpt.families.llama import flag, heads
from attnarray.models.gpt.families.rope import read_rotary, write_rotary
from attnarray.models.gpt.families.tensors import Table, decoder_names

QKV = ("attention.query", "attention.key", "attention.value")
ENDS: Table = {"word_embeddings": "token", "word_embeddings_layernorm": "embedding_norm", "ln_f": "norm"}
BLOCK: Table = {
    "self_attention.query_key_value": QKV,
    "self_attention.dense": "attention.out",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.dense_h_to_4h": "feed_forward.hidden",
    "mlp.dense_4h_to_h": "feed_forward.out",
}
TWO_NORMS = {
    **{module: path for module, path in BLOCK.items() if "layernorm" not in module},
    "ln_attn": "attention_norm",
    "ln_mlp": "feed_forward_norm",
}
MPT_ENDS: Table = {"wte": "token", "norm_f": "norm"}
MPT_BLOCK: Table = {
    "attn.Wqkv": QKV,
    "attn.out_proj": "attention.out",
    "norm_1": "attention_norm",
    "norm_2": "feed_forward_norm",
    "ffn.up_proj": "feed_forward.hidden",
    "ffn.down_proj": "feed_forward.out",
}
# Field -> entry of config.json.
BLOOM_SIZES = {
    "vocab_size": "vocab_size", "max_seq_len": "seq_length", "dim": "hidden_size", "num_layers": "n_layer",
    "num_heads": "n_head",
}  # fmt: skip
MPT_SIZES = {
    "vocab_size": "vocab_size", "max_seq_len": "max_seq_len", "dim": "d_model", "num_layers": "n_layers",
    "num_heads": "n_heads",
}  # fmt: skip
FALCON_SIZES = {
    "vocab_size": "vocab_size", "max_seq_len": "max_position_embeddings", "dim": "hidden_size",
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
}  # fmt: skip


def _common(config: Config, dropout: str) -> dict[str, Any]:
    only(config, quantization_config=None)
    return {
        "eps": positive(config, "layer_norm_epsilon", 1e-5),
        "dropout": probability(config, dropout, 0.0),
        "tie_embeddings": flag(config, "tie_word_embeddings", True),
        "init_std": init_std(config),
    }


def _config(model: Any, family: Family, names: dict[str, str]) -> Config:
    return {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        **{name: getattr(model, field) for field, name in names.items()},
        "layer_norm_epsilon": model.eps,
        **dict.fromkeys(("hidden_dropout", "resid_pdrop", "emb_pdrop"), model.dropout),
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def bloom_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json; "seq_length" is only that of the training."""
    only(config, apply_residual_connection_post_layernorm=False)
    config = {"seq_length": 2048, **config}
    return {
        **sizes(config, BLOOM_SIZES, names),
        **_common(config, "hidden_dropout"),
        "attention_dropout": probability(config, "attention_dropout", 0.0),
        "positions": "alibi",
        "embedding_norm": True,
    }


def bloom_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, ENDS, BLOCK, layers="h.{}.", prefix="transformer.", groups=model.num_heads)


def mpt_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, no_bias=True, expansion_ratio=4, logit_scale=None)
    config = {"max_seq_len": 2048, **config}
    attention = given(config, "attn_config", {})
    only(attention, alibi=True, alibi_bias_max=8, clip_qkv=None, qk_ln=False, prefix_lm=False)
    only(attention, attn_type="multihead_attention")
    return {
        **sizes(config, MPT_SIZES, names),
        **_common(config, "resid_pdrop"),
        "attention_dropout": probability(attention, "attn_pdrop", 0.0),
        "scale": None if attention.get("softmax_scale") is None else positive(attention, "softmax_scale", 1.0),
        "positions": "alibi",
        "bias": False,
        "norm": "layer_no_bias",
        "activation": "gelu",
    }


def mpt_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    attention = {"alibi": True, "attn_pdrop": model.attention_dropout or 0, "softmax_scale": model.scale}
    return {**_config(model, MPT, MPT_SIZES), "attn_config": attention, "no_bias": True, "expansion_ratio": 4}


def mpt_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, MPT_ENDS, MPT_BLOCK, layers="blocks.{}.", prefix="transformer.")


def falcon_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, alibi=False)
    found, newer = sizes(config, FALCON_SIZES, names), flag(config, "new_decoder_architecture", False)
    parallel = "one_norm" if flag(config, "parallel_attn", True) else None
    kv_heads = 1 if flag(config, "multi_query", True) else None
    if newer:
        only(config, num_ln_in_parallel_attn=(None, 2))
        parallel, kv_heads = "two_norms", None if config.get("num_kv_heads") is None else size(config, "num_kv_heads")
    return {
        **found,
        **_common(config, "hidden_dropout"),
        "attention_dropout": probability(config, "attention_dropout", 0.0),
        "hidden_dim": None if config.get("ffn_hidden_size") is None else size(config, "ffn_hidden_size"),
        "num_kv_heads": kv_heads,
        "parallel_residual": parallel,
        "bias": flag(config, "bias", False),
        "positions": "rotary",
        "rotary": read_rotary(config, found["dim"] // found["num_heads"]),
        "activation": chosen(config, "activation", ACTIVATIONS, "gelu"),
    }


def falcon_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    newer = model.parallel_residual == "two_norms"
    return {
        **_config(model, FALCON, FALCON_SIZES),
        "ffn_hidden_size": model.hidden_dim or 4 * model.dim,
        "num_kv_heads": model.num_kv_heads or model.num_heads,
        "multi_query": model.num_kv_heads == 1,
        "new_decoder_architecture": newer,
        "parallel_attn": model.parallel_residual is not None,
        "bias": model.bias,
        "activation": PUBLISHED[model.activation],
        **write_rotary(None if isinstance(model.rotary, tuple) else model.rotary, model.dim // model.num_heads),
    }


def falcon_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    block = TWO_NORMS if model.parallel_residual == "two_norms" else BLOCK
    groups = model.num_kv_heads or model.num_heads
    return decoder_names(model, ENDS, block, layers="h.{}.", prefix="transformer.", groups=groups)


BLOOM: Family = Family(
    "bloom", heads("Bloom"), bloom_fields, lambda model: _config(model, BLOOM, BLOOM_SIZES), bloom_names
)
MPT: Family = Family("mpt", heads("Mpt"), mpt_fields, mpt_config, mpt_names)
FALCON: Family = Family("falcon", heads("Falcon"), falcon_fields, falcon_config, falcon_names)
