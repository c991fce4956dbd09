"""What a GPT is made of: its options and the shapes that GPT-2 comes in, its parts, and how their parameters begin."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Self

from attnarray import checks
from attnarray.attention.sequences import narrow, wide
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.models.gpt.embedding import GPTEmbedding
from attnarray.models.transformer.encoder import Encoder
from attnarray.ops.rotary import Rotary
from attnarray.random import Philox

POSITIONS = ("learned", "rotary", "alibi", "none")


@dataclass(frozen=True)
class GPTConfiguration(Layer):
    """The options of a `GPT`, which explains them, and the parts that they ask for."""

    vocab_size: int
    max_seq_len: int
    dim: int
    num_layers: int
    heads: int
    hidden_dim: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    recompute: bool = False
    positions: str = "learned"
    rotary: Rotary | None = None
    norm: str = "layer"
    eps: float = 1e-5
    activation: str = "gelu_tanh"
    gated: bool = False
    bias: bool = True
    kv_heads: int | None = None
    tie_embeddings: bool = True
    init_std: float = 0.02

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """GPT-2 with 124 million parameters; `changes` are other options than its own."""
        return cls(**{"vocab_size": 50257, "max_seq_len": 1024, "dim": 768, "num_layers": 12, "heads": 12, **changes})

    @classmethod
    def medium(cls, **changes: Any) -> Self:
        """GPT-2 with 355 million parameters."""
        return cls.small(**{"dim": 1024, "num_layers": 24, "heads": 16, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """GPT-2 with 774 million parameters."""
        return cls.small(**{"dim": 1280, "num_layers": 36, "heads": 20, **changes})

    @classmethod
    def xl(cls, **changes: Any) -> Self:
        """GPT-2 with 1558 million parameters."""
        return cls.small(**{"dim": 1600, "num_layers": 48, "heads": 25, **changes})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("positions", self.positions, POSITIONS)
        if self.rotary is not None and self.positions != "rotary":
            raise ValueError(f'`rotary` is given, but `positions` is {self.positions!r}. Give positions="rotary" too.')
        self.parts()  # which check their own

    @functools.cached_property
    def embedding(self) -> GPTEmbedding:
        """What makes vectors of tokens."""
        learned = self.positions == "learned"
        return GPTEmbedding(self.vocab_size, self.max_seq_len, self.dim, learned, self.dropout, self.init_std)

    @functools.cached_property
    def body(self) -> Encoder:
        """The blocks and the last norm."""
        return Encoder(
            self.dim, self.num_layers, self.heads, self.hidden_dim, activation=self.activation, dropout=self.dropout,
            attention_dropout=self.attention_dropout, eps=self.eps, norm=self.norm, gated=self.gated, bias=self.bias,
            kv_heads=self.kv_heads, rotary=(self.rotary or Rotary()) if self.positions == "rotary" else None,
            recompute=self.recompute, init_std=self.init_std,
        )  # fmt: skip

    def parts(self) -> dict[str, Any]:
        """token, position where it is learned, blocks, norm, and logits where they are not tied."""
        own = (
            {}
            if self.tie_embeddings
            else {"logits": Linear(self.dim, self.vocab_size, bias=False, init_std=self.init_std)}
        )
        return {**self.embedding.parts(), **self.body.parts(), **own}

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Fresh parameters, as GPT-2 starts."""
        params = super().init(rng, dtype)
        for block in params["blocks"].values():
            for branch in ("attention", "feed_forward"):
                out = block[branch]["out"]
                scaled = wide(out["weight"]) / math.sqrt(
                    2 * self.num_layers
                )  # so that the sums of N blocks do not grow
                out["weight"] = narrow(scaled, out["weight"])
        return params
