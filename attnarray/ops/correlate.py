"""Correlations of sequences (N, S, C) with weights of K taps, for `conv1d`; of one tap they are products of rows.

All arrays are of one dtype, that of the sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated

BLOCK_SIZE = 2**19  # numbers in the windows of one block of sequences, which should fit in a CPU's cache


@accelerated
def correlate(x: Array, weight: Array, bias: Array | None, dilation: int) -> Any:
    r"""Return y (N, T, O) with T = S - (K - 1) d, of x (N, S, C), a weight (O, C, K), a bias (O,) and the dilation d.

    .. math:: y_{nto} = b_o + \sum_{kc} W_{ock}\, x_{n,\, t + k d,\, c}

    One matrix product for all taps: of the windows of x, or, where O is smaller, of x before its products are shifted.
    """
    xp = namespace_of(x)
    outputs, inputs, width = weight.shape
    by_tap = xp.permute_dims(weight, (2, 1, 0))  # (K, C, O)
    parts = []
    for block in _blocks(x, width * min(outputs, inputs)):
        if inputs <= outputs:
            windows = _windows(block, width, dilation)
            out = xp.matmul(_rows(windows), xp.reshape(by_tap, (width * inputs, outputs)))
        else:
            products = xp.matmul(
                _rows(block), xp.reshape(xp.permute_dims(by_tap, (1, 0, 2)), (inputs, width * outputs))
            )
            out = _shifted_sum(xp.reshape(products, (*block.shape[:2], width, outputs)), dilation)
        parts.append(xp.reshape(out, (block.shape[0], x.shape[1] - (width - 1) * dilation, outputs)))
    y = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
    return y if bias is None else y + bias


@accelerated
def correlate_weight_gradient(dy: Array, x: Array, width: int, dilation: int) -> Any:
    r"""Return the gradient of the weight (O, C, K), of the cotangent dy (N, T, O) of `correlate`.

    .. math:: dW_{ock} = \sum_{nt} dy_{nto}\, x_{n,\, t + k d,\, c}
    """
    xp = namespace_of(dy, x)
    total = xp.zeros((dy.shape[2], width * x.shape[2]), dtype=x.dtype, device=device_of(x))
    start = 0
    for block in _blocks(x, width * x.shape[2]):
        past = start + block.shape[0]
        total = total + xp.matmul(_rows(dy[start:past, :, :]).mT, _rows(_windows(block, width, dilation)))
        start = past
    return xp.permute_dims(xp.reshape(total, (dy.shape[2], width, x.shape[2])), (0, 2, 1))


def multiply_rows(x: Array, weight: Array, bias: Array | None = None) -> Any:
    """X W^T + b of rows x (R, C), a weight (O, C) and a bias (O,): (R, O)."""
    return correlate(x[None, :, :], weight[:, :, None], bias, 1)[0, :, :]


def multiply_columns(dy: Array, x: Array) -> Any:
    """The gradient dY^T X (O, C) of that weight, of dy (R, O)."""
    return correlate_weight_gradient(dy[None, :, :], x[None, :, :], 1, 1)[:, :, 0]


def _blocks(x: Array, each: int) -> Iterator[Array]:
    """Blocks of the sequences (N, S, C), so that `each` numbers per step fit in `BLOCK_SIZE`."""
    size = max(1, BLOCK_SIZE // max(1, x.shape[1] * each))
    for start in range(0, max(x.shape[0], 1), size):
        yield x[start : min(start + size, x.shape[0]), :, :]


def _windows(x: Array, width: int, dilation: int) -> Any:
    """The windows of the steps: (N, S, C) -> (N, T, K C)."""
    if width == 1:
        return x
    steps = x.shape[1] - (width - 1) * dilation
    return namespace_of(x).concat([x[:, k * dilation : k * dilation + steps, :] for k in range(width)], axis=2)


def _shifted_sum(products: Array, dilation: int) -> Array:
    """The sum of the products of each tap, shifted by its distance: (N, S, K, O) -> (N, T, O)."""
    width = products.shape[2]
    steps = products.shape[1] - (width - 1) * dilation
    total = products[:, :steps, 0, :]
    for k in range(1, width):
        total = total + products[:, k * dilation : k * dilation + steps, k, :]
    return total


def _rows(x: Array) -> Array:
    """(N, S, C) -> (N S, C)"""
    xp = namespace_of(x)
    return xp.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]))
