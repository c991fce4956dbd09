"""BERT, with its pooler and its head for masked tokens."""

from attnarray.models.bert.model import BERT, BERTResult

__all__ = ["BERT", "BERTResult"]
