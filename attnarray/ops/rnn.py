"""The simple recurrent network of Elman."""

from __future__ import annotations

from typing import Any, Generic, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.numpy_arrays import writable
from attnarray.ops import recurrence

Nonlinearity = Literal["tanh", "relu"]
NONLINEARITIES: tuple[Nonlinearity, ...] = get_args(Nonlinearity)


class RNNResult(NamedTuple, Generic[ArrayT]):
    """The state after every step, and after the last one.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> result = aa.rnn(np.zeros((2, 5, 3)), np.zeros((4, 3)), np.zeros((4, 4)))
    >>> result.out.shape, result.h.shape
    ((2, 5, 4), (2, 4))
    """

    out: ArrayT  # (*batch, T, H)
    h: ArrayT | Any  # (*batch, H); None in a cotangent that is 0


class RNNContext(NamedTuple, Generic[ArrayT]):
    given: recurrence.Recurrent
    states: ArrayT  # (N, T, H), after each step
    nonlinearity: Nonlinearity


class RNNGrads(NamedTuple, Generic[ArrayT]):
    x: ArrayT
    weight_ih: ArrayT
    weight_hh: ArrayT
    bias_ih: ArrayT | None
    bias_hh: ArrayT | None
    h0: ArrayT | None


def rnn(
    x: ArrayT,
    weight_ih: ArrayT,
    weight_hh: ArrayT,
    bias_ih: ArrayT | None = None,
    bias_hh: ArrayT | None = None,
    h0: ArrayT | None = None,
    *,
    mask: Array | None = None,
    reverse: bool = False,
    nonlinearity: Nonlinearity = "tanh",
) -> RNNResult[ArrayT]:
    r"""Simple recurrent network over a sequence.

    .. math:: h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    Parameters
    ----------
    x : (*batch, T, I) floating
        16-bit types are computed in float32.
    weight_ih : (H, I) of the same dtype
    weight_hh : (H, H) of the same dtype
    bias_ih, bias_hh : (H,) of the same dtype, optional
        0 by default.
    h0 : (*batch, H) of the same dtype, optional
        The state before the first step; 0 by default.
    mask : (*batch, T) bool, optional
        True for steps. Elsewhere the state is kept and the output is 0, whatever x is there.
    reverse : bool
        Go from the last step to the first. Two calls, one of them in reverse, make a bidirectional network.
    nonlinearity : {"tanh", "relu"}
        The function phi.

    Returns
    -------
    RNNResult
        out (*batch, T, H), the state after each step, and h (*batch, H), the state after the last one; with `reverse`
        that is the state after step 0.

    Raises
    ------
    TypeError
        If the arrays are not of one floating dtype or not of one library, or `mask` is not boolean.
    ValueError
        If the shapes do not fit together or `nonlinearity` is unknown.

    References
    ----------
    Elman, "Finding structure in time", Cognitive Science 14, 1990.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.array([[1.0], [2.0], [3.0]])
    >>> aa.rnn(x, np.array([[1.0]]), np.array([[0.5]]), nonlinearity="relu").out.tolist()
    [[1.0], [2.5], [4.25]]
    """
    return writable(rnn_fwd(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, mask=mask, reverse=reverse, nonlinearity=nonlinearity
    )[0])  # fmt: skip


def rnn_fwd(
    x: ArrayT,
    weight_ih: ArrayT,
    weight_hh: ArrayT,
    bias_ih: ArrayT | None = None,
    bias_hh: ArrayT | None = None,
    h0: ArrayT | None = None,
    *,
    mask: Array | None = None,
    reverse: bool = False,
    nonlinearity: Nonlinearity = "tanh",
) -> tuple[RNNResult[ArrayT], RNNContext[ArrayT]]:
    """`rnn` and the context for `rnn_bwd`: the arguments and the state after each step."""
    given = recurrence.checked("h", x, weight_ih, weight_hh, (bias_ih, bias_hh), {"h0": h0}, mask, reverse)
    checks.choice("nonlinearity", nonlinearity, NONLINEARITIES)
    xp = namespace_of(x)
    weight = recurrence.wide(given, weight_hh).mT
    sums = recurrence.input_products(given, bias_ih, bias_hh)  # (N, T, H)
    h = recurrence.first_state(given, h0)
    states = {}
    for t in given.steps:
        new = sums[:, t, :] + xp.matmul(h, weight)
        new = xp.tanh(new) if nonlinearity == "tanh" else xp.clip(new, 0.0, None)
        h = states[t] = recurrence.after_step(given, t, new, h)
    after = recurrence.over_time(states, sums)  # (N, T, H)
    result = RNNResult(recurrence.as_output(given, after), recurrence.as_state(given, h))
    return result, RNNContext(given, after, nonlinearity)


def rnn_bwd(dout: RNNResult, ctx: RNNContext[ArrayT]) -> RNNGrads[ArrayT]:
    r"""The gradient of the simple recurrent network: backpropagation through time.

    .. math::
        dh_t &\mathrel{+}= dy_t, \qquad da_t = dh_t \odot \phi'(a_t), \qquad dh_{t-1} = W_{hh}^T da_t, \\
        dx_t &= W_{ih}^T da_t, \quad dW_{ih} = \sum_t da_t x_t^T, \quad dW_{hh} = \sum_t da_t h_{t-1}^T, \quad
        db_{ih} = db_{hh} = \sum_t da_t

    from the last step to the first, with a the argument of phi: phi' = 1 - h^2 for tanh and [h > 0] for relu. dh starts
    with the cotangent of h, and ends as the gradient of h0. Masked positions pass dh on.

    Parameters
    ----------
    dout : RNNResult
        The cotangents of out and h; None stands for 0.
    ctx : RNNContext
    """
    checks.context("ctx", ctx, RNNContext)
    given = ctx.given
    dy, dh = recurrence.cotangents(dout, RNNResult, given)
    h = ctx.states
    xp = namespace_of(h)
    weight = recurrence.wide(given, given.weight_hh)
    slopes = recurrence.where_step(given, 1.0 - h * h if ctx.nonlinearity == "tanh" else xp.astype(h > 0, h.dtype))
    sums = {}
    for t in reversed(given.steps):
        dh = dh + dy[:, t, :]
        sums[t] = dh * slopes[:, t, :]
        dh = recurrence.after_step(given, t, xp.matmul(sums[t], weight), dh)
    dsums = recurrence.over_time(sums, h)  # (N, T, H)
    grads = recurrence.gradients(given, dsums, dsums, recurrence.before_steps(given, h, given.h0))
    return RNNGrads(*grads, None if given.h0 is None else recurrence.as_state(given, dh))
