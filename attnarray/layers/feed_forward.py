"""The feed-forward network of a Transformer block, optionally gated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_same
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, LayerGrads
from attnarray.layers.linear import Linear
from attnarray.ops.activations import relu, relu_bwd, relu_fwd, silu, silu_bwd, silu_fwd
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.ops.gelu import gelu, gelu_bwd, gelu_fwd
from attnarray.ops.linear import LinearContext
from attnarray.random import Philox

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
# Each activation as the function, its forward and its backward.
ACTIVATIONS: dict[Activation, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "relu": (relu, relu_fwd, relu_bwd),
    "gelu": (gelu, gelu_fwd, gelu_bwd),
    "gelu_tanh": (
        functools.partial(gelu, approximate="tanh"), functools.partial(gelu_fwd, approximate="tanh"), gelu_bwd,
    ),
    "silu": (silu, silu_fwd, silu_bwd),
}  # fmt: skip


class FeedForwardContext(NamedTuple):
    hidden: LinearContext
    activation: Any
    active: Array | None  # with a gate: phi(W_1 x)
    gate: LinearContext | None
    gated: Array | None  # with a gate: W_3 x
    dropout: DropoutContext
    out: LinearContext


@dataclass(frozen=True)
class FeedForward(Layer):
    r"""Two linear maps with an activation between them, or three with a gate.

    .. math::
        y = W_2\, \phi(W_1 x + b_1) + b_2, \qquad \text{gated:} \quad y = W_2\, \bigl(\phi(W_1 x) \odot W_3 x\bigr)

    Parameters
    ----------
    dim : int
        Features of x and y.
    hidden_dim : int
        Features of the hidden layer.
    activation : {"gelu", "gelu_tanh", "relu", "silu"}
        phi; "gelu_tanh" is the tanh approximation, as in GPT-2.
    gated : bool
        Whether there is a W_3: with "silu" it is SwiGLU.
    bias : bool
        Whether the maps have biases.
    dropout : float
        Dropout probability of hidden features, with an `rng`. `fwd` (training) requires one.
    init_std : float, optional
        Standard deviation of the initial weights; see `Linear`.

    Raises
    ------
    ValueError
        If a size is not a positive integer, the activation is unknown, `dropout` is not in [0, 1), or `fwd` has dropout
        and no `rng`.

    References
    ----------
    Vaswani et al., 2017, arXiv:1706.03762, section 3.3. Gates: Shazeer, 2020, arXiv:2002.05202.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.FeedForward(4, 8, activation="silu", gated=True, bias=False)
    >>> y, ctx = layer.fwd(layer.init(aa.Philox(0)), np.ones((5, 4), np.float32))
    >>> sorted(layer.bwd(y, ctx).params)
    ['gate', 'hidden', 'out']
    """

    widths: ClassVar = {"x": ("dim",)}
    axes: ClassVar = 1

    dim: int
    hidden_dim: int
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True
    dropout: float = 0.0
    init_std: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("activation", self.activation, tuple(ACTIVATIONS))

    def parts(self) -> dict[str, Any]:
        up = Linear(self.dim, self.hidden_dim, self.bias, self.init_std)
        out = Linear(self.hidden_dim, self.dim, self.bias, self.init_std)
        return {"hidden": up, **({"gate": up} if self.gated else {}), "out": out}

    def __call__(self, params: Params, x: ArrayT, *, rng: Philox | None = None) -> ArrayT:
        """y (..., dim) of x (..., dim). Without an `rng` there is no dropout (inference)."""
        return self.fwd(params, x, rng=rng)[0]

    def fwd(self, params: Params, x: ArrayT, *, rng: Philox | None = None) -> tuple[ArrayT, FeedForwardContext]:
        """The same, and the context for `bwd`; with dropout it needs an `rng`."""
        parts, (_, activate, _) = self._parts, ACTIVATIONS[self.activation]
        hidden, hidden_ctx = parts["hidden"].fwd(params["hidden"], x)
        active, activation_ctx = activate(hidden)
        kept, gated, gate_ctx = active, None, None
        if self.gated:
            gated, gate_ctx = parts["gate"].fwd(params["gate"], x)
            kept = active * gated
        kept, dropout_ctx = dropout_fwd(kept, self.dropout if rng else 0.0, rng=rng)
        y, out_ctx = parts["out"].fwd(params["out"], kept)
        ctx = FeedForwardContext(
            hidden_ctx, activation_ctx, active if self.gated else None, gate_ctx, gated, dropout_ctx, out_ctx
        )
        return y, ctx

    def bwd(self, dout: ArrayT, ctx: FeedForwardContext) -> LayerGrads[ArrayT]:
        """The gradients of x and the parameters."""
        checks.context("ctx", ctx, FeedForwardContext)
        check_same(self, "gate", ctx.gate is not None, self.gated)
        parts, (_, _, activation_bwd) = self._parts, ACTIVATIONS[self.activation]
        out = parts["out"].bwd(dout, ctx.out)
        dactive = dropout_bwd(out.x, ctx.dropout).x
        params, dx = {"out": out.params}, None
        if ctx.gate is not None:
            gate = parts["gate"].bwd(dactive * ctx.active, ctx.gate)
            dactive, dx, params["gate"] = dactive * ctx.gated, gate.x, gate.params
        hidden = parts["hidden"].bwd(activation_bwd(dactive, ctx.activation).x, ctx.hidden)
        params["hidden"] = hidden.params
        return LayerGrads(hidden.x if dx is None else hidden.x + dx, {name: params[name] for name in parts})
