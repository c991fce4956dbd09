"""BERT: a bidirectional encoder of text, with its pooler and its head for masked tokens."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from attnarray import checks, tree
from attnarray.backend import Array, namespace_of
from attnarray.checkpoints.names import Family
from attnarray.checkpoints.pretrained import load_pretrained
from attnarray.layers.checking import Checked, check_gradients, check_same
from attnarray.layers.feed_forward import Activation
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.masks import Mask
from attnarray.models.bert.embedding import BERTEmbedding, BERTEmbeddingContext
from attnarray.models.bert.heads import MaskHead, MaskHeadContext, MaskHeadGrads, Pooler, PoolerContext, check_head
from attnarray.models.bert.published import PRETRAINED
from attnarray.models.logits import check_dlogits, check_gradient
from attnarray.models.padding import attention_mask, check_lengths
from attnarray.models.prepared.bert import PreparedBERT, prepare_bert
from attnarray.models.prepared.stack import Weights
from attnarray.models.transformer.encoder import Encoder, EncoderOptions
from attnarray.models.transformer.stack import StackContext
from attnarray.numpy_arrays import read_only, writable
from attnarray.random import Philox


class BERTResult(NamedTuple):
    """The states (B, T, dim) of all tokens, and one vector (B, dim) per sequence; None without a pooler."""

    states: Any
    pooled: Any


class BERTContext(NamedTuple):
    """`attention_weights(ctx.body.blocks[n].attention.branch)` are the weights of block n."""

    embedding: BERTEmbeddingContext
    body: StackContext
    pooler: PoolerContext | None
    mask_head: Params | None


class BERTGrads(NamedTuple):
    params: Params


@dataclass(frozen=True)
class BERT(Layer):
    r"""An encoder of token ids.

    .. math::
        x^0_t = \mathrm{drop}(\mathrm{norm}(E_{i_t} + P_t + S_{j_t})), \qquad
        x^n = \mathrm{block}_n(x^{n-1}), \qquad \mathrm{pooled} = \tanh(W x^N_0 + b)

    with post-norm `TransformerBlock`s. The head for masked tokens, `mask_logits`, shares E.

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
    types : int
        Number of token types; the first two distinguish two sentences.
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

    Raises
    ------
    ValueError
        If a size, probability or option is invalid.

    References
    ----------
    Devlin et al., "BERT: pre-training of deep bidirectional transformers for language understanding", 2018,
    arXiv:1810.04805.

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
    types: int = 2
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: Activation = "gelu"
    eps: float = 1e-12
    recompute: bool = False
    pooler: bool = True
    mask_head: bool = True
    init_std: float = 0.02

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
        self.parts()  # validates the fields of the parts

    @functools.cached_property
    def embedding(self) -> BERTEmbedding:
        """The embedding of tokens, positions and types."""
        return BERTEmbedding(
            self.vocab_size, self.max_seq_len, self.types, self.dim, self.dropout, self.eps, self.init_std
        )  # fmt: skip

    @functools.cached_property
    def body(self) -> Encoder:
        """The stack of blocks."""
        return Encoder(
            self.dim, self.num_layers, self.num_heads, self.hidden_dim, pre_norm=False, activation=self.activation,
            dropout=self.dropout, attention_dropout=self.attention_dropout, eps=self.eps, recompute=self.recompute,
            init_std=self.init_std,
        )  # fmt: skip

    def parts(self) -> dict[str, Any]:
        head = MaskHead(self.vocab_size, self.dim, self.activation, self.eps, self.init_std)
        optional = {"pooler": Pooler(self.dim, self.dim, init_std=self.init_std), "mask_head": head}
        return {
            **self.embedding.parts(),
            **self.body.parts(),
            **{name: part for name, part in optional.items() if getattr(self, name)},
        }

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
        x = self.body(_body_params(params), x, **_options(attn_mask, lengths, tokens), rng=_body_rng(rng))
        return writable(BERTResult(x, self._pool(params, x)[0]))

    def states(
        self, params: Params, tokens: Array, types: Array | None = None, *, attn_mask: Array | Mask | None = None,
        lengths: Any = None, rng: Philox | None = None,
    ) -> list[Any]:  # fmt: skip
        """Return the hidden states, N + 1 arrays (B, T, dim): the embeddings, and the output of each block."""
        x, _ = self._embed(params, tokens, types, rng)
        states = self.body.states(_body_params(params), x, **_options(attn_mask, lengths, tokens), rng=_body_rng(rng))
        return writable([x, *states])

    def fwd(
        self, params: Params, tokens: Array, types: Array | None = None, *, attn_mask: Array | Mask | None = None,
        lengths: Any = None, rng: Philox | None = None,
    ) -> tuple[BERTResult, BERTContext]:  # fmt: skip
        """Return the same as the call, and the context for `bwd`. With dropout it needs an `rng`, a new one for each
        step.
        """
        x, embedding_ctx = self._embed(params, tokens, types, rng)
        x, body_ctx = self.body.fwd(_body_params(params), x, **_options(attn_mask, lengths, tokens), rng=_body_rng(rng))
        pooled, pooler_ctx = self._pool(params, x)
        return BERTResult(read_only(x), pooled), BERTContext(
            embedding_ctx, body_ctx, pooler_ctx, params.get("mask_head")
        )

    def bwd(self, dout: BERTResult, ctx: BERTContext, head: Params | None = None) -> BERTGrads:
        """Return the gradients of the parameters; those of the head for masked tokens are 0 unless `head` is given.

        `dout` has the gradients of states and pooled vectors; None stands for 0. `head` is `params` from
        `mask_logits_bwd`: its gradient of E is added to that of the embedding.
        """
        checks.context("ctx", ctx, BERTContext)
        present = ctx.pooler is not None, ctx.mask_head is not None
        check_same(self, "heads", present, (self.pooler, self.mask_head))
        dx, params = self._unpool(dout, ctx)
        body = self.body.bwd(dx, ctx.body)
        params |= {**self.embedding.bwd(body.x, ctx.embedding), **body.params}
        if head is not None:
            check_head(head, self.mask_head)
            params |= {"token": tree.add(params["token"], head["token"]), "mask_head": head["mask_head"]}
        elif self.mask_head:
            params["mask_head"] = tree.map(namespace_of(dx).zeros_like, ctx.mask_head)
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

    def _embed(
        self, params: Params, tokens: Array, types: Array | None, rng: Philox | None
    ) -> tuple[Array, BERTEmbeddingContext]:
        x, ctx = self.embedding.fwd(params, tokens, types, rng.fold_in(0) if rng else None)
        if self.pooler and x.shape[1] == 0:
            raise ValueError(
                f"`tokens` has shape {tuple(tokens.shape)}, expected at least one token: the pooler uses the first."
            )
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
        xp, like = namespace_of(ctx.embedding.norm.x), ctx.embedding.norm.x
        for name, shape in (("states", tuple(like.shape)), ("pooled", (like.shape[0], like.shape[2]))):
            if getattr(given, name) is not None:
                check_gradient(f"dout.{name}", getattr(given, name), shape, like)
        dx = xp.zeros_like(like) if given.states is None else given.states
        if ctx.pooler is None:
            return dx, {}
        dpooled = xp.zeros_like(like[:, 0, :]) if given.pooled is None else given.pooled
        pooler = self._parts["pooler"].pool_bwd(dpooled, ctx.pooler)
        rest = xp.zeros_like(like[:, 1:, :])
        return dx + xp.concat([pooler.x[:, None, :], rest], axis=1), {"pooler": pooler.params}


def _options(attn_mask: Array | Mask | None, lengths: Any, tokens: Array) -> EncoderOptions:
    mask = attention_mask(attn_mask, None, tokens.shape[1])
    if attn_mask is not None and not isinstance(attn_mask, Mask) and attn_mask.ndim == 2:
        raise ValueError(
            f"`attn_mask` has shape {tuple(attn_mask.shape)}, expected one that broadcasts to (B, H, T, T). Give a "
            "mask of tokens (B, T) as attn_mask[:, None, None, :], or as `lengths`."
        )
    return {"attn_mask": mask, "kv_lengths": check_lengths("lengths", lengths, tokens)}


def _body_params(params: Params) -> Params:
    return Checked(blocks=params["blocks"])


def _body_rng(rng: Philox | None) -> Philox | None:
    return rng.fold_in(1) if rng else None
