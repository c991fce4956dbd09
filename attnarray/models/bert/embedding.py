"""The embedding of BERT and its relatives: the normalized sum of token, position and type embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, index_dtype, namespace_of
from attnarray.layers.block import NORMS, Norm
from attnarray.layers.checking import check_same
from attnarray.layers.embedding import Embedding
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.magnitude import sum_wide
from attnarray.models.padding import check_tokens
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.embedding import EmbeddingContext
from attnarray.ops.entmax import cumulative_sum
from attnarray.ops.linear import LinearContext
from attnarray.ops.norm import LayerNormContext
from attnarray.random import Philox


class BERTEmbeddingContext(NamedTuple):
    token: EmbeddingContext
    position: EmbeddingContext | None
    type: EmbeddingContext | None
    norm: LayerNormContext
    dropout: DropoutContext
    projection: LinearContext | None


@dataclass(frozen=True)
class BERTEmbedding(Layer):
    r"""The embedding of tokens, their positions and their types.

    .. math:: x_t = \mathrm{drop}(\mathrm{norm}(E_{i_t} + P_{p_t} + S_{j_t}))

    With `embedding_dim` these are W x + b of such vectors. The fields are those of `BERT`.
    """

    vocab_size: int
    max_seq_len: int
    types: int | None
    dim: int
    dropout: float
    eps: float
    init_std: float
    embedding_dim: int | None = None
    padding_token: int | None = None
    learned: bool = True  # positions
    norm: Norm = "layer"

    def parts(self) -> dict[str, Any]:
        width = self.embedding_dim or self.dim
        positions = self.max_seq_len + (0 if self.padding_token is None else self.padding_token + 1)
        counts = {"token": self.vocab_size, "position": positions if self.learned else None, "type": self.types}
        parts: dict[str, Any] = {
            name: Embedding(count, width, self.init_std) for name, count in counts.items() if count is not None
        }
        parts["embedding_norm"] = NORMS[self.norm](width, self.eps)
        if self.embedding_dim is not None:
            parts["projection"] = Linear(width, self.dim, init_std=self.init_std)
        return parts

    def fwd(
        self, params: Params, tokens: Array, types: Array | None, rng: Philox | None
    ) -> tuple[Any, BERTEmbeddingContext]:
        """Return x (B, T, dim) of tokens (B, T) and types (B, T), and the context for `bwd`."""
        check_tokens(tokens, self.vocab_size)
        parts, position_ctx, type_ctx, projection_ctx = self._parts, None, None, None
        self.check_length(tokens)
        x, token_ctx = parts["token"].fwd(params["token"], tokens)  # (B, T, dim)
        if self.learned:
            positional, position_ctx = parts["position"].fwd(params["position"], self._positions(tokens))
            x = x + positional
        types = self.check_types(types, tokens)
        if self.types is not None:
            types = namespace_of(tokens).zeros_like(tokens) if types is None else types
            typed, type_ctx = parts["type"].fwd(params["type"], types)  # (B, T, dim)
            x = x + typed
        x, norm_ctx = parts["embedding_norm"].fwd(params["embedding_norm"], x)
        x, dropout_ctx = dropout_fwd(x, self.dropout if rng else 0.0, rng=rng)
        if "projection" in parts:
            x, projection_ctx = parts["projection"].fwd(params["projection"], x)
        return x, BERTEmbeddingContext(token_ctx, position_ctx, type_ctx, norm_ctx, dropout_ctx, projection_ctx)

    def check_length(self, tokens: Array) -> None:
        """Check that tokens (B, T) have no more positions than were learned."""
        T = tokens.shape[1]
        if self.learned and self.max_seq_len < T:
            raise ValueError(
                f"`tokens` has {T} positions, but the model has `max_seq_len` {self.max_seq_len}. Give shorter "
                "sequences, or make the model with a larger `max_seq_len`."
            )

    def check_types(self, types: Array | None, tokens: Array) -> Array | None:
        """Return types (B, T), checked to be integers like the tokens, and absent if the model has none."""
        if types is None:
            return None
        if self.types is None:
            raise ValueError("`types` is given, but the model has no types of tokens: leave it out.")
        types = checks.integer("types", types)
        checks.shape("types", types, tuple(tokens.shape), "one type for each of the tokens")
        return types

    def _positions(self, tokens: Array) -> Array:
        """The rows of the position table: (T,), or (B, T) counted over the tokens that are no padding."""
        xp, pad = namespace_of(tokens), self.padding_token
        if pad is None:
            return xp.arange(tokens.shape[1], device=device_of(tokens))
        exists = xp.astype(tokens != pad, index_dtype(xp, tokens))
        return cumulative_sum(exists, 1) * exists + pad

    def bwd(self, dout: Array, ctx: BERTEmbeddingContext) -> Params:
        r"""The gradients of the parameters.

        .. math::
            dE_v = \sum_{t:\, i_t = v} dz_t, \qquad dP_n = \sum_{t:\, p_t = n} dz_t, \qquad
            dS_v = \sum_{t:\, j_t = v} dz_t

        with dz the gradient of the sum before the norm.
        """
        parts = self._parts
        check_same(self, "learned positions", ctx.position is not None, self.learned)
        params: Params = {}
        if ctx.projection is not None:
            dout, params["projection"] = parts["projection"].bwd(dout, ctx.projection)
        norm = parts["embedding_norm"].bwd(dropout_bwd(dout, ctx.dropout).x, ctx.norm)
        params["embedding_norm"] = norm.params
        params["token"] = parts["token"].bwd(norm.x, ctx.token).params
        if ctx.position is not None:
            dpositional = norm.x if ctx.position.indices.ndim == 2 else sum_wide(norm.x, 0)  # (B, T, dim) or (T, dim)
            params["position"] = parts["position"].bwd(dpositional, ctx.position).params
        if ctx.type is not None:
            params["type"] = parts["type"].bwd(norm.x, ctx.type).params
        return {name: params[name] for name in parts}
