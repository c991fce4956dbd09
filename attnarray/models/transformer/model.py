"""The Transformer: an encoder-decoder from one sequence of tokens to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks, tree
from attnarray.backend import Array
from attnarray.layers.cache import DecoderCache
from attnarray.layers.checking import check_same
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.models.generation.greedy import greedy_decode
from attnarray.models.logits import check_dlogits
from attnarray.models.padding import check_lengths
from attnarray.models.token_embedding import Positions, TokenContext, TokenEmbedding
from attnarray.models.transformer.decoder import Decoder
from attnarray.models.transformer.encoder import Encoder
from attnarray.models.transformer.stack import StackContext
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd
from attnarray.random import Philox


class TransformerContext(NamedTuple):
    source: TokenContext
    target: TokenContext
    encoder: StackContext
    decoder: StackContext
    logits: LinearContext


class TransformerGrads(NamedTuple):
    params: Params


class TransformerCache(NamedTuple):
    """The cache for `step`: that of each block, and the lengths of the sources."""

    blocks: tuple[DecoderCache, ...]
    source_lengths: Any

    @property
    def length(self) -> int:
        """The number of target positions that are filled."""
        return self.blocks[0].own.length


@dataclass(frozen=True)
class Transformer(Layer):
    r"""The encoder-decoder of "Attention is all you need".

    .. math::
        m = \mathrm{encoder}(\sqrt{E}\, W_{s_i} + p_i), \qquad
        y = \mathrm{decoder}(\sqrt{E}\, U_{t_i} + p_i,\; m), \qquad \mathrm{logits}_i = U y_i

    Parameters
    ----------
    source_vocab_size, target_vocab_size : int
        Number of known source and target tokens.
    max_seq_len : int
        The largest number of positions of a sequence.
    dim, num_layers, num_heads, hidden_dim : int
        Of encoder and decoder, see `Encoder`; by default as in the paper's base model.
    pre_norm, final_norm, activation, eps, attention_dropout, hidden_dropout, recompute
        See `Encoder`; by default as in the paper: post-norm, no final norm.
    dropout : float
        Dropout of the branches, and of the embeddings with their positions; only with an `rng`.
    positions : {"sinusoidal", "learned"}
        p: fixed, or a parameter for each position of source and target.
    tie_embeddings : bool
        Whether the output weight is the target embedding U, or a linear layer with a bias.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid, a token is out of range, a sequence is too long, or `fwd` has
        dropout and no `rng`.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.Transformer(11, 9, max_seq_len=8, dim=16, num_layers=2, num_heads=4, dropout=0.0)
    >>> params = model.init(aa.Philox(0))
    >>> source, target = np.array([[4, 2, 7, 7], [3, 3, 0, 0]]), np.array([[1, 5, 6], [1, 8, 2]])
    >>> logits, ctx = model.fwd(params, source, target[:, :-1], source_lengths=[4, 2])  # all but the last
    >>> loss, loss_ctx = aa.cross_entropy_fwd(logits, target[:, 1:])  # the next token each time
    >>> grads = model.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params
    >>> logits.shape, sorted(grads)
    ((2, 2, 9), ['decoder', 'encoder', 'source', 'target'])
    >>> model.greedy(params, source, start=1, count=5, source_lengths=[4, 2]).shape
    (2, 5)

    The cross-attention weights of head 3 in the first block of the decoder:

    >>> aa.attention_weights(ctx.decoder.blocks[0].cross.branch)[:, 3].shape
    (2, 2, 4)
    """

    source_vocab_size: int
    target_vocab_size: int
    max_seq_len: int
    dim: int = 512
    num_layers: int = 6
    num_heads: int = 8
    hidden_dim: int | None = None
    pre_norm: bool = False
    final_norm: bool | None = None
    activation: Activation = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    positions: Positions = "sinusoidal"
    tie_embeddings: bool = True
    eps: float = 1e-5
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # validates the fields of the parts

    def parts(self) -> dict[str, Any]:
        fields = ("dim", "num_layers", "num_heads", "hidden_dim", "pre_norm", "final_norm", "activation", "dropout",
                  "attention_dropout", "hidden_dropout", "eps", "recompute")  # fmt: skip
        shared = {name: getattr(self, name) for name in fields}
        token_options = self.dim, self.max_seq_len, self.positions, self.dropout
        parts: dict[str, Any] = {
            "source": TokenEmbedding(self.source_vocab_size, *token_options, name="source"),
            "target": TokenEmbedding(self.target_vocab_size, *token_options, name="target"),
            "encoder": Encoder(**shared),
            "decoder": Decoder(**shared),
        }
        return parts if self.tie_embeddings else {**parts, "logits": Linear(self.dim, self.target_vocab_size)}

    def __call__(
        self, params: Params, source: Array, target: Array, *, source_lengths: Any = None, target_lengths: Any = None,
        rng: Philox | None = None,
    ) -> Any:  # fmt: skip
        """Return the logits (B, T, V) of the token after each of `target` (B, T), for sources (B, S); all are integers.

        `source_lengths` (B,) and `target_lengths` (B,) are the lengths of right-padded sequences. Attention to the
        target is causal, so padding of a target does not change the logits before it: exclude it from the loss, for
        example by targets of -100 in `cross_entropy`. Without an `rng` there is no dropout.
        """
        parts, rngs = self._parts, rng.split(4) if rng else (None,) * 4
        x, _ = parts["source"].fwd(params["source"], source, rngs[0])
        source_lengths = check_lengths("source_lengths", source_lengths, source)
        memory = parts["encoder"](params["encoder"], x, rng=rngs[1], kv_lengths=source_lengths)
        y, _ = parts["target"].fwd(params["target"], target, rngs[2])
        target_lengths = check_lengths("target_lengths", target_lengths, target)
        lengths = {"kv_lengths": target_lengths, "memory_lengths": source_lengths}
        return self._logits(params, parts["decoder"](params["decoder"], y, memory, rng=rngs[3], **lengths))[0]

    def fwd(
        self, params: Params, source: Array, target: Array, *, source_lengths: Any = None, target_lengths: Any = None,
        rng: Philox | None = None,
    ) -> tuple[Any, TransformerContext]:  # fmt: skip
        """Return the same, and the context for `bwd`; dropout requires an `rng`."""
        parts, rngs = self._parts, rng.split(4) if rng else (None,) * 4
        x, source_ctx = parts["source"].fwd(params["source"], source, rngs[0])
        source_lengths = check_lengths("source_lengths", source_lengths, source)
        memory, encoder_ctx = parts["encoder"].fwd(params["encoder"], x, rng=rngs[1], kv_lengths=source_lengths)
        y, target_ctx = parts["target"].fwd(params["target"], target, rngs[2])
        target_lengths = check_lengths("target_lengths", target_lengths, target)
        lengths = {"kv_lengths": target_lengths, "memory_lengths": source_lengths}
        y, decoder_ctx = parts["decoder"].fwd(params["decoder"], y, memory, rng=rngs[3], **lengths)
        logits, logits_ctx = self._logits(params, y)
        return logits, TransformerContext(source_ctx, target_ctx, encoder_ctx, decoder_ctx, logits_ctx)

    def bwd(self, dlogits: Array, ctx: TransformerContext) -> TransformerGrads:
        """Return the gradients of the parameters; that of a tied embedding is the sum of both its uses."""
        checks.context("ctx", ctx, TransformerContext)
        check_same(self, "tie_embeddings", not ctx.logits.has_bias, self.tie_embeddings)
        check_dlogits(dlogits, ctx.logits)
        parts, logits = self._parts, linear_bwd(dlogits, ctx.logits)
        decoder = parts["decoder"].bwd(logits.x, ctx.decoder)
        encoder = parts["encoder"].bwd(decoder.memory, ctx.encoder)
        params = {
            "source": parts["source"].bwd(encoder.x, ctx.source),
            "target": parts["target"].bwd(decoder.x, ctx.target),
            "encoder": encoder.params,
            "decoder": decoder.params,
        }
        if self.tie_embeddings:
            params["target"]["token"] = tree.add(params["target"]["token"], {"weight": logits.weight})
        else:
            params["logits"] = {"weight": logits.weight, "bias": logits.bias}
        return TransformerGrads(params)

    def cache(
        self, params: Params, source: Array, max_seq_len: int | None = None, *, source_lengths: Any = None
    ) -> TransformerCache:
        """Encode sources (B, S) and return the cache for `step`, for up to `max_seq_len` target positions, by default
        the model's."""
        parts = self._parts
        x, _ = parts["source"].fwd(params["source"], source)
        source_lengths = check_lengths("source_lengths", source_lengths, source)
        memory = parts["encoder"](params["encoder"], x, kv_lengths=source_lengths)
        max_seq_len = self.max_seq_len if max_seq_len is None else max_seq_len
        return TransformerCache(parts["decoder"].cache(params["decoder"], memory, max_seq_len), source_lengths)

    def step(self, params: Params, tokens: Array, cache: TransformerCache) -> tuple[Any, TransformerCache]:
        """Return the logits (B, T, V) after the next target tokens (B, T), and the cache with them.

        They equal those of one call over all target tokens so far.
        """
        checks.context("cache", cache, TransformerCache)
        parts = self._parts
        y, _ = parts["target"].fwd(params["target"], tokens, first=cache.length)
        y, blocks = parts["decoder"].step(params["decoder"], y, cache.blocks, memory_lengths=cache.source_lengths)
        return self._logits(params, y)[0], cache._replace(blocks=blocks)

    def greedy(
        self, params: Params, source: Array, start: int, count: int, *, end: int | None = None,
        source_lengths: Any = None,
    ) -> Any:  # fmt: skip
        """Generate up to `count` target tokens (B, N) for sources (B, S) greedily, after token `start`.

        After `end`, the rest of a row is `end`; N is less than `count` if all rows have ended before.
        """
        count = checks.whole(
            "count", count, 0, self.max_seq_len, "the number of tokens to generate, at most `max_seq_len`"
        )
        cache = self.cache(params, source, max(count, 1), source_lengths=source_lengths)
        return greedy_decode(
            lambda tokens, now: self.step(params, tokens, now), cache, source, start, count, end, self.target_vocab_size
        )

    def _logits(self, params: Params, y: Array) -> tuple[Array, LinearContext]:
        if self.tie_embeddings:
            return linear_fwd(y, params["target"]["token"]["weight"])
        return linear_fwd(y, **params["logits"])
