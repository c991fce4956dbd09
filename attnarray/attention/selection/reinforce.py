"""REINFORCE: the cotangent that lets hard attention learn from what its choices cost."""

from __future__ import annotations

import math
from typing import Any

from attnarray import checks
from attnarray.attention.selection.hard import HardResult
from attnarray.backend import Array, ArrayT, device_of, dtype_name, namespace_of
from attnarray.magnitude import check_number


def reinforce_cotangent(
    result: HardResult[ArrayT],
    cost: Array,
    baseline: float | Array = 0.0,
    entropy_weight: float = 0.0,
    dout: Array | None = None,
) -> HardResult[ArrayT]:
    r"""What to give to the backward of hard attention so that the expected cost goes down.

    .. math::
        \nabla\, \mathbb{E}\Bigl[\sum_i c_i\Bigr]
        = \mathbb{E}\Bigl[\sum_i (c_i - b_i)\, \nabla \log P_i\Bigr] + \mathbb{E}\Bigl[\sum_i \nabla c_i\Bigr], \qquad
        \text{and} \; - \lambda \sum_i \nabla H_i

    For choices that were drawn with the estimator "reinforce", the gradients of the scores are one sample of the first
    term and of the last, which keeps the entropy up; those of the values, through `dout`, are the second. Any baseline
    b that does not depend on the choice leaves the mean as it is; one close to the mean cost lowers the variance.

    Parameters
    ----------
    result : HardResult
        Of the forward pass.
    cost : array, or float
        c: what the choices led to, a loss, minus a reward. Of the shape of log_prob, or of its leading axes: one for
        each batch, say, counts for all queries of that batch. A choice must be given all costs that it has a part in.
    baseline : array, or float
        b, in the same way. Mostly a moving average of the costs before, that the caller keeps.
    entropy_weight : float
        lambda.
    dout : array, optional
        The gradient of the cost for the output.

    Returns
    -------
    HardResult
        The cotangents of out, log_prob and entropy.

    Raises
    ------
    TypeError
        If `result` is none, or an array is of another library or dtype.
    ValueError
        If a shape does not fit.

    References
    ----------
    Williams, 1992. Xu et al., 2015, arXiv:1502.03044, section 4.1, with a reward for a cost.

    Examples
    --------
    One training step: a loss for each sequence, its gradient for what is differentiable, and REINFORCE for the choice.

    >>> import numpy as np, attnarray as aa
    >>> rng = np.random.default_rng(0)
    >>> query, key, value, target = rng.standard_normal((4, 2, 5, 3))
    >>> baseline = 0.0
    >>> for step in range(3):
    ...     result, ctx = aa.hard_attention_fwd(query, key, value, estimator="reinforce", rng=aa.Philox(step))
    ...     difference = result.out - target
    ...     cost = 0.5 * (difference**2).sum(axis=(1, 2))  # one per batch
    ...     dresult = aa.reinforce_cotangent(result, cost, baseline, entropy_weight=0.01, dout=difference)
    ...     grads = aa.hard_attention_bwd(dresult, ctx)
    ...     query, key, value = query - 0.1 * grads.query, key - 0.1 * grads.key, value - 0.1 * grads.value
    ...     baseline = 0.9 * baseline + 0.1 * float(cost.mean())
    """
    if not isinstance(result, HardResult):
        raise TypeError(f"`result` is {checks.shown(result)}, expected the HardResult that hard_attention gave.")
    dlog_prob = _over_queries("cost", cost, result) - _over_queries("baseline", baseline, result)
    if not math.isfinite(checks.real(entropy_weight)):
        raise ValueError(f"`entropy_weight` is {checks.shown(entropy_weight)}, expected a finite number.")
    check_number("entropy_weight", float(entropy_weight), dtype_name(result.entropy.dtype), small=True)
    dentropy = namespace_of(result.entropy).full_like(result.entropy, -float(entropy_weight))
    return HardResult(dout, dlog_prob, dentropy)


def _over_queries(name: str, given: Any, result: HardResult) -> Array:
    """A number, or an array over leading axes, for every query."""
    like = result.log_prob
    xp, full = namespace_of(like), tuple(like.shape)
    if not checks.is_array(given):
        number = checks.real(given)
        if not math.isfinite(number):
            raise ValueError(f"`{name}` is {checks.shown(given)}, expected a finite number or an array.")
        check_number(name, number, dtype_name(like.dtype), small=True)
        return xp.full(full, number, dtype=like.dtype, device=device_of(like))
    checks.namespace(**{name: given}, result=like)
    checks.floating(**{name: given}, result=like)
    if tuple(given.shape) != full[: given.ndim]:
        raise ValueError(
            f"`{name}` has shape {tuple(given.shape)}, expected {full}, the shape of log_prob, or that of its leading "
            "axes."
        )
    return xp.broadcast_to(xp.reshape(given, (*given.shape, *[1] * (len(full) - given.ndim))), full)
