"""The embedding of BERT: the normalized sum of token, position and type embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of
from attnarray.layers.embedding import Embedding
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.norm import LayerNorm
from attnarray.magnitude import sum_wide
from attnarray.models.padding import check_tokens
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.embedding import EmbeddingContext
from attnarray.ops.norm import LayerNormContext
from attnarray.random import Philox


class BERTEmbeddingContext(NamedTuple):
    token: EmbeddingContext
    position: EmbeddingContext
    type: EmbeddingContext
    norm: LayerNormContext
    dropout: DropoutContext


@dataclass(frozen=True)
class BERTEmbedding(Layer):
    r"""The embedding of tokens, their positions and their types.

    .. math:: x_t = \mathrm{drop}(\mathrm{norm}(E_{i_t} + P_t + S_{j_t}))

    The fields are those of `BERT`.
    """

    vocab_size: int
    max_seq_len: int
    types: int
    dim: int
    dropout: float
    eps: float
    init_std: float

    def parts(self) -> dict[str, Any]:
        counts = {"token": self.vocab_size, "position": self.max_seq_len, "type": self.types}
        embeddings = {name: Embedding(count, self.dim, self.init_std) for name, count in counts.items()}
        return {**embeddings, "embedding_norm": LayerNorm(self.dim, self.eps)}

    def fwd(
        self, params: Params, tokens: Array, types: Array | None, rng: Philox | None
    ) -> tuple[Any, BERTEmbeddingContext]:
        """Return x (B, T, dim) of tokens (B, T) and types (B, T), and the context for `bwd`."""
        check_tokens(tokens, self.vocab_size)
        xp, parts, T = namespace_of(tokens), self._parts, tokens.shape[1]
        self.check_length(tokens)
        types = xp.zeros_like(tokens) if types is None else checks.integer("types", types)
        checks.shape("types", types, tuple(tokens.shape), "one type for each of the tokens")
        positions = xp.arange(T, device=device_of(tokens))
        x, token_ctx = parts["token"].fwd(params["token"], tokens)  # (B, T, dim)
        positional, position_ctx = parts["position"].fwd(params["position"], positions)  # (T, dim)
        typed, type_ctx = parts["type"].fwd(params["type"], types)  # (B, T, dim)
        x, norm_ctx = parts["embedding_norm"].fwd(params["embedding_norm"], x + positional + typed)
        x, dropout_ctx = dropout_fwd(x, self.dropout if rng else 0.0, rng=rng)
        return x, BERTEmbeddingContext(token_ctx, position_ctx, type_ctx, norm_ctx, dropout_ctx)

    def check_length(self, tokens: Array) -> None:
        """Check that tokens (B, T) have no more positions than were learned."""
        T = tokens.shape[1]
        if self.max_seq_len < T:
            raise ValueError(
                f"`tokens` has {T} positions, but the model has `max_seq_len` {self.max_seq_len}. Give shorter "
                "sequences, or make the model with a larger `max_seq_len`."
            )

    def bwd(self, dout: Array, ctx: BERTEmbeddingContext) -> Params:
        r"""The gradients of the parameters.

        .. math:: dE_v = \sum_{t:\, i_t = v} dz_t, \qquad dP_t = \sum_b dz_{bt}, \qquad dS_v = \sum_{t:\, j_t = v} dz_t

        with dz the gradient of the sum before the norm.
        """
        parts = self._parts
        norm = parts["embedding_norm"].bwd(dropout_bwd(dout, ctx.dropout).x, ctx.norm)
        dpositional = sum_wide(norm.x, 0)  # (T, dim)
        return {
            "token": parts["token"].bwd(norm.x, ctx.token).params,
            "position": parts["position"].bwd(dpositional, ctx.position).params,
            "type": parts["type"].bwd(norm.x, ctx.type).params,
            "embedding_norm": norm.params,
        }
