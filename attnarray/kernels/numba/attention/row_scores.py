"""Scores of one query with consecutive keys, as a row: softcap, bias and mask, and its visible keys.

Masked softmax, decoding and windows share it. panels.py and scores.py do the same for many queries at a time.
"""

from __future__ import annotations

from typing import Any

from attnarray.kernels.numba.runtime.jit import jit
from attnarray.kernels.numba.vector.lanes import Lanes, tanh
from attnarray.kernels.numba.vector.rows import Row, Scalar, row_pass
from attnarray.kernels.numba.vector.transpose import with_bias, with_mask


@row_pass(vectors=1)
def cap(scores: Row, slopes: Row, factor: Scalar, bound: Scalar) -> dict[str, Lanes]:
    """c tanh(f s), and the derivative of tanh."""
    capped, slope = tanh(scores * factor)
    return {"scores": capped * bound, "slopes": slope}


@row_pass(vectors=2)
def add_bias(scores: Row, bias: Row) -> dict[str, Lanes]:
    return {"scores": with_bias(scores, bias)}


@row_pass(vectors=2)
def hide(scores: Row, mask: Row) -> dict[str, Lanes]:
    return {"scores": with_mask(scores, mask)}


def visible(position: int, left: int, right: int, length: int, keys: int) -> Any:
    """The keys [begin, end) visible to a query by window, length and number of keys."""
    begin = min(max(position - left, 0), keys)
    return begin, max(min(position + right + 1, length, keys), begin)


visible = jit(visible, inner=True)
