"""Names of the parameters of `BERT` in checkpoints of Hugging Face transformers, and its config.json."""

from __future__ import annotations

from typing import Any

from attnarray.models.bert.albert_config import ALBERT
from attnarray.models.bert.distilbert_config import DISTILBERT
from attnarray.models.bert.electra_config import ELECTRA
from attnarray.models.bert.family import EMBEDDINGS, Published, classifier
from attnarray.models.bert.modernbert_config import MODERNBERT
from attnarray.models.bert.mpnet_config import MPNET
from attnarray.models.bert.roberta_config import CAMEMBERT, ROBERTA, XLM_ROBERTA

HEAD = "cls.predictions."


def _modules(model: Any) -> dict[str, str]:
    return {
        **EMBEDDINGS,
        "pooler": "pooler.dense",
        "mask_head.dense": f"{HEAD}transform.dense",
        "mask_head.norm": f"{HEAD}transform.LayerNorm",
        "mask_head.bias": f"{HEAD}bias",
        **classifier(model),
    }


BERT = Published(
    "bert", "Bert", _modules, "bert.", ("cls.", "classifier.", "qa_outputs."),
    {f"{HEAD}decoder.weight": "embeddings.word_embeddings.weight", f"{HEAD}decoder.bias": f"{HEAD}bias"},
    write=lambda _model: {"position_embedding_type": "absolute"},
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    ignored=(r"embeddings\.position_ids", r"cls\.seq_relationship\.(weight|bias)"),
    others=("ForPreTraining", "ForNextSentencePrediction"),
)  # fmt: skip
bert_fields, bert_config, bert_names = BERT.fields, BERT.config, BERT.names

FAMILIES = (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ELECTRA, MPNET, ALBERT)
PRETRAINED = (*(family.family() for family in FAMILIES), MODERNBERT)
