"""The recurrent encoder-decoder, with any attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray import checks
from attnarray.attention.weights import attention_weights
from attnarray.backend import Array, device_of, namespace_of
from attnarray.layers.checking import check_same
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.models.generation.greedy import greedy_decode
from attnarray.models.logits import check_dlogits
from attnarray.models.padding import check_lengths
from attnarray.models.seq2seq.attention_step import samples
from attnarray.models.seq2seq.cell import CELLS, CellKind
from attnarray.models.seq2seq.decoder import DecoderState, RecurrentDecoder, StepContext
from attnarray.models.seq2seq.encoder import RecurrentEncoder, RecurrentEncoderContext
from attnarray.models.token_embedding import TokenContext, TokenEmbedding
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox


class Seq2SeqContext(NamedTuple):
    source: TokenContext
    encoder: RecurrentEncoderContext
    target: TokenContext
    decoder: tuple[StepContext, ...]
    dropout: DropoutContext
    logits: LinearContext


class Seq2SeqGrads(NamedTuple):
    params: Params


@dataclass(frozen=True)
class Seq2Seq(Layer):
    r"""A recurrent encoder-decoder with attention and input feeding.

    .. math::
        m = [\overrightarrow{\mathrm{RNN}}(x); \overleftarrow{\mathrm{RNN}}(x)], \qquad
        s_i = \mathrm{RNN}([y_{i-1}; \tilde h_{i-1}], s_{i-1}), \qquad c_i = \mathrm{attention}(s_i, m), \qquad
        \tilde h_i = \tanh(W_c [c_i; s_i]), \qquad \mathrm{logits}_i = W \tilde h_i + b

    with x and y the embeddings of source and target. Training runs step by step too, as each step depends on the
    previous one; the backward is backpropagation through time.

    Parameters
    ----------
    source_vocab_size, target_vocab_size : int
        Number of known source and target tokens.
    dim : int
        Features of the embeddings.
    hidden_dim : int
        H, even: features of s, h~ and m.
    attention : layer
        Any layer of `attnarray.layers` between two sequences, of queries (B, 1, H) over keys (B, S, H), such as
        `BahdanauAttention`, `LuongAttention`, `LocationAttention` (with the weights of the previous step),
        `LocalAttention` (with the index of the step), `HardAttention` (which samples in training, and takes the most
        likely key at inference) or `MultiHeadAttention`. Or an object of your own with their `init`,
        `fwd(params, query, key, kv_lengths=...)` and `bwd`.
    cell : {"gru", "lstm"}
    dropout : float
        Dropout of the embeddings, and of h~ before the logits; only with an `rng`.
    context_dim : int, optional
        Features of the output of the attention; H by default.

    Raises
    ------
    ValueError
        If a size or option is invalid, a token is out of range, or `fwd` needs an `rng` and has none.

    Notes
    -----
    Hard attention with the estimator "reinforce" needs the cotangent of the log-probabilities of its samples in `bwd`:
    the cost of each step minus a baseline.

    References
    ----------
    Bahdanau, Cho and Bengio, 2014, arXiv:1409.0473. Input feeding: Luong, Pham and Manning, 2015, arXiv:1508.04025.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> attention = aa.layers.BahdanauAttention(query_dim=8, key_dim=8, hidden_dim=6)
    >>> model = aa.models.Seq2Seq(11, 9, dim=4, hidden_dim=8, attention=attention)
    >>> params = model.init(aa.Philox(0))
    >>> source, target = np.array([[4, 2, 7, 7], [3, 3, 0, 0]]), np.array([[1, 5, 6], [1, 8, 2]])
    >>> logits, ctx = model.fwd(params, source, target, source_lengths=[4, 2])
    >>> logits.shape, model.alignments(ctx).shape, sorted(model.bwd(logits, ctx).params)
    ((2, 3, 9), (2, 3, 4), ['decoder', 'encoder', 'logits', 'source', 'target'])
    >>> model.greedy(params, source, start=1, count=5, source_lengths=[4, 2]).shape
    (2, 5)
    """

    source_vocab_size: int
    target_vocab_size: int
    dim: int
    hidden_dim: int
    attention: Any
    cell: CellKind = "gru"
    dropout: float = 0.0
    context_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("cell", self.cell, tuple(CELLS))
        methods = [getattr(self.attention, name, None) for name in ("init", "fwd", "bwd")]
        if isinstance(self.attention, type) or not all(map(callable, methods)):
            shown = checks.shown(self.attention)
            raise TypeError(f"`attention` is {shown}, expected a layer such as layers.BahdanauAttention(...).")
        if self.hidden_dim % 2:
            raise ValueError(f"`hidden_dim` is {self.hidden_dim}, expected an even number: half for each direction.")
        for name in ("query_dim", "key_dim"):
            given = getattr(self.attention, name, None)
            if hasattr(self.attention, "query_dim") and given != self.hidden_dim:
                raise ValueError(
                    f"`attention.{name}` is {given}, expected {self.hidden_dim}: the model's `hidden_dim`."
                )
        self.parts()  # validates the fields of the parts

    def parts(self) -> dict[str, Any]:
        H = self.hidden_dim  # embeddings have no positions, since the recurrence knows the order
        return {
            "source": TokenEmbedding(self.source_vocab_size, self.dim, 1, "none", self.dropout, "source"),
            "encoder": RecurrentEncoder(self.cell, self.dim, H),
            "target": TokenEmbedding(self.target_vocab_size, self.dim, 1, "none", self.dropout, "target"),
            "decoder": RecurrentDecoder(self.cell, self.dim, H, self.context_dim or H, self.attention),
            "logits": Linear(H, self.target_vocab_size),
        }

    @property
    def drops(self) -> bool:
        """Whether training needs an `rng`: for dropout or sampling."""
        return self.dropout > 0 or samples(self.attention)

    def __call__(
        self, params: Params, source: Array, target: Array, *, source_lengths: Any = None, rng: Philox | None = None
    ) -> Any:
        """Return the logits (B, T, V) of the token after each of `target` (B, T), for sources (B, S); all are integers.

        `source_lengths` (B,) are the lengths of right-padded sources. Without an `rng` nothing is dropped or sampled.
        """
        return self._fwd(params, source, target, source_lengths, rng)[0]

    def fwd(
        self, params: Params, source: Array, target: Array, *, source_lengths: Any = None, rng: Philox | None = None
    ) -> tuple[Any, Seq2SeqContext]:
        """Return the same, and the context for `bwd`; dropout and sampling require an `rng`."""
        return self._fwd(params, source, target, source_lengths, rng)

    def bwd(self, dlogits: Array, ctx: Seq2SeqContext, *, dlog_prob: Array | None = None) -> Seq2SeqGrads:
        """Return the gradients of the parameters. `dlog_prob` (B, T) is for hard attention with "reinforce"."""
        checks.context("ctx", ctx, Seq2SeqContext)
        check_same(self, "dim", ctx.source.token.width, self.dim)
        check_dlogits(dlogits, ctx.logits)
        parts, learns = self._parts, getattr(self.attention, "estimator", None) == "reinforce"
        if learns != (dlog_prob is not None):
            expected = "(B, T), cost less baseline of each draw: the estimator is 'reinforce'" if learns else "None"
            raise ValueError(f"`dlog_prob` is {checks.shown(dlog_prob)}, expected {expected}.")
        logits = parts["logits"].bwd(dlogits, ctx.logits)
        decoder = parts["decoder"].bwd(dropout_bwd(logits.x, ctx.dropout).x, ctx.decoder, dlog_prob)
        encoder = parts["encoder"].bwd(decoder.memory, decoder.cell, ctx.encoder)
        return Seq2SeqGrads({
            "source": parts["source"].bwd(encoder.x, ctx.source),
            "encoder": encoder.params,
            "target": parts["target"].bwd(decoder.x, ctx.target),
            "decoder": decoder.params,
            "logits": logits.params,
        })  # fmt: skip

    def start(self, params: Params, source: Array, *, source_lengths: Any = None) -> DecoderState:
        """Encode sources (B, S) and return the initial state for `step`."""
        return self._read(params, source, source_lengths, None)[0]

    def step(self, params: Params, tokens: Array, state: DecoderState) -> tuple[Any, DecoderState]:
        """Return the logits (B, 1, V) after the next target tokens (B, 1), and the new state of the decoder."""
        checks.context("state", state, DecoderState)
        checks.shape("tokens", tokens, (state.memory.shape[0], 1), "the next token of each sequence")
        parts = self._parts
        x, _ = parts["target"].fwd(params["target"], tokens)
        state, _ = parts["decoder"].step(params["decoder"], x, state)
        return parts["logits"](params["logits"], state.fed), state

    def greedy(
        self, params: Params, source: Array, start: int, count: int, *, end: int | None = None,
        source_lengths: Any = None,
    ) -> Any:  # fmt: skip
        """Generate up to `count` target tokens (B, N) for sources (B, S) greedily, after token `start`.

        After `end`, the rest of a row is `end`; N is less than `count` if all rows have ended before.
        """
        count = checks.whole("count", count, 0, 2**31, "the number of tokens to generate")
        state = self.start(params, source, source_lengths=source_lengths)
        return greedy_decode(
            lambda tokens, now: self.step(params, tokens, now), state, source, start, count, end, self.target_vocab_size
        )

    def alignments(self, ctx: Seq2SeqContext) -> Any:
        """Return the attention weights of all steps, (B, T, S); with heads (B, H, T, S)."""
        checks.context("ctx", ctx, Seq2SeqContext)
        weights = [attention_weights(step.attention) for step in ctx.decoder]
        return namespace_of(*weights).concat(weights, axis=-2)

    def _fwd(
        self, params: Params, source: Array, target: Array, lengths: Any, rng: Philox | None
    ) -> tuple[Array, Seq2SeqContext]:
        parts, rngs = self._parts, rng.split(4) if rng else (None,) * 4
        state, source_ctx, encoder_ctx = self._read(params, source, lengths, rngs[0])
        y, target_ctx = parts["target"].fwd(params["target"], target, rngs[1])  # (B, T, dim)
        if not target.shape[1]:
            raise ValueError(f"`target` has shape {tuple(target.shape)}, expected at least one position: (B, T).")
        if target.shape[0] != source.shape[0]:
            raise ValueError(
                f"`target` has shape {tuple(target.shape)}, expected the batch size of `source` {tuple(source.shape)}."
            )
        states, decoder_ctx = parts["decoder"].fwd(params["decoder"], y, state, rngs[2])
        states, dropout_ctx = dropout_fwd(states, self.dropout if rng else 0.0, rng=rngs[3])
        logits, logits_ctx = parts["logits"].fwd(params["logits"], states)
        return logits, Seq2SeqContext(source_ctx, encoder_ctx, target_ctx, decoder_ctx, dropout_ctx, logits_ctx)

    def _read(
        self, params: Params, source: Array, lengths: Any, rng: Philox | None
    ) -> tuple[DecoderState, TokenContext, RecurrentEncoderContext]:
        """Encode the sources and return the initial state of the decoder."""
        parts = self._parts
        x, source_ctx = parts["source"].fwd(params["source"], source, rng)  # (B, S, dim)
        xp, exists = namespace_of(x), None
        lengths = check_lengths("source_lengths", lengths, source)
        if lengths is not None:
            exists = xp.arange(source.shape[1], device=device_of(x))[None, :] < lengths[:, None]  # (B, S)
        memory, cell, encoder_ctx = parts["encoder"].fwd(params["encoder"], x, exists)
        fed = xp.zeros((x.shape[0], 1, self.hidden_dim), dtype=x.dtype, device=device_of(x))
        return DecoderState(memory, lengths, cell, fed, None, 0), source_ctx, encoder_ctx
