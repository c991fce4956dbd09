"""GPT-2 and GPT-J."""

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
from attnarray.models.gpt.families.llama import flag, heads
from attnarray.models.gpt.families.tensors import Table, decoder_names
from attnarray.ops.rotary import Rotary

# Field -> entry of config.json.
SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "n_positions",
    "dim": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
}
DROPOUTS = ("resid_pdrop", "embd_pdrop")
GPT2_ENDS: Table = {"wte": "token", "wpe": "position", "ln_f": "norm"}
GPT2_BLOCK: Table = {
    "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
    "attn.c_proj": "attention.out",
    "ln_1": "attention_norm",
    "mlp.c_fc": "feed_forward.hidden",
    "mlp.c_proj": "feed_forward.out",
    "ln_2": "feed_forward_norm",
}
GPTJ_BLOCK: Table = {
    "attn.q_proj": "attention.query",
    "attn.k_proj": "attention.key",
    "attn.v_proj": "attention.value",
    "attn.out_proj": "attention.out",
    "ln_1": "attention_norm",
    "mlp.fc_in": "feed_forward.hidden",
    "mlp.fc_out": "feed_forward.out",
}
TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def _fields(config: Config, names: Iterable[str], tied: bool, dropout: float) -> dict[str, Any]:
    """The fields of both. Of their two dropouts, `GPT` has that of the blocks."""
    only(config, quantization_config=None, compression_config=None, pruned_heads=({}, None))
    return {
        **sizes(config, SIZES, names),
        "hidden_dim": None if config.get("n_inner") is None else size(config, "n_inner"),
        "activation": chosen(config, "activation_function", ACTIVATIONS, "gelu_new"),
        "dropout": probability(config, "resid_pdrop", dropout),
        "attention_dropout": probability(config, "attn_pdrop", dropout),
        "eps": positive(config, "layer_norm_epsilon", 1e-5),
        "tie_embeddings": flag(config, "tie_word_embeddings", tied),
        "init_std": init_std(config),
    }


def _config(model: Any, family: Family) -> Config:
    return {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        **{name: getattr(model, field) for field, name in SIZES.items()},
        "n_inner": model.hidden_dim or None,
        "activation_function": PUBLISHED[model.activation],
        **dict.fromkeys(DROPOUTS, model.dropout),
        "attn_pdrop": model.attention_dropout,
        "layer_norm_epsilon": model.eps,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def gpt2_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, add_cross_attention=False, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    return _fields(config, names, True, 0.1)


def gptj_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    fields = _fields(config, names, False, 0.0)
    dims, width = config.get("rotary_dim", 64), fields["dim"] // fields["num_heads"]
    rotary = Rotary(None if dims in (None, width) else size(config, "rotary_dim"), interleaved=True)
    own = {"positions": "rotary", "rotary": rotary, "qkv_bias": False, "out_bias": False}
    return {**fields, **own, "parallel_residual": "one_norm", "logits_bias": not fields["tie_embeddings"]}


def gptj_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    dims = getattr(model.rotary, "dims", None) or model.dim // model.num_heads
    return {**_config(model, GPTJ), "rotary_dim": dims}


def gpt2_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(
        model, GPT2_ENDS, GPT2_BLOCK, layers="h.{}.", prefix="transformer.", transposed=TRANSPOSED
    )  # fmt: skip


def gptj_names(model: Any) -> Names:
    """Return the tensors of a `GPT`."""
    return decoder_names(model, GPT2_ENDS, GPTJ_BLOCK, layers="h.{}.", prefix="transformer.")


GPT2_HEADS = (
    "GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification", "GPT2ForQuestionAnswering",
)  # fmt: skip
GPT2: Family = Family("gpt2", GPT2_HEADS, gpt2_fields, lambda model: _config(model, GPT2), gpt2_names)
GPTJ: Family = Family("gptj", heads("GPTJ"), gptj_fields, gptj_config, gptj_names)
