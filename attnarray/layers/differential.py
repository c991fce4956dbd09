"""Differential attention with its parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.composed.differential import (
    DifferentialContext,
    differential_attention_bwd,
    differential_attention_fwd,
)
from attnarray.attention.dot_product.heads import join_heads, split_heads, transpose_heads
from attnarray.attention.dot_product.multi_head import HeadOptions
from attnarray.attention.sequences import narrow
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.layers.checking import check_gradients
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, LayerGrads, Shapes
from attnarray.layers.linear import Linear
from attnarray.layers.norm import RMSNorm
from attnarray.masks import Mask
from attnarray.ops.rotary import Rotary, RotaryContext, rotary_bwd, rotary_fwd
from attnarray.random import Philox


class DifferentialLayerContext(NamedTuple):
    """What the backward needs: the contexts of all parts, by name, of the rotations and of the attention."""

    parts: dict[str, Any]
    rotations: tuple[RotaryContext, RotaryContext] | None  # of queries and of keys
    attention: DifferentialContext


class DifferentialLayerGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    params: Params
    bias: ArrayT | None
    sinks: ArrayT | None


@dataclass(frozen=True)
class DifferentialAttention(Layer):
    r"""Self-attention of a differential transformer: each head is the difference of two, and is normalized.

    .. math::
        y_i = W_O\, (1 - \lambda_0)\, [\mathrm{norm}(o^1_i); \dots; \mathrm{norm}(o^H_i)], \qquad
        \lambda = e^{l_{q1} \cdot l_{k1}} - e^{l_{q2} \cdot l_{k2}} + \lambda_0

    with o of `differential_attention`. Heads of queries have D features and those of values 2 D, so that with H pairs
    the layer is as large as multi-head attention with 2 H heads.

    Parameters
    ----------
    dim : int
        Features of the inputs and of the output.
    num_heads : int
        H, pairs of heads.
    num_kv_heads : int, optional
        Hkv, pairs of heads of the keys; H by default.
    head_dim : int, optional
        D; dim / (2 H) by default.
    lambda_init : float
        lambda_0. The paper has 0.8 - 0.6 e^(-0.3 l) in layer l = 0, 1, ...
    rotary : Rotary, optional
        Rotates queries and keys by their positions.
    bias : bool
        Whether the projections have biases.
    norm_eps : float
        Epsilon of the RMS norm, whose scales all heads share.
    init_std : float, optional
        Standard deviation of the initial weights; see `Linear`.

    Raises
    ------
    ValueError
        If a size is not a positive integer, `num_heads` times 2 does not divide `dim` and `head_dim` is not given, or
        `lambda_init` is not from 0 to 1.

    References
    ----------
    Ye et al., "Differential Transformer", 2024, arXiv:2410.05258, section 2.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.DifferentialAttention(dim=16, num_heads=2, rotary=aa.Rotary())
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    >>> out, ctx = layer.fwd(params, x, is_causal=True)
    >>> out.shape, layer.bwd(out, ctx).params["lambda"]["query"].shape
    ((2, 5, 16), (2, 4))
    """

    dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    lambda_init: float = 0.8
    rotary: Rotary | None = None
    bias: bool = False
    norm_eps: float = 1e-5
    init_std: float | None = None

    widths: ClassVar = {"x": ("dim",)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim is None and self.dim % (2 * self.num_heads):
            raise ValueError(
                f"Twice `num_heads` ({self.num_heads}) must divide `dim` ({self.dim}), unless `head_dim` is given."
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(f"`num_kv_heads` ({self.num_kv_heads}) must divide `num_heads` ({self.num_heads}).")
        checks.probability("lambda_init", self.lambda_init)
        if self.rotary is not None:
            self.rotary.check_width("head_dim", self._sizes[1])

    @property
    def _sizes(self) -> tuple[int, int]:
        """Hkv and D."""
        return self.num_kv_heads or self.num_heads, self.head_dim or self.dim // (2 * self.num_heads)

    def parts(self) -> dict[str, Any]:
        kv_heads, D = self._sizes
        widths = {"query": 2 * self.num_heads * D, "key": 2 * kv_heads * D, "value": 2 * kv_heads * D}
        return {
            **{name: Linear(self.dim, width, self.bias, self.init_std) for name, width in widths.items()},
            "lambda": Lambda(D),
            "norm": RMSNorm(2 * D, self.norm_eps),
            "out": Linear(2 * self.num_heads * D, self.dim, self.bias, self.init_std),
        }

    def __call__(
        self,
        params: Params,
        x: ArrayT,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[HeadOptions],
    ) -> ArrayT:
        """Return (*batch, T, dim) of x (*batch, T, dim). Options as in `differential_attention`."""
        return self.fwd(params, x, attn_mask, dropout_p, is_causal, **options)[0]

    def fwd(
        self,
        params: Params,
        x: ArrayT,
        attn_mask: Array | Mask | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Unpack[HeadOptions],
    ) -> tuple[ArrayT, DifferentialLayerContext]:
        """The same, and the context for `bwd`."""
        parts, contexts, (kv_heads, _) = self._parts, dict[str, Any](), self._sizes

        def run(name: str, given: Any) -> Any:
            out, contexts[name] = parts[name].fwd(params[name], given)
            return out

        q, k = split_heads(run("query", x), 2 * self.num_heads), split_heads(run("key", x), 2 * kv_heads)
        v, rotations = split_heads(run("value", x), kv_heads), None
        if self.rotary is not None:
            how = {**asdict(self.rotary), "layout": "BTHD"}
            (q, q_ctx), (k, k_ctx) = rotary_fwd(q, **how), rotary_fwd(k, **how)
            rotations = q_ctx, k_ctx
        lambd = narrow(run("lambda", None) + self.lambda_init, q)
        q, k, v = (transpose_heads(y) for y in (q, k, v))
        out, attention = differential_attention_fwd(q, k, v, lambd, attn_mask, dropout_p, is_causal, **options)
        out = join_heads(narrow((1.0 - self.lambda_init) * run("norm", transpose_heads(out)), q))
        return run("out", out), DifferentialLayerContext(contexts, rotations, attention)

    def bwd(self, dout: ArrayT, ctx: DifferentialLayerContext) -> DifferentialLayerGrads[ArrayT]:
        """Return the gradients of x, the parameters, bias and sinks."""
        checks.context("ctx", ctx, DifferentialLayerContext)
        parts, params = self._parts, dict[str, Any]()

        def back(name: str, grad: Any) -> Any:
            found = parts[name].bwd(grad, ctx.parts[name])
            params[name] = found.params
            return found.x

        do = narrow((1.0 - self.lambda_init) * split_heads(back("out", dout), self.num_heads), dout)
        grads = differential_attention_bwd(transpose_heads(back("norm", do)), ctx.attention)
        back("lambda", grads.lambd)
        dq, dk, dv = (transpose_heads(grad) for grad in grads[:3])
        if ctx.rotations is not None:
            dq, dk = (rotary_bwd(grad, own).x for grad, own in zip((dq, dk), ctx.rotations, strict=True))
        dx = back("query", join_heads(dq)) + back("key", join_heads(dk)) + back("value", join_heads(dv))
        params = {name: params[name] for name in parts}
        return DifferentialLayerGrads(dx, check_gradients(self, params), grads.bias, grads.sinks)


@dataclass(frozen=True)
class Lambda(Layer):
    r"""The learned part of lambda.

    .. math:: \lambda - \lambda_0 = e^{l_{q1} \cdot l_{k1}} - e^{l_{q2} \cdot l_{k2}}
    """

    head_dim: int

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """query (2, D), key (2, D), normal with standard deviation 0.1."""
        return {
            name: own.normal((2, self.head_dim), 0.1, dtype)
            for name, own in zip(self.shapes(), rng.split(2), strict=True)
        }

    def shapes(self) -> Shapes:
        return {"query": (2, self.head_dim), "key": (2, self.head_dim)}

    def fwd(self, params: Params, x: None) -> tuple[Any, Any]:
        """A number, (), and the context for `bwd`."""
        xp, (q, k) = namespace_of(params["query"]), (params["query"], params["key"])
        exps = xp.exp(xp.sum(q * k, axis=1))
        return exps[0] - exps[1], (q, k, exps)

    def bwd(self, dout: Any, ctx: Any) -> LayerGrads[Any]:
        r"""The gradients of the parameters: of the first row :math:`dl_q = d\lambda\, e^{l_q \cdot l_k} l_k`."""
        q, k, exps = ctx
        xp = namespace_of(q)
        dexps = xp.stack([dout, -dout])[:, None] * exps[:, None]
        return LayerGrads(None, {"query": dexps * k, "key": dexps * q})
