"""GPT: a causal language model, with the architecture of GPT-2 or, by its options, of LLaMA."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

from attnarray import checks, tree
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, device_of, namespace_of, to_numpy
from attnarray.checkpoints.names import Family
from attnarray.checkpoints.pretrained import load_pretrained
from attnarray.layers.block import NORMS, Mixer, Norm, ParallelResidual, TransformerBlock
from attnarray.layers.checking import Checked, check_gradients, check_same
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear import Linear
from attnarray.layers.linear_attention import LinearAttention
from attnarray.layers.multi_head import Gate, QKNorm
from attnarray.masks import Mask
from attnarray.models.gpt.body import Body, check_rotary, check_windows
from attnarray.models.gpt.cache import GPTCache
from attnarray.models.gpt.embedding import GPTEmbedding, GPTEmbeddingContext
from attnarray.models.gpt.families import FAMILIES
from attnarray.models.logits import check_dlogits
from attnarray.models.padding import attention_mask, check_lengths, check_starts, token_positions
from attnarray.models.prepared.gpt import PreparedGPT, prepare_gpt
from attnarray.models.prepared.stack import Weights
from attnarray.models.transformer.encoder import Encoder
from attnarray.models.transformer.stack import StackContext, check_mixers
from attnarray.numpy_arrays import writable
from attnarray.ops.activations import TanhContext, tanh_bwd, tanh_fwd
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd
from attnarray.ops.positions import alibi
from attnarray.ops.rotary import Rotary
from attnarray.random import Philox

Positions = Literal["learned", "rotary", "alibi", "none"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)


class GPTContext(NamedTuple):
    """`attention_weights(ctx.body.blocks[n].attention.branch)` are the weights of block n."""

    embedding: GPTEmbeddingContext
    body: StackContext
    logits: LinearContext
    softcap: TanhContext | None


class GPTGrads(NamedTuple):
    params: Params


@dataclass(frozen=True)
class GPT(Layer):
    r"""A causal language model: the logits of the next token at each position.

    .. math::
        x^0_t = E_{i_t} + P_t, \qquad x^{n} = \mathrm{block}_n(x^{n-1}), \qquad
        \mathrm{logits}_t = E\, \mathrm{norm}(x^N_t)

    with causal pre-norm `TransformerBlock`s. The defaults are those of GPT-2; LLaMA is
    ``positions="rotary", norm="rms", activation="silu", gated=True, bias=False``, often with `num_kv_heads` and
    ``tie_embeddings=False``.

    Parameters
    ----------
    vocab_size : int
        V, the number of known tokens.
    max_seq_len : int
        The largest number of positions of a sequence: of learned positions, and of a `cache`.
    dim, num_layers, num_heads : int
        E, N and H.
    hidden_dim : int, optional
        Hidden features of the feed-forward networks; 4 E by default.
    dropout : float
        Dropout of the embeddings and of the branches of the blocks. GPT-2 was trained with 0.1.
    attention_dropout : float
        Dropout of attention weights. GPT-2 was trained with 0.1.
    recompute : bool
        Recompute the blocks in the backward instead of keeping their contexts: see `TransformerBlock`.
    positions : {"learned", "rotary", "alibi", "none"}
        How positions enter the model.
    rotary : Rotary, or tuple of Rotary or None, optional
        Options of the rotation of queries and keys, with rotary positions; `Rotary()` by default. Those of a tuple are
        of one block each, repeated over the blocks; None is a block without positions.
    norm, eps, activation, gated, bias, num_kv_heads
        See `TransformerBlock`; `norm` is also that of the final norm.
    tie_embeddings : bool
        Whether the output weight is the token embedding E, or a parameter of its own.
    init_std : float
        Standard deviation of the initial weights. Output projections of the branches are divided by sqrt(2 N), as in
        GPT-2.
    windows : tuple of int or None
        How many keys each query sees, itself and the ones before it, in each block, repeated over the blocks; None for
        all. (4096, None) are the alternating layers of Gemma 2.
    head_dim, qkv_bias, out_bias, qk_norm, scale, softcap, sinks, attention_gate
        Of attention in the blocks: see `TransformerBlock`.
    pre_norm, branch_norm, parallel_residual, residual_scale, num_experts, experts_per_token, shared_expert_dim
        Of the blocks: see `TransformerBlock`.
    embedding_norm : bool
        Whether the embeddings are normed (BLOOM).
    embedding_scale : float
        Factor of the embeddings of tokens; sqrt(E) in Gemma.
    position_offset : int
        Rows of learned positions before that of position 0; 2 in OPT.
    logits_bias : bool
        Whether the output weight, if it is not tied, has a bias.
    logits_scale : float
        Factor of the logits.
    logits_softcap : float, optional
        c, for logits c tanh(logits / c) (Gemma 2).
    mixers : tuple of {"attention", "retnet", "gla", "delta_net", "gated_delta_net", "kda", "mamba2"} or LinearAttention
        What mixes the positions in each block, repeated over the blocks: attention, or the `layers.LinearAttention` of
        that name with `num_heads` heads, or a given one; their caches do not grow. Rotary positions, ALiBi,
        `num_kv_heads` and `attention_dropout` are those of the blocks with attention; `bias` too, of the mixers.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid.

    References
    ----------
    Radford et al., "Language models are unsupervised multitask learners", 2019 (GPT-2). Press and Wolf, 2016,
    arXiv:1608.05859 (tied embeddings). Touvron et al., 2023, arXiv:2302.13971 (LLaMA).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
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

    pretrained: ClassVar[tuple[Family, ...]] = FAMILIES

    vocab_size: int
    max_seq_len: int
    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    recompute: bool = False
    positions: Positions = "learned"
    rotary: Rotary | tuple[Rotary | None, ...] | None = None
    norm: Norm = "layer"
    eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    gated: bool = False
    bias: bool = True
    num_kv_heads: int | None = None
    tie_embeddings: bool = True
    init_std: float = 0.02
    mixers: tuple[Mixer | LinearAttention, ...] = ("attention",)
    windows: tuple[int | None, ...] = (None,)
    head_dim: int | None = None
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    qk_norm: QKNorm | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    pre_norm: bool = True
    branch_norm: bool = False
    parallel_residual: ParallelResidual | None = None
    residual_scale: float = 1.0
    num_experts: int | None = None
    experts_per_token: int = 2
    shared_expert_dim: int | None = None
    attention_gate: Gate | None = None
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    position_offset: int = 0
    logits_bias: bool = False
    logits_scale: float = 1.0
    logits_softcap: float | None = None

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """GPT-2 with 124 million parameters; `changes` replace its options."""
        return cls(
            **{"vocab_size": 50257, "max_seq_len": 1024, "dim": 768, "num_layers": 12, "num_heads": 12, **changes}
        )

    @classmethod
    def medium(cls, **changes: Any) -> Self:
        """GPT-2 with 355 million parameters."""
        return cls.small(**{"dim": 1024, "num_layers": 24, "num_heads": 16, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """GPT-2 with 774 million parameters."""
        return cls.small(**{"dim": 1280, "num_layers": 36, "num_heads": 20, **changes})

    @classmethod
    def xl(cls, **changes: Any) -> Self:
        """GPT-2 with 1558 million parameters."""
        return cls.small(**{"dim": 1600, "num_layers": 48, "num_heads": 25, **changes})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("positions", self.positions, POSITIONS)
        check_mixers(self, self.num_layers)
        check_windows(self, "the number of keys that a query sees")
        check_rotary(self)
        for name in ("embedding_scale", "logits_scale"):
            checks.positive(name, getattr(self, name))
        if self.logits_softcap is not None:
            checks.positive("logits_softcap", self.logits_softcap)
        if self.logits_bias and self.tie_embeddings:
            raise ValueError("`logits_bias` is True, but so is `tie_embeddings`: a tied embedding has no bias.")
        if self.positions == "alibi" and "attention" not in self.mixers:
            raise ValueError(f"`positions` is 'alibi', but `mixers` is {self.mixers}: no layer has scores to bias.")
        if self.head_dim is not None and self.head_dim * self.num_heads == self.dim:
            object.__setattr__(self, "head_dim", None)  # the default
        for name in ("qkv_bias", "out_bias"):
            if getattr(self, name) == self.bias:
                object.__setattr__(self, name, None)
        self.parts()  # validates the fields of the parts

    @functools.cached_property
    def embedding(self) -> GPTEmbedding:
        """The embedding of tokens and positions."""
        return GPTEmbedding(
            self.vocab_size, self.max_seq_len, self.dim, self.positions == "learned", self.dropout, self.init_std,
            NORMS[self.norm](self.dim, self.eps) if self.embedding_norm else None, self.embedding_scale,
            self.position_offset,
        )  # fmt: skip

    @functools.cached_property
    def body(self) -> Body:
        """The blocks and the final norm."""
        common: Any = {name: getattr(self, name) for name in _fields(Encoder) & _fields(type(self)) - {"rotary"}}
        return Body(**common, final_norm=self.pre_norm or self.branch_norm, each_block=self._blocks())

    def _blocks(self) -> tuple[TransformerBlock, ...]:
        """The configuration of each block: equal ones are one object."""
        common: Any = {name: getattr(self, name) for name in _fields(TransformerBlock) & _fields(type(self))}
        rotations = self.rotary if isinstance(self.rotary, tuple) else (self.rotary or Rotary(),)
        rotations = rotations if self.positions == "rotary" else (None,)
        found: dict[Any, TransformerBlock] = {}
        blocks = []
        for n in range(self.num_layers):
            kind: Any = tuple(pattern[n % len(pattern)] for pattern in (self.mixers, self.windows, rotations))
            if kind not in found:
                mixer, window, rotary = kind
                own = {"mixer": mixer, "window": window and (window - 1, 0), "rotary": rotary}
                found[kind] = TransformerBlock(**{**common, **own})
            blocks.append(found[kind])
        return tuple(blocks)

    def parts(self) -> dict[str, Any]:
        """token, position if learned, blocks, norm, and logits unless tied."""
        parts = {**self.embedding.parts(), **self.body.parts()}
        logits = Linear(self.dim, self.vocab_size, self.logits_bias, self.init_std)
        return parts if self.tie_embeddings else {**parts, "logits": logits}

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """Initial parameters, as those of GPT-2."""
        params = super().init(rng, dtype)
        scale = math.sqrt(2 * self.num_layers)  # so that the variance of the states does not grow with the depth
        for block in params["blocks"]:
            for branch in ("attention", "feed_forward"):
                whole = block[branch]
                shared = [whole["shared"]] if "shared" in whole else []
                for part in [*whole.get("experts", [whole]), *shared]:
                    out = part["out"]
                    out["weight"] = narrow(wide(out["weight"]) / scale, out["weight"])
        return params

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: str | None = None, ignore: Sequence[str] = ()
    ) -> tuple[GPT, Params]:
        """Load the model and its parameters from a folder with config.json and model.safetensors of GPT-2 or LLaMA.

        Arguments as in `BERT.from_pretrained`. Of the dropouts of GPT-2, `dropout` is "resid_pdrop".
        """
        model, params = load_pretrained(cls, folder, dtype=dtype, ignore=ignore)
        return model, params

    def __call__(
        self, params: Params, tokens: Array, *, attn_mask: Array | Mask | None = None, lengths: Any = None,
        starts: Any = None, rng: Philox | None = None, context_parallel: Any = None,
    ) -> Any:  # fmt: skip
        """Return the logits (B, T, V) of tokens (B, T), integers.

        Shorter sequences are right-padded with any token, with `lengths` (B,), or left-padded, with `starts` (B,): row
        b is tokens[b, starts[b]:], and its positions count from there. Outputs at padding are undefined. A boolean
        `attn_mask`, True = attend, restricts attention further; it broadcasts to (B, H, T, T); linear mixers take none.
        Without an `rng` there is no dropout (inference).

        With `context_parallel`, a `distributed.ContextParallel`, sequences are divided among processes: tokens and
        logits are those of this one's positions, lengths and positions count in the whole, and a mask has the rows of
        this process. A model with linear mixers takes none.
        """
        x, _, options = self._embed(params, tokens, attn_mask, lengths, starts, rng, context_parallel)
        return self._logits(params, self.body(_body_params(params), x, **options))[0]

    def states(
        self, params: Params, tokens: Array, *, attn_mask: Array | Mask | None = None, lengths: Any = None,
        starts: Any = None, rng: Philox | None = None, context_parallel: Any = None,
    ) -> list[Any]:  # fmt: skip
        """Return the hidden states, N + 1 arrays (B, T, E): the embeddings, and the output of each block; the last is
        normed.
        """
        x, _, options = self._embed(params, tokens, attn_mask, lengths, starts, rng, context_parallel)
        return writable([x, *self.body.states(_body_params(params), x, **options)])

    def fwd(
        self, params: Params, tokens: Array, *, attn_mask: Array | Mask | None = None, lengths: Any = None,
        starts: Any = None, rng: Philox | None = None, context_parallel: Any = None,
    ) -> tuple[Any, GPTContext]:  # fmt: skip
        """Return the same as the call, and the context for `bwd`. With dropout it needs an `rng`, a new one for each
        step.
        """
        x, embedding_ctx, options = self._embed(params, tokens, attn_mask, lengths, starts, rng, context_parallel)
        x, body_ctx = self.body.fwd(_body_params(params), x, **options)
        logits, logits_ctx, softcap_ctx = self._logits(params, x)
        return logits, GPTContext(embedding_ctx, body_ctx, logits_ctx, softcap_ctx)

    def bwd(self, dlogits: Array, ctx: GPTContext, drouter_logits: Sequence[Array] | None = None) -> GPTGrads:
        r"""Return the gradients of the parameters. That of a tied embedding is the sum of both its uses:

        .. math:: dE_v = \sum_{t:\, i_t = v} dx^0_t + \sum_t d\mathrm{logits}_{tv}\, \mathrm{norm}(x^N_t)

        `drouter_logits` are the gradients of a loss of the `router_logits` of experts, (B, T, X) for each block.
        """
        checks.context("ctx", ctx, GPTContext)
        check_same(self, "learned positions", ctx.embedding.position is not None, self.embedding.learned)
        check_dlogits(dlogits, ctx.logits)
        if ctx.softcap is not None:
            dlogits = tanh_bwd(dlogits, ctx.softcap).x
        logits = linear_bwd(dlogits, ctx.logits)
        dx = logits.x if self.logits_scale == 1 else logits.x * self.logits_scale
        body = self.body._bwd(dx, ctx.body, drouter_logits)
        params = {**self.embedding.bwd(body.x, ctx.embedding), **body.params}
        own = {"weight": logits.weight} if logits.bias is None else {"weight": logits.weight, "bias": logits.bias}
        params |= {"token": tree.add(params["token"], own)} if self.tie_embeddings else {"logits": own}
        return GPTGrads(check_gradients(self, params))

    def router_logits(self, ctx: GPTContext) -> list[Any]:
        """Return the logits (B, T, X) of the experts in each block, from the context of a forward."""
        checks.context("ctx", ctx, GPTContext)
        if self.num_experts is None or self.recompute:
            raise ValueError(
                f"`num_experts` is {self.num_experts} and `recompute` is {self.recompute}: only contexts of a model "
                "with experts, and without `recompute`, hold the logits of routers."
            )
        experts = self.body.block._parts["feed_forward"]
        return [experts.router_logits(block.feed_forward.branch) for block in ctx.body.blocks]

    def cache(
        self, batch: int, max_seq_len: int | None = None, dtype: str = "float32", *, starts: Any = None
    ) -> GPTCache:  # fmt: skip
        """Return an empty cache for `batch` sequences, by default of the model's `max_seq_len`, on the current backend.

        `starts` (batch,) are the lengths of the left padding, as in the call.
        """
        max_seq_len = self.max_seq_len if max_seq_len is None else max_seq_len
        max_seq_len = checks.whole("max_seq_len", max_seq_len, 1, 2**31, "the largest number of positions")
        self.embedding.check_length("The cache", max_seq_len)
        layers = [block._parts["attention"] for block in self.body.blocks]
        blocks = tuple(layer.cache(batch, max_seq_len, dtype) for layer in layers)
        return GPTCache(blocks, check_starts(starts, batch, max_seq_len, blocks[0][0]))

    def step(self, params: Params, tokens: Array, cache: GPTCache, *, last: bool = False) -> tuple[Any, GPTCache]:
        """Return the logits (B, T, V) of the next tokens (B, T) of the cached sequences, or (B, 1, V) with `last`.

        Their keys and values are written *into the cache*, whose arrays the returned cache shares; states of linear
        mixers are new arrays. The result equals that of one call over all tokens.
        """
        checks.context("cache", cache, GPTCache)
        if len(cache.blocks) != self.num_layers:
            raise ValueError(f"`cache` has {len(cache.blocks)} layers, but the model has {self.num_layers}.")
        x, _, options = self._embed(params, tokens, None, None, None, None, None, cache)
        parts, blocks, each = self.body._parts, [], self.body.block_options(options, x, cache.length)
        for n, block in enumerate(self.body.blocks):
            given = {name: each[n].get(name) for name in ("attn_mask", "bias", "starts")}
            x, after = block.step(params["blocks"][n], x, cache.blocks[n], **given)
            blocks.append(after)
        x = x[:, -1:, :] if last else x
        x = parts["norm"](params["norm"], x) if "norm" in parts else x
        return self._logits(params, x)[0], cache._replace(blocks=tuple(blocks))

    def prepare(self, params: Params, *, weights: Weights | None = None) -> PreparedGPT:
        """Return the model with its parameters, checked once and packed: ``prepared.step(tokens, cache)``.

        As `BERT.prepare`: inference only; `weights` may be "bfloat16", which halves what is read for each token. A tied
        embedding is rounded, too.

        Examples
        --------
        >>> import numpy as np, attnarray as aa
        >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
        >>> params, tokens = model.init(aa.Philox(0)), np.array([[1, 2, 3, 4]])
        >>> prepared = model.prepare(params)
        >>> logits, cache = prepared.step(tokens[:, :3], prepared.cache(1), last=True)
        >>> logits, cache = prepared.step(tokens[:, 3:], cache)
        >>> np.allclose(logits[:, -1], model(params, tokens)[:, -1], atol=1e-6)
        True
        """
        return prepare_gpt(self, params, weights)

    def _embed(
        self, params: Params, tokens: Array, attn_mask: Any, lengths: Any, starts: Any, rng: Philox | None,
        parallel: Any, cache: GPTCache | None = None,
    ) -> tuple[Array, GPTEmbeddingContext, Any]:  # fmt: skip
        """The embedding (B, T, E) of tokens that follow those in the cache, its context, and the body's options."""
        first = cache.length if cache else 0
        positions, past = token_positions(tokens, self.vocab_size, first, starts, parallel)
        if cache and tokens.shape[0] != cache.batch:
            raise ValueError(f"`tokens` has {tokens.shape[0]} sequences, but `cache` has {cache.batch}.")
        self.embedding.check_length("`tokens`", past)
        starts = cache.starts if cache else check_starts(starts, tokens.shape[0], past, tokens)
        rng = parallel.rng(rng) if parallel is not None else rng
        x, ctx = self.embedding.fwd(params, tokens, starts, first, rng.fold_in(0) if rng else None, positions)
        mask, lengths = attention_mask(attn_mask, None, past), check_lengths("lengths", lengths, tokens, past)
        bias = self._bias(x, past)
        return x, ctx, {
            "is_causal": True, "attn_mask": mask, "kv_lengths": lengths, "bias": bias, "starts": starts,
            "context_parallel": parallel, "rng": rng.fold_in(1) if rng else None,
        }  # fmt: skip

    def _bias(self, x: Array, keys: int) -> Array | None:
        """The bias of ALiBi, (H, 1, S), on the device of x."""
        if self.positions != "alibi":
            return None
        host = to_numpy(alibi(self.num_heads, keys, keys, causal=True, dtype="float64"))
        return namespace_of(x).asarray(host, dtype=x.dtype, device=device_of(x))

    def _logits(self, params: Params, x: Array) -> tuple[Any, LinearContext, TanhContext | None]:
        """The logits (B, T, V) of normed states, and their contexts."""
        x = x if self.logits_scale == 1 else x * self.logits_scale
        logits, ctx = linear_fwd(x, **params["token" if self.tie_embeddings else "logits"])
        if self.logits_softcap is None:
            return logits, ctx, None
        capped, softcap_ctx = tanh_fwd(logits / self.logits_softcap)
        return capped * self.logits_softcap, ctx, softcap_ctx


def _fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _body_params(params: Params) -> Params:
    return Checked({name: params[name] for name in ("blocks", "norm") if name in params})
