"""Published encoder-decoders from text to text: T5, BART and Marian."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from attnarray import checks
from attnarray.backend import Array, device_of, index_dtype, namespace_of
from attnarray.checkpoints.names import Family
from attnarray.checkpoints.pretrained import load_pretrained
from attnarray.layers.block import Norm, TransformerBlock
from attnarray.layers.cache import DecoderCache, KVCache
from attnarray.layers.checking import check_gradients, check_params, check_same
from attnarray.layers.embedding import Embedding
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer, Shapes
from attnarray.layers.linear import Linear
from attnarray.models.encoder_decoder.published import PRETRAINED
from attnarray.models.encoder_decoder.side import Positions, Side, SideContext, check_positions, stack
from attnarray.models.generation.autoregressive import generate
from attnarray.models.logits import check_gradient
from attnarray.models.padding import check_lengths, check_tokens
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd
from attnarray.random import Philox


class EncoderDecoderContext(NamedTuple):
    encoder: SideContext
    decoder: SideContext
    logits: LinearContext


class EncoderDecoderGrads(NamedTuple):
    params: Params


class EncoderDecoderCache(NamedTuple):
    """The cache of each block of the decoder, and the lengths of the sources; None for all of them."""

    blocks: tuple[DecoderCache, ...]
    lengths: Any

    @property
    def length(self) -> int:
        """The number of target positions that are filled."""
        return self.blocks[0].own.length

    def rows(self, rows: Array) -> EncoderDecoderCache:
        """Return a new cache of the sequences `rows` (N,), in this order; repetitions are allowed."""
        xp = namespace_of(self.blocks[0].own.key)

        def taken(cache: KVCache) -> KVCache:
            return cache._replace(key=xp.take(cache.key, rows, axis=0), value=xp.take(cache.value, rows, axis=0))

        blocks = tuple(DecoderCache(taken(block.own), taken(block.memory)) for block in self.blocks)
        return EncoderDecoderCache(blocks, None if self.lengths is None else xp.take(self.lengths, rows, axis=0))


@dataclass(frozen=True)
class EncoderDecoder(Layer):
    r"""An encoder-decoder from tokens to tokens of the same vocabulary.

    .. math::
        m = \mathrm{encoder}(s\, E_{i_t} + P_t), \qquad y = \mathrm{decoder}(s\, E_{j_t} + P'_t,\; m), \qquad
        \mathrm{logits}_t = E\, y_t + b

    The defaults are those of BART. T5 is ``positions="relative", norm="rms", pre_norm=True, bias=False, scale=1.0,
    embedding_norm=False, logits_bias=False``; Marian has sinusoidal positions and a scaled embedding. `from_pretrained`
    reads them.

    Parameters
    ----------
    vocab_size : int
        V, the number of known tokens.
    max_seq_len : int
        The largest number of positions of a sequence; relative positions have no limit.
    dim, num_layers, num_heads : int
        E, the blocks of the encoder, and H.
    decoder_layers : int, optional
        The blocks of the decoder; `num_layers` by default.
    hidden_dim, activation, gated, bias, norm, eps, pre_norm, attention_dropout, hidden_dropout, recompute
        See `TransformerBlock`.
    head_dim, scale : int and float, optional
        Features of one head, and the factor of the scores, see `TransformerBlock`.
    final_norm : bool
        Whether there is a norm after the last block of both.
    positions : {"learned", "sinusoidal", "relative"}
        P: a parameter for each position, fixed, or 0 with a learned bias of the scores by distance.
    position_offset : int
        The row of the table of learned positions that position 0 has.
    scale_embedding : bool
        Whether s is sqrt(E), or 1.
    embedding_norm : bool
        Whether the embeddings are normed.
    buckets, max_distance : int
        Of relative positions: see `relative_buckets`.
    tie_embeddings : bool
        Whether the output weight is E, or a parameter of its own.
    scale_logits : bool
        Whether y is divided by sqrt(E) before the output weight.
    logits_bias : bool
        Whether there is b.
    dropout : float
        Dropout of the embeddings and of the branches of the blocks, with an `rng`.
    init_std : float
        Standard deviation of the initial weights.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid.

    References
    ----------
    Raffel et al., 2019, arXiv:1910.10683 (T5). Lewis et al., 2019, arXiv:1910.13461 (BART). Junczys-Dowmunt et al.,
    2018, arXiv:1804.00344 (Marian).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.EncoderDecoder(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> params = model.init(aa.Philox(0))
    >>> source, target = np.array([[4, 2, 7, 7], [3, 3, 0, 0]]), np.array([[1, 5, 6], [1, 8, 2]])
    >>> logits, ctx = model.fwd(params, source, target[:, :-1], source_lengths=[4, 2])
    >>> loss, loss_ctx = aa.cross_entropy_fwd(logits, target[:, 1:])
    >>> grads = model.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params
    >>> logits.shape, sorted(grads)
    ((2, 2, 50), ['decoder', 'encoder', 'logits_bias', 'token'])
    >>> model.generate(params, source, 5, start=1, lengths=[4, 2], method="beam", beams=2).shape
    (2, 5)
    """

    pretrained: ClassVar[tuple[Family, ...]] = PRETRAINED

    vocab_size: int
    max_seq_len: int
    dim: int
    num_layers: int
    num_heads: int
    decoder_layers: int | None = None
    hidden_dim: int | None = None
    head_dim: int | None = None
    scale: float | None = None
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True
    norm: Norm = "layer"
    eps: float = 1e-5
    pre_norm: bool = False
    final_norm: bool = False
    positions: Positions = "learned"
    position_offset: int = 0
    scale_embedding: bool = False
    embedding_norm: bool = True
    buckets: int = 32
    max_distance: int = 128
    tie_embeddings: bool = True
    scale_logits: bool = False
    logits_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    recompute: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positions(self.positions)
        self.parts()  # validates the fields of the parts

    def parts(self) -> dict[str, Any]:
        """token, encoder, decoder, and logits unless tied."""
        parts: dict[str, Any] = {"token": Embedding(self.vocab_size, self.dim, self.init_std)}
        parts |= {"encoder": self._side(False), "decoder": self._side(True)}
        logits = Linear(self.dim, self.vocab_size, bias=False, init_std=self.init_std)
        return parts if self.tie_embeddings else {**parts, "logits": logits}

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters; logits_bias (1, V) is 0."""
        params = super().init(rng, dtype)
        return {**params, "logits_bias": zeros(1, self.vocab_size, dtype=dtype)} if self.logits_bias else params

    def shapes(self) -> Shapes:
        shapes = super().shapes()
        return {**shapes, "logits_bias": (1, self.vocab_size)} if self.logits_bias else shapes

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: str | None = None, ignore: Sequence[str] = ()
    ) -> tuple[EncoderDecoder, Params]:
        """Load the model and its parameters from a folder with config.json and model.safetensors.

        Arguments as in `BERT.from_pretrained`.
        """
        model, params = load_pretrained(cls, folder, dtype=dtype, ignore=ignore)
        return model, params

    def __call__(
        self, params: Params, source: Array, target: Array, *, source_lengths: Any = None, target_lengths: Any = None,
        rng: Philox | None = None,
    ) -> Any:  # fmt: skip
        """Return the logits (B, T, V) of the token after each of `target` (B, T), for sources (B, S); all are integers.

        `source_lengths` (B,) and `target_lengths` (B,) are the lengths of right-padded sequences. Without an `rng`
        there is no dropout.
        """
        return self.fwd(
            params, source, target, source_lengths=source_lengths, target_lengths=target_lengths, rng=rng
        )[0]  # fmt: skip

    def fwd(
        self, params: Params, source: Array, target: Array, *, source_lengths: Any = None, target_lengths: Any = None,
        rng: Philox | None = None,
    ) -> tuple[Any, EncoderDecoderContext]:  # fmt: skip
        """Return the same, and the context for `bwd`; dropout requires an `rng`."""
        rngs = rng.split(2) if rng else (None, None)
        source, target = (check_tokens(x, name=name) for name, x in (("source", source), ("target", target)))
        lengths = check_lengths("source_lengths", source_lengths, source)
        memory, encoder_ctx = self._encode(params, source, lengths, rngs[0])
        own = check_lengths("target_lengths", target_lengths, target)
        y, decoder_ctx = self._parts["decoder"].fwd(
            type(params)(params["decoder"]), target, params["token"]["weight"], memory, rngs[1], kv_lengths=own,
            memory_lengths=lengths,
        )  # fmt: skip
        logits, logits_ctx = self._logits(params, y)
        return logits, EncoderDecoderContext(encoder_ctx, decoder_ctx, logits_ctx)

    def bwd(self, dlogits: Array, ctx: EncoderDecoderContext) -> EncoderDecoderGrads:
        """Return the gradients of the parameters; that of E is the sum of its uses by encoder, decoder and output."""
        checks.context("ctx", ctx, EncoderDecoderContext)
        x, weight = ctx.logits.x, ctx.logits.weight
        check_gradient("dlogits", dlogits, (*x.shape[:-1], weight.shape[0]), x)
        check_same(self, "dim", x.shape[-1], self.dim)
        check_same(self, "vocab_size", weight.shape[0], self.vocab_size)
        check_same(self, "logits_bias", ctx.logits.has_bias, self.logits_bias)
        xp, parts, logits = namespace_of(dlogits), self._parts, linear_bwd(dlogits, ctx.logits)
        decoder = parts["decoder"].bwd(logits.x * self._logits_scale if self.scale_logits else logits.x, ctx.decoder)
        encoder = parts["encoder"].bwd(decoder.memory, ctx.encoder)
        dtoken = encoder.token + decoder.token
        params: Params = {"token": {"weight": dtoken + logits.weight if self.tie_embeddings else dtoken}}
        params |= {"encoder": encoder.params, "decoder": decoder.params}
        if not self.tie_embeddings:
            params["logits"] = {"weight": logits.weight}
        if self.logits_bias:
            params["logits_bias"] = xp.reshape(logits.bias, (1, self.vocab_size))
        return EncoderDecoderGrads(check_gradients(self, params))

    def encode(self, params: Params, source: Array, *, lengths: Any = None) -> Any:
        """Return the states (B, S, E) of the encoder for sources (B, S)."""
        source = check_tokens(source, name="source")
        return self._encode(params, source, check_lengths("lengths", lengths, source), None)[0]

    def cache(
        self, params: Params, source: Array, max_seq_len: int | None = None, *, lengths: Any = None
    ) -> EncoderDecoderCache:
        """Encode sources (B, S) and return the cache for `step`, for up to `max_seq_len` target positions, by default
        the model's."""
        source = check_tokens(source, name="source")
        lengths = check_lengths("lengths", lengths, source)
        memory, _ = self._encode(params, source, lengths, None)
        count = self.max_seq_len if max_seq_len is None else max_seq_len
        decoder = self._parts["decoder"]
        blocks = decoder.body.cache(decoder._body_params(type(params)(params["decoder"])), memory, count)
        return EncoderDecoderCache(blocks, lengths)

    def step(
        self, params: Params, tokens: Array, cache: EncoderDecoderCache, *, last: bool = False
    ) -> tuple[Any, EncoderDecoderCache]:
        """Return the logits (B, T, V) after the next target tokens (B, T), or (B, 1, V) with `last`, and the cache.

        They equal those of one call over all target tokens so far.
        """
        checks.context("cache", cache, EncoderDecoderCache)
        y, blocks = self._parts["decoder"].step(
            type(params)(params["decoder"]), tokens, params["token"]["weight"], cache.blocks, cache.lengths
        )
        return self._logits(params, y[:, -1:, :] if last else y)[0], cache._replace(blocks=blocks)

    def generate(
        self, params: Params, source: Array, count: int, *, start: int, lengths: Any = None, **options: Any
    ) -> Any:
        """Generate up to `count` target tokens (B, N) for sources (B, S), after token `start`.

        `lengths` (B,) are those of right-padded sources; the options are those of `models.generate`: method, end,
        beams, and others.
        """
        start = checks.whole("start", start, 0, self.vocab_size - 1, "the token before the first one")
        source = check_tokens(source, name="source")
        xp = namespace_of(source)
        first = xp.full((source.shape[0], 1), start, dtype=index_dtype(xp, source), device=device_of(source))
        return generate(_Conditional(self, source, lengths), params, first, count, **options)

    def _encode(self, params: Params, source: Array, lengths: Any, rng: Philox | None) -> tuple[Array, SideContext]:
        found: tuple[Array, SideContext] = self._parts["encoder"].fwd(
            type(params)(params["encoder"]), source, params["token"]["weight"], None, rng, kv_lengths=lengths
        )
        return found

    def _logits(self, params: Params, y: Array) -> tuple[Array, LinearContext]:
        weight = params["token" if self.tie_embeddings else "logits"]["weight"]
        bias = params["logits_bias"][0, :] if self.logits_bias else None
        return linear_fwd(y * self._logits_scale if self.scale_logits else y, weight, bias)

    @property
    def _logits_scale(self) -> float:
        return float(self.dim**-0.5)

    def _side(self, cross: bool) -> Side:
        block = TransformerBlock(
            self.dim, self.num_heads, self.hidden_dim, cross, self.pre_norm, self.norm, self.eps, self.activation,
            self.gated, self.bias, self.dropout, self.attention_dropout, self.hidden_dropout,
            recompute=self.recompute, init_std=self.init_std, head_dim=self.head_dim, scale=self.scale,
        )  # fmt: skip
        layers = self.decoder_layers or self.num_layers if cross else self.num_layers
        return Side(
            stack(block, layers, self.final_norm), self.max_seq_len, self.positions, self.position_offset,
            self.scale_embedding, self.embedding_norm, self.buckets, self.max_distance, self.dropout, self.init_std,
        )  # fmt: skip


class _Conditional:
    """An encoder-decoder with its sources, which generates like a GPT."""

    def __init__(self, model: EncoderDecoder, source: Array, lengths: Any) -> None:
        self.model, self.source, self.lengths = model, source, lengths
        self.cached: Any = None

    def cache(self, batch: int, max_seq_len: int | None = None, dtype: str = "float32", *, starts: Any = None) -> int:
        """The room of the cache, which the first step makes from the sources."""
        return max_seq_len or 1

    def step(self, params: Params, tokens: Array, cache: Any, *, last: bool = False) -> tuple[Any, Any]:
        """See `EncoderDecoder.step`."""
        if isinstance(cache, int):
            check_params(params, self.model)
            cache = self.model.cache(params, self.source, cache, lengths=self.lengths)
        return self.model.step(params, tokens, cache, last=last)
