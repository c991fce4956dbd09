"""Queries and keys between their projections and their dot products, and the gate of the output, in all heads.

Projections (*batch, T, H D) become heads (*batch, T, H, D): normalized if the parameters have norms, of unit length and
scaled if they have a `logit_scale` (cosine attention), and rotated. Each function has its backward directly below it.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Generic, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.attention.products import hiding_product
from attnarray.attention.sequences import contributing_rows, project, project_backward
from attnarray.backend import Array, ArrayT, device_of, namespace_of, to_numpy
from attnarray.ops.activations import SigmoidContext, sigmoid_bwd, sigmoid_fwd
from attnarray.ops.linear import LinearContext, LinearGrads, linear
from attnarray.ops.norm import RMSNormContext, RMSNormGrads, rms_norm_bwd, rms_norm_fwd
from attnarray.ops.positions import check_positions
from attnarray.ops.rotary import Rotary, RotaryContext, rotary_fwd

OPTIONAL_PARTS = ("query_norm", "key_norm", "logit_scale", "gate")
LARGEST_LOGIT_SCALE = math.log(100.0)  # 1 / tau is at most 100, as in Swin v2
COSINE_EPS = 1e-24  # of the squared length of a vector, so that only that of a zero vector matters


class HeadContext(NamedTuple, Generic[ArrayT]):
    """What the backward of `heads` needs; None for the steps that are not taken."""

    num_heads: int
    norm: RMSNormContext[ArrayT] | None
    has_weight: bool
    over_all: bool  # one norm of the features of all heads
    factor: ArrayT | None  # e^logit_scale / Dk of each head (H,), for queries
    clamped: ArrayT | None  # (H,) bool


class HeadGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    norm: ArrayT | None
    logit_scale: ArrayT | None


class GateContext(NamedTuple, Generic[ArrayT]):
    projection: LinearContext[ArrayT]
    gate: SigmoidContext[ArrayT]
    out: ArrayT  # before the gate: (*batch, T, H, Dv)


def split_heads(x: Array, num_heads: int) -> Array:
    """(*batch, T, H D) -> (*batch, T, H, D)."""
    return namespace_of(x).reshape(x, (*x.shape[:-1], num_heads, x.shape[-1] // num_heads))


def join_heads(x: Array) -> Array:
    """(*batch, T, H, D) -> (*batch, T, H D)."""
    return namespace_of(x).reshape(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]))


def transpose_heads(x: Any) -> Any:
    """(*batch, T, H, D) -> (*batch, H, T, D), and back."""
    return namespace_of(x).permute_dims(x, (*range(x.ndim - 3), x.ndim - 2, x.ndim - 3, x.ndim - 1))


def heads(x: Array, num_heads: int, params: Any, name: str, eps: float) -> tuple[Array, HeadContext]:
    r"""The heads (*batch, T, H, D) of projected queries or keys (*batch, T, H D), normalized, and the context.

    .. math::
        q^h = w \odot \frac{q^h}{\sqrt{\mathrm{mean}((q^h)^2) + \epsilon}} \qquad \text{or} \qquad
        q^h = \frac{e^{\min(l_h, \log 100)}}{|q^h|} q^h

    The second one is that of cosine attention, for queries; D times the normalized key is then its unit vector.
    """
    xp = namespace_of(x)
    weight = params[f"{name}_norm"]["weight"] if f"{name}_norm" in params else None
    logit_scale = params["logit_scale"]["weight"] if "logit_scale" in params else None
    width, norm, factor, clamped = x.shape[-1] // num_heads, None, None, None
    over_all = weight is not None and weight.shape[0] != width
    x = x if over_all else split_heads(x, num_heads)
    if weight is not None:
        x, norm = rms_norm_fwd(x, xp.astype(weight, x.dtype, copy=False), eps=eps)
    elif logit_scale is not None:
        x, norm = rms_norm_fwd(x, eps=COSINE_EPS / width)
    x = split_heads(x, num_heads) if over_all else x
    if logit_scale is not None and name == "query":
        logit_scale = xp.astype(logit_scale, x.dtype, copy=False)
        clamped = logit_scale > LARGEST_LOGIT_SCALE
        factor = xp.exp(xp.where(clamped, LARGEST_LOGIT_SCALE, logit_scale)) / width
        x = x * factor[:, None]
    return x, HeadContext(num_heads, norm, weight is not None, over_all, factor, clamped)


def heads_backward(dx: Array, ctx: HeadContext) -> HeadGrads:
    r"""The gradients of `heads`: of its argument (*batch, T, H D), of the weight of the norm, and of `logit_scale`.

    .. math:: dl_h = [l_h \le \log 100] \sum_i dq^h_i \cdot q^h_i

    and that of the norm as in `rms_norm_bwd`, with the gradient of the queries times e^l / D before.
    """
    xp, norm, dlogit_scale = namespace_of(dx), ctx.norm, None
    if norm is None:
        return HeadGrads(join_heads(dx), None, None)
    if ctx.factor is not None:
        before = hiding_product(dx, norm.x * norm.inverse_rms)
        per_head = xp.sum(xp.reshape(before, (-1, *before.shape[-2:])), axis=(0, 2)) * ctx.factor
        dlogit_scale = xp.where(ctx.clamped, 0.0, per_head)
        dx = dx * ctx.factor[:, None]
    grads = _norm_backward(join_heads(dx) if ctx.over_all else dx, norm)
    dx = grads.x if ctx.over_all else join_heads(grads.x)
    return HeadGrads(dx, grads.weight, dlogit_scale)


def _norm_backward(dy: Array, ctx: RMSNormContext) -> RMSNormGrads:
    """`rms_norm_bwd`, where vectors whose gradient is 0 may hold NaN: masks hide them."""
    xp, x = namespace_of(dy), contributing_rows(ctx.x, dy)
    if x is not ctx.x:
        inverse = xp.where(xp.any(dy != 0, axis=-1, keepdims=True), ctx.inverse_rms, 0.0)
        ctx = ctx._replace(x=x, inverse_rms=inverse)
    return rms_norm_bwd(dy, ctx)


def rotated(
    q: Array, k: Array, rotary: Rotary | None, options: Any, has_key: bool, batch_axes: int
) -> tuple[Array, Array, tuple[RotaryContext, RotaryContext] | None]:
    """Queries (*batch, T, H, D) and keys rotated by their positions, and both contexts."""
    positions = options.get("positions")
    if positions is not None and (rotary is None or has_key):
        raise ValueError("`positions` are given, but they are for self-attention (no `key`) with `rotary`. Drop them.")
    if rotary is None:
        return q, k, None
    if not isinstance(rotary, Rotary):
        raise TypeError(f"`rotary` is {checks.shown(rotary)}, expected attnarray.Rotary(...).")
    how: dict[str, Any] = {**asdict(rotary), "layout": "BTHD"}
    parallel = options.get("context_parallel")
    if positions is None:
        queries, keys, past = _query_positions(q, options.get("q_offset", 0), batch_axes, parallel), {}, k.shape[-3]
        if parallel is not None:
            columns, past = parallel.positions(lambda: k.shape[-3])
            keys = {"positions": namespace_of(k).asarray(columns, device=device_of(k))}
        if rotary.depends_on_length:
            given = queries.get("positions")
            last = queries["offset"] + q.shape[-3] if given is None else to_numpy(given).max(initial=-1) + 1
            how["seq_len"] = max(int(last), past)
        (q, q_ctx), (k, k_ctx) = rotary_fwd(q, **queries, **how), rotary_fwd(k, **keys, **how)
    else:
        (q, q_ctx), (k, k_ctx) = rotary_fwd(q, positions, **how), rotary_fwd(k, positions, **how)
    return q, k, (q_ctx, k_ctx)


def _query_positions(q: Array, q_offset: Any, batch_axes: int, parallel: Any) -> dict[str, Any]:
    """The offset or the positions (*batch, T) of the queries, as `rotary_fwd` takes them."""
    xp = namespace_of(q)
    offset = check_positions(
        "q_offset", checks.same_device("q_offset", checks.integers("q_offset", q_offset), "query", q)
    )
    if isinstance(offset, int) and parallel is None:
        return {"offset": offset}
    rows = np.arange(q.shape[-3]) if parallel is None else parallel.positions(lambda: q.shape[-3])[0]
    own = xp.asarray(rows, device=device_of(q))
    if isinstance(offset, int):
        return {"positions": own + offset}
    first = xp.reshape(offset, (*offset.shape, *[1] * (batch_axes + 1 - offset.ndim)))  # (*batch, 1)
    return {"positions": first + xp.astype(own, offset.dtype)}


def gated(out: ArrayT, x: Array, params: Any) -> tuple[ArrayT, GateContext[ArrayT]]:
    r"""The outputs of all heads (*batch, T, H, Dv), each number or each head times its gate.

    .. math:: \sigma(W_G x_i + b_G) \odot o_i
    """
    gate, projection = project(x, **params)
    gate, gate_ctx = sigmoid_fwd(split_heads(gate, out.shape[-2]))  # (*batch, T, H, 1 or Dv)
    return namespace_of(out).astype(out * gate, out.dtype, copy=False), GateContext(projection, gate_ctx, out)


def gated_backward(dout: Array, ctx: GateContext[ArrayT]) -> tuple[Array, LinearGrads[ArrayT]]:
    r"""The gradients of the outputs of all heads, and those of the projection of the gate.

    .. math:: do = \sigma(g) \odot dy, \qquad dg = \sigma(g) (1 - \sigma(g))\, (o \odot dy)

    summed over the features of a head where the gate is one number.
    """
    xp, gate = namespace_of(dout), ctx.gate.out
    dgate = hiding_product(dout, ctx.out)
    dgate = xp.sum(dgate, axis=-1, keepdims=True) if gate.shape[-1] == 1 else dgate
    dgate = sigmoid_bwd(dgate, ctx.gate).x
    return dout * gate, project_backward(join_heads(dgate), ctx.projection)


def output(out: Array, x: Array, params: Any) -> Array:
    """The output (*batch, T, E) from that of all heads (*batch, T, H, Dv), and the inputs x of the queries."""
    out = gated(out, x, params["gate"])[0] if "gate" in params else out
    return linear(join_heads(out), **params["out"])


def check_optional_parts(params: Any, num_heads: int, num_kv_heads: int, Dk: int, Dv: int, inputs: int) -> None:
    """Check the shapes of norms, `logit_scale` and gate."""
    given = [part for part in OPTIONAL_PARTS if part in params]
    if ("query_norm" in given) != ("key_norm" in given):
        one, other = ("query", "key") if "query_norm" in given else ("key", "query")
        raise ValueError(f"`params` has '{one}_norm' but no '{other}_norm', expected both or neither.")
    if "logit_scale" in given and "query_norm" in given:
        raise ValueError(
            "`params` has both 'query_norm' and 'logit_scale'; cosine attention has norms already: drop one."
        )
    counts = {"query_norm": num_heads, "key_norm": num_kv_heads}
    expected: dict[str, tuple[tuple[int, ...], ...]] = {n: ((Dk,), (count * Dk,)) for n, count in counts.items()}
    expected |= {"logit_scale": ((num_heads,),), "gate": ((num_heads, inputs), (num_heads * Dv, inputs))}
    for part in given:
        weight, shapes = params[part]["weight"], dict.fromkeys(expected[part])
        if tuple(weight.shape) not in shapes:
            listed = " or ".join(map(str, shapes))
            raise ValueError(f"`params.{part}.weight` has shape {tuple(weight.shape)}, expected {listed}.")
        if "bias" in params[part]:
            if part != "gate":
                raise ValueError(f"`params.{part}` has a 'bias', expected a 'weight' alone.")
            because = "one number per row of `params.gate.weight`"
            checks.shape("params.gate.bias", params[part]["bias"], (weight.shape[0],), because)
