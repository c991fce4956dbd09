"""The norm of all gradients together, and keeping it within a bound."""

from __future__ import annotations

import math
from typing import Any

from attnarray import checks, tree
from attnarray.backend import Array, asarray, namespace_of
from attnarray.optim.leaves import Tree, check_array, narrow, wide


def global_norm(grads: Tree) -> Array:
    r"""The Euclidean norm of all leaves together, a 0-d array; NaN if there is any NaN.

    .. math:: \lVert g \rVert = \sqrt{\sum_i g_i^2}

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import optim
    >>> float(optim.global_norm({"weight": np.array([[3.0, 0.0]]), "bias": np.array([4.0])}))
    5.0
    """
    leaves = tree.flatten(grads)
    if not leaves:
        return asarray(0.0)
    for path, leaf in leaves:
        check_array("grads", path, leaf)
        checks.floating(**{f"grads.{tree.format_path(path)}": leaf})
    xp = namespace_of(*(leaf for _, leaf in leaves))
    total: Any = 0.0
    for _, leaf in leaves:
        flat = xp.reshape(wide(leaf), (math.prod(leaf.shape),))
        total = total + xp.vecdot(flat, flat)
    return xp.asarray(xp.sqrt(total))


def clip_by_global_norm(grads: Tree, max_norm: float) -> tuple[Tree, Array]:
    r"""Scale all gradients together so that their global norm is at most `max_norm`.

    .. math:: g \leftarrow g \cdot \min\Bigl(1, \frac{\mathrm{max\_norm}}{\lVert g \rVert}\Bigr)

    Parameters
    ----------
    grads : tree of floating arrays
    max_norm : float
        Above 0.

    Returns
    -------
    grads : tree
        New arrays. All are NaN if the norm is not finite: a broken step must show.
    norm : () array
        The norm before.

    Raises
    ------
    TypeError
        If a leaf is not a floating array.
    ValueError
        If `max_norm` is not a finite number above 0.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2012, arXiv:1211.5063.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import optim
    >>> grads, norm = optim.clip_by_global_norm({"weight": np.array([6.0, 8.0])}, 5.0)
    >>> grads["weight"].tolist(), float(norm)
    ([3.0, 4.0], 10.0)
    """
    checks.positive("max_norm", max_norm)
    norm = global_norm(grads)
    xp = namespace_of(norm)
    factor = xp.where(xp.isfinite(norm), max_norm / xp.clip(norm, max_norm, None), math.nan)

    def scaled(leaf: Array) -> Array:
        x = wide(leaf)
        return narrow(x * xp.astype(factor, x.dtype), leaf)

    return tree.map(scaled, grads), norm
