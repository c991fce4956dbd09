"""Rotary positions as loops over single numbers in float64."""

import math

import numpy as np


def rotary(
    x, positions=None, *, offset=0, dims=None, base=10_000.0, interleaved=False, scaling=None, factor=1.0,
    layout="BHTD",
):  # fmt: skip
    """The output, float64: each pair as one complex number, times e^(i t w)."""
    out = np.array(x, np.float64)
    if layout == "BTHD":
        positions = None if positions is None else np.expand_dims(positions, -2)
        same = {"offset": offset, "dims": dims, "base": base, "interleaved": interleaved, "scaling": scaling}
        return np.swapaxes(rotary(np.swapaxes(out, -3, -2), positions, **same, factor=factor), -3, -2)
    dims = out.shape[-1] if dims is None else dims
    if positions is None:
        positions = [offset + t for t in range(out.shape[-2])]
    positions = np.broadcast_to(np.asarray(positions), out.shape[:-1])
    for row in np.ndindex(positions.shape):
        for n in range(dims // 2):
            stretch = factor if scaling == "linear" else 1.0
            b = base * factor ** (dims / (dims - 2)) if scaling == "ntk" else base
            angle = float(positions[row]) / stretch / b ** (2 * n / dims)
            first, second = (2 * n, 2 * n + 1) if interleaved else (n, n + dims // 2)
            rotated = complex(out[(*row, first)], out[(*row, second)]) * complex(math.cos(angle), math.sin(angle))
            out[(*row, first)], out[(*row, second)] = rotated.real, rotated.imag
    return out
