"""What mechanisms share that map their inputs before they attend: linear maps, and dot products of what these give.

Results stay in the dtype that sums are kept in, so that 16-bit floats are rounded once, in what the caller gets.
"""

from __future__ import annotations

from typing import Any

from attnarray.attention.dot_product.scaled_dot_product import SDPAContext
from attnarray.attention.engine import DOT_PRODUCT, run
from attnarray.attention.layout import Layout
from attnarray.attention.normalizers import Softmax
from attnarray.attention.sequences import wide
from attnarray.backend import Array, ArrayT, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
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


def attend_by_dots(
    layout: Layout,
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | Mask | None,
    dropout_p: float,
    is_causal: bool,
    options: Any,
    default_scale: float = 1.0,
) -> tuple[Any, SDPAContext]:
    """Dot-product attention of arrays in any layout that were checked; its backward is that of SDPA."""
    arrays = query, key, value
    normalizer = Softmax(options.get("sinks"))
    return run(
        SDPAContext, DOT_PRODUCT, normalizer, layout, arrays, attn_mask, dropout_p, is_causal, options, default_scale
    )
