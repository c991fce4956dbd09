"""Cross-entropy of rows of logits. Reference: ops/loss.py; source: loss.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.loader import empty, launch, multiprocessors
from attnarray.kernels.cuda.rows import ONE, are_held, few_blocks, held_grid, launch_rows, load, row_kernel, with_copies

AHEAD = {2: 4, 4: 4, 8: 4}  # chunks of a row that a thread of the forward prefetches; of a long row twice as many
TWICE = {size: 2 * chunks for size, chunks in AHEAD.items()}
AT_ONCE = {2: 768, 4: 1024, 8: 256}  # its threads on a multiprocessor, by the bytes of a number
FORWARD = row_kernel("loss.cu", "cross_entropy_forward", "ppirrpppii", TWICE, 256, spans=True)
BACKWARD = row_kernel("loss.cu", "cross_entropy_backward", "pppppirrpii", ONE, 256, spans=True)


def cross_entropy_forward(x: Any, classes: Any, ignore_index: int, label_smoothing: float) -> tuple[Any, Any, Any]:
    """See the reference."""
    how, (count, width) = ga.stored(x), x.shape
    losses, row_max, row_sum = (empty(shape, how.real) for shape in ((count,), (count, 1), (count, 1)))
    rows, share = ga.contiguous(x), label_smoothing / max(width, 1)
    arguments = (rows, _long(classes), ignore_index, label_smoothing, share, losses, row_max, row_sum)
    if are_held(FORWARD, how, width, (rows,)):
        size = how.stored_itemsize
        grid = with_copies(held_grid(FORWARD, how, count, width), how.itemsize, AHEAD[size])
        grid = few_blocks(grid, AT_ONCE[size], multiprocessors(int(x.data.device_id)))
        launch(FORWARD.held, how.name, grid, *arguments, count, width)
    else:
        launch_rows(FORWARD, how, count, width, *arguments)
    return losses, row_max, row_sum


def cross_entropy_backward(
    g: Any, x: Any, classes: Any, row_max: Any, row_sum: Any, ignore_index: int, label_smoothing: float
) -> Any:
    """See the reference."""
    how, (count, width), dx = ga.stored(x), x.shape, empty(x.shape, x.dtype)
    launch_rows(
        BACKWARD, how, count, width, ga.contiguous_like(g, row_max), ga.contiguous(x), _long(classes),
        ga.contiguous(row_max), ga.contiguous(row_sum), ignore_index, label_smoothing, label_smoothing / max(width, 1),
        dx,
    )  # fmt: skip
    return dx


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    load((FORWARD, BACKWARD), dtype)


def _long(classes: Any) -> Any:
    return ga.contiguous(classes if classes.dtype == np.int64 else classes.astype(np.int64))
