"""Gradient descent with momentum and decoupled weight decay."""

from __future__ import annotations

from typing import NamedTuple

from attnarray import tree
from attnarray.backend import Array
from attnarray.optim.leaves import Tree, check_decays, check_numbers, check_options, stepped, update, zeros_like


class SGDState(NamedTuple):
    """`velocity` is the decaying sum of gradients, a tree like the parameters; it stays 0 without momentum."""

    velocity: Tree


def sgd_init(params: Tree) -> SGDState:
    """The state before the first step of `sgd`.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import optim
    >>> optim.sgd_init({"weight": np.ones(2)}).velocity["weight"].tolist()
    [0.0, 0.0]
    """
    return SGDState(tree.map(zeros_like, params))


def sgd(
    params: Tree,
    grads: Tree,
    state: SGDState,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[Tree, SGDState]:
    r"""One step of gradient descent, with momentum and decoupled weight decay where asked for.

    .. math::
        v \leftarrow \mu v + g, \qquad d = \begin{cases} g + \mu v & \text{Nesterov} \\ v & \text{else} \end{cases},
        \qquad \theta \leftarrow (1 - \eta \lambda)\, \theta - \eta\, d

    Parameters
    ----------
    params, grads : tree of floating arrays
        Parameters and gradients of the same structure, shapes and dtypes.
    state : SGDState
        From `sgd_init` or the step before.
    lr : float
        Learning rate :math:`\eta`, 0 or above.
    momentum : float
        :math:`\mu`, from 0 to below 1.
    nesterov : bool
        Look one step of momentum ahead.
    weight_decay : float
        :math:`\lambda`, 0 or above; it shrinks the parameters and does not enter the velocity.

    Returns
    -------
    params, state
        New trees.

    Raises
    ------
    TypeError
        If a leaf is not a floating array or a gradient has another dtype or library than its parameter.
    ValueError
        If the trees differ, the message names the path; or an option is out of range.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013 (Nesterov).
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2017, arXiv:1711.05101.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import optim
    >>> params = {"weight": np.array([1.0, 2.0])}
    >>> params, state = optim.sgd(params, {"weight": np.array([1.0, -1.0])}, optim.sgd_init(params), lr=0.5)
    >>> params["weight"].tolist()
    [0.5, 2.5]
    """
    check_options(state, SGDState, lr=lr, weight_decay=weight_decay)
    check_decays(momentum=momentum)
    lr, momentum, weight_decay = map(float, (lr, momentum, weight_decay))  # NumPy's would change dtypes
    check_numbers(params, lr=lr, weight_decay=lr * weight_decay)
    if nesterov and not momentum:
        raise ValueError("`nesterov` looks ahead by `momentum`, which is 0. Give a momentum such as 0.9.")

    def one_leaf(p: Array, g: Array, v: Array) -> tuple[Array, Array]:
        direction = g
        if momentum:
            v = v * momentum
            v += g
            direction = momentum * v + g if nesterov else v
        return stepped(p, direction, lr, 1 - lr * weight_decay), v

    new, velocity = update(one_leaf, 2, params, grads, velocity=state.velocity)
    return new, SGDState(velocity)
