"""BART (Lewis et al., 2019, arXiv:1910.13461) and Marian (Junczys-Dowmunt et al., 2018, arXiv:1804.00344)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
from attnarray.checks import flag, not_negative
from attnarray.models.encoder_decoder.family import names, same

SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "d_model",
    "num_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "num_heads": "encoder_attention_heads",
    "hidden_dim": "encoder_ffn_dim",
}
LAYER = "{side}.layers.{n}."
BLOCK = {
    **{f"attention.{ours}": f"{LAYER}self_attn.{theirs}" for ours, theirs in
       {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}.items()},
    **{f"cross.{ours}": f"{LAYER}encoder_attn.{theirs}" for ours, theirs in
       {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}.items()},
    "attention_norm": f"{LAYER}self_attn_layer_norm",
    "cross_norm": f"{LAYER}encoder_attn_layer_norm",
    "feed_forward.hidden": f"{LAYER}fc1",
    "feed_forward.out": f"{LAYER}fc2",
    "feed_forward_norm": f"{LAYER}final_layer_norm",
}  # fmt: skip
ENDS = {
    "token": "shared",
    "encoder.position": "encoder.embed_positions",
    "decoder.position": "decoder.embed_positions",
    "encoder.embedding_norm": "encoder.layernorm_embedding",
    "decoder.embedding_norm": "decoder.layernorm_embedding",
    "logits_bias": "final_logits_bias",
}
COPIES = {f"{copy}.weight": "shared.weight" for copy in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")}


def bart_names(model: Any) -> Names:
    """Return the tensors of a model."""
    ignored = (r"(en|de)coder\.embed_positions\.weight",) if model.positions == "sinusoidal" else ()
    heads = ("final_logits_bias", "lm_head.", "encoder.embed_tokens.", "decoder.embed_tokens.")
    copies = {copy: name for copy, name in COPIES.items() if model.logits_bias or copy != "lm_head.weight"}
    return names(model, ENDS, BLOCK, copies=copies, ignored=ignored, prefix="model.", heads=heads)


def bart_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a BART."""
    return {**_fields(config, names), "embedding_norm": True, "positions": "learned", "position_offset": 2}


def marian_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a Marian."""
    only(config, share_encoder_decoder_embeddings=True, decoder_vocab_size=(None, config.get("vocab_size")))
    return {**_fields(config, names), "embedding_norm": False, "positions": "sinusoidal"}


def _fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    only(config, quantization_config=None, tie_word_embeddings=True, is_encoder_decoder=True)
    listed = list(names)
    found: dict[str, Any] = sizes(config, SIZES, listed)
    same(config, "encoder_attention_heads", "decoder_attention_heads")
    same(config, "encoder_ffn_dim", "decoder_ffn_dim")
    return {
        **found,
        "activation": chosen(config, "activation_function", ACTIVATIONS, "gelu"),
        "dropout": probability(config, "dropout", 0.1),
        "attention_dropout": probability(config, "attention_dropout", 0.0),
        "hidden_dropout": probability(config, "activation_dropout", 0.0),
        "scale_embedding": flag("scale_embedding", given(config, "scale_embedding", False)),
        "logits_bias": any(name.endswith("final_logits_bias") for name in listed),
        "init_std": not_negative("init_std", given(config, "init_std", 0.02)),
    }


def _config(model: Any, stem: str, model_type: str) -> Config:
    return {
        "architectures": [f"{stem}MTModel" if stem == "Marian" else f"{stem}ForConditionalGeneration"]
        if model.logits_bias else [f"{stem}Model"],
        "model_type": model_type,
        **{entry: getattr(model, field) for field, entry in SIZES.items()},
        "decoder_layers": model.decoder_layers or model.num_layers,
        "encoder_ffn_dim": model.hidden_dim or 4 * model.dim,
        "decoder_ffn_dim": model.hidden_dim or 4 * model.dim,
        "decoder_attention_heads": model.num_heads,
        "activation_function": PUBLISHED[model.activation],
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "activation_dropout": model.hidden_dropout,
        "scale_embedding": model.scale_embedding,
        "init_std": model.init_std,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
    }  # fmt: skip


BART = Family(
    "bart", ("BartForConditionalGeneration", "BartModel"), bart_fields,
    lambda model: _config(model, "Bart", "bart"), bart_names,
)  # fmt: skip
MARIAN = Family(
    "marian", ("MarianMTModel", "MarianModel"), marian_fields,
    lambda model: {**_config(model, "Marian", "marian"),
                   # the last token, as in the published ones: the field of a model does not say it
                   "pad_token_id": model.vocab_size - 1, "decoder_start_token_id": model.vocab_size - 1},
    bart_names,
)  # fmt: skip
