"""The block of a Transformer: self-attention, optional cross-attention, feed-forward."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypedDict, Unpack, get_args

from attnarray import checks
from attnarray.attention.options import known_options
from attnarray.backend import Array, ArrayT
from attnarray.layers.cache import DecoderCache, KVCache, LinearCache
from attnarray.layers.checking import check_gradients, check_same
from attnarray.layers.feed_forward import Activation, FeedForward
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer
from attnarray.layers.linear_attention import LinearAttention
from attnarray.layers.memory import attend_to_memory, project_memory
from attnarray.layers.mixture_of_experts import MixtureOfExperts
from attnarray.layers.multi_head import Gate, MultiHeadAttention, QKNorm
from attnarray.layers.norm import LayerNorm, RMSNorm
from attnarray.layers.paged_cache import PagedKVCache
from attnarray.layers.residual import Branch, Residual, ResidualContext
from attnarray.masks import Mask
from attnarray.ops.rotary import Rotary
from attnarray.random import Philox

Norm = Literal["layer", "rms", "layer_no_bias", "rms_zero_centered"]
NORMS: dict[Norm, Any] = {
    "layer": LayerNorm,
    "rms": RMSNorm,
    "layer_no_bias": functools.partial(LayerNorm, bias=False),
    "rms_zero_centered": functools.partial(RMSNorm, zero_centered=True),
}
ParallelResidual = Literal["one_norm", "two_norms"]
Mixer = Literal["attention", "retnet", "gla", "delta_net", "gated_delta_net", "kda", "mamba2"]
MIXERS: tuple[Mixer, ...] = get_args(Mixer)
BRANCHES = ("attention", "cross", "feed_forward")


class Options(TypedDict, total=False):
    """Masks, lengths and biases of the self-attention, and of the attention to the memory.

    `starts` (*batch), the lengths of the left padding, are for linear mixers, which take neither masks nor biases.
    `context_parallel` divides the sequence among processes, for self-attention.
    """

    attn_mask: Array | Mask | None
    is_causal: bool
    kv_lengths: Any
    bias: Array | None
    starts: Any
    context_parallel: Any
    memory_mask: Array | Mask | None
    memory_lengths: Any
    memory_bias: Array | None


class BlockContext(NamedTuple):
    attention: ResidualContext
    cross: ResidualContext | None
    feed_forward: ResidualContext
    norm: Any = None  # of both branches, if they share it


class Recomputed(NamedTuple):
    """The context of a block with `recompute`: its arguments."""

    params: Params
    x: Array
    memory: Array | None
    rng: Philox | None
    options: Options


class BlockGrads(NamedTuple, Generic[ArrayT]):
    """`bias` is also the gradient of a floating `attn_mask`, and `memory_bias` that of a floating `memory_mask`."""

    x: ArrayT
    memory: ArrayT | None
    params: Params
    bias: ArrayT | None
    memory_bias: ArrayT | None


@dataclass(frozen=True)
class TransformerBlock(Layer):
    r"""One block of an encoder or a decoder.

    .. math::
        x \leftarrow x + \mathrm{drop}(f(\mathrm{norm}(x))) \quad \text{(pre-norm)}, \qquad
        x \leftarrow \mathrm{norm}(x + \mathrm{drop}(f(x))) \quad \text{(post-norm)}

    for f = self-attention, then with `cross` cross-attention to a memory, then feed-forward. Other placements:

    .. math::
        x \leftarrow x + \mathrm{norm}'(f(\mathrm{norm}(x))) \quad \text{(sandwich)}, \qquad
        x \leftarrow x + a(\mathrm{norm}(x)) + f(\mathrm{norm}'(x)) \quad \text{(parallel)}

    Parameters
    ----------
    dim : int
        E, features of x.
    num_heads : int
        H.
    hidden_dim : int, optional
        Hidden features of the feed-forward network; 4 E by default.
    cross : bool
        Whether there is cross-attention to a memory, as in a decoder.
    pre_norm : bool
        Whether the norm is applied before each branch (GPT-2), or after the residual sum (the paper, BERT).
    branch_norm : bool
        Whether the output of each branch is normed: with `pre_norm` besides its input (sandwich norm, as in Gemma 2),
        without instead of the sum (OLMo 2).
    parallel_residual : {"one_norm", "two_norms"}, optional
        Whether attention and feed-forward read the same x, whose norm is one for both (GPT-J) or one for each
        (GPT-NeoX), instead of one after the other.
    residual_scale : float
        Factor of the output of each branch (Granite).
    norm : {"layer", "rms", "layer_no_bias", "rms_zero_centered"}
        See `LayerNorm` and `RMSNorm`.
    eps : float
        epsilon of the norms.
    activation, gated : str, bool
        See `FeedForward`.
    bias : bool
        Whether the linear maps have biases.
    dropout, attention_dropout, hidden_dropout : float
        Dropout probabilities of the outputs of the branches, of attention weights, and of hidden features; with an
        `rng`, which `fwd` (training) requires.
    num_kv_heads, rotary
        See `MultiHeadAttention`.
    head_dim : int, optional
        Features of one head of queries, keys and values; dim / num_heads by default.
    qkv_bias, out_bias : bool, optional
        Whether the projections to queries, keys and values, and that of the output, have biases; `bias` by default.
    qk_norm, scale, softcap, window, sinks
        Of the self-attention, `scale` of both: see `MultiHeadAttention`; the norms of queries and keys are RMS
        norms with `eps`.
    attention_gate : {"head", "element"}, optional
        The `gate` of the self-attention.
    attention_norm : bool
        Whether a pre-norm block norms the input of its self-attention; not in the first one of ModernBERT.
    num_experts, experts_per_token : int
        With `num_experts`, the feed-forward network is a `MixtureOfExperts`.
    shared_expert_dim : int, optional
        Hidden features of its shared expert.
    recompute : bool
        Keep only the arguments, and recompute the block in the backward: less memory, more time, the same gradients.
    init_std : float, optional
        Standard deviation of the initial weights; see `Linear`.
    mixer : {"attention", "retnet", "gla", "delta_net", "gated_delta_net", "kda", "mamba2"} or LinearAttention
        What mixes the positions: self-attention, or the `LinearAttention` of that name with `num_heads` heads, or a
        given one, with the block's `init_std` unless it has its own; its calls need is_causal=True.

    Raises
    ------
    ValueError
        If a size, probability or option is invalid; if `fwd` has dropout and no `rng`.

    References
    ----------
    Vaswani et al., 2017, arXiv:1706.03762. Pre-norm: Xiong et al., 2020, arXiv:2002.04745. Recomputation: Chen et al.,
    2016, arXiv:1604.06174.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> block = aa.layers.TransformerBlock(dim=8, num_heads=2, pre_norm=True)
    >>> params = block.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 8), np.float32)
    >>> y, ctx = block.fwd(params, x, is_causal=True)
    >>> y.shape, sorted(block.bwd(y, ctx).params)
    ((2, 5, 8), ['attention', 'attention_norm', 'feed_forward', 'feed_forward_norm'])
    """

    widths: ClassVar = {"x": ("dim",), "memory": ("dim",)}

    dim: int
    num_heads: int
    hidden_dim: int | None = None
    cross: bool = False
    pre_norm: bool = True
    norm: Norm = "layer"
    eps: float = 1e-5
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    num_kv_heads: int | None = None
    rotary: Rotary | None = None
    recompute: bool = False
    init_std: float | None = None
    mixer: Mixer | LinearAttention = "attention"
    branch_norm: bool = False
    parallel_residual: ParallelResidual | None = None
    residual_scale: float = 1.0
    head_dim: int | None = None
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    qk_norm: QKNorm | None = None
    scale: float | None = None
    softcap: float | None = None
    window: tuple[int | None, int | None] | None = None
    sinks: bool = False
    num_experts: int | None = None
    experts_per_token: int = 2
    shared_expert_dim: int | None = None
    attention_gate: Gate | None = None
    attention_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("norm", self.norm, tuple(NORMS))
        checks.choice("parallel_residual", self.parallel_residual, (None, *get_args(ParallelResidual)))
        checks.positive("residual_scale", self.residual_scale)
        if self.num_experts is not None and self.hidden_dropout:
            raise ValueError(f"`hidden_dropout` is {self.hidden_dropout} with `num_experts`: experts have no dropout.")
        if self.parallel_residual and (self.cross or self.branch_norm or not self.pre_norm):
            raise ValueError(
                f"`parallel_residual` is {self.parallel_residual!r} with cross={self.cross}, pre_norm={self.pre_norm} "
                f"and branch_norm={self.branch_norm}, expected a pre-norm block without cross-attention."
            )
        checks.choice("attention_gate", self.attention_gate, (None, *get_args(Gate)))
        check_mixer("mixer", self.mixer, self.dim)
        if self.shared_expert_dim is not None and self.num_experts is None:
            raise ValueError("`shared_expert_dim` is given, but the block has no experts: give `num_experts`.")
        if self.cross and self.mixer != "attention":
            raise ValueError(f"`mixer` is {self.mixer!r} with cross=True, expected 'attention'.")
        if not self.attention_norm and (not self.pre_norm or self.branch_norm or self.parallel_residual):
            raise ValueError(
                f"`attention_norm` is False with pre_norm={self.pre_norm}, branch_norm={self.branch_norm} and "
                f"parallel_residual={self.parallel_residual!r}, expected a pre-norm block with neither of these."
            )
        self.parts()  # validates the fields of the parts

    def parts(self) -> dict[str, Any]:
        attention: Any = MultiHeadAttention(
            self.dim, self.num_heads, self.num_kv_heads, self.head_dim, self.head_dim, rotary=self.rotary,
            bias=self.bias if self.qkv_bias is None else self.qkv_bias, init_std=self.init_std, qk_norm=self.qk_norm,
            out_bias=self.bias if self.out_bias is None else self.out_bias, norm_eps=self.eps, scale=self.scale,
            zero_centered=self.norm == "rms_zero_centered", softcap=self.softcap, window=self.window, sinks=self.sinks,
            gate=self.attention_gate,
        )  # fmt: skip
        if isinstance(self.mixer, LinearAttention):
            own = self.mixer.init_std
            attention = dataclasses.replace(self.mixer, init_std=self.init_std if own is None else own)
        elif self.mixer != "attention":
            attention = getattr(LinearAttention, self.mixer)(self.dim, self.num_heads, init_std=self.init_std)
        hidden_dim = self.hidden_dim or 4 * self.dim
        feed_forward: Any = FeedForward(
            self.dim, hidden_dim, self.activation, self.gated, self.bias, self.hidden_dropout, self.init_std
        )
        if self.num_experts is not None:
            feed_forward = MixtureOfExperts(
                self.dim, hidden_dim, self.num_experts, self.experts_per_token, self.activation, self.gated, self.bias,
                init_std=self.init_std, shared_dim=self.shared_expert_dim,
            )  # fmt: skip
        across = MultiHeadAttention(
            self.dim, self.num_heads, self.num_kv_heads, self.head_dim, self.head_dim, bias=self.bias,
            init_std=self.init_std, scale=self.scale,
        )  # fmt: skip
        branches = {"attention": attention, "cross": across, "feed_forward": feed_forward}
        found: dict[str, Any] = {}
        for name, residual in self._residuals.items():
            found |= {name: branches[name], **residual.parts()}
        if self.parallel_residual == "one_norm":
            del found["feed_forward_norm"]
        return found

    def __call__(
        self, params: Params, x: ArrayT, memory: ArrayT | None = None, *, rng: Philox | None = None,
        **options: Unpack[Options],
    ) -> ArrayT:  # fmt: skip
        """Return y (*batch, T, dim) of x (*batch, T, dim) and, with `cross`, a memory (*batch, S, dim).

        The options are `attn_mask`, `is_causal`, `kv_lengths` and `bias` of the self-attention, as in
        `multi_head_attention`, and with `cross` `memory_mask`, `memory_lengths` and `memory_bias`, the mask, lengths
        and bias of the cross-attention. Without an `rng` there is no dropout (inference).
        """
        return self._fwd(params, x, memory, rng, options)[0]

    def fwd(
        self, params: Params, x: ArrayT, memory: ArrayT | None = None, *, rng: Philox | None = None,
        **options: Unpack[Options],
    ) -> tuple[ArrayT, BlockContext | Recomputed]:  # fmt: skip
        """Return the same and the context for `bwd`; dropout requires an `rng`."""
        y, ctx = self._fwd(params, x, memory, rng, options)
        return y, Recomputed(params, x, memory, rng, options) if self.recompute else ctx

    def _fwd(
        self, params: Params, x: ArrayT, memory: Array | None, rng: Philox | None, options: Options
    ) -> tuple[ArrayT, BlockContext]:
        if (memory is not None) != self.cross:
            raise ValueError(
                f"`memory` is {checks.shown(memory)}, but the block was made with cross={self.cross}: "
                f"{'give' if self.cross else 'leave out'} a memory."
            )
        known_options(options, Options)
        self._check_mixer(options, bool(options.get("is_causal")))
        for name in ("memory_mask", "memory_lengths", "memory_bias"):
            if not self.cross and options.get(name) is not None:
                raise ValueError(f"`{name}` is given, but the block was made with cross=False: it has no memory.")
        parts, rngs = self._parts, iter(rng.split(6) if rng else [None] * 6)
        weights = {"dropout_p": self.attention_dropout if rng else 0.0}
        names = ("attn_mask", "is_causal", "kv_lengths", "bias", "context_parallel")
        own: Any = {name: option for name, option in options.items() if name in names}
        across = {
            "attn_mask": options.get("memory_mask"), "kv_lengths": options.get("memory_lengths"),
            "bias": options.get("memory_bias"),
        }  # fmt: skip

        def attend(x: Array) -> Any:
            if self.mixer != "attention":
                padding = {"lengths": options.get("kv_lengths"), "starts": options.get("starts")}
                return parts["attention"].fwd(params["attention"], x, **padding)
            return parts["attention"].fwd(params["attention"], x, **own, **weights, rng=next(rngs))

        def cross_attend(x: Array) -> Any:
            return parts["cross"].fwd(params["cross"], x, memory, **across, **weights, rng=next(rngs))

        def feed(x: Array) -> Any:
            own_rng = next(rngs)
            given: Any = {} if self.num_experts is not None else {"rng": own_rng}
            return parts["feed_forward"].fwd(params["feed_forward"], x, **given)

        return self._connect(params, x, (attend, cross_attend, feed), rngs)

    def _connect(
        self, params: Params, x: ArrayT, branches: tuple[Branch, ...], rngs: Iterator[Philox | None]
    ) -> tuple[ArrayT, BlockContext]:
        """Apply the branches, in the order of `BRANCHES`, with their residual connections."""
        contexts: dict[str, Any] = {"cross": None}
        given: Any = x
        if self.parallel_residual == "one_norm":
            given, contexts["norm"] = self._parts["attention_norm"].fwd(params["attention_norm"], x)
        for name, branch in zip(BRANCHES, branches, strict=True):
            if name not in self._residuals:
                continue
            residual = self._residuals[name]
            if self.parallel_residual is None:
                x, contexts[name] = residual.fwd(params, x, branch, next(rngs))
            else:
                increment, contexts[name] = residual.increment(params, given, branch, next(rngs))
                x = x + increment
        return x, BlockContext(**contexts)

    def bwd(
        self, dout: ArrayT, ctx: BlockContext | Recomputed, drouter_logits: Array | None = None
    ) -> BlockGrads[ArrayT]:
        """Return the gradients of x, the memory, the parameters and the biases; None for what was not given.

        `drouter_logits`, with experts, is the gradient of a loss of their router: see `MixtureOfExperts.bwd`.
        """
        if isinstance(ctx, Recomputed):
            check_gradients(self, ctx.params)  # gradients have the shapes of the parameters
            _, ctx = self._fwd(*ctx)
        checks.context("ctx", ctx, BlockContext, Recomputed)
        if drouter_logits is not None and self.num_experts is None:
            raise ValueError("`drouter_logits` is given, but the block has no experts: give `num_experts`.")
        check_same(self, "cross", ctx.cross is not None, self.cross)
        parts = self._parts
        params: Params = {}
        found: dict[str, Any] = {}  # gradients by branch

        def backward(name: str) -> Any:
            def branch(dy: Array, branch_ctx: Any) -> tuple[Array, Any]:
                given = {} if drouter_logits is None or name != "feed_forward" else {"drouter_logits": drouter_logits}
                grads = parts[name].bwd(dy, branch_ctx, **given)
                params[name] = grads.params
                return grads[0], grads  # the first field is the gradient of the sequence

            return branch

        increments: list[Array] = []
        for name, residual in reversed(self._residuals.items()):
            parallel = self.parallel_residual is not None
            undo = residual.increment_bwd if parallel else residual.bwd
            grads = undo(dout, getattr(ctx, name), backward(name))
            params |= grads.params
            found[name] = grads.branch
            if parallel:
                increments.append(grads.x)
            else:
                dout = grads.x
        if increments:
            dx: Any = increments[0] + increments[1]
            if self.parallel_residual == "one_norm":
                dx, params["attention_norm"] = parts["attention_norm"].bwd(dx, ctx.norm)
            dout = dout + dx
        ordered, cross = {name: params[name] for name in parts}, found.get("cross")
        dmemory, dmemory_bias = (cross.key, cross.bias) if cross else (None, None)
        return BlockGrads(dout, dmemory, ordered, getattr(found["attention"], "bias", None), dmemory_bias)

    def _check_mixer(self, options: Any, is_causal: bool) -> None:
        """Check that a linear mixer is given no mask or bias, and attention no `starts`."""
        linear = self.mixer != "attention"
        for name in ("attn_mask", "bias") if linear else ("starts",):
            if options.get(name) is not None:
                instead = (
                    "of scores, which it does not have: give `kv_lengths` or `starts`"
                    if linear
                    else ("of linear mixers: give a mask")
                )
                raise ValueError(f"`{name}` is given, but the block has mixer={self.mixer!r}; it is {instead}.")
        if linear and options.get("context_parallel") is not None:
            raise ValueError(
                f"`context_parallel` is given, but the block has mixer={self.mixer!r}, whose states are not divided "
                "among processes here: see distributed.scan_linear_attention."
            )
        if linear and not is_causal:
            raise ValueError(
                f"`is_causal` is False, but the block has mixer={self.mixer!r}, whose state holds earlier positions "
                "alone: give is_causal=True."
            )

    def decoder_cache(self, params: Params, memory: Array, max_seq_len: int) -> DecoderCache:
        """For a block with `cross`: the projected keys and values of a memory (B, S, dim), and an empty self-attention
        cache for `max_seq_len` positions, on the device of the memory."""
        if not self.cross:
            raise ValueError(
                "`memory` is given, but the block was made with cross=False: use parts()['attention'].cache."
            )
        memory_cache = project_memory(self._parts["cross"], params["cross"], memory)
        return DecoderCache(memory_cache.empty_like(max_seq_len), memory_cache)

    def step(
        self, params: Params, x: Array, cache: KVCache | PagedKVCache | LinearCache | DecoderCache,
        attn_mask: Array | Mask | None = None, *, bias: Array | None = None, starts: Any = None,
        memory_mask: Array | Mask | None = None, memory_lengths: Any = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        """Apply the block to the next positions x (B, T, dim) of a causal decoder: see `MultiHeadAttention.step`.

        With `cross`, the cache is from `decoder_cache`. The updated cache is of the same type.
        """
        if isinstance(cache, DecoderCache) != self.cross:
            made = "one from decoder_cache" if self.cross else "one from parts()['attention'].cache"
            raise TypeError(f"`cache` is a {type(cache).__name__}, expected {made}: the block has cross={self.cross}.")
        self._check_mixer({"attn_mask": attn_mask, "bias": bias, "starts": starts}, True)
        parts = self._parts
        own, known = cache if isinstance(cache, DecoderCache) else (cache, None)

        def attend(x: Array) -> Any:
            if self.mixer != "attention":
                return parts["attention"].step(params["attention"], x, own, starts=starts)
            return parts["attention"].step(params["attention"], x, own, attn_mask, bias=bias)

        def cross_attend(x: Array) -> tuple[Array, None]:
            assert known is not None, "only a block with `cross` has this branch"
            return attend_to_memory(parts["cross"], params["cross"], x, known, memory_mask, memory_lengths), None

        def feed(x: Array) -> tuple[Array, None]:
            return parts["feed_forward"](params["feed_forward"], x), None

        x, ctx = self._connect(params, x, (attend, cross_attend, feed), itertools.repeat(None))
        after: Any = ctx.attention.branch
        return x, after if known is None else DecoderCache(after, known)

    @functools.cached_property
    def _residuals(self) -> dict[str, Residual]:
        norm, pre_norm = NORMS[self.norm](self.dim, self.eps), self.pre_norm and self.parallel_residual != "one_norm"
        names = BRANCHES if self.cross else ("attention", "feed_forward")
        norms = {name: norm for name in names if name != "attention" or self.attention_norm}
        return {
            name: Residual(name, norms.get(name), pre_norm, self.dropout, self.branch_norm, self.residual_scale)
            for name in names
        }


def check_mixer(name: str, mixer: Any, dim: int) -> None:
    """Check what mixes the positions of a block of `dim` features."""
    if not isinstance(mixer, LinearAttention):
        checks.choice(name, mixer, MIXERS)
    elif mixer.dim != dim:
        raise ValueError(f"`{name}` has a LinearAttention with `dim` {mixer.dim}, expected {dim}, that of the block.")
