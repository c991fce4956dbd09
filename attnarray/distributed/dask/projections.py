"""What the tasks of multi-head attention compute: projections of a block of positions to heads, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from attnarray.attention.sequences import narrow, project, project_backward, wide
from attnarray.backend import Array, device_of, library_name, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.distributed.sequence import Segment
from attnarray.ops.linear import LinearContext
from attnarray.ops.rotary import Rotary, rotary_bwd, rotary_fwd


class Heads(NamedTuple):
    """The number of heads, and the rotation of positions from `offset` on, an int or one for each batch."""

    num_heads: int
    rotary: Rotary | None
    offset: Any

    def at(self, batch: Segment, first: int) -> Heads:
        """Those of a block of batches and positions."""
        offset = self.offset if isinstance(self.offset, int) else np.asarray(self.offset)
        if not isinstance(offset, int) and offset.ndim:
            offset = offset[slice(*batch)]
        return self._replace(offset=offset + first)

    def rotated(self, x: Array) -> tuple[Any, Any]:
        """x (B, T, H, D) rotated, and the context of the rotation."""
        assert self.rotary is not None
        options: dict[str, Any] = {**asdict(self.rotary), "layout": "BTHD"}
        offset = np.asarray(self.offset)
        if not offset.ndim:
            return rotary_fwd(x, offset=int(offset), **options)
        xp, positions = namespace_of(x), offset[:, None] + np.arange(x.shape[1])
        given = positions if library_name(x) == "numpy" else xp.asarray(positions, device=device_of(x))
        return rotary_fwd(x, given, **options)


@ignoring_fp_errors
def heads_block(x: Array, weight: Array, bias: Array | None, heads: Heads) -> Any:
    """(B, T, E) -> (B, H, T, D) in the dtype of sums."""
    y, _ = project(x, weight, bias)
    xp = namespace_of(y)
    y = xp.reshape(y, (*y.shape[:2], heads.num_heads, y.shape[2] // heads.num_heads))
    y = y if heads.rotary is None else heads.rotated(y)[0]
    return xp.permute_dims(y, (0, 2, 1, 3))


@ignoring_fp_errors
def heads_backward_block(dy: Array, x: Array, weight: Array, heads: Heads, has_bias: bool) -> tuple[Any, Any, Any]:
    """The gradients of x, weight and bias for those of (B, H, T, D)."""
    xp = namespace_of(dy)
    dy = xp.permute_dims(dy, (0, 2, 1, 3))  # (B, T, H, D)
    if heads.rotary is not None:
        dy = rotary_bwd(dy, heads.rotated(dy)[1]).x
    dy = xp.reshape(dy, (*dy.shape[:2], dy.shape[2] * dy.shape[3]))
    return tuple(project_backward(dy, LinearContext(x, weight, has_bias)))


@ignoring_fp_errors
def output_block(out: Array, weight: Array, bias: Array | None) -> Any:
    """(B, H, T, Dv) -> (B, T, E) in the dtype of the parameters."""
    return narrow(project(_joined(out), weight, bias)[0], weight)


@ignoring_fp_errors
def output_backward_block(dout: Array, out: Array, weight: Array, has_bias: bool) -> tuple[Any, Any, Any]:
    """The gradients of the heads' output (B, H, T, Dv), of weight and bias."""
    grads = project_backward(wide(dout), LinearContext(_joined(out), weight, has_bias))
    xp, (batch, heads, rows, features) = namespace_of(out), out.shape
    dout = xp.permute_dims(xp.reshape(grads.x, (batch, rows, heads, features)), (0, 2, 1, 3))
    return dout, grads.weight, grads.bias


def _joined(x: Array) -> Any:
    """(B, H, T, D) -> (B, T, H D)."""
    xp = namespace_of(x)
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (x.shape[0], x.shape[2], x.shape[1] * x.shape[3]))
