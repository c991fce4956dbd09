"""BERT: a bidirectional encoder of text, with its pooler and its head for masked tokens."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

from attnarray import checks, tree
from attnarray.backend import Array, device_of, namespace_of
from attnarray.checkpoints.names import Family
from attnarray.checkpoints.pretrained import load_pretrained
from attnarray.layers.block import NORMS, Norm, TransformerBlock
from attnarray.layers.checking import Checked, check_gradients, check_same
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.masks import Mask
from attnarray.models.bert.embedding import BERTEmbedding, BERTEmbeddingContext
from attnarray.models.bert.heads import (
    POOLER_ACTIVATIONS,
    ClassHead,
    ClassHeadContext,
    ClassHeadGrads,
    Classified,
    MaskHead,
    MaskHeadContext,
    MaskHeadGrads,
    Pooler,
    PoolerActivation,
    PoolerContext,
    check_head,
)
from attnarray.models.bert.published import PRETRAINED
from attnarray.models.gpt.body import Body, check_rotary, check_windows
from attnarray.models.logits import check_dlogits, check_gradient
from attnarray.models.padding import attention_mask, check_lengths
from attnarray.models.prepared.bert import PreparedBERT, prepare_bert
from attnarray.models.prepared.stack import Weights
from attnarray.models.relative_bias import RelativeBias, RelativeBiasContext
from attnarray.models.transformer.encoder import Encoder, EncoderOptions
from attnarray.models.transformer.stack import Blocks, StackContext
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.rotary import Rotary
from attnarray.random import Philox

HEADS = ("mask_head", "classifier")
Positions = Literal["learned", "rotary"]


class BERTResult(NamedTuple):
    """The states (B, T, dim) of all tokens, and one vector (B, dim) per sequence; None without a pooler."""

    states: Any
    pooled: Any


class BERTContext(NamedTuple):
    """`attention_weights(ctx.body.blocks[n].attention.branch)` are the weights of block n."""

    embedding: BERTEmbeddingContext
    body: StackContext
    pooler: PoolerContext | None
    relative: RelativeBiasContext | None
    heads: Params  # the parameters of the heads, which other contexts hold


class BERTGrads(NamedTuple):
    params: Params


@dataclass(frozen=True)
class BERT(Layer):
    r"""An encoder of token ids.

    .. math::
        x^0_t = \mathrm{drop}(\mathrm{norm}(E_{i_t} + P_t + S_{j_t})), \qquad
        x^n = \mathrm{block}_n(x^{n-1}), \qquad \mathrm{pooled} = \tanh(W x^N_0 + b)

    with post-norm `TransformerBlock`s. The head for masked tokens, `mask_logits`, shares E; that for classes is
    `class_logits`. The last options make its relatives: RoBERTa, DistilBERT, ELECTRA, MPNet, ALBERT and
    ModernBERT, which `from_pretrained` reads, too.

    Parameters
    ----------
    vocab_size : int
        V, the number of known tokens.
    max_seq_len : int
        The largest number of tokens of a sequence, and of learned positions.
    dim, num_layers, num_heads : int
        E, N and H.
    hidden_dim : int, optional
        Hidden features of the feed-forward networks; 4 E by default.
    types : int or None
        Number of token types; the first two distinguish two sentences. None for a model without them.
    dropout : float
        Dropout of the embeddings and of the branches of the blocks. BERT was trained with 0.1.
    attention_dropout : float
        Dropout of attention weights. BERT was trained with 0.1.
    activation : {"gelu", "gelu_tanh", "relu", "silu"}
        Of the feed-forward networks and the head for masked tokens.
    eps : float
        epsilon of the norms.
    recompute : bool
        Recompute the blocks in the backward instead of keeping their contexts: see `TransformerBlock`.
    pooler, mask_head : bool
        Whether the model has a pooler, and a head for masked tokens.
    init_std : float
        Standard deviation of the initial weights.
    embedding_dim : int, optional
        Features of the embeddings, which a linear map brings to `dim` (ALBERT, ELECTRA); `dim` without one by default.
    padding_token : int, optional
        The token of padding. If given, positions count the tokens other than it, and their table begins with
        `padding_token` + 1 further rows; the last one is that of padding (RoBERTa, MPNet).
    relative_buckets, relative_distance : int
        If given, scores have a `RelativeBias` with so many buckets and this `max_distance` (MPNet).
    share_blocks : bool
        Whether all blocks have the same parameters (ALBERT): "blocks" is a list of one.
    pooler_activation : {"tanh", "relu", "gelu"}
        Of the pooler, which is also the hidden layer of the heads of some relatives.
    num_labels : int, optional
        Number of classes of `class_logits`; None for no such head.
    classified : {"sequences", "tokens", "spans"}
        Whether the logits are of the pooled vectors, or of the state of each token; "spans" is the same with two
        logits, of the first and the last token of an answer.
    positions : {"learned", "rotary"}
        Learned positions are part of the embedding; rotary ones rotate queries and keys, by `rotary`: see `GPT`.
    windows : tuple of int or None
        How many keys on either side each query sees, in each block, repeated over the blocks; None for all.
    pre_norm : bool
        Whether the blocks are pre-norm, the attention of the first one without a norm, and a norm is after the last.
    norm, gated, bias
        Of the blocks and the head for masked tokens: see `TransformerBlock`. With `pre_norm`, rotary positions and
        windows they make ModernBERT.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid.

    References
    ----------
    Devlin et al., "BERT: pre-training of deep bidirectional transformers for language understanding", 2018,
    arXiv:1810.04805. Relatives: RoBERTa, arXiv:1907.11692; DistilBERT, arXiv:1910.01108; ELECTRA, arXiv:2003.10555;
    MPNet, arXiv:2004.09297; ALBERT, arXiv:1909.11942; ModernBERT, arXiv:2412.13663.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.BERT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> params = model.init(aa.Philox(0))
    >>> tokens = np.random.default_rng(0).integers(50, size=(3, 10))
    >>> result, ctx = model.fwd(params, tokens, lengths=[10, 7, 4])
    >>> result.states.shape, result.pooled.shape
    ((3, 10, 8), (3, 8))

    A training step on masked tokens, with targets of -100 where a token was not masked:

    >>> targets = np.where(np.arange(10) == 2, tokens, -100)
    >>> logits, logits_ctx = model.mask_logits_fwd(params, result.states)
    >>> loss, loss_ctx = aa.cross_entropy_fwd(logits, targets)
    >>> head = model.mask_logits_bwd(aa.cross_entropy_bwd(np.ones_like(loss), loss_ctx).logits, logits_ctx)
    >>> grads = model.bwd(aa.models.BERTResult(head.states, None), ctx, head.params).params
    >>> round(float(loss), 1), grads.keys() == params.keys()
    (3.9, True)
    """

    pretrained: ClassVar[tuple[Family, ...]] = PRETRAINED
    widths: ClassVar = {"states": ("dim",)}
    axes: ClassVar = 1

    vocab_size: int
    max_seq_len: int
    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int | None = None
    types: int | None = 2
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: Activation = "gelu"
    eps: float = 1e-12
    recompute: bool = False
    pooler: bool = True
    mask_head: bool = True
    init_std: float = 0.02
    embedding_dim: int | None = None
    padding_token: int | None = None
    relative_buckets: int | None = None
    relative_distance: int = 128
    share_blocks: bool = False
    pooler_activation: PoolerActivation = "tanh"
    num_labels: int | None = None
    classified: Classified = "sequences"
    positions: Positions = "learned"
    rotary: Rotary | tuple[Rotary | None, ...] | None = None
    windows: tuple[int | None, ...] = (None,)
    pre_norm: bool = False
    norm: Norm = "layer"
    gated: bool = False
    bias: bool = True

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """BERT base, with 110 million parameters; `changes` replace its options."""
        shape = {"vocab_size": 30522, "max_seq_len": 512, "dim": 768, "num_layers": 12, "num_heads": 12}
        return cls(**{**shape, "dropout": 0.1, "attention_dropout": 0.1, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """BERT large, with 340 million parameters."""
        return cls.base(**{"dim": 1024, "num_layers": 24, "num_heads": 16, **changes})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("pooler_activation", self.pooler_activation, tuple(POOLER_ACTIVATIONS))
        checks.choice("classified", self.classified, get_args(Classified))
        checks.choice("positions", self.positions, get_args(Positions))
        checks.choice("norm", self.norm, tuple(NORMS))
        check_windows(self, "the number of keys that a query sees on either side")
        check_rotary(self)
        if self.num_labels is not None and self.classified == "sequences" and not self.pooler:
            raise ValueError("`num_labels` is given for sequences, but `pooler` is False: give pooler=True.")
        if self.share_blocks and self.pre_norm:
            raise ValueError("`share_blocks` is True, but so is `pre_norm`, whose first block lacks a norm.")
        if self.padding_token is not None and self.padding_token >= self.vocab_size:
            raise ValueError(f"`padding_token` is {self.padding_token}, expected one from 0 to {self.vocab_size - 1}.")
        self.parts()  # validates the fields of the parts

    @property
    def is_plain(self) -> bool:
        """Whether the encoder is BERT's own, with none of the options of its relatives."""
        options = self.embedding_dim, self.padding_token, self.relative_buckets
        changed = self.types is None or self.share_blocks or self.pooler_activation != "tanh"
        blocks = self.positions, self.windows, self.pre_norm, self.norm, self.gated, self.bias
        plain = ("learned", (None,), False, "layer", False, True)
        return options == (None, None, None) and not changed and blocks == plain

    @functools.cached_property
    def embedding(self) -> BERTEmbedding:
        """The embedding of tokens, positions and types."""
        return BERTEmbedding(
            self.vocab_size, self.max_seq_len, self.types, self.dim, self.dropout, self.eps, self.init_std,
            self.embedding_dim, self.padding_token, self.positions == "learned", self.norm,
        )  # fmt: skip

    @functools.cached_property
    def body(self) -> Encoder:
        """The stack of blocks, and a final norm with `pre_norm`."""
        common: Any = {
            "pre_norm": self.pre_norm, "activation": self.activation, "dropout": self.dropout, "eps": self.eps,
            "attention_dropout": self.attention_dropout, "recompute": self.recompute, "init_std": self.init_std,
            "norm": self.norm, "gated": self.gated, "bias": self.bias,
        }  # fmt: skip
        sizes = self.dim, self.num_layers, self.num_heads, self.hidden_dim
        if self.positions == "learned" and self.windows == (None,) and not self.pre_norm:
            return Encoder(*sizes, **common)
        rotations = self.rotary if isinstance(self.rotary, tuple) else (self.rotary or Rotary(),)
        blocks = []
        for n in range(self.num_layers):
            window, rotary = self.windows[n % len(self.windows)], rotations[n % len(rotations)]
            own: Any = {"rotary": rotary if self.positions == "rotary" else None}
            own |= {"window": window and (window, window), "attention_norm": n > 0 or not self.pre_norm}
            blocks.append(TransformerBlock(self.dim, self.num_heads, self.hidden_dim, **common, **own))
        return Body(*sizes, **common, each_block=tuple(blocks))

    def parts(self) -> dict[str, Any]:
        """token, position, type, embedding_norm, projection, relative, blocks, norm, pooler, mask_head, classifier."""
        parts: dict[str, Any] = self.embedding.parts()
        if self.relative_buckets is not None:
            parts["relative"] = RelativeBias(
                self.num_heads, self.relative_buckets, self.relative_distance, init_std=self.init_std
            )
        parts |= {**self.body.parts(), "blocks": Blocks(self.body.blocks[: 1 if self.share_blocks else None])}
        if self.pooler:
            parts["pooler"] = Pooler(self.dim, self.dim, init_std=self.init_std, activation=self.pooler_activation)
        if self.mask_head:
            parts["mask_head"] = MaskHead(
                self.vocab_size, self.dim, self.activation, self.eps, self.init_std, self.embedding_dim, self.bias,
                self.norm,
            )  # fmt: skip
        if self.num_labels is not None:
            head = ClassHead(self.dim, self.num_labels, init_std=self.init_std, classified=self.classified)
            parts["classifier"] = head
        return parts

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: str | None = None, ignore: Sequence[str] = ()
    ) -> tuple[BERT, Params]:
        """Load the model and its parameters from a folder with config.json and model.safetensors (or shards of it).

        Nothing is downloaded. `dtype` is that of the parameters, by default the stored one; tensors whose names begin
        with one of `ignore`, such as "classifier.", are ignored. The model has a pooler and a head for masked tokens if
        the file has them. `checkpoints.save_pretrained` writes such a folder.
        """
        model, params = load_pretrained(cls, folder, dtype=dtype, ignore=ignore)
        return model, params

    def __call__(
        self, params: Params, tokens: Array, types: Array | None = None, *, attn_mask: Array | Mask | None = None,
        lengths: Any = None, rng: Philox | None = None,
    ) -> BERTResult:  # fmt: skip
        """Return states and pooled vectors of tokens (B, T) with types (B, T), both integers; type 0 by default.

        Shorter sequences are right-padded with any token, with `lengths` (B,). A boolean `attn_mask`, True = attend,
        restricts attention further; it broadcasts to (B, H, T, T): a mask of tokens (B, T) is given as
        ``exists[:, None, None, :]``. Without an `rng` there is no dropout (inference).
        """
        x, _ = self._embed(params, tokens, types, rng)
        options, _ = self._options(params, attn_mask, lengths, tokens)
        x = self.body(self._body_params(params), x, **options, rng=_body_rng(rng))
        return writable(BERTResult(x, self._pool(params, x)[0]))

    def states(
        self, params: Params, tokens: Array, types: Array | None = None, *, attn_mask: Array | Mask | None = None,
        lengths: Any = None, rng: Philox | None = None,
    ) -> list[Any]:  # fmt: skip
        """Return the hidden states, N + 1 arrays (B, T, dim): the embeddings, and the output of each block."""
        x, _ = self._embed(params, tokens, types, rng)
        options, _ = self._options(params, attn_mask, lengths, tokens)
        states = self.body.states(self._body_params(params), x, **options, rng=_body_rng(rng))
        return writable([x, *states])

    def fwd(
        self, params: Params, tokens: Array, types: Array | None = None, *, attn_mask: Array | Mask | None = None,
        lengths: Any = None, rng: Philox | None = None,
    ) -> tuple[BERTResult, BERTContext]:  # fmt: skip
        """Return the same as the call, and the context for `bwd`. Dropout needs a new `rng` for each step."""
        x, embedding_ctx = self._embed(params, tokens, types, rng)
        options, relative_ctx = self._options(params, attn_mask, lengths, tokens)
        x, body_ctx = self.body.fwd(self._body_params(params), x, **options, rng=_body_rng(rng))
        pooled, pooler_ctx = self._pool(params, x)
        heads = {name: params[name] for name in HEADS if name in params}
        return BERTResult(read_only(x), pooled), BERTContext(embedding_ctx, body_ctx, pooler_ctx, relative_ctx, heads)

    def bwd(self, dout: BERTResult, ctx: BERTContext, head: Params | None = None) -> BERTGrads:
        """Return the gradients of the parameters; those of the heads for tokens and classes are 0 unless in `head`.

        `dout` has the gradients of states and pooled vectors; None stands for 0. `head` is `params` from
        `mask_logits_bwd`, whose gradient of E is added to that of the embedding, or from `class_logits_bwd`, or both in
        one dict.
        """
        checks.context("ctx", ctx, BERTContext)
        present = ctx.pooler is not None, *(name in ctx.heads for name in HEADS)
        check_same(self, "heads", present, (self.pooler, *(name in self._parts for name in HEADS)))
        check_same(self, "dim", ctx.embedding.norm.x.shape[-1], self.embedding_dim or self.dim)
        if head is not None:
            check_head(head, set(ctx.heads))
        dx, params = self._unpool(dout, ctx)
        body = self.body.bwd(dx, ctx.body)
        params |= self.embedding.bwd(body.x, ctx.embedding)
        params |= body.params
        blocks = body.params["blocks"]
        params["blocks"] = [functools.reduce(tree.add, blocks)] if self.share_blocks else blocks
        if ctx.relative is not None:
            params["relative"] = self._parts["relative"].bwd(body.bias, ctx.relative).params
        params |= tree.map(namespace_of(dx).zeros_like, ctx.heads)
        for name, own in (head or {}).items():
            params[name] = tree.add(params[name], own) if name == "token" else own
        return BERTGrads(check_gradients(self, {name: params[name] for name in self._parts}))

    def prepare(self, params: Params, *, weights: Weights | None = None) -> PreparedBERT:
        """Return the model with its parameters, checked once and packed for many calls: ``prepared(tokens)``.

        Its results are those of the model (inference: no dropout and no backward), except that states of padding are 0.
        With kernels, the weights are copied in another order, so they are held twice. With `weights` "bfloat16", those
        of all linear maps are rounded to bfloat16, and computed with in float32: half of the memory.

        Examples
        --------
        >>> import numpy as np, attnarray as aa
        >>> model = aa.models.BERT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
        >>> params, tokens = model.init(aa.Philox(0)), np.array([[1, 2, 3], [4, 5, 0]])
        >>> states, pooled = model.prepare(params)(tokens, lengths=[3, 2])
        >>> np.allclose(pooled, model(params, tokens, lengths=[3, 2]).pooled, atol=1e-6)
        True
        """
        return prepare_bert(self, params, weights)

    def mask_logits(self, params: Params, states: Array) -> Any:
        """Return the logits (..., V) of masked tokens from their states (..., dim), all or some of `states`."""
        return self.mask_logits_fwd(params, states)[0]

    def mask_logits_fwd(self, params: Params, states: Array) -> tuple[Any, MaskHeadContext]:
        """Return the same, and the context for `mask_logits_bwd`."""
        if not self.mask_head:
            raise ValueError(
                "`mask_head` is False: the model has no head for masked tokens. Make it with mask_head=True."
            )
        return self._parts["mask_head"].fwd(params, states)

    def mask_logits_bwd(self, dlogits: Array, ctx: MaskHeadContext) -> MaskHeadGrads:
        """Return the gradients of the states and, as `params`, of the head and of E: give them to `bwd` as `head`."""
        checks.context("ctx", ctx, MaskHeadContext)
        check_dlogits(dlogits, ctx.decoder)
        grads: MaskHeadGrads = self._parts["mask_head"].bwd(dlogits, ctx)
        return grads

    def class_logits(self, params: Params, result: BERTResult) -> Any:
        """Return the logits (B, C) of the classes of sequences, or (B, T, C) of tokens or spans, from a result."""
        return self.class_logits_fwd(params, result)[0]

    def class_logits_fwd(self, params: Params, result: BERTResult) -> tuple[Any, ClassHeadContext]:
        """Return the same, and the context for `class_logits_bwd`."""
        if self.num_labels is None:
            raise ValueError("`num_labels` is None: the model has no head for classes. Make it with `num_labels`.")
        head: ClassHead = self._parts["classifier"]
        return head.class_logits(params["classifier"], result)

    def class_logits_bwd(self, dlogits: Array, ctx: ClassHeadContext) -> ClassHeadGrads:
        """Return the gradients of states and pooled vectors, one of them None, and as `params` of the head: give them
        to `bwd`, ``model.bwd(BERTResult(grads.states, grads.pooled), ctx, grads.params)``.
        """
        checks.context("ctx", ctx, ClassHeadContext)
        check_dlogits(dlogits, ctx.linear)
        head: ClassHead = self._parts["classifier"]
        return head.class_logits_bwd(dlogits, ctx)

    def _options(
        self, params: Params, attn_mask: Array | Mask | None, lengths: Any, tokens: Array
    ) -> tuple[EncoderOptions, RelativeBiasContext | None]:
        """Mask, lengths and bias of the blocks, and the context of the bias."""
        mask, T = attention_mask(attn_mask, None, tokens.shape[1]), tokens.shape[1]
        if attn_mask is not None and not isinstance(attn_mask, Mask) and attn_mask.ndim == 2:
            raise ValueError(
                f"`attn_mask` has shape {tuple(attn_mask.shape)}, expected one that broadcasts to (B, H, T, T). Give a "
                "mask of tokens (B, T) as attn_mask[:, None, None, :], or as `lengths`."
            )
        options: EncoderOptions = {"attn_mask": mask, "kv_lengths": check_lengths("lengths", lengths, tokens)}
        if self.relative_buckets is None:
            return options, None
        options["bias"], ctx = self._parts["relative"].fwd(params["relative"], T, T)
        return options, ctx

    def _body_params(self, params: Params) -> Params:
        blocks = params["blocks"] * (self.num_layers if self.share_blocks else 1)
        return Checked({"blocks": blocks, **{name: params[name] for name in ("norm",) if name in params}})

    def _embed(
        self, params: Params, tokens: Array, types: Array | None, rng: Philox | None
    ) -> tuple[Array, BERTEmbeddingContext]:
        x, ctx = self.embedding.fwd(params, tokens, types, rng.fold_in(0) if rng else None)
        if self.pooler and x.shape[1] == 0:
            raise ValueError(f"`tokens` has shape {tuple(tokens.shape)}, expected at least one token, for the pooler.")
        return x, ctx

    def _pool(self, params: Params, x: Array) -> tuple[Array | None, PoolerContext | None]:
        return self._parts["pooler"].pool(params["pooler"], x[:, 0, :]) if self.pooler else (None, None)

    def _unpool(self, dout: BERTResult, ctx: BERTContext) -> tuple[Array, Params]:
        """The gradients of the states, including those through the pooler, and of the pooler's parameters."""
        given = dout if isinstance(dout, BERTResult) else BERTResult(None, None)
        if (given.states is None and given.pooled is None) or (given.pooled is not None and ctx.pooler is None):
            raise TypeError(
                f"`dout` is {checks.shown(dout)}, expected BERTResult(states, pooled), the gradients of both "
                "outputs; one of them may be None, and pooled must be None without a pooler."
            )
        like = ctx.embedding.norm.x
        xp, (B, T) = namespace_of(like), like.shape[:2]
        for name, shape in (("states", (B, T, self.dim)), ("pooled", (B, self.dim))):
            if getattr(given, name) is not None:
                check_gradient(f"dout.{name}", getattr(given, name), shape, like)

        def zeros(*shape: int) -> Array:
            return xp.zeros(shape, dtype=like.dtype, device=device_of(like))

        dx = zeros(B, T, self.dim) if given.states is None else given.states
        if ctx.pooler is None:
            return dx, {}
        dpooled = zeros(B, self.dim) if given.pooled is None else given.pooled
        pooler = self._parts["pooler"].pool_bwd(dpooled, ctx.pooler)
        return dx + xp.concat([pooler.x[:, None, :], zeros(B, T - 1, self.dim)], axis=1), {"pooler": pooler.params}


def _body_rng(rng: Philox | None) -> Philox | None:
    return rng.fold_in(1) if rng else None
