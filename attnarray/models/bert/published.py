"""Names of the parameters of `BERT` in checkpoints of Hugging Face transformers, and its config.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnarray.checkpoints.config import (
    ACTIVATIONS,
    PUBLISHED,
    Config,
    Unsupported,
    chosen,
    init_std,
    only,
    positive,
    probability,
    sizes,
)
from attnarray.checkpoints.names import Family, Names, Tensor, unchanged

# All of them have the same blocks, and differ in their heads.
ARCHITECTURES = (
    "BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction",
    "BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering",
    "BertForMultipleChoice",
)  # fmt: skip
# Field -> entry of config.json.
FIELDS = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "types": "type_vocab_size",
}
EMBEDDINGS = {"token": "word_embeddings", "position": "position_embeddings", "type": "token_type_embeddings"}
# Below "blocks" and "encoder.layer", n.
BLOCK = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.hidden": "intermediate.dense",
    "feed_forward.out": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
MASK_HEAD = "cls.predictions."
POOLER_WEIGHT, HEAD_WEIGHT = "pooler.dense.weight", f"{MASK_HEAD}transform.dense.weight"


def bert_names(model: Any) -> Names:
    """Return the tensors of a `BERT`."""
    found = [Tensor(f"embeddings.{name}.weight", (f"{path}.weight",)) for path, name in EMBEDDINGS.items()]
    found += unchanged("embeddings.LayerNorm", "embedding_norm")
    for n in range(model.num_layers):
        for path, name in BLOCK.items():
            found += unchanged(f"encoder.layer.{n}.{name}", f"blocks.{n}.{path}")
    copies, ignored = {}, [r"embeddings\.position_ids", r"cls\.seq_relationship\.(weight|bias)"]
    if model.pooler:
        found += unchanged("pooler.dense", "pooler")
    if model.mask_head:
        found += unchanged(f"{MASK_HEAD}transform.dense", "mask_head.dense")
        found += unchanged(f"{MASK_HEAD}transform.LayerNorm", "mask_head.norm")
        found.append(Tensor(f"{MASK_HEAD}bias", ("mask_head.bias",)))
        copies[f"{MASK_HEAD}decoder.weight"] = "embeddings.word_embeddings.weight"
        copies[f"{MASK_HEAD}decoder.bias"] = f"{MASK_HEAD}bias"
    renamed = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    return Names(tuple(found), "bert.", ("cls.",), renamed, copies, tuple(ignored))


def bert_fields(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a `BERT` for a config.json and the tensor names of its file."""
    only(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    only(config, quantization_config=None, compression_config=None, pruned_heads=({}, None))
    names = list(names)
    heads = {"pooler": POOLER_WEIGHT, "mask_head": HEAD_WEIGHT}
    has = {name: any(full.removeprefix("bert.") == weight for full in names) for name, weight in heads.items()}
    if has["mask_head"] and config.get("tie_word_embeddings", True) is not True:
        raise Unsupported(
            "asks for tie_word_embeddings = False, but only True is supported for the head for masked tokens. Without "
            'that head, ignore=("cls.",), the model can be read'
        )
    return {
        **sizes(config, FIELDS, names),
        **has,
        "activation": chosen(config, "hidden_act", ACTIVATIONS, "gelu"),
        "dropout": probability(config, "hidden_dropout_prob", 0.1),
        "attention_dropout": probability(config, "attention_probs_dropout_prob", 0.1),
        "eps": positive(config, "layer_norm_eps", 1e-12),
        "init_std": init_std(config),
    }


def bert_config(model: Any) -> Config:
    """Return the config.json of a `BERT`."""
    return {
        "architectures": ["BertForMaskedLM" if model.mask_head else "BertModel"],
        "model_type": "bert",
        **{name: getattr(model, field) for field, name in FIELDS.items()},
        "intermediate_size": model.hidden_dim or 4 * model.dim,
        "hidden_act": PUBLISHED[model.activation],
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "layer_norm_eps": model.eps,
        "initializer_range": model.init_std,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }


PRETRAINED = (Family("bert", ARCHITECTURES, bert_fields, bert_config, bert_names),)
