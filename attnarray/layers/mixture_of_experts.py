"""A mixture of experts: each position is computed by the feed-forward networks that a router selects."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.backend import Array, ArrayT, device_of, index_dtype, namespace_of, to_numpy
from attnarray.layers.checking import check_same
from attnarray.layers.feed_forward import Activation, FeedForward, FeedForwardContext
from attnarray.layers.initial import Params
from attnarray.layers.layer import Layer, LayerGrads, Shapes
from attnarray.layers.linear import Linear
from attnarray.ops.activations import SigmoidContext, sigmoid_bwd, sigmoid_fwd
from attnarray.ops.linear import LinearContext
from attnarray.ops.softmax import SoftmaxContext, softmax_bwd, softmax_fwd
from attnarray.random import Philox


class SharedContext(NamedTuple):
    """Of the expert of all positions."""

    expert: FeedForwardContext
    out: Array  # (N, E)
    linear: LinearContext
    gate: SigmoidContext


class MixtureContext(NamedTuple):
    """`router_logits(ctx)` are the scores of all experts."""

    router: LinearContext
    logits: Array  # (N, X), of all N positions
    chosen: Array  # (N, K): the experts of each position
    gates: SoftmaxContext  # (N, K), or (N, X) if not renormalized
    experts: tuple[FeedForwardContext, ...]
    outputs: Array  # (N, K, E), of the chosen experts
    shape: tuple[int, ...]  # of x
    shared: SharedContext | None = None


@dataclass(frozen=True)
class Experts:
    """Equal feed-forward networks, whose parameters are a list."""

    expert: FeedForward
    count: int

    def init(self, rng: Philox, dtype: str = "float32") -> list[Params]:
        """Initial parameters, each expert's from its own generator."""
        return [self.expert.init(own, dtype) for own in rng.split(self.count)]

    def shapes(self) -> list[Shapes]:
        """The shapes of all parameters, as a tree like them."""
        return [self.expert.shapes()] * self.count


@dataclass(frozen=True)
class MixtureOfExperts(Layer):
    r"""A sparse mixture of feed-forward networks.

    .. math::
        y = \sum_{e \in T} g_e\, f_e(x), \qquad z = W_R x, \quad T = \text{the } k \text{ largest of } z, \quad
        g = \mathrm{softmax}_{e \in T}(z_e)

    and with a shared expert :math:`\sigma(w_S \cdot x)\, f_S(x)` besides.

    Parameters
    ----------
    dim, hidden_dim : int
        Features of x and y, and of the hidden layer of each expert.
    num_experts : int
        Experts f.
    experts_per_token : int
        k, at most `num_experts`. Of equal scores, the first ones are taken.
    activation, gated, bias
        Of each expert: see `FeedForward`. The router has no bias.
    renormalize : bool
        Whether the gates of the selected experts sum to 1 (Mixtral), or are those of the softmax over all experts.
    init_std : float, optional
        Standard deviation of the initial weights; see `Linear`.
    shared_dim : int, optional
        Hidden features of an expert that computes all positions, times a sigmoid of a projection of x (Qwen2-MoE); none
        by default.

    Raises
    ------
    ValueError
        If a size is not a positive integer, or `experts_per_token` exceeds `num_experts`.

    Notes
    -----
    Only the selected experts are computed, each for all its positions at once. The selection is constant almost
    everywhere, so it has no gradient; the router learns by the gates, and by losses of its logits, such as those that
    balance the load (Fedus et al., 2021, arXiv:2101.03961), whose gradient `bwd` takes.

    References
    ----------
    Shazeer et al., 2017, arXiv:1701.06538. Jiang et al., "Mixtral of experts", 2024, arXiv:2401.04088.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.MixtureOfExperts(4, 8, num_experts=3, experts_per_token=2)
    >>> y, ctx = layer.fwd(layer.init(aa.Philox(0)), np.ones((5, 4), np.float32))
    >>> len(layer.bwd(y, ctx).params["experts"]), layer.router_logits(ctx).shape
    (3, (5, 3))
    """

    widths: ClassVar = {"x": ("dim",)}
    axes: ClassVar = 1

    dim: int
    hidden_dim: int
    num_experts: int
    experts_per_token: int = 2
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    renormalize: bool = True
    init_std: float | None = None
    shared_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"`experts_per_token` ({self.experts_per_token}) must be at most `num_experts` ({self.num_experts})."
            )
        self.parts()  # validates the fields of the parts

    def parts(self) -> dict[str, Any]:
        expert = FeedForward(self.dim, self.hidden_dim, self.activation, self.gated, self.bias, 0.0, self.init_std)
        router = Linear(self.dim, self.num_experts, False, self.init_std)
        found: dict[str, Any] = {"router": router, "experts": Experts(expert, self.num_experts)}
        if self.shared_dim is not None:
            found["shared"] = dataclasses.replace(expert, hidden_dim=self.shared_dim)
            found["shared_gate"] = Linear(self.dim, 1, False, self.init_std)
        return found

    def __call__(self, params: Params, x: ArrayT) -> ArrayT:
        """y (..., dim) of x (..., dim)."""
        return self.fwd(params, x)[0]

    def fwd(self, params: Params, x: ArrayT) -> tuple[ArrayT, MixtureContext]:
        """The same, and the context for `bwd`."""
        xp, K, shape = namespace_of(x), self.experts_per_token, tuple(x.shape)
        flat = xp.reshape(x, (-1, self.dim))  # (N, E)
        logits, router_ctx = self._parts["router"].fwd(params["router"], flat)
        chosen = xp.argsort(-logits, axis=-1, stable=True)[:, :K]
        if self.renormalize:
            gates, gates_ctx = softmax_fwd(xp.take_along_axis(logits, chosen, axis=1))
        else:
            every, gates_ctx = softmax_fwd(logits)
            gates = xp.take_along_axis(every, chosen, axis=1)
        order, back, bounds = self._groups(chosen)
        pieces, contexts = [], []
        for e in range(self.num_experts):
            rows = order[bounds[e] : bounds[e + 1]] // K
            y, ctx = self._parts["experts"].expert.fwd(params["experts"][e], xp.take(flat, rows, axis=0))
            pieces.append(y)
            contexts.append(ctx)
        outputs = xp.reshape(xp.take(xp.concat(pieces, axis=0), back, axis=0), (-1, K, self.dim))
        y, shared = xp.sum(gates[..., None] * outputs, axis=1), None
        if self.shared_dim is not None:
            out, expert_ctx = self._parts["shared"].fwd(params["shared"], flat)
            z, linear_ctx = self._parts["shared_gate"].fwd(params["shared_gate"], flat)  # (N, 1)
            gate, gate_ctx = sigmoid_fwd(z)
            y, shared = y + gate * out, SharedContext(expert_ctx, out, linear_ctx, gate_ctx)
        ctx = MixtureContext(router_ctx, logits, chosen, gates_ctx, tuple(contexts), outputs, shape, shared)
        return xp.reshape(y, shape), ctx

    def bwd(self, dout: ArrayT, ctx: MixtureContext, drouter_logits: Array | None = None) -> LayerGrads[ArrayT]:
        r"""The gradients of x and the parameters.

        .. math::
            dg_e = dy \cdot f_e(x), \qquad df_e = g_e\, dy, \qquad
            dz_e = g_e \Bigl(dg_e - \sum_{j \in T} g_j\, dg_j\Bigr) \text{ for } e \in T, \text{ else } 0

        `drouter_logits` (..., X) is added to dz: the gradient of a loss of the `router_logits`.
        """
        checks.context("ctx", ctx, MixtureContext)
        check_same(self, "number of experts", len(ctx.experts), self.num_experts)
        check_same(self, "shared expert", ctx.shared is not None, self.shared_dim is not None)
        xp, K = checks.cotangent(dout, ctx.shape, ctx.outputs), self.experts_per_token
        dy = xp.reshape(dout, (-1, 1, self.dim))
        all_gates = ctx.gates.out
        gates = all_gates if self.renormalize else xp.take_along_axis(all_gates, ctx.chosen, axis=1)
        order, back, bounds = self._groups(ctx.chosen)
        dsorted = xp.take(xp.reshape(gates[..., None] * dy, (-1, self.dim)), order, axis=0)
        pieces, experts = [], []
        for e, expert_ctx in enumerate(ctx.experts):
            grads = self._parts["experts"].expert.bwd(dsorted[bounds[e] : bounds[e + 1], :], expert_ctx)
            pieces.append(grads.x)
            experts.append(grads.params)
        dx = xp.sum(xp.reshape(xp.take(xp.concat(pieces, axis=0), back, axis=0), (-1, K, self.dim)), axis=1)
        dlogits = self._router_gradient(xp.sum(dy * ctx.outputs, axis=-1), ctx)
        if drouter_logits is not None:
            expected = (*ctx.shape[:-1], self.num_experts)
            checks.namespace(drouter_logits=drouter_logits, output=ctx.logits)
            checks.shape("drouter_logits", drouter_logits, expected, "the shape of the router's logits")
            checks.floating(drouter_logits=drouter_logits, output=ctx.logits)
            dlogits = dlogits + xp.reshape(drouter_logits, tuple(dlogits.shape))
        router = self._parts["router"].bwd(dlogits, ctx.router)
        dx, params = dx + router.x, {"router": router.params, "experts": experts}
        if ctx.shared is not None:
            dx, params = self._shared_backward(xp.reshape(dout, (-1, self.dim)), dx, params, ctx.shared)
        return LayerGrads(xp.reshape(dx, ctx.shape), params)

    def _shared_backward(self, dy: Array, dx: Array, params: Params, ctx: SharedContext) -> tuple[Array, Params]:
        """Add the gradients of the shared expert, with s its gate: df = s dy, and ds = dy . f(x)."""
        expert = self._parts["shared"].bwd(ctx.gate.out * dy, ctx.expert)
        dgate = namespace_of(dy).sum(dy * ctx.out, axis=-1, keepdims=True)
        gate = self._parts["shared_gate"].bwd(sigmoid_bwd(dgate, ctx.gate).x, ctx.linear)
        return dx + expert.x + gate.x, {**params, "shared": expert.params, "shared_gate": gate.params}

    def router_logits(self, ctx: MixtureContext) -> Array:
        """Return the logits (..., X) of the experts, from the context of a forward."""
        checks.context("ctx", ctx, MixtureContext)
        return namespace_of(ctx.logits).reshape(ctx.logits, (*ctx.shape[:-1], self.num_experts))

    def _router_gradient(self, dgates: Array, ctx: MixtureContext) -> Array:
        """The gradient (N, X) of the logits from that of the gates (N, K)."""
        xp = namespace_of(dgates)
        small = softmax_bwd(dgates, ctx.gates).x if self.renormalize else dgates
        experts = xp.arange(self.num_experts, dtype=ctx.chosen.dtype, device=device_of(dgates))
        spread = xp.sum(xp.where(ctx.chosen[..., None] == experts, small[..., None], 0.0), axis=1)
        spread = xp.astype(spread, dgates.dtype, copy=False)
        return spread if self.renormalize else softmax_bwd(spread, ctx.gates).x

    def _groups(self, chosen: Array) -> tuple[Array, Array, list[int]]:
        """The order (N K,) of all choices by their expert, its inverse, and the bounds of the experts in it."""
        xp = namespace_of(chosen)
        flat = xp.astype(xp.reshape(chosen, (-1,)), index_dtype(xp, chosen), copy=False)
        order = xp.argsort(flat, stable=True)
        counts = np.bincount(to_numpy(flat), minlength=self.num_experts)
        return order, xp.argsort(order, stable=True), [0, *np.cumsum(counts).tolist()]
