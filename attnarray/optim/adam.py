"""Adam with decoupled weight decay."""

from __future__ import annotations

import math
from typing import NamedTuple

from attnarray import checks, tree
from attnarray.backend import Array, namespace_of
from attnarray.dispatch import accelerated
from attnarray.optim.leaves import Tree, check_decays, check_numbers, check_options, stepped, update, zeros_like


class AdamWState(NamedTuple):
    """`step` counts the updates; the moments are the decaying means of the gradient and of its square."""

    step: int
    first_moment: Tree
    second_moment: Tree


def adamw_init(params: Tree) -> AdamWState:
    """The state before the first step of `adamw`.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import optim
    >>> optim.adamw_init({"weight": np.ones(2)}).step
    0
    """
    return AdamWState(0, tree.map(zeros_like, params), tree.map(zeros_like, params))


def adamw(
    params: Tree,
    grads: Tree,
    state: AdamWState,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Tree, AdamWState]:
    r"""One step of Adam with decoupled weight decay; Adam itself is `weight_decay=0`.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2, \qquad
        \theta \leftarrow (1 - \eta \lambda)\, \theta
        - \eta\, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    params, grads : tree of floating arrays
        Parameters and gradients of the same structure, shapes and dtypes.
    state : AdamWState
        From `adamw_init` or the step before.
    lr : float
        Learning rate :math:`\eta`, 0 or above.
    betas : (float, float)
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    eps : float
        :math:`\epsilon`, above 0.
    weight_decay : float
        :math:`\lambda`, 0 or above.

    Returns
    -------
    params, state
        New trees.

    Notes
    -----
    The second moment is kept as the square of gradients, as PyTorch and Optax keep it: a gradient beyond 1.8e19 in
    float32 makes it infinite, and its parameter moves by weight decay alone from then on. Clip gradients first, see
    `clip_by_global_norm`.

    Raises
    ------
    TypeError
        If a leaf is not a floating array or a gradient has another dtype or library than its parameter.
    ValueError
        If the trees differ, the message names the path; or an option is out of range.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2014, arXiv:1412.6980.
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2017, arXiv:1711.05101.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import optim
    >>> params = {"weight": np.array([1.0, 2.0])}
    >>> params, state = optim.adamw(params, {"weight": np.array([1.0, -1.0])}, optim.adamw_init(params), lr=0.5)
    >>> params["weight"].round(3).tolist(), state.step
    ([0.495, 2.49], 1)
    """
    check_options(state, AdamWState, lr=lr, weight_decay=weight_decay)
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"`betas` is {betas!r}, expected two numbers such as (0.9, 0.999).")
    check_decays(**{"betas[0]": betas[0], "betas[1]": betas[1]})
    eps = checks.positive("eps", eps)
    beta1, beta2, lr, weight_decay = map(float, (*betas, lr, weight_decay))  # NumPy's would change dtypes
    step = int(state.step) + 1
    root = math.sqrt(1 - beta2**step)
    scale = root / (1 - beta1**step)  # both corrections on one number instead of two arrays; eps is scaled to match

    check_numbers(params, lr=lr * max(scale, 1.0), weight_decay=lr * weight_decay, eps=eps)
    numbers = AdamNumbers(beta1, beta2, lr * scale, 1 - lr * weight_decay, eps * root)
    moments = {"first_moment": state.first_moment, "second_moment": state.second_moment}
    new, first, second = update(lambda p, g, m, v: adam_step(p, g, m, v, numbers), 3, params, grads, **moments)
    return new, AdamWState(step, first, second)


class AdamNumbers(NamedTuple):
    """The numbers of a step; the corrections of both moments are part of `rate` and `eps`."""

    beta1: float
    beta2: float
    rate: float
    decay: float
    eps: float


@accelerated
def adam_step(p: Array, g: Array, m: Array, v: Array, numbers: AdamNumbers) -> tuple[Array, Array, Array]:
    r"""The step of one leaf: the new parameters and moments.

    .. math:: m' = \beta_1 m + (1 - \beta_1)\, g, \quad v' = \beta_2 v + (1 - \beta_2)\, g^2, \quad
        p' = \mathrm{decay}\, p - \mathrm{rate}\, \frac{m'}{\sqrt{v'} + \epsilon}
    """
    xp = namespace_of(p, g, m, v)
    beta1, beta2, rate, decay, eps = numbers
    m = m * beta1
    m += g * (1 - beta1)
    square = g * g
    square *= 1 - beta2
    v = v * beta2
    v += square
    denominator = xp.sqrt(v)
    denominator += eps
    return stepped(p, m / denominator, rate, decay), m, v
