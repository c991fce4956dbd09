"""The embedding of `GPT`: tokens, and optionally learned positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray.backend import Array, device_of, index_dtype, namespace_of
from attnarray.layers.embedding import Embedding
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.embedding import EmbeddingContext
from attnarray.random import Philox


class GPTEmbeddingContext(NamedTuple):
    token: EmbeddingContext
    position: EmbeddingContext | None
    dropout: DropoutContext


@dataclass(frozen=True)
class GPTEmbedding(Layer):
    r"""The embedding of tokens, plus that of their positions if these are `learned`.

    .. math:: x_t = \mathrm{drop}(E_{i_t} + P_t)
    """

    vocab_size: int
    max_seq_len: int
    dim: int
    learned: bool
    dropout: float
    init_std: float

    def parts(self) -> dict[str, Any]:
        token, position = (Embedding(count, self.dim, self.init_std) for count in (self.vocab_size, self.max_seq_len))
        return {"token": token, "position": position} if self.learned else {"token": token}

    def fwd(
        self, params: Params, tokens: Array, starts: Array | None, first: int, rng: Philox | None
    ) -> tuple[Any, GPTEmbeddingContext]:
        """Return x (B, T, dim) of tokens (B, T) from index `first` on, of sequences that begin at `starts`."""
        self.check_length("`tokens`", first + tokens.shape[1])
        parts, position_ctx = self._parts, None
        x, token_ctx = parts["token"].fwd(params["token"], tokens)  # (B, T, E)
        if self.learned:
            vectors, position_ctx = parts["position"].fwd(params["position"], _positions(tokens, starts, first))
            x = x + vectors
        x, dropout_ctx = dropout_fwd(x, self.dropout if rng else 0.0, rng=rng)
        return x, GPTEmbeddingContext(token_ctx, position_ctx, dropout_ctx)

    def bwd(self, dout: Array, ctx: GPTEmbeddingContext) -> Params:
        """Return the gradients of the parameters."""
        dx = dropout_bwd(dout, ctx.dropout).x
        contexts = {"token": ctx.token, "position": ctx.position}
        return {name: part.bwd(dx, contexts[name]).params for name, part in self._parts.items()}

    def check_length(self, name: str, count: int) -> None:
        """Check that `count` positions are not more than were learned."""
        if self.learned and count > self.max_seq_len:
            raise ValueError(
                f"{name} needs {count} positions, but the model has `max_seq_len` {self.max_seq_len}. Give shorter "
                "sequences, generate fewer tokens, or make the model with a larger `max_seq_len`."
            )


def _positions(tokens: Array, starts: Array | None, first: int) -> Array:
    """The position (B, T) of each token in its sequence; 0 in the left padding."""
    xp = namespace_of(tokens)
    indices = xp.arange(first, first + tokens.shape[1], dtype=index_dtype(xp, tokens), device=device_of(tokens))
    if starts is None:
        return xp.broadcast_to(indices, tuple(tokens.shape))
    positions = indices - xp.astype(starts, indices.dtype)[:, None]
    return xp.maximum(positions, xp.zeros_like(positions))
