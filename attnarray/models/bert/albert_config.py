"""ALBERT (Lan et al., 2019, arXiv:1909.11942): BERT whose blocks share their parameters, and narrower embeddings."""

from __future__ import annotations

from typing import Any

from attnarray.checkpoints.config import Config, given, only
from attnarray.checks import whole
from attnarray.models.bert.family import EMBEDDINGS, Published, classifier

BLOCK = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.out": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feed_forward.hidden": "ffn",
    "feed_forward.out": "ffn_output",
    "feed_forward_norm": "full_layer_layer_norm",
}
HEAD = "predictions."


def _modules(model: Any) -> dict[str, str]:
    return {
        **EMBEDDINGS,
        "projection": "encoder.embedding_hidden_mapping_in",
        "pooler": "pooler",
        "mask_head.dense": f"{HEAD}dense",
        "mask_head.norm": f"{HEAD}LayerNorm",
        "mask_head.bias": f"{HEAD}bias",
        **classifier(model),
    }


def _read(config: Config) -> dict[str, Any]:
    only(config, num_hidden_groups=1, inner_group_num=1)
    width = whole("embedding_size", given(config, "embedding_size", 128), 1, 2**31, "the width of the embeddings")
    return {"embedding_dim": width, "share_blocks": True}


def _write(model: Any) -> Config:
    return {"embedding_size": model.embedding_dim, "num_hidden_groups": 1, "inner_group_num": 1}


ALBERT = Published(
    "albert", "Albert", _modules, "albert.", (HEAD, "classifier.", "qa_outputs."),
    {f"{HEAD}decoder.weight": "embeddings.word_embeddings.weight", f"{HEAD}decoder.bias": f"{HEAD}bias"},
    layer="encoder.albert_layer_groups.{n}.albert_layers.0", block=BLOCK, read=_read, write=_write,
    ignored=(r"embeddings\.position_ids", r"sop_classifier\.classifier\.(weight|bias)"), others=("ForPreTraining",),
)  # fmt: skip
