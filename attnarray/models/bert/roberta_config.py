"""RoBERTa (Liu et al., 2019, arXiv:1907.11692), XLM-R and CamemBERT: BERT whose positions skip padding."""

from __future__ import annotations

from typing import Any

from attnarray.checkpoints.config import Config, given
from attnarray.checks import whole
from attnarray.models.bert.family import EMBEDDINGS, LM_HEAD, LM_TIED, Published, classifier, classifies_sequences


def _modules(model: Any) -> dict[str, str]:
    pooler = "classifier.dense" if classifies_sequences(model) else "pooler.dense"
    return {**EMBEDDINGS, "pooler": pooler, **LM_HEAD, **classifier(model, sequences="classifier.out_proj")}


def _read(config: Config) -> dict[str, Any]:
    return {"padding_token": whole("pad_token_id", given(config, "pad_token_id", 1), 0, 2**31, "the token of padding")}


def _published(model_type: str, stem: str) -> Published:
    heads = ("lm_head.", "classifier.", "qa_outputs.")
    return Published(model_type, stem, _modules, "roberta.", heads, LM_TIED, read=_read, gelu_head=True)


ROBERTA = _published("roberta", "Roberta")
XLM_ROBERTA = _published("xlm-roberta", "XLMRoberta")
CAMEMBERT = _published("camembert", "Camembert")
