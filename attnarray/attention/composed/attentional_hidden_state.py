"""The attentional hidden state of Luong, Pham and Manning: a context and a hidden state, combined."""

from __future__ import annotations

from typing import Generic, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, ArrayT
from attnarray.numpy_arrays import read_only, writable
from attnarray.ops.activations import TanhContext, tanh_bwd, tanh_fwd
from attnarray.ops.linear import LinearContext

HiddenActivation = Literal["tanh"]
ACTIVATIONS: tuple[HiddenActivation | None, ...] = (None, *get_args(HiddenActivation))


class AttentionalHiddenStateContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: both inputs with their weights, and with tanh the output."""

    context: LinearContext
    hidden: LinearContext
    out: ArrayT | None


class AttentionalHiddenStateGrads(NamedTuple, Generic[ArrayT]):
    context: ArrayT
    hidden: ArrayT
    context_weight: ArrayT
    hidden_weight: ArrayT
    bias: ArrayT | None


def attentional_hidden_state(
    context: ArrayT,
    hidden: ArrayT,
    context_weight: ArrayT,
    hidden_weight: ArrayT,
    bias: ArrayT | None = None,
    *,
    activation: HiddenActivation | None = None,
) -> ArrayT:
    r"""The attentional hidden state: a linear map of a context vector and a hidden state, with an optional tanh.

    .. math:: y = W_1 c + W_2 h + b, \qquad \text{or with "tanh"} \quad y = \tanh(W_1 c + W_2 h + b)

    Parameters
    ----------
    context : (..., Dc) floating
        c. 16-bit types are computed in float32.
    hidden : (..., Dh) of the same dtype
        h, with the same leading axes.
    context_weight : (E, Dc)
        W_1.
    hidden_weight : (E, Dh)
        W_2.
    bias : (E,), optional
    activation : {None, "tanh"}

    Returns
    -------
    (..., E) array of the same dtype

    Raises
    ------
    ValueError
        If the shapes do not fit together, or the activation is not known.
    TypeError
        If the arrays are not of one floating dtype or not of one library.

    Notes
    -----
    Without tanh and with W_1 = W_2 = I this is the residual connection c + h of the Transformer. With tanh and without
    b it is Luong's attentional hidden state :math:`\tilde h = \tanh(W_c [c; h])`, where W_1 and W_2 are the left and
    right part of W_c: c comes first there. The two are not concatenated.

    References
    ----------
    Luong, Pham and Manning, 2015, arXiv:1508.04025, equation 5. The residual: Vaswani et al., 2017, arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.attentional_hidden_state(np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.eye(2), np.eye(2)).tolist()
    [11.0, 22.0]
    """
    return writable(
        attentional_hidden_state_fwd(context, hidden, context_weight, hidden_weight, bias, activation=activation)[0]
    )


def attentional_hidden_state_fwd(
    context: ArrayT,
    hidden: ArrayT,
    context_weight: ArrayT,
    hidden_weight: ArrayT,
    bias: ArrayT | None = None,
    *,
    activation: HiddenActivation | None = None,
) -> tuple[ArrayT, AttentionalHiddenStateContext[ArrayT]]:
    """`attentional_hidden_state`, and the context for its backward: the inputs, and with tanh the output."""
    checks.choice("activation", activation, ACTIVATIONS)
    _check(context, hidden, context_weight, hidden_weight, bias)
    mapped_context, context_ctx = project(context, context_weight, bias)
    mapped_hidden, hidden_ctx = project(hidden, hidden_weight)
    out = mapped_context + mapped_hidden
    if activation is None:
        return narrow(out, context), AttentionalHiddenStateContext(context_ctx, hidden_ctx, None)
    out = narrow(tanh_fwd(out)[0], context)
    return read_only(out), AttentionalHiddenStateContext(context_ctx, hidden_ctx, out)


def attentional_hidden_state_bwd(
    dout: Array, ctx: AttentionalHiddenStateContext[ArrayT]
) -> AttentionalHiddenStateGrads[ArrayT]:
    r"""The gradients of `attentional_hidden_state`, with n over all leading axes.

    .. math::
        da = dy \odot (1 - y^2) \;\text{with tanh, else}\; da = dy, \qquad
        dc = W_1^T da, \quad dh = W_2^T da, \quad
        dW_1 = \sum_n da_n c_n^T, \quad dW_2 = \sum_n da_n h_n^T, \quad db = \sum_n da_n
    """
    checks.context("ctx", ctx, AttentionalHiddenStateContext)
    like = ctx.context.x
    checks.cotangent(dout, (*like.shape[:-1], ctx.context.weight.shape[0]), like)
    dsum = wide(dout) if ctx.out is None else tanh_bwd(wide(dout), TanhContext(wide(ctx.out))).x
    context, hidden = project_backward(dsum, ctx.context), project_backward(dsum, ctx.hidden)
    grads = context.x, hidden.x, context.weight, hidden.weight, context.bias
    return AttentionalHiddenStateGrads(*(narrow(grad, like) for grad in grads))


def _check(context: Array, hidden: Array, context_weight: Array, hidden_weight: Array, bias: Array | None) -> None:
    arrays = {"context": context, "hidden": hidden, "context_weight": context_weight, "hidden_weight": hidden_weight}
    checks.required(**arrays)
    checks.namespace(**arrays, bias=bias)
    checks.floating(**arrays, bias=bias)
    named = checks.shapes(**arrays, bias=bias)
    if context.ndim < 1 or context.ndim != hidden.ndim or context.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(
            "`context` (..., Dc) and `hidden` (..., Dh) must have the same leading axes: one state per context. "
            f"{named}"
        )
    for name, x in (("context", context), ("hidden", hidden)):
        weight = arrays[f"{name}_weight"]
        if weight.ndim != 2 or weight.shape[1] != x.shape[-1] or weight.shape[0] != context_weight.shape[0]:
            raise ValueError(
                f"`{name}_weight` has shape {tuple(weight.shape)}, expected (E, {x.shape[-1]}): a column per feature "
                f"of `{name}`, and as many rows E as the other weight. {named}"
            )
    if bias is not None:
        checks.shape("bias", bias, (context_weight.shape[0],), "one number per row of the weights")
