"""GPT: a language model of causal Transformer blocks, in the shape of GPT-2 or, by its options, of LLaMA."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from attnarray import checks, tree
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, device_of, namespace_of, to_numpy
from attnarray.checkpoints.names import Pretrained
from attnarray.checkpoints.pretrained import load_pretrained
from attnarray.layers.checking import Checked, check_gradients, check_same
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.masks import Mask
from attnarray.models.gpt.cache import GPTCache
from attnarray.models.gpt.embedding import GPTEmbedding, GPTEmbeddingContext
from attnarray.models.gpt.published import PRETRAINED
from attnarray.models.logits import check_dlogits
from attnarray.models.places import attention_mask, check_lengths, check_starts, check_tokens
from attnarray.models.transformer.encoder import Encoder, EncoderOptions
from attnarray.models.transformer.stack import StackContext
from attnarray.numpy_arrays import writable
from attnarray.ops.linear import LinearContext, linear, linear_bwd, linear_fwd
from attnarray.ops.positions import alibi
from attnarray.ops.rotary import Rotary
from attnarray.random import Philox

POSITIONS = ("learned", "rotary", "alibi", "none")


class GPTContext(NamedTuple):
    """`body.blocks[n].attention.branch` is what `attention_weights` takes for the weights of block n."""

    embedding: GPTEmbeddingContext
    body: StackContext
    logits: LinearContext


class GPTGrads(NamedTuple):
    params: Params


@dataclass(frozen=True)
class GPT(Layer):
    r"""A language model: the logits of the token after each token, of those up to it.

    .. math::
        x^0_t = E_{i_t} + P_t, \qquad x^{n} = \mathrm{block}_n(x^{n-1}), \qquad
        \mathrm{logits}_t = E\, \mathrm{norm}(x^N_t)

    with pre-norm `TransformerBlock`s whose queries see no later key. The defaults are GPT-2; LLaMA is
    ``positions="rotary", norm="rms", activation="silu", gated=True, bias=False``, often with `kv_heads` and
    ``tie_embeddings=False``.

    Parameters
    ----------
    vocab_size : int
        V, the number of tokens.
    max_seq_len : int
        Places of the longest sequence: the learned positions, and the room of a `cache`.
    dim, num_layers, heads : int
        E, N, H.
    hidden_dim : int, optional
        Of the feed-forward parts; 4 E by default.
    dropout : float
        Of the embeddings and of what the branches of the blocks add. GPT-2 was trained with 0.1.
    attention_dropout : float
        Of the attention weights. GPT-2 was trained with 0.1.
    recompute : bool
        Compute the blocks again in the backward instead of keeping what they did: see `TransformerBlock`.
    positions : {"learned", "rotary", "alibi", "none"}
        How the model knows where a token stands.
    rotary : Rotary, optional
        How keys and queries turn, with rotary positions; `Rotary()` by default.
    norm, eps, activation, gated, bias, kv_heads
        See `TransformerBlock`; `norm` is also the last one.
    tie_embeddings : bool
        Whether the logits are dot products with the embeddings E, or with weights of their own.
    init_std : float
        Of the weights in the beginning. What the branches give out starts smaller by sqrt(2 N), as in GPT-2.

    Raises
    ------
    ValueError
        If a size, probability or choice is none.

    References
    ----------
    Radford et al., "Language models are unsupervised multitask learners", 2019 (GPT-2). Press and Wolf, 2016,
    arXiv:1608.05859 (tied embeddings). Touvron et al., 2023, arXiv:2302.13971 (LLaMA).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, heads=2)
    >>> params = model.init(aa.Philox(0))
    >>> tokens = np.random.default_rng(0).integers(50, size=(3, 10))
    >>> logits, ctx = model.fwd(params, tokens[:, :-1])
    >>> loss, loss_ctx = aa.cross_entropy_fwd(logits, tokens[:, 1:])
    >>> grads = model.bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, ctx).params
    >>> round(float(loss), 2), grads["token"]["weight"].shape
    (3.91, (50, 8))
    >>> aa.attention_weights(ctx.body.blocks[1].attention.branch).shape
    (3, 2, 9, 9)
    """

    pretrained: ClassVar[Pretrained] = PRETRAINED

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
        parts = {**self.embedding.parts(), **self.body.parts()}
        logits = Linear(self.dim, self.vocab_size, bias=False, init_std=self.init_std)
        return parts if self.tie_embeddings else {**parts, "logits": logits}

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters, as those of GPT-2."""
        params = super().init(rng, dtype)
        scale = math.sqrt(2 * self.num_layers)  # so that the variance of the states does not grow with the depth
        for block in params["blocks"]:
            for branch in ("attention", "feed_forward"):
                out = block[branch]["out"]
                out["weight"] = narrow(wide(out["weight"]) / scale, out["weight"])
        return params

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: str | None = None, ignore: Sequence[str] = ()
    ) -> tuple[GPT, Params]:
        """The model and its parameters from a folder with the config.json and model.safetensors of a GPT-2 or LLaMA.

        Arguments as in `BERT.from_pretrained`. Of GPT-2's dropouts, `dropout` is that of the blocks, "resid_pdrop".
        """
        model, params = load_pretrained(cls, folder, dtype=dtype, ignore=ignore)
        return model, params

    def __call__(
        self, params: Params, tokens: Array, *, attn_mask: Array | Mask | None = None, lengths: Any = None,
        starts: Any = None, rng: Philox | None = None,
    ) -> Array:  # fmt: skip
        """The logits (B, T, V) of tokens (B, T), integers.

        Sequences of different lengths are padded with any token behind them, with `lengths` (B,), or before them, with
        `starts` (B,): row b is tokens[b, starts[b]:], and its positions are counted from there. What comes out at
        padded places has no meaning. A boolean `attn_mask`, True = attend, restricts further who sees whom; it
        broadcasts to (B, H, T, T). Without an `rng` nothing is dropped: that is inference.
        """
        x, _, options = self._embed(params, tokens, attn_mask, lengths, starts, rng)
        return linear(self.body(_body_params(params), x, rng=_body_rng(rng), **options), self._vectors(params))

    def states(
        self, params: Params, tokens: Array, *, attn_mask: Array | Mask | None = None, lengths: Any = None,
        starts: Any = None, rng: Philox | None = None,
    ) -> list[Array]:  # fmt: skip
        """The hidden states, N + 1 arrays (B, T, E): the embeddings, and after each block; the last one is normed."""
        x, _, options = self._embed(params, tokens, attn_mask, lengths, starts, rng)
        return writable([x, *self.body.states(_body_params(params), x, rng=_body_rng(rng), **options)])

    def fwd(
        self, params: Params, tokens: Array, *, attn_mask: Array | Mask | None = None, lengths: Any = None,
        starts: Any = None, rng: Philox | None = None,
    ) -> tuple[Array, GPTContext]:  # fmt: skip
        """The same as the call, and the context for `bwd`. If the model drops, it needs an `rng`, new for each step."""
        x, embedding_ctx, options = self._embed(params, tokens, attn_mask, lengths, starts, rng)
        x, body_ctx = self.body.fwd(_body_params(params), x, rng=_body_rng(rng), **options)
        logits, logits_ctx = linear_fwd(x, self._vectors(params))
        return logits, GPTContext(embedding_ctx, body_ctx, logits_ctx)

    def bwd(self, dlogits: Array, ctx: GPTContext) -> GPTGrads:
        r"""The gradients of the parameters. Tied embeddings have two, as what goes in and as what gives the logits:

        .. math:: dE_v = \sum_{t:\, i_t = v} dx^0_t + \sum_t d\mathrm{logits}_{tv}\, \mathrm{norm}(x^N_t)
        """
        checks.context("ctx", ctx, GPTContext)
        check_same(self, "learned positions", ctx.embedding.position is not None, self.embedding.learned)
        check_dlogits(dlogits, ctx.logits)
        logits = linear_bwd(dlogits, ctx.logits)
        body = self.body.bwd(logits.x, ctx.body)
        params = {**self.embedding.bwd(body.x, ctx.embedding), **body.params}
        own = {"weight": logits.weight}
        params |= {"token": tree.add(params["token"], own)} if self.tie_embeddings else {"logits": own}
        return GPTGrads(check_gradients(self, params))

    def cache(
        self, batch: int, max_seq_len: int | None = None, dtype: str = "float32", *, starts: Any = None
    ) -> GPTCache:  # fmt: skip
        """Room for `batch` sequences of `max_seq_len` places, by default those of the model, on the current backend.

        `starts` (batch,) says how many places before each sequence are padding, as in the call.
        """
        max_seq_len = self.max_seq_len if max_seq_len is None else max_seq_len
        max_seq_len = checks.whole("max_seq_len", max_seq_len, 1, 2**31, "how many places there is room for")
        self.embedding.check_places("max_seq_len", max_seq_len)
        attention = self.body.block._parts["attention"]
        blocks = tuple(attention.cache(batch, max_seq_len, dtype) for _ in range(self.num_layers))
        return GPTCache(blocks, check_starts(starts, batch, max_seq_len, blocks[0].key))

    def step(self, params: Params, tokens: Array, cache: GPTCache, *, last: bool = False) -> tuple[Array, GPTCache]:
        """The logits (B, T, V) of the next tokens (B, T) of the sequences in the cache, or (B, 1, V) of the `last`.

        Their keys and values are written *into the cache*, which the one that is returned shares. The result is that of
        the same tokens in one call over all of them.
        """
        checks.context("cache", cache, GPTCache)
        if len(cache.blocks) != self.num_layers:
            raise ValueError(f"`cache` is that of {len(cache.blocks)} layers, but the model has {self.num_layers}.")
        x, _, options = self._embed(params, tokens, None, None, None, None, cache)
        parts, block, blocks = self.body._parts, self.body.block, []
        for n, before in enumerate(cache.blocks):
            own = params["blocks"][n]
            x, after = block.step(own, x, before, options["attn_mask"], bias=options["bias"])
            blocks.append(after)
        x = parts["norm"](params["norm"], x[:, -1:, :] if last else x)
        return linear(x, self._vectors(params)), cache._replace(blocks=tuple(blocks))

    def _embed(
        self, params: Params, tokens: Array, attn_mask: Any, lengths: Any, starts: Any, rng: Philox | None,
        cache: GPTCache | None = None,
    ) -> tuple[Array, GPTEmbeddingContext, EncoderOptions]:  # fmt: skip
        """The vectors (B, T, E) of tokens, which come after those in the cache, their context, and who sees whom."""
        first = cache.length if cache else 0
        check_tokens(tokens, self.vocab_size)
        if cache and tokens.shape[0] != cache.batch:
            raise ValueError(f"`tokens` has {tokens.shape[0]} sequences, but `cache` has room for {cache.batch}.")
        past = first + tokens.shape[1]
        starts = cache.starts if cache else check_starts(starts, tokens.shape[0], past, tokens)
        x, ctx = self.embedding.fwd(params, tokens, starts, first, rng.fold_in(0) if rng else None)
        mask, lengths = attention_mask(attn_mask, starts, past), check_lengths("lengths", lengths, tokens)
        return x, ctx, {"is_causal": True, "attn_mask": mask, "kv_lengths": lengths, "bias": self._bias(x, past)}

    def _bias(self, x: Array, keys: int) -> Array | None:
        """What ALiBi adds to the scores, (H, 1, S), beside x."""
        if self.positions != "alibi":
            return None
        host = to_numpy(alibi(self.heads, keys, keys, causal=True, dtype="float64"))
        return namespace_of(x).asarray(host, dtype=x.dtype, device=device_of(x))

    def _vectors(self, params: Params) -> Array:
        """One vector for each token (V, E), whose dot products with the last states are the logits."""
        return params["token" if self.tie_embeddings else "logits"]["weight"]


def _body_params(params: Params) -> Params:
    return Checked(blocks=params["blocks"], norm=params["norm"])


def _body_rng(rng: Philox | None) -> Philox | None:
    return rng.fold_in(1) if rng else None
