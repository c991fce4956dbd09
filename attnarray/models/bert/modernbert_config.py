"""ModernBERT (Warner et al., 2024, arXiv:2412.13663): pre-norm, rotary, alternating windows, gated, without biases."""

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
    size,
    sizes,
)
from attnarray.checkpoints.names import Family, Names, Tensor
from attnarray.models.gpt.families.rope import read_rotary, write_rotary

SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
ENDS = {"embeddings.tok_embeddings": "token", "embeddings.norm": "embedding_norm", "final_norm": "norm"}
HEAD = {"head.dense.weight": "dense.weight", "head.norm.weight": "norm.weight", "decoder.bias": "bias"}
BLOCK = {
    "attn_norm": ("attention_norm",),
    "attn.Wqkv": ("attention.query", "attention.key", "attention.value"),
    "attn.Wo": ("attention.out",),
    "mlp_norm": ("feed_forward_norm",),
    "mlp.Wi": ("feed_forward.hidden", "feed_forward.gate"),
    "mlp.Wo": ("feed_forward.out",),
}
BASES = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def modernbert_names(model: Any) -> Names:
    """Return the tensors of a model."""
    tensors = [Tensor(f"{theirs}.weight", (f"{ours}.weight",)) for theirs, ours in ENDS.items()]
    for n in range(model.num_layers):
        tensors += [
            Tensor(f"layers.{n}.{theirs}.weight", tuple(f"blocks.{n}.{path}.weight" for path in paths))
            for theirs, paths in BLOCK.items()
            if n or theirs != "attn_norm"
        ]
    if not model.mask_head:
        return Names(tuple(tensors), "model.")
    tensors += [Tensor(theirs, (f"mask_head.{ours}",)) for theirs, ours in HEAD.items()]
    copies = {"decoder.weight": "embeddings.tok_embeddings.weight"}
    return Names(tuple(tensors), "model.", ("head.", "decoder."), (), copies)


def modernbert_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `BERT`."""
    only(config, quantization_config=None, norm_bias=False, attention_bias=False, mlp_bias=False, decoder_bias=True)
    only(config, classifier_bias=False, embedding_dropout=0.0, mlp_dropout=0.0, attention_dropout=0.0)
    listed = list(names)
    found: dict[str, Any] = sizes(config, SIZES, listed)
    every = checks.whole(
        "global_attn_every_n_layers", given(config, "global_attn_every_n_layers", 3), 1, 2**31, "layers"
    )
    alternating = ["sliding_attention" if n % every else "full_attention" for n in range(found["num_layers"])]
    kinds = given(config, "layer_types", alternating)
    if not isinstance(kinds, list) or len(kinds) != found["num_layers"] or not set(kinds) <= set(BASES):
        raise Unsupported(f"has layer_types = {checks.shown(kinds)}, expected one of {sorted(BASES)} for each layer")
    width = found["dim"] // found["num_heads"]
    nested = given(config, "rope_parameters", {})
    rotations = {}
    for kind, (entry, base) in BASES.items():
        older = {"rope_theta": config.get(entry), "rope_scaling": config.get("rope_scaling")}
        options = {"rope_parameters": nested[kind]} if nested.get(kind) else older
        rotations[kind] = read_rotary({**options, "max_position_embeddings": found["max_seq_len"]}, width, base=base)
    window = size({"local_attention": 128, **config}, "local_attention") // 2
    mask_head = any(name.endswith("head.dense.weight") for name in listed)
    activation = chosen(config, "hidden_activation", ACTIVATIONS, "gelu")
    if mask_head:
        only({"classifier_activation": "gelu", **config}, classifier_activation=config.get("hidden_activation", "gelu"))
        only(config, tie_word_embeddings=True)
    return {
        **found,
        "activation": activation,
        "eps": positive(config, "norm_eps", 1e-5),
        "init_std": init_std(config),
        "windows": tuple(window if kind == "sliding_attention" else None for kind in kinds),
        "rotary": tuple(rotations[kind] for kind in kinds),
        "mask_head": mask_head,
        "types": None,
        "pooler": False,
        "positions": "rotary",
        "pre_norm": True,
        "norm": "layer_no_bias",
        "gated": True,
        "bias": False,
    }


def modernbert_config(model: Any) -> Config:
    """Return the config.json of a `BERT`."""
    each = [model.windows[n % len(model.windows)] for n in range(model.num_layers)]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in each]
    rotations = model.rotary if isinstance(model.rotary, tuple) else (model.rotary,)
    by_kind = {kind: rotations[n % len(rotations)] for n, kind in enumerate(kinds)}
    width = model.dim // model.num_heads
    activation = PUBLISHED[model.activation]
    return {
        "architectures": ["ModernBertForMaskedLM" if model.mask_head else "ModernBertModel"],
        "model_type": "modernbert",
        **{entry: getattr(model, field) for field, entry in SIZES.items()},
        "intermediate_size": model.hidden_dim or 4 * model.dim,
        "hidden_activation": activation,
        "classifier_activation": activation,
        "norm_eps": model.eps,
        "initializer_range": model.init_std,
        "layer_types": kinds,
        "local_attention": 2 * next((window for window in each if window is not None), 64),
        "rope_parameters": {kind: write_rotary(one, width)["rope_parameters"] for kind, one in by_kind.items()},
        "tie_word_embeddings": True,
    }


MODERNBERT = Family(
    "modernbert", ("ModernBertForMaskedLM", "ModernBertModel"), modernbert_fields, modernbert_config, modernbert_names
)
