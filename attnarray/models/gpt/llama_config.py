"""What the config.json of a LLaMA says of a `Gpt`."""

from __future__ import annotations

from typing import Any

from attnarray.checkpoints.config import Config, Unsupported, chosen, must_be, only, required
from attnarray.ops.rotary import Rotary

# Our name -> theirs.
SIZES = {
    "vocabulary": "vocab_size",
    "longest": "max_position_embeddings",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def llama_fields(config: Config) -> dict[str, Any]:
    """The fields of the `Gpt` of a config.json."""
    only(config, attention_bias=False, mlp_bias=False, quantization_config=None, pretraining_tp=1)
    sizes = dict(zip(SIZES, required(config, *SIZES.values()), strict=True))
    if config.get("head_dim") not in (None, sizes["dim"] // sizes["heads"]):
        raise Unsupported(f"asks for head_dim = {config['head_dim']!r}, but only dim / heads is supported")
    return {
        **sizes,
        "kv_heads": config.get("num_key_value_heads"),
        "positions": "rotary",
        "rotary": Rotary(base=_rotary_base(config)),
        "norm": "rms",
        "eps": config.get("rms_norm_eps", 1e-6),
        "activation": chosen(config, "hidden_act", ACTIVATIONS, "silu"),
        "gated": True,
        "bias": False,
        "attention_dropout": config.get("attention_dropout", 0.0),
        "tied": config.get("tie_word_embeddings", False),
        "std": config.get("initializer_range", 0.02),
    }


def _rotary_base(config: Config) -> float:
    """Of the plain rotation; newer files say it in rope_parameters, older ones in rope_theta."""
    for name in ("rope_scaling", "rope_parameters"):
        only(config.get(name) or {}, rope_type="default", type="default")
    given = {"rope_theta": config.get("rope_theta", 10_000.0), **(config.get("rope_parameters") or {})}
    return float(given["rope_theta"])


def llama_config(model: Any) -> Config:
    """The config.json of a `Gpt`."""
    rotary = model.rotary or Rotary()
    must_be(model, "LLaMA", positions="rotary", norm="rms", gated=True, bias=False, dropout=0.0)
    must_be(model, "LLaMA", rotary=(None, Rotary(base=rotary.base)))
    theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: getattr(model, field) for field, name in SIZES.items()},
        "intermediate_size": model.hidden_dim or 4 * model.dim,
        "num_key_value_heads": model.kv_heads or model.heads,
        "hidden_act": theirs[model.activation],
        "rms_norm_eps": model.eps,
        "rope_theta": rotary.base,
        "rope_parameters": {"rope_type": "default", "rope_theta": rotary.base},
        "attention_bias": False,
        "attention_dropout": model.attention_dropout,
        "mlp_bias": False,
        "initializer_range": model.std,
        "tie_word_embeddings": model.tied,
    }
