"""BERT, with its pooler and its head for masked tokens."""

from attnarray.models.bert.model import Bert, BertResult

__all__ = ["Bert", "BertResult"]
