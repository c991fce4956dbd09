"""ELECTRA (Clark et al., 2020, arXiv:2003.10555): BERT with embeddings of another width, and without a pooler."""

from __future__ import annotations

from typing import Any

from attnarray.checkpoints.config import Config, given
from attnarray.checks import whole
from attnarray.models.bert.family import EMBEDDINGS, Published, classifier


def _modules(model: Any) -> dict[str, str]:
    return {
        **EMBEDDINGS,
        "projection": "embeddings_project",
        "pooler": "classifier.dense",
        "mask_head.dense": "generator_predictions.dense",
        "mask_head.norm": "generator_predictions.LayerNorm",
        "mask_head.bias": "generator_lm_head.bias",
        **classifier(model, sequences="classifier.out_proj"),
    }


def _read(config: Config) -> dict[str, Any]:
    width = whole("embedding_size", given(config, "embedding_size", 128), 1, 2**31, "the width of the embeddings")
    return {"embedding_dim": None if width == config["hidden_size"] else width, "pooler_activation": "gelu"}


def _write(model: Any) -> Config:
    return {"embedding_size": model.embedding_dim or model.dim}


ELECTRA = Published(
    "electra", "Electra", _modules, "electra.", ("generator_", "classifier.", "qa_outputs."),
    {"generator_lm_head.weight": "embeddings.word_embeddings.weight"}, read=_read, write=_write, gelu_head=True,
)  # fmt: skip
