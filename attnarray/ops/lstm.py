"""Long short-term memory."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import accelerated
from attnarray.numpy_arrays import writable
from attnarray.ops import recurrence
from attnarray.ops.activations import sigmoid
from attnarray.ops.lstm_cell import lstm_cell, lstm_cell_backward


class LSTMResult(NamedTuple, Generic[ArrayT]):
    """The output of every step, and output and cell after the last one.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> result = aa.lstm(np.zeros((2, 5, 3)), np.zeros((16, 3)), np.zeros((16, 4)))
    >>> result.out.shape, result.h.shape, result.c.shape
    ((2, 5, 4), (2, 4), (2, 4))
    """

    out: ArrayT  # (*batch, T, H)
    h: ArrayT | Any  # (*batch, H); None in a cotangent that is 0
    c: ArrayT | Any  # (*batch, H); as `h`


class LSTMContext(NamedTuple, Generic[ArrayT]):
    given: recurrence.Recurrent
    c0: ArrayT | None
    gates: ArrayT  # (N, T, 4 H): i, f, g, o
    states: ArrayT  # (N, T, H), after each step
    cells: ArrayT  # (N, T, H), after each step
    peephole: ArrayT | None = None


class LSTMGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight_ih: ArrayT
    weight_hh: ArrayT
    bias_ih: ArrayT | None
    bias_hh: ArrayT | None
    h0: ArrayT | None
    c0: ArrayT | None
    peephole: ArrayT | None = None


def lstm(
    x: ArrayT,
    weight_ih: ArrayT,
    weight_hh: ArrayT,
    bias_ih: ArrayT | None = None,
    bias_hh: ArrayT | None = None,
    h0: ArrayT | None = None,
    c0: ArrayT | None = None,
    *,
    peephole: ArrayT | None = None,
    mask: Array | None = None,
    reverse: bool = False,
) -> LSTMResult[ArrayT]:
    r"""Long short-term memory over a sequence.

    .. math::
        \begin{pmatrix} a^i_t \\ a^f_t \\ a^g_t \\ a^o_t \end{pmatrix} &=
        W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}, \\
        i_t = \sigma(a^i_t), \quad f_t &= \sigma(a^f_t), \quad g_t = \tanh(a^g_t), \quad o_t = \sigma(a^o_t), \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t, \qquad h_t = o_t \odot \tanh(c_t)

    With peepholes p, :math:`p^i \odot c_{t-1}`, :math:`p^f \odot c_{t-1}` and :math:`p^o \odot c_t` are added to
    :math:`a^i_t`, :math:`a^f_t` and :math:`a^o_t`.

    Parameters
    ----------
    x : (*batch, T, I) floating
        16-bit types are computed in float32.
    weight_ih : (4H, I) of the same dtype
        The rows of i, f, g and o, one block after the other, as in PyTorch.
    weight_hh : (4H, H) of the same dtype
    bias_ih, bias_hh : (4H,) of the same dtype, optional
        0 by default.
    h0, c0 : (*batch, H) of the same dtype, optional
        Output and cell before the first step; 0 by default.
    peephole : (3H,) of the same dtype, optional
        The weights of i, f and o with which the gates see the cell, one block after the other.
    mask : (*batch, T) bool, optional
        True for steps. Elsewhere h and c are kept and the output is 0, whatever x is there.
    reverse : bool
        Go from the last step to the first. Two calls, one of them in reverse, make a bidirectional network.

    Returns
    -------
    LSTMResult
        out (*batch, T, H), h of each step; h and c (*batch, H) after the last one, which with `reverse` is step 0.

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library, or `mask` is not boolean.
    ValueError
        If the shapes do not fit together.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9, 1997; the forget gate f: Gers,
    Schmidhuber and Cummins, "Learning to forget: continual prediction with LSTM", Neural Computation 12, 2000;
    peepholes: Gers, Schraudolph and Schmidhuber, "Learning precise timing with LSTM recurrent networks", JMLR 3, 2002.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> keep = np.array([0.0, 99.0, 0.0, 99.0])  # the input gate is 1/2 but g = 0; the forget and output gates are 1
    >>> aa.lstm(np.ones((3, 1)), np.zeros((4, 1)), np.zeros((4, 1)), keep, c0=np.array([0.5])).c.tolist()
    [0.5]
    """
    result, _ = lstm_fwd(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, peephole=peephole, mask=mask, reverse=reverse
    )
    return writable(result)


def lstm_fwd(
    x: ArrayT,
    weight_ih: ArrayT,
    weight_hh: ArrayT,
    bias_ih: ArrayT | None = None,
    bias_hh: ArrayT | None = None,
    h0: ArrayT | None = None,
    c0: ArrayT | None = None,
    *,
    peephole: ArrayT | None = None,
    mask: Array | None = None,
    reverse: bool = False,
) -> tuple[LSTMResult[ArrayT], LSTMContext[ArrayT]]:
    """`lstm` and the context for `lstm_bwd`: the arguments, the gates, and h and c after each step."""
    given = recurrence.checked("ifgo", x, weight_ih, weight_hh, (bias_ih, bias_hh), {"h0": h0, "c0": c0}, mask, reverse)
    if peephole is not None:
        checks.namespace(x=x, peephole=peephole)
        checks.floating(x=x, peephole=peephole)
        checks.shape("peephole", peephole, (3 * given.hidden,), f"H = {given.hidden} numbers for each of i, f and o")
    sums = recurrence.input_products(given, bias_ih, bias_hh)  # (N, T, 4 H)
    h, c = recurrence.first_state(given, h0), recurrence.first_state(given, c0)
    weight = recurrence.wide(given, weight_hh)
    if peephole is None:
        gates, states, cells = _steps(sums, weight, h, c, given)
    else:
        gates, states, cells = _peephole_steps(sums, weight, recurrence.wide(given, peephole), h, c, given)
    h, c = recurrence.last_step(given, states, h), recurrence.last_step(given, cells, c)
    result = LSTMResult(
        recurrence.as_output(given, states), recurrence.as_state(given, h), recurrence.as_state(given, c)
    )
    return result, LSTMContext(given, c0, gates, states, cells, peephole)


def lstm_bwd(dout: LSTMResult, ctx: LSTMContext[ArrayT]) -> LSTMGrads[ArrayT]:
    r"""The gradient of long short-term memory: backpropagation through time.

    .. math::
        dh_t &\mathrel{+}= dy_t, \qquad dc_t \mathrel{+}= dh_t \odot o_t \odot (1 - \tanh^2 c_t), \\
        da^i_t &= dc_t \odot g_t \odot i_t (1 - i_t), \qquad da^f_t = dc_t \odot c_{t-1} \odot f_t (1 - f_t), \\
        da^g_t &= dc_t \odot i_t \odot (1 - g_t^2), \qquad da^o_t = dh_t \odot \tanh(c_t) \odot o_t (1 - o_t), \\
        dh_{t-1} &= W_{hh}^T da_t, \qquad dc_{t-1} = dc_t \odot f_t, \qquad dx_t = W_{ih}^T da_t, \\
        dW_{ih} &= \sum_t da_t x_t^T, \qquad dW_{hh} = \sum_t da_t h_{t-1}^T, \qquad db_{ih} = db_{hh} = \sum_t da_t

    from the last step to the first. dh and dc start with the cotangents of h and c, and end as the gradients of h0 and
    c0. Masked positions pass both on. With peepholes,

    .. math::
        dc_t &\mathrel{+}= da^o_t \odot p^o, \qquad
        dc_{t-1} \mathrel{+}= da^i_t \odot p^i + da^f_t \odot p^f, \\
        dp^i &= \sum_t da^i_t \odot c_{t-1}, \qquad dp^f = \sum_t da^f_t \odot c_{t-1}, \qquad
        dp^o = \sum_t da^o_t \odot c_t

    Parameters
    ----------
    dout : LSTMResult
        The cotangents of out, h and c; None stands for 0.
    ctx : LSTMContext
    """
    checks.context("ctx", ctx, LSTMContext)
    given = ctx.given
    dy, dh, dc = recurrence.cotangents(dout, LSTMResult, given)
    weight, c = recurrence.wide(given, given.weight_hh), recurrence.first_state(given, ctx.c0)
    backward = _steps_backward if ctx.peephole is None else _peephole_steps_backward
    dsums, dh, dc = backward(dy, dh, dc, weight, c, ctx)
    grads = recurrence.gradients(given, dsums, dsums, recurrence.before_steps(given, ctx.states, given.h0))
    dh0 = None if given.h0 is None else recurrence.as_state(given, dh)
    dc0 = None if ctx.c0 is None else recurrence.as_state(given, dc)
    return LSTMGrads(*grads, dh0, dc0, None if ctx.peephole is None else _peephole_gradient(dsums, ctx))


@accelerated
def _steps(sums: Array, weight: Array, h: Array, c: Array, given: recurrence.Recurrent) -> tuple[Any, Any, Any]:
    """Gates (N, T, 4 H), outputs and cells (N, T, H), of the sums W_ih x + b (N, T, 4 H), W_hh and the first states."""
    xp, empty = namespace_of(sums), sums[:, :, : given.hidden]
    gates, states, cells = {}, {}, {}
    for t in given.steps:
        gates[t], h_new, c_new = lstm_cell(xp.matmul(h, weight.mT), sums[:, t, :], c)
        h = states[t] = recurrence.after_step(given, t, h_new, h)
        c = cells[t] = recurrence.after_step(given, t, c_new, c)
    return recurrence.over_time(gates, sums), recurrence.over_time(states, empty), recurrence.over_time(cells, empty)


@accelerated
def _steps_backward(
    dy: Array, dh: Array, dc: Array, weight: Array, c: Array, ctx: LSTMContext[Any]
) -> tuple[Any, Any, Any]:
    """The gradients of the sums (N, T, 4 H) and of the first states; `dh` and `dc` are those of the last ones."""
    given, xp = ctx.given, namespace_of(dy)
    before = recurrence.before_steps(given, ctx.cells, c)
    sums = {}
    for t in reversed(given.steps):
        dh = dh + dy[:, t, :]
        da, dcell = lstm_cell_backward(dh, dc, ctx.gates[:, t, :], before[:, t, :], ctx.cells[:, t, :])
        sums[t] = recurrence.after_step(given, t, da, xp.zeros_like(da))  # (N, 4 H)
        dh = recurrence.after_step(given, t, xp.matmul(sums[t], weight), dh)
        dc = recurrence.after_step(given, t, dcell, dc)
    return recurrence.over_time(sums, ctx.gates), dh, dc


def _peephole_steps(
    sums: Array, weight: Array, peephole: Array, h: Array, c: Array, given: recurrence.Recurrent
) -> tuple[Any, Any, Any]:
    """What `_steps` returns, with gates that see the cell: i and f that before the step, o that after it."""
    xp, empty = namespace_of(sums), sums[:, :, : given.hidden]
    pi, pf, po = recurrence.blocks(peephole, 3)
    gates, states, cells = {}, {}, {}
    for t in given.steps:
        ai, af, ag, ao = recurrence.blocks(sums[:, t, :] + xp.matmul(h, weight.mT), 4)
        i, f, g = sigmoid(ai + pi * c), sigmoid(af + pf * c), xp.tanh(ag)
        c_new = f * c + i * g
        o = sigmoid(ao + po * c_new)
        gates[t] = xp.concat([i, f, g, o], axis=-1)
        h = states[t] = recurrence.after_step(given, t, o * xp.tanh(c_new), h)
        c = cells[t] = recurrence.after_step(given, t, c_new, c)
    return recurrence.over_time(gates, sums), recurrence.over_time(states, empty), recurrence.over_time(cells, empty)


def _peephole_steps_backward(
    dy: Array, dh: Array, dc: Array, weight: Array, c: Array, ctx: LSTMContext[Any]
) -> tuple[Any, Any, Any]:
    """What `_steps_backward` returns, with peepholes."""
    given, xp = ctx.given, namespace_of(dy)
    peephole: Any = ctx.peephole
    pi, pf, po = recurrence.blocks(recurrence.wide(given, peephole), 3)
    before = recurrence.before_steps(given, ctx.cells, c)
    sums = {}
    for t in reversed(given.steps):
        dh = dh + dy[:, t, :]
        i, f, g, o = recurrence.blocks(ctx.gates[:, t, :], 4)
        tanh_c = xp.tanh(ctx.cells[:, t, :])
        dao = dh * tanh_c * o * (1.0 - o)
        dcell = dc + dh * o * (1.0 - tanh_c * tanh_c) + dao * po
        dai, daf = dcell * g * i * (1.0 - i), dcell * before[:, t, :] * f * (1.0 - f)
        da = xp.concat([dai, daf, dcell * i * (1.0 - g * g), dao], axis=-1)
        sums[t] = recurrence.after_step(given, t, da, xp.zeros_like(da))  # (N, 4 H)
        dh = recurrence.after_step(given, t, xp.matmul(sums[t], weight), dh)
        dc = recurrence.after_step(given, t, dcell * f + dai * pi + daf * pf, dc)
    return recurrence.over_time(sums, ctx.gates), dh, dc


def _peephole_gradient(dsums: Array, ctx: LSTMContext[Any]) -> Any:
    """The gradient (3 H,) of the peepholes, of the gradients of all sums (N, T, 4 H)."""
    given, xp = ctx.given, namespace_of(dsums)
    dai, daf, _, dao = recurrence.blocks(dsums, 4)
    before = recurrence.before_steps(given, ctx.cells, ctx.c0)
    parts = [recurrence.total(da * cells) for da, cells in ((dai, before), (daf, before), (dao, ctx.cells))]
    return xp.astype(xp.concat(parts, axis=0), given.x.dtype, copy=False)
