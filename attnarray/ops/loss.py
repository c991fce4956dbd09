"""Cross-entropy between logits and integer targets, with ignored targets and label smoothing."""

from __future__ import annotations

import math
import numbers
from typing import Any, Generic, Literal, NamedTuple, get_args

from attnarray import checks
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, index_dtype, namespace_of
from attnarray.dispatch import accelerated
from attnarray.ops.embedding import check_range

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


class CrossEntropyContext(NamedTuple, Generic[ArrayT]):
    logits: ArrayT
    targets: Array
    row_max: ArrayT
    row_sum: ArrayT
    label_smoothing: float
    ignore_index: int
    reduction: Reduction
    weight: ArrayT | None = None


class CrossEntropyGrads(NamedTuple, Generic[ArrayT]):
    logits: ArrayT
    weight: ArrayT | None = None


def cross_entropy(
    logits: ArrayT,
    targets: Array,
    weight: ArrayT | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> ArrayT:
    r"""Cross-entropy between the softmax of the logits and the target classes.

    .. math::
        L_n = -\sum_v q_{nv} w_v \log p_{nv}, \qquad p_n = \operatorname{softmax}(x_n), \qquad
        q_{nv} = (1 - s)\, [v = t_n] + \frac{s}{V}

    with weights w of the classes, 1 by default.

    Parameters
    ----------
    logits : (..., V) floating
        16-bit types are computed in float32.
    targets : (...) integer
        The class of each row, from 0 to V - 1, or `ignore_index`.
    weight : (V,) of the dtype of `logits`, optional
        A weight for each class, as in PyTorch: the mean is divided by the sum of the weights of the targets.
    label_smoothing : float
        s, from 0 to 1.
    ignore_index : int
        Rows with this target have loss 0 and gradient 0, whatever their logits hold, and do not count in the mean.
    reduction : {"mean", "sum", "none"}
        "mean" is over the rows that are not ignored, by the weights of their targets, and 0 if there are none.

    Returns
    -------
    array
        () for "mean" and "sum", (...) for "none"; the dtype of `logits`.

    Raises
    ------
    TypeError
        If `logits` is not floating, `targets` or `ignore_index` not integer, or the libraries differ.
    ValueError
        If the shapes do not fit together, a target is out of range or an option is unknown.

    References
    ----------
    Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015, arXiv:1512.00567 (smoothing).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> float(aa.cross_entropy(np.zeros((3, 4)), np.array([0, 3, -100])).round(4))  # log 4
    1.3863
    """
    return cross_entropy_fwd(
        logits, targets, weight, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction
    )[0]


def cross_entropy_fwd(
    logits: ArrayT,
    targets: Array,
    weight: ArrayT | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> tuple[ArrayT, CrossEntropyContext[ArrayT]]:
    """`cross_entropy` and the context for `cross_entropy_bwd`: the inputs, and per row its maximum and denominator."""
    label_smoothing = _check(logits, targets, label_smoothing, ignore_index, reduction)
    xp = namespace_of(logits, targets)
    x, classes, count = _rows(logits, targets, ignore_index)
    if weight is None:
        losses, row_max, row_sum = _cross_entropy(x, classes, ignore_index, label_smoothing)
    else:
        _check_weight(weight, logits)
        nll, row_max, row_sum = _cross_entropy(x, classes, ignore_index, 0.0)
        rows = _weighted(x, classes, weight, row_max, ignore_index)
        losses, count = (1.0 - label_smoothing) * rows.weight * nll, _total(rows.weight)
        if label_smoothing:  # s / V times the sum of w_v (lse - x_v)
            smooth = xp.log(row_sum[:, 0]) * xp.sum(rows.classes) - xp.matmul(rows.x, rows.classes)
            losses += label_smoothing / x.shape[1] * xp.where(rows.kept, smooth, 0.0)
    if reduction == "none":
        out = xp.reshape(losses, targets.shape)
    else:
        out = xp.asarray(xp.sum(losses) / (count if reduction == "mean" else 1))
    ctx = CrossEntropyContext(logits, targets, row_max, row_sum, label_smoothing, ignore_index, reduction, weight)
    return xp.astype(out, logits.dtype, copy=False), ctx


def cross_entropy_bwd(dout: Array, ctx: CrossEntropyContext[ArrayT]) -> CrossEntropyGrads[ArrayT]:
    r"""The gradient of the cross-entropy: the softmax minus the smoothed target, 0 in ignored rows.

    .. math:: dx_{nv} = g_n\, (p_{nv} - q_{nv}), \qquad g_n = dL_n, \quad dL, \quad dL / N \ \text{for none, sum, mean}

    With weights of classes,

    .. math::
        dx_{nv} = g_n\, \Bigl(p_{nv} \sum_u q_{nu} w_u - q_{nv} w_v\Bigr), \qquad
        dw_v = -\sum_n g_n\, q_{nv} \log p_{nv} - [\text{mean}]\; \frac{dL\, L}{N} \sum_n [v = t_n]

    where N of the mean is the sum of the weights of the targets.
    """
    checks.context("ctx", ctx, CrossEntropyContext)
    xp = checks.cotangent(dout, tuple(ctx.targets.shape) if ctx.reduction == "none" else (), ctx.logits)
    x, classes, count = _rows(ctx.logits, ctx.targets, ctx.ignore_index)
    dtype, s = ctx.row_sum.dtype, ctx.label_smoothing
    dout = xp.reshape(xp.astype(xp.asarray(dout), dtype, copy=False), (x.shape[0] if ctx.reduction == "none" else 1,))
    if ctx.weight is None:
        g = xp.broadcast_to(dout / (count if ctx.reduction == "mean" else 1), (x.shape[0],))  # (N,)
        dx = _cross_entropy_backward(g, x, classes, ctx.row_max, ctx.row_sum, ctx.ignore_index, s)
        return CrossEntropyGrads(xp.reshape(dx, ctx.logits.shape))
    rows = _weighted(x, classes, ctx.weight, ctx.row_max, ctx.ignore_index)
    total = _total(rows.weight)
    g = xp.broadcast_to(dout / total if ctx.reduction == "mean" else dout, (x.shape[0],))
    g = xp.where(rows.kept, g, 0.0)
    log_p = rows.x - xp.log(ctx.row_sum)  # (N, V)
    one_hot = xp.astype(rows.is_target, dtype)
    q = (1.0 - s) * one_hot + s / x.shape[1]
    weighted = q * rows.classes
    dx = g[:, None] * (xp.exp(log_p) * xp.sum(weighted, axis=1, keepdims=True) - weighted)
    costs = xp.where(q == 0, 0.0, q * log_p) * g[:, None]  # log p may be -inf
    dweight = -xp.sum(costs, axis=0)
    if ctx.reduction == "mean":
        mean = -xp.sum(costs * rows.classes)  # dL L
        dweight -= mean / total * xp.sum(one_hot * xp.astype(rows.kept, dtype)[:, None], axis=0)
    dx = xp.reshape(xp.astype(dx, x.dtype, copy=False), ctx.logits.shape)
    return CrossEntropyGrads(dx, xp.astype(dweight, x.dtype, copy=False))


@accelerated
def _cross_entropy(x: Array, classes: Array, ignore_index: int, label_smoothing: float) -> tuple[Any, Any, Any]:
    r"""The loss of each row, in the accumulator's dtype.

    Parameters
    ----------
    x : (N, V) floating
    classes : (N,) int64
        From 0 to V - 1, or `ignore_index`.

    Returns
    -------
    losses : (N,)
    row_max, row_sum : (N, 1)
        The maximum m of a row, and the sum of its e^(x - m). An ignored row counts as zeros.
    """
    xp = namespace_of(x, classes)
    x, classes, kept = _kept(x, classes, ignore_index)
    row_max = xp.max(x, axis=1, keepdims=True)  # (N, 1)
    row_max = xp.where(row_max == -math.inf, 0.0, row_max)
    x = x - row_max
    row_sum = xp.sum(xp.exp(x), axis=1, keepdims=True)  # (N, 1)
    row_sum = xp.where(row_sum == 0, 1.0, row_sum)
    losses = (label_smoothing - 1.0) * xp.take_along_axis(x, classes[:, None], axis=1)  # (N, 1)
    losses += xp.log(row_sum)
    if label_smoothing:
        losses -= label_smoothing / x.shape[1] * xp.sum(x, axis=1, keepdims=True)
    return xp.where(kept, losses[:, 0], 0.0), row_max, row_sum


@accelerated
def _cross_entropy_backward(
    g: Array, x: Array, classes: Array, row_max: Array, row_sum: Array, ignore_index: int, label_smoothing: float
) -> Array:
    """The gradient (N, V) of the losses with cotangent `g` (N,), from the arguments and results of `_cross_entropy`."""
    xp = namespace_of(g, x, classes)
    dtype = x.dtype
    x, classes, kept = _kept(x, classes, ignore_index)
    p = xp.exp(x - row_max)  # (N, V)
    p /= row_sum
    every = xp.arange(x.shape[1], dtype=classes.dtype, device=device_of(classes))  # (V,)
    p -= xp.astype(every == classes[:, None], p.dtype) * (1.0 - label_smoothing)
    if label_smoothing:
        p -= label_smoothing / x.shape[1]
    p *= xp.where(kept, g, 0.0)[:, None]
    return xp.astype(p, dtype, copy=False)


class _Weighted(NamedTuple):
    x: Array  # (N, V), minus the maxima of the rows
    weight: Array  # (N,), those of the targets; 0 in ignored rows
    classes: Array  # (V,), those of all classes
    is_target: Array  # (N, V)
    kept: Array  # (N,)


def _weighted(x: Array, classes: Array, weight: Array, row_max: Array, ignore_index: int) -> _Weighted:
    """What class weights need of the rows, in the accumulator's dtype."""
    xp = namespace_of(x)
    x, classes, kept = _kept(x, classes, ignore_index)
    wide = xp.astype(weight, x.dtype, copy=False)
    every = xp.arange(x.shape[1], dtype=classes.dtype, device=device_of(classes))
    of_targets = xp.where(kept, xp.take(wide, classes, axis=0), 0.0)
    return _Weighted(x - row_max, of_targets, wide, every == classes[:, None], kept)


def _total(weights: Array) -> Any:
    """The sum of the weights, with which the mean is divided; 1 for 0."""
    xp = namespace_of(weights)
    total = xp.sum(weights)
    return xp.where(total == 0, xp.ones_like(total), total)


def _rows(logits: Array, targets: Array, ignore_index: int) -> tuple[Array, Array, int]:
    """Logits (N, V), classes (N,), and the number of rows that are not ignored, at least 1."""
    xp = namespace_of(logits)
    count, width = math.prod(targets.shape), logits.shape[-1]
    classes = xp.astype(xp.reshape(targets, (count,)), index_dtype(xp, targets), copy=False)
    number = int(xp.sum(xp.astype(classes != ignore_index, classes.dtype)))
    return xp.reshape(logits, (count, width)), classes, max(number, 1)


def _kept(x: Array, classes: Array, ignore_index: int) -> tuple[Array, Array, Array]:
    """x (N, V) in the accumulator's dtype and classes (N,), 0 in ignored rows; and which rows are kept (N,)."""
    xp = namespace_of(x)
    x = xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)
    kept = classes != ignore_index
    if not bool(xp.all(kept)):
        x, classes = xp.where(kept[:, None], x, 0.0), xp.where(kept, classes, 0)
    return x, classes, kept


def _check(logits: Array, targets: Array, label_smoothing: float, ignore_index: int, reduction: Reduction) -> float:
    """Check the arguments; return the smoothing as a float."""
    namespace_of(logits, targets)
    checks.floating(logits=logits)
    checks.integer("targets", targets)
    label_smoothing = checks.probability("label_smoothing", label_smoothing)
    checks.choice("reduction", reduction, REDUCTIONS)
    if not isinstance(ignore_index, numbers.Integral):
        raise TypeError(f"`ignore_index` is {ignore_index!r}, expected an integer.")
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(f"`logits` has no classes, expected (..., V) with V > 0. {checks.shapes(logits=logits)}")
    because = f"one class per row of `logits`, which has shape {tuple(logits.shape)}"
    checks.shape("targets", targets, tuple(logits.shape[:-1]), because)
    check_range("targets", targets, logits.shape[-1], "the classes of `logits`", ignored=int(ignore_index))
    return label_smoothing


def _check_weight(weight: Array, logits: Array) -> None:
    checks.namespace(logits=logits, weight=weight)
    checks.floating(logits=logits, weight=weight)
    because = f"one number for each class of `logits`, which has shape {tuple(logits.shape)}"
    checks.shape("weight", weight, (logits.shape[-1],), because)
