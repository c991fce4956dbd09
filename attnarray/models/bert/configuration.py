"""What a BERT is made of: its options and the shapes that it was published in, and its parts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Self

from attnarray.layers.layer import Layer
from attnarray.models.bert.embedding import BERTEmbedding
from attnarray.models.bert.heads import MaskHead, Pooler
from attnarray.models.transformer.encoder import Encoder


@dataclass(frozen=True)
class BERTConfiguration(Layer):
    """The options of a `BERT`, which explains them, and the parts that they ask for."""

    vocab_size: int
    max_seq_len: int
    dim: int
    num_layers: int
    heads: int
    hidden_dim: int | None = None
    types: int = 2
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: str = "gelu"
    eps: float = 1e-12
    recompute: bool = False
    pooler: bool = True
    mask_head: bool = True
    init_std: float = 0.02

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """BERT with 110 million parameters; `changes` are other options than its own."""
        shape = {"vocab_size": 30522, "max_seq_len": 512, "dim": 768, "num_layers": 12, "heads": 12}
        return cls(**{**shape, "dropout": 0.1, "attention_dropout": 0.1, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """BERT with 340 million parameters."""
        return cls.base(**{"dim": 1024, "num_layers": 24, "heads": 16, **changes})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # which check their own

    @functools.cached_property
    def embedding(self) -> BERTEmbedding:
        """What comes before the blocks."""
        return BERTEmbedding(
            self.vocab_size, self.max_seq_len, self.types, self.dim, self.dropout, self.eps, self.init_std
        )  # fmt: skip

    @functools.cached_property
    def body(self) -> Encoder:
        """The blocks."""
        return Encoder(
            self.dim, self.num_layers, self.heads, self.hidden_dim, pre_norm=False, activation=self.activation,
            dropout=self.dropout, attention_dropout=self.attention_dropout, eps=self.eps, recompute=self.recompute,
            init_std=self.init_std,
        )  # fmt: skip

    def parts(self) -> dict[str, Any]:
        head = MaskHead(self.vocab_size, self.dim, self.activation, self.eps, self.init_std)
        heads = {"pooler": Pooler(self.dim, self.dim, init_std=self.init_std), "mask_head": head}
        return {
            **self.embedding.parts(),
            **self.body.parts(),
            **{name: part for name, part in heads.items() if getattr(self, name)},
        }
