"""One step of an LSTM after its matrix products, for `lstm` and attention with recurrent scores."""

from __future__ import annotations

from attnarray.backend import Array, namespace_of
from attnarray.dispatch import accelerated
from attnarray.ops.activations import sigmoid


@accelerated
def lstm_cell(products: Array, inputs: Array, c: Array) -> tuple[Array, Array, Array]:
    r"""Return the gates of a step, and h and c after it.

    .. math::
        (a^i, a^f, a^g, a^o) = W_{hh} h + s, \qquad
        c' = \sigma(a^f) \odot c + \sigma(a^i) \odot \tanh(a^g), \qquad h' = \sigma(a^o) \odot \tanh(c')

    Parameters
    ----------
    products : (..., 4 H) float32 or float64
        W_hh h.
    inputs : (..., 4 H)
        s: the contribution of the input.
    c : (..., H)

    Returns
    -------
    gates : (..., 4 H), i, f, g and o
    h, c : (..., H)
    """
    xp = namespace_of(products)
    i, f, g, o = _quarters(products + inputs)
    i, f, g, o = sigmoid(i), sigmoid(f), xp.tanh(g), sigmoid(o)
    c = f * c + i * g
    return xp.concat([i, f, g, o], axis=-1), o * xp.tanh(c), c


@accelerated
def lstm_cell_backward(dh: Array, dc: Array, gates: Array, c_before: Array, c: Array) -> tuple[Array, Array]:
    r"""Return the gradients of the gates' arguments (..., 4 H), and of the cell before the step (..., H).

    .. math::
        dc \mathrel{+}= dh \odot o \odot (1 - \tanh^2 c), \quad
        da^i = dc \odot g \odot i (1 - i), \quad da^f = dc \odot c_{before} \odot f (1 - f), \quad
        da^g = dc \odot i \odot (1 - g^2), \quad da^o = dh \odot \tanh(c) \odot o (1 - o), \quad
        dc_{before} = dc \odot f
    """
    xp = namespace_of(dh)
    i, f, g, o = _quarters(gates)
    tanh_c = xp.tanh(c)
    dcell = dc + dh * o * (1.0 - tanh_c * tanh_c)
    sums = (
        dcell * g * i * (1.0 - i),
        dcell * c_before * f * (1.0 - f),
        dcell * i * (1.0 - g * g),
        dh * tanh_c * o * (1.0 - o),
    )
    return xp.concat(sums, axis=-1), dcell * f


def _quarters(gates: Array) -> list[Array]:
    """(..., 4 H) -> four (..., H)."""
    size = gates.shape[-1] // 4
    return [gates[..., n * size : (n + 1) * size] for n in range(4)]
