"""What the config.json of a GPT-2 says of a `Gpt`."""

from __future__ import annotations

from typing import Any

from attnarray.checkpoints.config import Config, Unsupported, chosen, must_be, only, required

# Our name -> theirs.
SIZES = {
    "vocabulary": "vocab_size",
    "longest": "n_positions",
    "dim": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
}
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
DROPOUTS = ("resid_pdrop", "embd_pdrop")


def gpt2_fields(config: Config) -> dict[str, Any]:
    """The fields of the `Gpt` of a config.json."""
    only(config, add_cross_attention=False, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    only(config, quantization_config=None, pruned_heads=({}, None))
    sizes = dict(zip(SIZES, required(config, *SIZES.values()), strict=True))
    dropouts = {config.get(name, 0.1) for name in DROPOUTS}
    if len(dropouts) > 1:
        raise Unsupported(f"has different {' and '.join(DROPOUTS)}, but the model here has one dropout for both")
    return {
        **sizes,
        "hidden_dim": config.get("n_inner"),
        "activation": chosen(config, "activation_function", ACTIVATIONS, "gelu_new"),
        "dropout": dropouts.pop(),
        "attention_dropout": config.get("attn_pdrop", 0.1),
        "eps": config.get("layer_norm_epsilon", 1e-5),
        "tied": config.get("tie_word_embeddings", True),
        "std": config.get("initializer_range", 0.02),
    }


def gpt2_config(model: Any) -> Config:
    """The config.json of a `Gpt`."""
    must_be(model, "GPT-2", positions="learned", norm="layer", gated=False, bias=True, kv_heads=(None, model.heads))
    theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{name: getattr(model, field) for field, name in SIZES.items()},
        "n_inner": model.hidden_dim,
        "activation_function": theirs[model.activation],
        **dict.fromkeys(DROPOUTS, model.dropout),
        "attn_pdrop": model.attention_dropout,
        "layer_norm_epsilon": model.eps,
        "initializer_range": model.std,
        "tie_word_embeddings": model.tied,
    }
