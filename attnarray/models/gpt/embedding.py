"""The embedding of `GPT`: tokens, and optionally learned positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray.backend import Array, device_of, index_dtype, namespace_of
from attnarray.layers.checking import check_same
from attnarray.layers.embedding import Embedding
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.embedding import EmbeddingContext
from attnarray.random import Philox


class GPTEmbeddingContext(NamedTuple):
    token: EmbeddingContext
    position: EmbeddingContext | None
    norm: Any | None
    dropout: DropoutContext


@dataclass(frozen=True)
class GPTEmbedding(Layer):
    r"""The embedding of tokens, plus that of their positions if these are `learned`, normed if there is a `norm`.

    .. math:: x_t = \mathrm{drop}(\mathrm{norm}(s E_{i_t} + P_{t + o}))

    The first o rows of the positions are those of padding, as in OPT.
    """

    vocab_size: int
    max_seq_len: int
    dim: int
    learned: bool
    dropout: float
    init_std: float
    norm: Any = None  # a LayerNorm or an RMSNorm, if there is one
    scale: float = 1.0  # s
    position_offset: int = 0  # o

    def parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"token": Embedding(self.vocab_size, self.dim, self.init_std)}
        if self.learned:
            parts["position"] = Embedding(self.max_seq_len + self.position_offset, self.dim, self.init_std)
        return parts if self.norm is None else {**parts, "embedding_norm": self.norm}

    def fwd(
        self, params: Params, tokens: Array, starts: Array | None, first: int, rng: Philox | None,
        positions: Any = None,
    ) -> tuple[Any, GPTEmbeddingContext]:  # fmt: skip
        """Return x (B, T, dim) of tokens (B, T) from index `first` on, of sequences that begin at `starts`, or at these
        `positions` (T,), a NumPy array.
        """
        parts, position_ctx, norm_ctx = self._parts, None, None
        x, token_ctx = parts["token"].fwd(params["token"], tokens)  # (B, T, E)
        x = x if self.scale == 1 else x * self.scale
        if self.learned:
            if positions is None:
                indices = _positions(tokens, starts, first)
            else:
                xp = namespace_of(tokens)
                indices = xp.asarray(positions, dtype=index_dtype(xp, tokens), device=device_of(tokens))
                indices = xp.broadcast_to(indices, tuple(tokens.shape))
            vectors, position_ctx = parts["position"].fwd(params["position"], indices + self.position_offset)
            x = x + vectors
        if self.norm is not None:
            x, norm_ctx = self.norm.fwd(params["embedding_norm"], x)
        x, dropout_ctx = dropout_fwd(x, self.dropout if rng else 0.0, rng=rng)
        return x, GPTEmbeddingContext(token_ctx, position_ctx, norm_ctx, dropout_ctx)

    def bwd(self, dout: Array, ctx: GPTEmbeddingContext) -> Params:
        """Return the gradients of the parameters."""
        check_same(self, "norm after the embedding", ctx.norm is not None, self.norm is not None)
        params: Params = {}
        dx: Any = dropout_bwd(dout, ctx.dropout).x
        if self.norm is not None:
            dx, params["embedding_norm"] = self.norm.bwd(dx, ctx.norm)
        if self.learned:
            params["position"] = self._parts["position"].bwd(dx, ctx.position).params
        params["token"] = self._parts["token"].bwd(dx if self.scale == 1 else dx * self.scale, ctx.token).params
        return {name: params[name] for name in self._parts}

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
