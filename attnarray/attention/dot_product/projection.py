"""Linear maps of the inputs of mechanisms.

Results stay in the dtype that sums are kept in, so that 16-bit floats are rounded once, in what the caller gets.
"""

from __future__ import annotations

from attnarray.attention.sequences import wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.ops.linear import LinearContext, LinearGrads, linear_bwd, linear_fwd


@ignoring_fp_errors
def project(x: ArrayT, weight: ArrayT, bias: ArrayT | None = None) -> tuple[ArrayT, LinearContext[ArrayT]]:
    """x W^T + b in the dtype of sums, and a context that holds the arguments as they were given."""
    out, _ = linear_fwd(wide(x), wide(weight), None if bias is None else wide(bias))
    return out, LinearContext(x, weight, bias is not None)


@ignoring_fp_errors
def project_backward(dout: Array, ctx: LinearContext) -> LinearGrads:
    """The gradients of `project`, in the dtype of sums as `dout` is.

    Rows of x whose gradient is 0 do not matter: a mask may hide them, or there is no query, and they may hold NaN.
    """
    return linear_bwd(dout, ctx._replace(x=contributing_rows(wide(ctx.x), dout), weight=wide(ctx.weight)))


def contributing_rows(x: Array, dout: Array) -> Array:
    """x (..., N); if not all of it is finite, with 0 in the rows where `dout` (..., M) is 0."""
    xp = namespace_of(x, dout)
    if bool(xp.all(xp.isfinite(wide(x)))):
        return x
    return xp.where(xp.any(dout != 0, axis=-1)[..., None], x, 0.0)
