"""The gated recurrent unit."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.numpy_arrays import writable
from attnarray.ops import recurrence
from attnarray.ops.activations import sigmoid


class GRUResult(NamedTuple, Generic[ArrayT]):
    """The state after every step, and after the last one.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> result = aa.gru(np.zeros((2, 5, 3)), np.zeros((12, 3)), np.zeros((12, 4)))
    >>> result.out.shape, result.h.shape
    ((2, 5, 4), (2, 4))
    """

    out: ArrayT  # (*batch, T, H)
    h: ArrayT | Any  # (*batch, H); None in a cotangent that is 0


class GRUContext(NamedTuple, Generic[ArrayT]):
    given: recurrence.Recurrent
    gates: ArrayT  # (N, T, 3 H): r, z, n
    states: ArrayT  # (N, T, H), after each step
    reset_after: bool


class GRUGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight_ih: ArrayT
    weight_hh: ArrayT
    bias_ih: ArrayT | None
    bias_hh: ArrayT | None
    h0: ArrayT | None


def gru(
    x: ArrayT,
    weight_ih: ArrayT,
    weight_hh: ArrayT,
    bias_ih: ArrayT | None = None,
    bias_hh: ArrayT | None = None,
    h0: ArrayT | None = None,
    *,
    mask: Array | None = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> GRUResult[ArrayT]:
    r"""Gated recurrent unit over a sequence.

    .. math::
        \begin{pmatrix} a^r_t \\ a^z_t \\ a^n_t \end{pmatrix} &= W_{ih} x_t + b_{ih}, \qquad
        \begin{pmatrix} u^r_t \\ u^z_t \\ u^n_t \end{pmatrix} = W_{hh} h_{t-1} + b_{hh}, \\
        r_t &= \sigma(a^r_t + u^r_t), \quad z_t = \sigma(a^z_t + u^z_t), \quad n_t = \tanh(a^n_t + r_t \odot u^n_t), \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    The reset gate r multiplies after the matrix product, as in PyTorch and cuDNN. With ``reset_after=False`` it does so
    before, as in the paper: the last block of the product is :math:`u^n_t = W^n_{hh} (r_t \odot h_{t-1}) + b^n_{hh}`,
    and :math:`n_t = \tanh(a^n_t + u^n_t)`.

    Parameters
    ----------
    x : (*batch, T, I) floating
        16-bit types are computed in float32.
    weight_ih : (3H, I) of the same dtype
        The rows of r, z and n, one block after the other, as in PyTorch.
    weight_hh : (3H, H) of the same dtype
    bias_ih, bias_hh : (3H,) of the same dtype, optional
        0 by default.
    h0 : (*batch, H) of the same dtype, optional
        The state before the first step; 0 by default.
    mask : (*batch, T) bool, optional
        True for steps. Elsewhere the state is kept and the output is 0, whatever x is there.
    reverse : bool
        Go from the last step to the first. Two calls, one of them in reverse, make a bidirectional network.
    reset_after : bool
        Whether the reset gate comes after the matrix product, as ``reset_after`` of Keras and ``linear_before_reset``
        of ONNX.

    Returns
    -------
    GRUResult
        out (*batch, T, H), the state after each step, and h (*batch, H), the state after the last one; with `reverse`
        that is the state after step 0.

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library, or `mask` is not boolean.
    ValueError
        If the shapes do not fit together.

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation", 2014,
    arXiv:1406.1078.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> keep = np.array([0.0, 99.0, 0.0])  # z = 1: the state stays
    >>> aa.gru(np.ones((3, 1)), np.zeros((3, 1)), np.zeros((3, 1)), keep, h0=np.array([0.5])).out.tolist()
    [[0.5], [0.5], [0.5]]
    """
    result, _ = gru_fwd(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, mask=mask, reverse=reverse, reset_after=reset_after
    )
    return writable(result)


def gru_fwd(
    x: ArrayT,
    weight_ih: ArrayT,
    weight_hh: ArrayT,
    bias_ih: ArrayT | None = None,
    bias_hh: ArrayT | None = None,
    h0: ArrayT | None = None,
    *,
    mask: Array | None = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[GRUResult[ArrayT], GRUContext[ArrayT]]:
    """`gru` and the context for `gru_bwd`: the arguments, the gates and the state after each step."""
    given = recurrence.checked("rzn", x, weight_ih, weight_hh, (bias_ih, bias_hh), {"h0": h0}, mask, reverse)
    reset_after, xp, H = checks.flag("reset_after", reset_after), namespace_of(x), given.hidden
    sums = recurrence.input_products(given, bias_ih)  # (N, T, 3 H)
    h = recurrence.first_state(given, h0)
    gates, states = {}, {}
    for t in given.steps:
        ar, az, an = recurrence.blocks(sums[:, t, :], 3)
        if reset_after:
            ur, uz, un = recurrence.blocks(_products(given, h), 3)
            r, z = sigmoid(ar + ur), sigmoid(az + uz)
            n = xp.tanh(an + r * un)
        else:
            ur, uz = recurrence.blocks(_products(given, h, slice(0, 2 * H)), 2)
            r, z = sigmoid(ar + ur), sigmoid(az + uz)
            n = xp.tanh(an + _products(given, r * h, slice(2 * H, 3 * H)))
        gates[t] = xp.concat([r, z, n], axis=-1)  # (N, 3 H)
        h = states[t] = recurrence.after_step(given, t, (1.0 - z) * n + z * h, h)
    after = recurrence.over_time(states, sums[:, :, :H])  # (N, T, H)
    result = GRUResult(recurrence.as_output(given, after), recurrence.as_state(given, h))
    return result, GRUContext(given, recurrence.over_time(gates, sums), after, reset_after)


def gru_bwd(dout: GRUResult, ctx: GRUContext[ArrayT]) -> GRUGrads[ArrayT]:
    r"""The gradient of the gated recurrent unit: backpropagation through time.

    .. math::
        dh_t &\mathrel{+}= dy_t, \qquad da^n_t = dh_t \odot (1 - z_t) \odot (1 - n_t^2), \qquad
        du^n_t = da^n_t \odot r_t, \\
        da^r_t &= du^r_t = da^n_t \odot u^n_t \odot r_t (1 - r_t), \qquad
        da^z_t = du^z_t = dh_t \odot (h_{t-1} - n_t) \odot z_t (1 - z_t), \\
        dh_{t-1} &= dh_t \odot z_t + W_{hh}^T du_t, \qquad dx_t = W_{ih}^T da_t, \\
        dW_{ih} &= \sum_t da_t x_t^T, \quad dW_{hh} = \sum_t du_t h_{t-1}^T, \quad db_{ih} = \sum_t da_t, \quad
        db_{hh} = \sum_t du_t

    from the last step to the first. dh starts with the cotangent of h, and ends as the gradient of h0. Masked positions
    pass dh on. u^n is recomputed, for all steps at once. With the reset before the product,

    .. math::
        du^n_t &= da^n_t, \qquad dq_t = W^{nT}_{hh} da^n_t, \qquad
        da^r_t = du^r_t = dq_t \odot h_{t-1} \odot r_t (1 - r_t), \\
        dh_{t-1} &= dh_t \odot z_t + dq_t \odot r_t + W^{rzT}_{hh} du^{rz}_t, \qquad
        dW^n_{hh} = \sum_t da^n_t (r_t \odot h_{t-1})^T

    Parameters
    ----------
    dout : GRUResult
        The cotangents of out and h; None stands for 0.
    ctx : GRUContext
    """
    checks.context("ctx", ctx, GRUContext)
    given = ctx.given
    dy, dh = recurrence.cotangents(dout, GRUResult, given)
    before = recurrence.before_steps(given, ctx.states, given.h0)  # (N, T, H)
    backward = _steps_backward if ctx.reset_after else _steps_backward_of_reset_before
    da, du, dh = backward(dy, dh, before, ctx)
    grads: list[Any] = list(recurrence.gradients(given, da, du, before))
    if not ctx.reset_after:
        H, reset = given.hidden, ctx.gates[:, :, : given.hidden] * before
        dnew = recurrence.weight_gradient(given, du[:, :, 2 * H :], reset)
        grads[2] = namespace_of(dnew).concat([grads[2][: 2 * H, :], dnew], axis=0)
    grads.append(None if given.h0 is None else recurrence.as_state(given, dh))
    return GRUGrads(*grads)


def _steps_backward(dy: Array, dh: Array, before: Array, ctx: GRUContext[Any]) -> tuple[Any, Any, Any]:
    """The gradients of the sums a and u (N, T, 3 H), and of the first state; `dh` is that of the last one."""
    given, xp = ctx.given, namespace_of(ctx.states)
    weight = recurrence.wide(given, given.weight_hh)
    r, z, n = recurrence.blocks(ctx.gates, 3)
    slope_n = (1.0 - z) * (1.0 - n * n)
    un = _products(given, before, slice(2 * given.hidden, 3 * given.hidden))
    slopes_rz = [slope_n * un * r * (1.0 - r), (before - n) * z * (1.0 - z)]
    slopes = recurrence.where_step(given, xp.concat([*slopes_rz, slope_n * r], axis=-1))  # (N, T, 3 H)
    hidden, news = {}, {}
    for t in reversed(given.steps):
        dh = dh + dy[:, t, :]
        hidden[t] = xp.concat([dh, dh, dh], axis=-1) * slopes[:, t, :]  # (N, 3 H)
        news[t] = dh * slope_n[:, t, :]  # (N, H)
        dh = recurrence.after_step(given, t, dh * z[:, t, :] + xp.matmul(hidden[t], weight), dh)
    du = recurrence.over_time(hidden, ctx.gates)  # (N, T, 3 H)
    dan = recurrence.where_step(given, recurrence.over_time(news, ctx.states))
    return xp.concat([du[:, :, : 2 * given.hidden], dan], axis=-1), du, dh


def _steps_backward_of_reset_before(dy: Array, dh: Array, before: Array, ctx: GRUContext[Any]) -> tuple[Any, Any, Any]:
    """The same where the reset gate comes before the product, and a and u have one gradient."""
    given, xp = ctx.given, namespace_of(ctx.states)
    weight, H = recurrence.wide(given, given.weight_hh), given.hidden
    r, z, n = recurrence.blocks(ctx.gates, 3)
    slope_n, slope_r = (1.0 - z) * (1.0 - n * n), before * r * (1.0 - r)
    slope_z = (before - n) * z * (1.0 - z)
    sums = {}
    for t in reversed(given.steps):
        dh = dh + dy[:, t, :]
        dan = dh * slope_n[:, t, :]  # (N, H)
        dq = xp.matmul(dan, weight[2 * H :, :])
        drz = xp.concat([dq * slope_r[:, t, :], dh * slope_z[:, t, :]], axis=-1)  # (N, 2 H)
        sums[t] = xp.concat([drz, dan], axis=-1)
        earlier = dh * z[:, t, :] + dq * r[:, t, :] + xp.matmul(drz, weight[: 2 * H, :])
        dh = recurrence.after_step(given, t, earlier, dh)
    dsums = recurrence.where_step(given, recurrence.over_time(sums, ctx.gates))
    return dsums, dsums, dh


def _products(given: recurrence.Recurrent, h: Array, rows: slice = slice(None)) -> Any:
    """W_hh h + b_hh of states (..., H), for some rows of the weight."""
    out = namespace_of(h).matmul(h, recurrence.wide(given, given.weight_hh)[rows, :].mT)
    return out if given.bias_hh is None else out + recurrence.wide(given, given.bias_hh)[rows]
