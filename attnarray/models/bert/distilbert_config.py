"""DistilBERT (Sanh et al., 2019, arXiv:1910.01108): BERT without types and pooler."""

from __future__ import annotations

from typing import Any

from attnarray.checkpoints.config import Config
from attnarray.models.bert.family import EMBEDDINGS, Published, classifier

ENTRIES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "hidden_dim": "hidden_dim",
    "activation": "activation",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
BLOCK = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward.hidden": "ffn.lin1",
    "feed_forward.out": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}
HEADS = ("vocab_", "pre_classifier.", "classifier.", "qa_outputs.")


def _modules(model: Any) -> dict[str, str]:
    return {
        **EMBEDDINGS,
        "pooler": "pre_classifier",
        "mask_head.dense": "vocab_transform",
        "mask_head.norm": "vocab_layer_norm",
        "mask_head.bias": "vocab_projector.bias",
        **classifier(model),
    }


def _read(config: Config) -> dict[str, Any]:
    return {"types": None, "eps": 1e-12, "pooler_activation": "relu"}


DISTILBERT = Published(
    "distilbert", "DistilBert", _modules, "distilbert.", HEADS,
    {"vocab_projector.weight": "embeddings.word_embeddings.weight"},
    layer="transformer.layer.{n}", block=BLOCK, entries=ENTRIES, read=_read,
)  # fmt: skip
