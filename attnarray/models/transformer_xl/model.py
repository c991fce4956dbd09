"""Transformer-XL: a language model over segments, with a memory of the states of previous segments."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks, tree
from attnarray.backend import Array, namespace_of
from attnarray.layers.checking import check_same
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer, Shapes
from attnarray.layers.linear import Linear
from attnarray.layers.norm import LayerNorm
from attnarray.models.logits import check_dlogits
from attnarray.models.token_embedding import TokenContext, TokenEmbedding
from attnarray.models.transformer.stack import Blocks
from attnarray.models.transformer_xl.block import RelativeBlock, RelativeBlockContext
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd
from attnarray.random import Philox

Memory = tuple[Array, ...]  # the inputs of each block's attention in previous segments, (B, M, E)


class TransformerXLResult(NamedTuple):
    """Logits (B, T, V) of the token after each, and the memory for the next segment."""

    logits: Any
    memory: Memory


class TransformerXLContext(NamedTuple):
    tokens: TokenContext
    blocks: tuple[RelativeBlockContext, ...]
    norm: Any | None
    dropout: DropoutContext
    logits: LinearContext


class TransformerXLGrads(NamedTuple):
    params: Params


@dataclass(frozen=True)
class Bias(Layer):
    """A bias."""

    dim: int

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        return {"bias": zeros(self.dim, dtype=dtype)}

    def shapes(self) -> Shapes:
        return {"bias": (self.dim,)}


def remembered(memory: Array | None, x: Array, length: int) -> Array:
    """The last `length` positions of a memory (B, M, E) followed by x (B, T, E): up to (B, length, E).

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray.models import remembered
    >>> remembered(np.zeros((1, 3, 1)), np.ones((1, 2, 1)), 4)[0, :, 0].tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    checks.required(x=x)
    both = x if memory is None else namespace_of(x).concat([memory, x], axis=1)
    return both[:, max(0, both.shape[1] - length) :, :]


@dataclass(frozen=True)
class TransformerXL(Layer):
    r"""A causal Transformer whose attention includes the states of previous segments.

    .. math::
        x^n_\tau = \mathrm{block}_n(x^{n-1}_\tau, [\mathrm{SG}(m^{n-1}_{\tau}); x^{n-1}_\tau]), \qquad
        m_{\tau+1} = \text{the last } M \text{ of } [m_\tau; x_\tau]

    with the relative positions of `RelativeAttention`. SG stops the gradient: there is no backward into a previous
    segment.

    Parameters
    ----------
    vocab_size : int
        Number of known tokens.
    memory : int
        M, the largest number of memory positions; 0 for none.
    dim, num_layers, num_heads, head_dim, hidden_dim : int
        Features, number of blocks and of heads, features of a head, and hidden features of the feed-forward networks,
        4 E by default.
    pre_norm : bool
        Whether norms are applied before the branches and after the last block; in the paper they follow the residual
        sums. The memory holds the inputs of attention, so with `pre_norm` these are normed.
    activation, eps
        As in `TransformerBlock`.
    dropout : float
        Dropout of the embeddings, of the branches, and of the final states; only with an `rng`.
    attention_dropout, hidden_dropout : float
        Dropout of attention weights, and of hidden features.
    tie_embeddings : bool
        Whether the output weight is the token embedding; there is an output bias in any case.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid, a token is out of range, or `fwd` has dropout and no `rng`.

    Notes
    -----
    Each block has its own content and position biases, as in the paper; the published code can share them.

    References
    ----------
    Dai et al., "Transformer-XL: attentive language models beyond a fixed-length context", 2019, arXiv:1901.02860.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.TransformerXL(11, memory=6, dim=8, num_layers=2, num_heads=2, dropout=0.0)
    >>> params, memory = model.init(aa.Philox(0)), None
    >>> text = np.random.default_rng(0).integers(11, size=(2, 13))
    >>> for start in (0, 4, 8):
    ...     (logits, memory), ctx = model.fwd(params, text[:, start : start + 4], memory)
    ...     loss, loss_ctx = aa.cross_entropy_fwd(logits, text[:, start + 1 : start + 5])
    ...     grads = model.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params
    >>> logits.shape, memory[0].shape, sorted(grads)
    ((2, 4, 11), (2, 6, 8), ['blocks', 'logits', 'tokens'])
    """

    vocab_size: int
    memory: int
    dim: int
    num_layers: int
    num_heads: int
    head_dim: int | None = None
    hidden_dim: int | None = None
    pre_norm: bool = False
    activation: Activation = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    tie_embeddings: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # validates the fields of the parts

    @functools.cached_property
    def block(self) -> RelativeBlock:
        """The configuration of each block."""
        return RelativeBlock(
            self.dim, self.num_heads, self.head_dim, self.hidden_dim, self.pre_norm, self.activation, self.dropout,
            self.attention_dropout, self.hidden_dropout, self.eps,
        )  # fmt: skip

    def parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "tokens": TokenEmbedding(self.vocab_size, self.dim, 1, "none", self.dropout),
            "blocks": Blocks((self.block,) * self.num_layers),
        }
        if self.pre_norm:
            parts["norm"] = LayerNorm(self.dim, self.eps)
        return {**parts, "logits": Bias(self.vocab_size) if self.tie_embeddings else Linear(self.dim, self.vocab_size)}

    def __call__(
        self, params: Params, tokens: Array, memory: Memory | None = None, *, rng: Philox | None = None
    ) -> TransformerXLResult:
        """Return the logits (B, T, V) of the token after each of `tokens` (B, T), and the memory for the next segment.

        `memory` is that from the previous segment, None for the first one. Without an `rng` there is no dropout.
        """
        return writable(self._fwd(params, tokens, memory, rng)[0])

    def fwd(
        self, params: Params, tokens: Array, memory: Memory | None = None, *, rng: Philox | None = None
    ) -> tuple[TransformerXLResult, TransformerXLContext]:
        """Return the same, and the context for `bwd`; dropout requires an `rng`."""
        return self._fwd(params, tokens, memory, rng)

    def bwd(self, dlogits: Array, ctx: TransformerXLContext) -> TransformerXLGrads:
        """Return the gradients of the parameters, for the logits of this segment; the memory has none."""
        checks.context("ctx", ctx, TransformerXLContext)
        check_same(self, "number of layers", len(ctx.blocks), self.num_layers)
        check_same(self, "final norm", ctx.norm is not None, self.pre_norm)
        check_dlogits(dlogits, ctx.logits)
        parts, logits = self._parts, linear_bwd(dlogits, ctx.logits)
        dx, norm_grads = dropout_bwd(logits.x, ctx.dropout).x, {}
        if ctx.norm is not None:
            norm = parts["norm"].bwd(dx, ctx.norm)
            dx, norm_grads = norm.x, {"norm": norm.params}
        blocks: list[Params] = []
        for n in reversed(range(self.num_layers)):
            grads = self.block.bwd(dx, ctx.blocks[n])
            dx = grads.x
            blocks.append(grads.params)
        tokens = parts["tokens"].bwd(dx, ctx.tokens)
        last = {"weight": logits.weight, "bias": logits.bias}
        if self.tie_embeddings:
            tokens["token"] = tree.add(tokens["token"], {"weight": logits.weight})
            last = {"bias": logits.bias}
        return TransformerXLGrads({"tokens": tokens, "blocks": blocks[::-1], **norm_grads, "logits": last})

    def _fwd(
        self, params: Params, tokens: Array, memory: Memory | None, rng: Philox | None
    ) -> tuple[TransformerXLResult, TransformerXLContext]:
        self._check_memory(memory)
        parts, rngs = self._parts, rng.split(self.num_layers + 2) if rng else (None,) * (self.num_layers + 2)
        x, tokens_ctx = parts["tokens"].fwd(params["tokens"], tokens, rngs[0])
        block, contexts, kept, norm_ctx = self.block, [], [], None
        for n in range(self.num_layers):
            before = None if memory is None else memory[n]
            x, given, block_ctx = block.fwd(params["blocks"][n], x, before, rngs[1 + n])
            kept.append(read_only(remembered(before, given, self.memory)))
            contexts.append(block_ctx)
        if self.pre_norm:
            x, norm_ctx = parts["norm"].fwd(params["norm"], x)
        x, dropout_ctx = dropout_fwd(x, self.dropout if rng else 0.0, rng=rngs[-1])
        weight = params["tokens"]["token"]["weight"] if self.tie_embeddings else params["logits"]["weight"]
        logits, logits_ctx = linear_fwd(x, weight, params["logits"]["bias"])
        ctx = TransformerXLContext(tokens_ctx, tuple(contexts), norm_ctx, dropout_ctx, logits_ctx)
        return TransformerXLResult(logits, tuple(kept)), ctx

    def _check_memory(self, memory: Any) -> None:
        if memory is not None and (not isinstance(memory, tuple | list) or len(memory) != self.num_layers):
            raise ValueError(
                f"`memory` is {checks.shown(memory)}, expected None or {self.num_layers} arrays (B, M, {self.dim}), "
                "one for each block, from the previous segment."
            )
