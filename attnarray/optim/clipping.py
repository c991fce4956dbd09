"""The global norm of gradients, and clipping by it."""

from __future__ import annotations

import math
from typing import Any

from attnarray import checks, tree
from attnarray.backend import Array, asarray, device_of, namespace_of
from attnarray.magnitude import common_scale
from attnarray.optim.leaves import Tree, check_array, narrow, wide


def global_norm(grads: Tree) -> Any:
    r"""The Euclidean norm of all leaves together, a 0-d array; NaN if there is any NaN.

    .. math:: \lVert g \rVert = \sqrt{\sum_i g_i^2}

    Squares neither overflow nor vanish; the norm is infinite only where the dtype does not hold it.

    Examples
    --------
    >>> import numpy as np
    >>> from attnarray import optim
    >>> float(optim.global_norm({"weight": np.array([[3.0, 0.0]]), "bias": np.array([4.0])}))
    5.0
    """
    return _unscaled(*_scaled_norm(grads))


def _scaled_norm(grads: Tree) -> tuple[Array, float]:
    """The norm times a power of two, and that power."""
    leaves = tree.flatten(grads)
    if not leaves:
        return asarray(0.0), 1.0
    for path, leaf in leaves:
        check_array("grads", path, leaf)
        checks.floating(**{f"grads.{tree.format_path(path)}": leaf})
    xp = namespace_of(*(leaf for _, leaf in leaves))
    flat = [xp.reshape(wide(leaf), (math.prod(leaf.shape),)) for _, leaf in leaves]
    widest = xp.result_type(*flat)
    scale = common_scale([xp.astype(leaf, widest, copy=False) for leaf in flat])
    total: Any = 0.0
    for leaf in flat:
        scaled = leaf if scale == 1 else xp.astype(leaf, widest, copy=False) * scale
        total = total + xp.vecdot(scaled, scaled)
    return xp.asarray(xp.sqrt(total)), scale


def clip_by_global_norm(grads: Tree, max_norm: float) -> tuple[Tree, Any]:
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
        New arrays. All are NaN if a gradient is not finite.
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
    max_norm = checks.positive("max_norm", max_norm)
    norm, scale = _scaled_norm(grads)
    scaled = float(norm)
    factor = math.nan if not math.isfinite(scaled) else min(1.0, max_norm * scale / scaled) if scaled else 1.0

    def clipped(leaf: Array) -> Array:
        x = wide(leaf)
        if factor < 1 and scale < 1:  # in two steps, as the factor may be too small for the dtype
            return narrow(x * scale * (factor / scale), leaf)
        return narrow(x * factor, leaf)

    return tree.map(clipped, grads), _unscaled(norm, scale)


def _unscaled(norm: Array, scale: float) -> Array:
    if scale == 1:
        return norm
    xp = namespace_of(norm)
    value = float(norm) / scale
    value = math.inf if value > float(xp.finfo(norm.dtype).max) else value
    return xp.asarray(value, dtype=norm.dtype, device=device_of(norm))
