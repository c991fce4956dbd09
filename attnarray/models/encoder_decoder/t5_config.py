"""T5 (Raffel et al., 2019, arXiv:1910.10683), also version 1.1 with its gated feed-forward networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray.checkpoints.config import ACTIVATIONS, Config, Unsupported, given, only, positive, probability, sizes
from attnarray.checkpoints.names import Family, Names
from attnarray.checks import flag, shown
from attnarray.models.encoder_decoder.family import names

SIZES = {
    "vocab_size": "vocab_size",
    "dim": "d_model",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "hidden_dim": "d_ff",
    "head_dim": "d_kv",
}
LAYER = "{side}.block.{n}.layer."
LETTERS = {"query": "q", "key": "k", "value": "v", "out": "o"}
BLOCK = {
    **{f"attention.{ours}": f"{LAYER}0.SelfAttention.{theirs}" for ours, theirs in LETTERS.items()},
    "attention_norm": f"{LAYER}0.layer_norm",
    **{f"cross.{ours}": f"{LAYER}1.EncDecAttention.{theirs}" for ours, theirs in LETTERS.items()},
    "cross_norm": f"{LAYER}1.layer_norm",
    "encoder.feed_forward_norm": f"{LAYER}1.layer_norm",
    "decoder.feed_forward_norm": f"{LAYER}2.layer_norm",
}
BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias"
ENDS = {
    "token": "shared",
    "logits": "lm_head",
    **{f"{side}.relative": f"{side}.{BIAS}" for side in ("encoder", "decoder")},
    **{f"{side}.norm": f"{side}.final_layer_norm" for side in ("encoder", "decoder")},
}
MAX_SEQ_LEN = 512  # of training; relative positions have no limit
FORWARD = {"hidden": "wi", "out": "wo"}
GATED = {"hidden": "wi_0", "gate": "wi_1", "out": "wo"}


def t5_names(model: Any) -> Names:
    """Return the tensors of a model."""
    inner = GATED if model.gated else FORWARD
    block = {
        f"{side}.feed_forward.{ours}": f"{LAYER}{n}.DenseReluDense.{theirs}"
        for side, n in (("encoder", 1), ("decoder", 2))
        for ours, theirs in inner.items()
    }
    copies = {f"{name}.embed_tokens.weight": "shared.weight" for name in ("encoder", "decoder")}
    if model.tie_embeddings:
        copies["lm_head.weight"] = "shared.weight"
    ignored = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
    heads = ("lm_head.", "encoder.embed_tokens.", "decoder.embed_tokens.")
    return names(model, ENDS, {**BLOCK, **block}, copies=copies, ignored=ignored, heads=heads)


def t5_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a T5."""
    only(config, quantization_config=None, is_encoder_decoder=True)
    gated, _, activation = str(given(config, "feed_forward_proj", "relu")).rpartition("-")
    if gated not in ("", "gated") or activation not in ACTIVATIONS:
        raise Unsupported(f"asks for feed_forward_proj = {shown(config['feed_forward_proj'])}, which is not supported")
    old = gated and activation == "gelu"  # which means the tanh approximation
    tied = flag("tie_word_embeddings", given(config, "tie_word_embeddings", True))
    sized = sizes(config, SIZES, list(names))
    return {
        **sized,
        "max_seq_len": given(config, "n_positions", MAX_SEQ_LEN),
        "decoder_layers": given(config, "num_decoder_layers", sized["num_layers"]),
        "activation": "gelu_tanh" if old else ACTIVATIONS[activation],
        "gated": bool(gated),
        "buckets": given(config, "relative_attention_num_buckets", 32),
        "max_distance": given(config, "relative_attention_max_distance", 128),
        "tie_embeddings": tied,
        "scale_logits": flag("scale_decoder_outputs", given(config, "scale_decoder_outputs", tied)),
        "eps": positive(config, "layer_norm_epsilon", 1e-6),
        "dropout": probability(config, "dropout_rate", 0.1),
        "hidden_dropout": probability(config, "dropout_rate", 0.1),
        "attention_dropout": probability(config, "dropout_rate", 0.1),
        **T5_FIELDS,
    }


T5_FIELDS = {
    "positions": "relative", "norm": "rms", "pre_norm": True, "final_norm": True, "bias": False, "scale": 1.0,
    "embedding_norm": False, "logits_bias": False,
}  # fmt: skip


def t5_config(model: Any) -> Config:
    """Return the config.json of a model."""
    activation = {"gelu": "gelu_python", "gelu_tanh": "gelu_new"}.get(model.activation, model.activation)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{entry: getattr(model, field) for field, entry in SIZES.items()},
        "d_kv": model.head_dim or model.dim // model.num_heads,
        "d_ff": model.hidden_dim or 4 * model.dim,
        "num_decoder_layers": model.decoder_layers or model.num_layers,
        "n_positions": model.max_seq_len,
        "feed_forward_proj": f"gated-{activation}" if model.gated else activation,
        "relative_attention_num_buckets": model.buckets,
        "relative_attention_max_distance": model.max_distance,
        "layer_norm_epsilon": model.eps,
        "dropout_rate": model.dropout,
        "is_encoder_decoder": True,
        "tie_word_embeddings": model.tie_embeddings,
        "scale_decoder_outputs": model.scale_logits,
    }


T5 = Family("t5", ("T5ForConditionalGeneration",), t5_fields, t5_config, t5_names)
