"""The embedding of tokens and their positions, the input of a Transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, device_of, dtype_name, namespace_of
from attnarray.layers.embedding import Embedding
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.magnitude import sum_wide
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.embedding import EmbeddingContext, check_range
from attnarray.ops.positions import sinusoidal
from attnarray.random import Philox

Positions = Literal["sinusoidal", "learned", "none"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)


class TokenContext(NamedTuple):
    token: EmbeddingContext
    dropout: DropoutContext


@dataclass(frozen=True)
class TokenEmbedding(Layer):
    r"""The scaled embedding of tokens, plus that of their positions.

    .. math:: x_i = \mathrm{drop}(\sqrt{E}\, W_{t_i} + p_i)

    Parameters
    ----------
    vocab_size : int
        Number of known tokens.
    dim : int
        E.
    max_seq_len : int
        The largest number of positions of a sequence.
    positions : {"sinusoidal", "learned", "none"}
        p: fixed, a parameter for each position, or 0.
    dropout : float
        With an `rng`.
    name : str
        Name of the tokens in errors.
    """

    vocab_size: int
    dim: int
    max_seq_len: int
    positions: Positions = "sinusoidal"
    dropout: float = 0.0
    name: str = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("positions", self.positions, POSITIONS)
        self.parts()  # validates the fields of the parts
        if self.positions == "sinusoidal" and self.dim % 2:
            raise ValueError(f"`dim` is {self.dim}, expected an even number for sinusoidal positions.")

    def parts(self) -> dict[str, Any]:
        token = {
            "token": Embedding(self.vocab_size, self.dim, init_std=self.dim**-0.5)
        }  # of standard deviation 1 after scaling
        return (
            {**token, "position": Embedding(self.max_seq_len, self.dim, 0.02)} if self.positions == "learned" else token
        )

    def fwd(
        self, params: Params, tokens: Array, rng: Philox | None = None, *, first: int = 0
    ) -> tuple[Any, TokenContext]:
        """Return x (B, T, dim) of tokens (B, T) at the positions from `first` on, and the context for `bwd`."""
        checks.integer(self.name, tokens)
        if tokens.ndim != 2:
            raise ValueError(f"`{self.name}` has shape {tuple(tokens.shape)}, expected two axes: (B, T).")
        check_range(self.name, tokens, self.vocab_size, "the vocabulary")
        past = first + tokens.shape[1]
        if past > self.max_seq_len and self.positions != "none":
            raise ValueError(
                f"`{self.name}` needs {past} positions, but the model has `max_seq_len` {self.max_seq_len}. Give "
                "shorter sequences, or make a model with a larger `max_seq_len`."
            )
        x, token_ctx = self._parts["token"].fwd(params["token"], tokens)  # (B, T, E)
        x = self._scaled(x)
        if self.positions == "learned":
            x = x + params["position"]["weight"][first:past, :]
        elif self.positions == "sinusoidal":
            positions = namespace_of(x).arange(first, past, device=device_of(x))
            x = x + sinusoidal(positions, self.dim, dtype=dtype_name(x.dtype))
        x, dropout_ctx = dropout_fwd(x, self.dropout if rng else 0.0, rng=rng)
        return x, TokenContext(token_ctx, dropout_ctx)

    def bwd(self, dout: Array, ctx: TokenContext) -> Params:
        """Return the gradients of the parameters, for a `fwd` with first=0."""
        xp = namespace_of(dout)
        dx = dropout_bwd(dout, ctx.dropout).x
        grads = {"token": self._parts["token"].bwd(self._scaled(dx), ctx.token).params}
        if self.positions == "learned":
            unused = xp.zeros((self.max_seq_len - dx.shape[1], self.dim), dtype=dx.dtype, device=device_of(dx))
            grads["position"] = {"weight": xp.concat([sum_wide(dx, 0), unused], axis=0)}
        return grads

    def _scaled(self, x: Array) -> Array:
        return narrow(wide(x) * math.sqrt(self.dim), x)  # NumPy's bfloat16 times a float is float32
