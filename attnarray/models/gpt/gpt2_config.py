"""The config.json of GPT-2, from and to the fields of `GPT`."""

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
    init_std,
    only,
    positive,
    probability,
    size,
    sizes,
)

# All of them have the same blocks, and differ in their heads.
ARCHITECTURES = (
    "GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification", "GPT2ForQuestionAnswering",
)  # fmt: skip
# Field -> entry of config.json.
SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "n_positions",
    "dim": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
}
DROPOUTS = ("resid_pdrop", "embd_pdrop")


def gpt2_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json.

    Of its two dropouts, `GPT` has that of the blocks.
    """
    only(config, add_cross_attention=False, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    only(config, quantization_config=None, compression_config=None, pruned_heads=({}, None))
    return {
        **sizes(config, SIZES, names),
        "hidden_dim": None if config.get("n_inner") is None else size(config, "n_inner"),
        "activation": chosen(config, "activation_function", ACTIVATIONS, "gelu_new"),
        "dropout": probability(config, "resid_pdrop", 0.1),
        "attention_dropout": probability(config, "attn_pdrop", 0.1),
        "eps": positive(config, "layer_norm_epsilon", 1e-5),
        "tie_embeddings": checks.flag("tie_word_embeddings", given(config, "tie_word_embeddings", True)),
        "init_std": init_std(config),
    }


def gpt2_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "gpt2",
        **{name: getattr(model, field) for field, name in SIZES.items()},
        "n_inner": model.hidden_dim or None,
        "activation_function": PUBLISHED[model.activation],
        **dict.fromkeys(DROPOUTS, model.dropout),
        "attn_pdrop": model.attention_dropout,
        "layer_norm_epsilon": model.eps,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }
