"""The config.json of LLaMA, from and to the fields of `GPT`."""

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
from attnarray.ops.rotary import Rotary

ARCHITECTURES = (
    "LlamaForCausalLM", "LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification",
    "LlamaForQuestionAnswering",
)  # fmt: skip
# Field -> entry of config.json.
SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
ROPE_TYPES = {"default": (), "linear": ("factor",)}  # and their options, besides the base


def llama_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `GPT` for a config.json."""
    only(config, attention_bias=False, mlp_bias=False, sliding_window=None)
    only(config, quantization_config=None, compression_config=None, partial_rotary_factor=(None, 1))
    found = sizes(config, SIZES, names)
    width = found["dim"] / found["num_heads"]
    if config.get("head_dim") not in (None, width):
        raise Unsupported(
            f"asks for head_dim = {checks.shown(config['head_dim'])}, but only dim / num_heads is supported"
        )
    if width % 2 == 1:
        raise Unsupported(f"asks for heads of {width:.0f} features, but rotary positions are of an even number")
    return {
        **found,
        "num_kv_heads": None if config.get("num_key_value_heads") is None else size(config, "num_key_value_heads"),
        "positions": "rotary",
        "rotary": _rotary(config),
        "norm": "rms",
        "eps": positive(config, "rms_norm_eps", 1e-6),
        "activation": chosen(config, "hidden_act", ACTIVATIONS, "silu"),
        "gated": True,
        "bias": False,
        "dropout": probability(config, "resid_pdrop", 0.0),
        "attention_dropout": probability(config, "attention_dropout", 0.0),
        "tie_embeddings": checks.flag("tie_word_embeddings", given(config, "tie_word_embeddings", False)),
        "init_std": init_std(config),
    }


def _rotary(config: Config) -> Rotary:
    """The rotation: newer files have rope_parameters; rope_scaling of older ones takes precedence."""
    entries = [
        _scaling(name, config[name]) for name in ("rope_scaling", "rope_parameters") if config.get(name) is not None
    ]
    bases = [base for options in (*entries, config) if (base := options.get("rope_theta")) is not None]
    if any(base != bases[0] for base in bases):
        raise Unsupported(f"says rope_theta twice, {bases[0]!r} and {bases[-1]!r}: it must be the same")
    base = checks.positive("rope_theta", bases[0] if bases else 10_000.0)
    options: Config = next(filter(None, entries), {})
    if options.get("rope_type") != "linear":
        return Rotary(base=base)
    factor: Any = options.get("factor")
    return Rotary(base=base, scaling="linear", factor=checks.positive("factor", factor))


def _scaling(name: str, entry: Any) -> Config:
    """The options of one entry, each of them supported."""
    if not isinstance(entry, dict):
        raise Unsupported(f"has {name} = {checks.shown(entry)}, expected an object with a rope_type")
    options = {option: value for option, value in entry.items() if value is not None}
    if options.pop("partial_rotary_factor", 1) != 1:
        raise Unsupported(f"asks for partial_rotary_factor in {name}, but only whole heads are supported")
    older = options.pop("type", None)
    kind = options.setdefault("rope_type", older) if older is not None else options.get("rope_type")
    if kind is None and options.keys() - {"rope_theta"}:
        raise Unsupported(f"has {name} = {checks.shown(entry)}, expected a rope_type in it")
    if kind is not None and (not isinstance(kind, str) or kind not in ROPE_TYPES):
        listed = " and ".join(map(repr, ROPE_TYPES))
        raise Unsupported(f"asks for rope_type = {checks.shown(kind)}, but only {listed} are supported")
    if older not in (None, kind):
        raise Unsupported(f"says in {name} that rope_type is {kind!r} and type is {checks.shown(older)}")
    others = options.keys() - {"rope_theta", "rope_type", *ROPE_TYPES.get(kind or "default", ())}
    if others:
        raise Unsupported(f"has {min(others)} in {name}, which is none of the options of rope_type = {kind!r}")
    return options


def llama_config(model: Any) -> Config:
    """Return the config.json of a `GPT`."""
    rotary = model.rotary or Rotary()
    scaled = rotary.scaling == "linear"
    linear = {"rope_type": "linear", "factor": rotary.factor} if scaled else {}
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "llama",
        **{name: getattr(model, field) for field, name in SIZES.items()},
        "intermediate_size": model.hidden_dim or 4 * model.dim,
        "num_key_value_heads": model.num_kv_heads or model.num_heads,
        "hidden_act": PUBLISHED[model.activation],
        "rms_norm_eps": model.eps,
        "rope_theta": rotary.base,
        "rope_parameters": {"rope_type": "default", **linear, "rope_theta": rotary.base},
        "rope_scaling": {**linear, "type": "linear"} if scaled else None,  # for readers without rope_parameters
        "attention_bias": False,
        "attention_dropout": model.attention_dropout,
        "resid_pdrop": model.dropout,  # LLaMA has none; other readers ignore it
        "mlp_bias": False,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }
