"""MPNet (Song et al., 2020, arXiv:2004.09297): RoBERTa without types, with a relative bias."""

from __future__ import annotations

from typing import Any

from attnarray.checkpoints.config import Config, only
from attnarray.models.bert.family import (
    BLOCK,
    EMBEDDINGS,
    ENTRIES,
    LM_HEAD,
    LM_TIED,
    Published,
    classifier,
    classifies_sequences,
)

ATTENTION = {
    "attention.query": "attention.attn.q",
    "attention.key": "attention.attn.k",
    "attention.value": "attention.attn.v",
    "attention.out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}
BUCKETS = 32  # whatever the config.json says, so that no other number can be right


def _modules(model: Any) -> dict[str, str]:
    pooler = "classifier.dense" if classifies_sequences(model) else "pooler.dense"
    own = {"relative": "encoder.relative_attention_bias", "pooler": pooler}
    return {**EMBEDDINGS, **own, **LM_HEAD, **classifier(model, sequences="classifier.out_proj")}


def _read(config: Config) -> dict[str, Any]:
    only(config, relative_attention_num_buckets=BUCKETS, pad_token_id=1)
    return {"types": None, "padding_token": 1, "relative_buckets": BUCKETS}


MPNET = Published(
    "mpnet", "MPNet", _modules, "mpnet.", ("lm_head.", "classifier.", "qa_outputs."), LM_TIED,
    block={**BLOCK, **ATTENTION}, entries={name: entry for name, entry in ENTRIES.items() if name != "types"},
    read=_read, write=lambda _model: {"relative_attention_num_buckets": BUCKETS}, gelu_head=True,
)  # fmt: skip
