"""Learning rates as functions of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    r"""Learning rate with a linear warmup from 0 to `peak` and a cosine decay to `floor`, where it stays.

    .. math::
        \eta(t) = \begin{cases}
        \mathrm{peak}\; t / \mathrm{warmup} & t < \mathrm{warmup} \\
        \mathrm{floor} + (\mathrm{peak} - \mathrm{floor})\, \tfrac{1}{2}
        \Bigl(1 + \cos \pi \frac{t - \mathrm{warmup}}{\mathrm{total} - \mathrm{warmup}}\Bigr) & t \le \mathrm{total}
        \end{cases}

    Parameters
    ----------
    step : int
        t. The first update is step 1: step 0 has rate 0 when there is a warm-up.
    peak, floor : float
        The largest and the last rate.
    warmup, total : int
        The steps at which the peak and the floor are reached.

    Raises
    ------
    ValueError
        If 0 <= floor <= peak, 0 <= warmup < total or 0 <= step does not hold.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2016, arXiv:1608.03983.

    Examples
    --------
    >>> from attnarray import optim
    >>> [optim.warmup_cosine(step, peak=1.0, warmup=2, total=6) for step in (0, 1, 2, 4, 6)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if not 0 <= warmup < total:
        raise ValueError(f"`warmup` is {warmup!r} and `total` is {total!r}, expected 0 <= warmup < total, in steps.")
    if not 0 <= floor <= peak < math.inf:
        raise ValueError(f"`floor` is {floor!r} and `peak` is {peak!r}, expected finite rates with 0 <= floor <= peak.")
    if not step >= 0:
        raise ValueError(f"`step` is {step!r}, expected 0 or above.")
    peak, floor = float(peak), float(floor)  # a narrow one of NumPy may overflow
    if step < warmup:
        return peak * step / warmup
    share = 0.5 + 0.5 * math.cos(math.pi * min((step - warmup) / (total - warmup), 1.0))
    return peak * share + floor * (1 - share)
