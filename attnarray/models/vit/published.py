"""ViT as transformers publishes it (Dosovitskiy et al., 2020, arXiv:2010.11929)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
    sizes,
)  # fmt: skip
from attnarray.checkpoints.names import Family, Names, Tensor
from attnarray.checks import flag
from attnarray.models.encoder_decoder.family import paths

SIZES = {"dim": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
         "hidden_dim": "intermediate_size"}  # fmt: skip
ENDS = {
    "patches": "embeddings.patch_embeddings.projection",
    "class_token.weight": "embeddings.cls_token",
    "position.weight": "embeddings.position_embeddings",
    "norm": "layernorm",
    "pooler": "pooler.dense",
    "classifier": "classifier",
}
BLOCK = {
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "feed_forward.hidden": "intermediate.dense",
    "feed_forward.out": "output.dense",
    "feed_forward_norm": "layernorm_after",
}


def vit_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `ViT` for a config.json."""
    listed = [name.removeprefix("vit.") for name in names]
    only(config, quantization_config=None, pooler_act="tanh", pooler_output_size=(None, config.get("hidden_size")))
    labels = config.get("id2label")
    found: dict[str, Any] = dict(sizes(config, SIZES, listed))
    for field, default in (("image_size", 224), ("patch_size", 16)):
        size = given(config, field, default)
        found[field] = tuple(size) if isinstance(size, list) else size
    if "embeddings.mask_token" in listed:
        raise Unsupported('has a mask token, but only images without masks are read: ignore=("vit.embeddings.mask",)')
    return {
        **found,
        "channels": given(config, "num_channels", 3),
        "activation": chosen(config, "hidden_act", ACTIVATIONS, "gelu"),
        "eps": positive(config, "layer_norm_eps", 1e-12),
        "qkv_bias": flag("qkv_bias", given(config, "qkv_bias", True)),
        "dropout": probability(config, "hidden_dropout_prob", 0.0),
        "attention_dropout": probability(config, "attention_probs_dropout_prob", 0.0),
        "pooler": "pooler.dense.weight" in listed,
        "num_labels": (len(labels) if labels else 2) if "classifier.weight" in listed else None,
        "init_std": init_std(config),
    }


def vit_config(model: Any) -> Config:
    """Return the config.json of a `ViT`."""
    labels = {} if model.num_labels is None else {"id2label": {str(n): f"LABEL_{n}" for n in range(model.num_labels)}}
    return {
        "architectures": ["ViTModel" if model.num_labels is None else "ViTForImageClassification"],
        "model_type": "vit",
        **{entry: getattr(model, field) for field, entry in SIZES.items()},
        "intermediate_size": model.hidden_dim or 4 * model.dim,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": model.channels,
        "hidden_act": PUBLISHED[model.activation],
        "layer_norm_eps": model.eps,
        "qkv_bias": model.qkv_bias,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "initializer_range": model.init_std,
        **labels,
    }


def vit_names(model: Any) -> Names:
    """Return the tensors of a `ViT`."""
    tensors = tuple(Tensor(_name(path), (path,)) for path in paths(model.shapes()))
    prefix = "" if model.num_labels is None else "vit."
    return Names(tensors, prefix, ("classifier.",))


def _name(path: str) -> str:
    """The name of the parameter at a path."""
    module, _, leaf = path.rpartition(".")
    if path in ENDS:
        return ENDS[path]
    if not module.startswith("blocks."):
        return f"{ENDS[module]}.{leaf}"
    _, n, inner = module.split(".", 2)
    return f"encoder.layer.{n}.{BLOCK[inner]}.{leaf}"


PRETRAINED = (Family("vit", ("ViTModel", "ViTForImageClassification"), vit_fields, vit_config, vit_names),)
