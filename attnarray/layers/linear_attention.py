"""Linear attention with its parameters: RetNet, GLA, DeltaNet, Gated DeltaNet, Mamba-2 and KDA by its options."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np

from attnarray import checks
from attnarray.attention.linear.features import FEATURE_NAMES, FeatureName
from attnarray.attention.linear.linear_attention import (
    LinearAttentionContext,
    LinearAttentionResult,
    Rule,
    linear_attention_bwd,
    linear_attention_fwd,
)
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, asarray, namespace_of
from attnarray.layers.cache import LinearCache, check_linear_cache
from attnarray.layers.checking import check_gradients, check_same
from attnarray.layers.initial import Params, zeros
from attnarray.layers.layer import Layer, LayerGrads, Shapes
from attnarray.layers.linear import Linear
from attnarray.layers.linear_gates import (
    Gates,
    existing_steps,
    fixed_decays,
    gates_backward,
    hide,
    make_gates,
    repeat_heads,
    repeat_heads_backward,
)
from attnarray.layers.norm import RMSNorm
from attnarray.numpy_arrays import writable
from attnarray.ops.activations import sigmoid_bwd, sigmoid_fwd, silu_bwd, silu_fwd
from attnarray.ops.causal_conv1d import CausalConv1dResult, causal_conv1d_bwd, causal_conv1d_fwd
from attnarray.ops.norm import rms_norm_bwd, rms_norm_fwd
from attnarray.ops.rotary import Rotary, rotary_bwd, rotary_fwd
from attnarray.random import Philox

Decay = Literal["none", "fixed", "head", "dim"]
DECAYS: tuple[Decay, ...] = get_args(Decay)
INPUTS = ("query", "key", "value")
UNIT_EPS = 1e-6  # added to the squared length of queries and keys, as in fla and transformers


class LinearLayerContext(NamedTuple):
    """The contexts of all parts, by their names; None for those that the layer does not have."""

    linear: dict[str, Any]
    convs: dict[str, Any]
    units: dict[str, Any]
    rotations: dict[str, Any]
    gates: Gates | None
    rate: Any
    beta: Any
    values: Any  # before they were multiplied by the step size
    exists: Any  # (*batch, T, 1), False in the padding; None if all steps exist
    attention: LinearAttentionContext
    norm: Any
    gate: Any
    normed: Any  # what the gate multiplied
    opened: Any  # the gate


@dataclass(frozen=True)
class LinearAttention(Layer):
    r"""Linear attention of a sequence to its past, with projections, short convolutions, decays and gates.

    .. math::
        q, k, v &= \mathrm{conv}(W_{q, k, v}\, x), \qquad
        g = -e^{A} \odot \mathrm{softplus}(W_g x + b_g), \qquad \beta = \sigma(W_\beta x), \\
        y &= W_O \bigl(\mathrm{norm}(\mathrm{attend}(q, k, v, g, \beta)) \odot \mathrm{silu}(W_z x)\bigr)

    with the rules of `linear_attention`; each part is an option. `retnet`, `gla`, `delta_net`, `gated_delta_net`,
    `mamba2` and `kda` make the layers of these papers.

    Parameters
    ----------
    dim : int
        Features of x and y.
    num_heads : int
        H.
    num_kv_heads : int, optional
        Heads of keys, values and states; H by default.
    num_value_heads : int, optional
        A multiple of H: heads of values, states and outputs, each H-th part of which shares the query and key of one
        head, as in Qwen3-Next and Mamba-2. Not with `num_kv_heads`.
    key_dim, value_dim : int, optional
        Dk and Dv of one head; dim / num_heads by default.
    rule : {"linear", "gated", "delta", "gated_delta"}
    decay : {"none", "fixed", "head", "dim"}
        Of the gated rules: fixed factors 1 - 2^(-5 - h) of RetNet, or g as above for each head or key dimension.
    decay_rank : int, optional
        Of "dim": W_g is a product of two matrices with so many features between them; dim / num_heads by default.
    conv_width : int, optional
        Width of causal convolutions of each channel of q, k and v, with silu; none by default.
    feature_map : {"elu+1", "relu", "squared", "exp", "softmax"}, optional
    normalize : bool
        Divide by the sum of weights: see `linear_attention`.
    unit_keys : bool
        Queries and keys of length 1, as the delta rules need.
    step_size : bool
        Multiply values by softplus(W_g x + b_g), the step size of Mamba-2; for decay="head".
    output_norm, output_gate : bool
        RMS norm of each head's output, and the gate silu(W_z x).
    norm_eps : float
        Epsilon of the norm.
    rotary : Rotary, optional
    init_std : float, optional
        Standard deviation of the initial weights; see `Linear`.

    References
    ----------
    RetNet: Sun et al., 2023, arXiv:2307.08621. GLA: Yang et al., 2023, arXiv:2312.06635. DeltaNet: Yang et al., 2024,
    arXiv:2406.06484. Gated DeltaNet: Yang et al., 2024, arXiv:2412.06464. Mamba-2: Dao and Gu, 2024, arXiv:2405.21060.
    KDA: Kimi Team, 2025, arXiv:2510.26692.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> layer = aa.layers.LinearAttention.gated_delta_net(dim=16, num_heads=2)
    >>> params = layer.init(aa.Philox(0))
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    >>> out, ctx = layer.fwd(params, x)
    >>> out.shape, layer.bwd(out, ctx).x.shape
    ((2, 5, 16), (2, 5, 16))
    >>> first, cache = layer.step(params, x[:, :3], layer.cache(2))
    >>> rest, cache = layer.step(params, x[:, 3:], cache)
    >>> bool(np.allclose(np.concatenate([first, rest], axis=1), out, atol=1e-5))
    True
    """

    dim: int
    num_heads: int
    num_kv_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    rule: Rule = "linear"
    decay: Decay = "none"
    decay_rank: int | None = None
    conv_width: int | None = None
    feature_map: FeatureName | None = None
    normalize: bool = False
    unit_keys: bool = False
    step_size: bool = False
    output_norm: bool = False
    output_gate: bool = False
    rotary: Rotary | None = None
    init_std: float | None = None
    num_value_heads: int | None = None
    norm_eps: float = 1e-6

    widths: ClassVar = {"x": ("dim",)}

    @classmethod
    def retnet(cls, dim: int, num_heads: int, **changes: Any) -> Self:
        """Retention: fixed decays, rotations, a norm of each head and a gate."""
        own = {"rule": "gated", "decay": "fixed", "rotary": Rotary(), "output_norm": True, "output_gate": True}
        return cls(dim, num_heads, **{**own, **changes})

    @classmethod
    def gla(cls, dim: int, num_heads: int, **changes: Any) -> Self:
        """Gated linear attention: a decay for each key dimension; logsigmoid(z) / 16 is -softplus(-z) / 16."""
        own = {"rule": "gated", "decay": "dim", "decay_rank": 16, "output_norm": True, "output_gate": True}
        return cls(dim, num_heads, **{**own, **changes})

    @classmethod
    def delta_net(cls, dim: int, num_heads: int, **changes: Any) -> Self:
        """DeltaNet: the delta rule with short convolutions and keys of length 1."""
        own = {"rule": "delta", "conv_width": 4, "unit_keys": True, "output_norm": True}
        return cls(dim, num_heads, **{**own, **changes})

    @classmethod
    def gated_delta_net(cls, dim: int, num_heads: int, **changes: Any) -> Self:
        """Gated DeltaNet: the same with a decay for each head and an output gate."""
        return cls.delta_net(dim, num_heads, **{"rule": "gated_delta", "decay": "head", "output_gate": True, **changes})

    @classmethod
    def kda(cls, dim: int, num_heads: int, **changes: Any) -> Self:
        """Kimi delta attention: the same with a decay for each key dimension."""
        return cls.gated_delta_net(dim, num_heads, **{"decay": "dim", **changes})

    @classmethod
    def mamba2(cls, dim: int, num_heads: int, **changes: Any) -> Self:
        """The state space dual of Mamba-2 as a gated rule, with B and C as keys and queries of each head."""
        own = {"rule": "gated", "decay": "head", "conv_width": 4, "step_size": True}
        return cls(dim, num_heads, **{**own, "output_norm": True, "output_gate": True, **changes})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("rule", self.rule, get_args(Rule))
        checks.choice("decay", self.decay, DECAYS)
        checks.choice("feature_map", self.feature_map, (None, *FEATURE_NAMES))
        if None in (self.key_dim, self.value_dim) and self.dim % self.num_heads:
            raise ValueError(
                f"`num_heads` ({self.num_heads}) must divide `dim` ({self.dim}), unless `key_dim` and `value_dim` of "
                "LinearAttention, the features of one head, are given."
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(f"`num_kv_heads` ({self.num_kv_heads}) must divide `num_heads` ({self.num_heads}).")
        if (self.num_value_heads or self.num_heads) % self.num_heads:
            raise ValueError(f"`num_heads` ({self.num_heads}) must divide `num_value_heads` ({self.num_value_heads}).")
        if None not in (self.num_kv_heads, self.num_value_heads):
            raise ValueError(
                f"`num_value_heads` is {self.num_value_heads} and `num_kv_heads` {self.num_kv_heads}, expected one of "
                "them: several values share a key, or several queries a key and a value."
            )
        if (self.decay != "none") != self.rule.startswith("gated"):
            raise ValueError(
                f"`decay` is {self.decay!r} with rule={self.rule!r}: the rules 'gated' and 'gated_delta' have a decay, "
                "the others 'none'."
            )
        if self.step_size and self.decay != "head":
            raise ValueError(f"`step_size` is True with decay={self.decay!r}, expected decay='head', which makes it.")
        if self.rotary is not None:
            self.rotary.check_width("key_dim", self._sizes[2])

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """The heads of outputs and of states, Dk and Dv."""
        width = self.dim // self.num_heads
        heads = self.num_value_heads or self.num_heads
        return heads, self.num_kv_heads or heads, self.key_dim or width, self.value_dim or width

    @property
    def _input_heads(self) -> dict[str, int]:
        """The heads of queries, keys and values."""
        return {"query": self.num_heads, "key": self.num_kv_heads or self.num_heads, "value": self._sizes[1]}

    @property
    def _channels(self) -> dict[str, int]:
        *_, Dk, Dv = self._sizes
        widths = {"query": Dk, "key": Dk, "value": Dv}
        return {name: heads * widths[name] for name, heads in self._input_heads.items()}

    @property
    def _cache_shapes(self) -> Shapes:
        """Of the state of a sequence and of the last steps of its convolutions."""
        _, heads, Dk, Dv = self._sizes
        convs = self._channels.items() if self.conv_width is not None else ()
        rows = (self.conv_width or 1) - 1
        return {"state": (heads, Dk, Dv + self.normalize), **{name: (rows, width) for name, width in convs}}

    @property
    def _repeats(self) -> int:
        """The values that share a key."""
        return (self.num_value_heads or self.num_heads) // self.num_heads

    def parts(self) -> dict[str, Any]:
        H, Hkv, Dk, Dv = self._sizes
        made: dict[str, Any] = {
            name: Linear(self.dim, width, False, self.init_std) for name, width in self._channels.items()
        }
        if self.decay == "head":
            made["decay"] = Linear(self.dim, Hkv, True, self.init_std)
        if self.decay == "dim":
            rank = self.decay_rank or max(self.dim // self.num_heads, 1)
            made["decay_down"] = Linear(self.dim, rank, False, self.init_std)
            made["decay"] = Linear(rank, Hkv * Dk, True, self.init_std)
        if self.rule.endswith("delta"):
            made["beta"] = Linear(self.dim, Hkv, False, self.init_std)
        if self.output_gate:
            made["gate"] = Linear(self.dim, H * Dv, False, self.init_std)
        if self.output_norm:
            made["norm"] = RMSNorm(Dv, self.norm_eps)
        return {**made, "out": Linear(H * Dv, self.dim, False, self.init_std)}

    def init(self, rng: Philox, dtype: str = "float32") -> Params:
        """The parameters of the parts; decay_rate (Hkv,), A; and query_conv, key_conv, value_conv (channels, width).

        Of decay="head" A is log 1 to log 16, and b_g such that softplus(b_g) is 0.1 to 0.001: the memory of a head is
        some 10 to 60 steps. Of "dim" A is log(1/16) and b_g is 0.
        """
        params, rngs = super().init(rng, dtype), rng.fold_in(1).split(3)
        heads = self._sizes[1]
        if self.decay in ("head", "dim"):
            first, last = (1.0, 16.0) if self.decay == "head" else (1.0 / 16.0,) * 2
            params["decay_rate"] = asarray(np.log(np.linspace(first, last, heads)), dtype=dtype)
        if self.decay == "head":
            params["decay"]["bias"] = asarray(np.log(np.expm1(np.geomspace(0.1, 0.001, heads))), dtype=dtype)
        if self.conv_width is not None:
            for own, (name, width) in zip(rngs, self._channels.items(), strict=True):
                bound = self.conv_width**-0.5
                weight = own.uniform((width, self.conv_width), -bound, bound)
                params[f"{name}_conv"] = asarray(weight, dtype=dtype)
        return params

    def shapes(self) -> Shapes:
        shapes = super().shapes()
        if self.decay in ("head", "dim"):
            shapes["decay_rate"] = (self._sizes[1],)
        if self.conv_width is not None:
            shapes |= {f"{name}_conv": (width, self.conv_width) for name, width in self._channels.items()}
        return shapes

    def __call__(self, params: Params, x: ArrayT, *, lengths: Any = None, starts: Any = None) -> ArrayT:
        """Return y (*batch, T, dim) of x (*batch, T, dim).

        `lengths` as in `linear_attention`; `starts`, an integer or (*batch), are the lengths of the left padding, and
        need a layer without a feature map. Padding may be anything: it does not change the states, and y is 0 there.
        """
        return writable(self._run(params, x, None, lengths, starts)[0])

    def fwd(
        self, params: Params, x: ArrayT, *, lengths: Any = None, starts: Any = None
    ) -> tuple[ArrayT, LinearLayerContext]:
        """The same, and the context for `bwd`."""
        return self._run(params, x, None, lengths, starts)[:2]

    def cache(self, batch: int, max_seq_len: int | None = None, dtype: str = "float32") -> LinearCache:
        """Return the state before the first position, on the current backend; it has no largest length."""
        batch = checks.whole("batch", batch, 0, 2**31, "the number of sequences")
        checks.choice("dtype", dtype, checks.FLOATS)
        sums = "float64" if dtype == "float64" else "float32"
        shapes = self._cache_shapes
        state = zeros(batch, *shapes.pop("state"), dtype=sums)
        return LinearCache(state, {name: zeros(batch, *shape, dtype=dtype) for name, shape in shapes.items()}, 0)

    def step(self, params: Params, x: Array, cache: LinearCache, *, starts: Any = None) -> tuple[Array, LinearCache]:
        """Attend from the next positions x (B, T, dim) to themselves and to those that the state of the cache holds.

        The result equals that of one call over all positions, with the same `starts`.
        """
        check_linear_cache(cache, x)
        found = {name: tuple(array.shape[1:]) for name, array in {"state": cache.state, **cache.convs}.items()}
        if found != self._cache_shapes:
            raise ValueError(
                f"`cache` is from another LinearAttention: the shapes of its states are {found}, expected "
                f"{self._cache_shapes}. Begin with the `cache` of this layer."
            )
        out, _, after = self._run(params, x, cache, None, starts)
        return out, after

    def _run(
        self, params: Params, x: Any, cache: LinearCache | None, lengths: Any, starts: Any
    ) -> tuple[Any, LinearLayerContext, LinearCache]:
        """The output, the contexts, and the states after the last position."""
        parts, xp = self._parts, namespace_of(x)
        if starts is not None and self.feature_map is not None:
            raise ValueError(
                f"`starts` is given, but the layer has feature_map={self.feature_map!r}, which may map the padding to "
                "numbers other than 0. Give right-padded sequences and `lengths`."
            )
        exists = existing_steps(starts, lengths, x, 0 if cache is None else cache.length)
        x = hide(x, exists)  # so that queries, keys and values are 0 in the padding
        linear: dict[str, Any] = {}
        arrays, convs, units, rotations, states = self._project(params, x, cache, linear)
        gates, step = self._gates(params, x, linear)
        values = arrays["value"]
        if step is not None:
            arrays["value"] = values * step[..., None]
        beta = beta_ctx = None
        if "beta" in parts:
            beta, linear["beta"] = parts["beta"].fwd(params["beta"], x)
            beta, beta_ctx = sigmoid_fwd(beta)
        decay = None if gates is None else narrow(gates.decay, x)
        if self.decay == "fixed":
            decay = fixed_decays(x, self._sizes[1])
        result, attention = linear_attention_fwd(
            *(narrow(arrays[name], x) for name in INPUTS), decay=decay, beta=beta, rule=self.rule,
            normalize=self.normalize, feature_map=self.feature_map, lengths=lengths, layout="BTHD",
            initial_state=None if cache is None else cache.state,
        )  # fmt: skip
        y, norm, gate, normed, opened = result.out, None, None, None, None
        if "norm" in parts:
            y, norm = parts["norm"].fwd(params["norm"], y)
        if "gate" in parts:
            z, linear["gate"] = parts["gate"].fwd(params["gate"], x)
            opened, gate = silu_fwd(xp.reshape(z, y.shape))
            y, normed = y * opened, y
        y, linear["out"] = parts["out"].fwd(params["out"], xp.reshape(y, (*x.shape[:-1], y.shape[-2] * y.shape[-1])))
        ctx = LinearLayerContext(
            linear, convs, units, rotations, gates, params.get("decay_rate"), beta_ctx,
            values if step is not None else None, exists, attention, norm, gate, normed, opened,
        )  # fmt: skip
        return y, ctx, LinearCache(result.state, states, (0 if cache is None else cache.length) + x.shape[-2])

    def _project(self, params: Params, x: Any, cache: LinearCache | None, linear: dict[str, Any]) -> tuple[Any, ...]:
        """Queries, keys and values (*batch, T, heads, D), their contexts, and the states of the convolutions."""
        arrays, convs, units, rotations, states = {}, {}, {}, {}, {}
        for name, heads in self._input_heads.items():
            width = self._channels[name] // heads
            y, linear[name] = self._parts[name].fwd(params[name], x)
            if self.conv_width is not None:
                before, weight = None if cache is None else cache.convs[name], params[f"{name}_conv"]
                (y, states[name]), convs[name] = causal_conv1d_fwd(y, weight, initial_state=before, activation="silu")
            y = namespace_of(x).reshape(y, (*x.shape[:-1], heads, width))
            if self.rotary is not None and name != "value":
                offset = 0 if cache is None else cache.length
                y, rotations[name] = rotary_fwd(y, **{**asdict(self.rotary), "offset": offset, "layout": "BTHD"})
            if self.unit_keys and name != "value":
                y, units[name] = rms_norm_fwd(y, eps=UNIT_EPS / width)
                y = y / math.sqrt(width)
            arrays[name] = y if name == "value" else repeat_heads(y, self._repeats)
        return arrays, convs, units, rotations, states

    def _gates(self, params: Params, x: Any, linear: dict[str, Any]) -> tuple[Gates | None, Any]:
        """The decays, and the step size if there is one."""
        if self.decay not in ("head", "dim"):
            return None, None
        z = x
        for name in ("decay_down", "decay"):
            if name in self._parts:
                z, linear[name] = self._parts[name].fwd(params[name], z)
        gates = make_gates(z, params["decay_rate"], self._sizes[2] if self.decay == "dim" else None)
        return gates, narrow(gates.softplus, x) if self.step_size else None

    def bwd(self, dout: ArrayT, ctx: LinearLayerContext) -> LayerGrads[ArrayT]:
        """The gradients of x and the parameters."""
        checks.context("ctx", ctx, LinearLayerContext)
        q, k, v = ctx.attention.q, ctx.attention.k, ctx.attention.v
        check_same(self, "sizes of heads", (q.shape[1], k.shape[1], q.shape[3], v.shape[3]), self._sizes)
        there = [*ctx.linear, *(f"{name}_conv" for name in ctx.convs), *(["norm"] if ctx.norm is not None else [])]
        there += ["decay_rate"] if ctx.gates is not None else []
        check_same(self, "parts", sorted(there), sorted(self._shapes))
        parts = self._parts
        params: Params = {}
        dxs: list[Any] = []

        def through(name: str, dy: Any) -> Any:
            grads = parts[name].bwd(dy, ctx.linear[name])
            params[name] = grads.params
            return grads.x

        H, *_, Dv = self._sizes
        dy = through("out", dout)  # which checks the cotangent
        xp = namespace_of(dy)
        dy = xp.reshape(dy, (*dout.shape[:-1], H, Dv))
        if ctx.gate is not None:
            dz = silu_bwd(dy * ctx.normed, ctx.gate).x
            dxs.append(through("gate", xp.reshape(dz, (*dout.shape[:-1], H * Dv))))
            dy = dy * ctx.opened
        if ctx.norm is not None:
            norm = parts["norm"].bwd(dy, ctx.norm)
            dy, params["norm"] = norm.x, norm.params
        grads = linear_attention_bwd(LinearAttentionResult(dy, None), ctx.attention)
        if ctx.beta is not None and grads.beta is not None:
            dxs.append(through("beta", sigmoid_bwd(grads.beta, ctx.beta).x))
        dvalue, dgates = grads.value, None
        if ctx.gates is not None:
            dgates, params["decay_rate"], dvalue = gates_backward(grads.decay, dvalue, ctx.gates, ctx.rate, ctx.values)
            for name in ("decay", "decay_down"):
                dgates = through(name, dgates) if name in parts else dgates
            dxs.append(dgates)
        for name, grad in (("query", grads.query), ("key", grads.key), ("value", dvalue)):
            dxs.append(through(name, self._input_backward(name, grad, ctx, params)))
        dx = dxs[0]
        for other in dxs[1:]:
            dx = dx + other
        ordered = {name: params[name] for name in self._shapes}
        return LayerGrads(hide(dx, ctx.exists), check_gradients(self, ordered))

    def _input_backward(self, name: str, grad: Any, ctx: LinearLayerContext, params: Params) -> Any:
        """From the gradient of queries, keys or values that of their projection."""
        xp = namespace_of(grad)
        if name != "value":
            grad = repeat_heads_backward(grad, self._repeats)
        if name in ctx.units:
            grad = rms_norm_bwd(narrow(wide(grad) / math.sqrt(grad.shape[-1]), grad), ctx.units[name]).x
        if name in ctx.rotations:
            grad = rotary_bwd(grad, ctx.rotations[name]).x
        grad = xp.reshape(grad, (*grad.shape[:-2], grad.shape[-2] * grad.shape[-1]))
        if name in ctx.convs:
            conv = causal_conv1d_bwd(CausalConv1dResult(grad, None), ctx.convs[name])
            grad, params[f"{name}_conv"] = conv.x, conv.weight
        return grad
