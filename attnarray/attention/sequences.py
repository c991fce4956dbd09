"""Functions for mechanisms that project or convolve sequences before scores are computed.

Results stay in the dtype that sums are kept in, so that 16-bit floats are rounded once, in what the caller gets.
"""

from __future__ import annotations

from typing import Any

from attnarray import checks
from attnarray.attention.layout import Layout
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import within
from attnarray.ops.linear import LinearContext, LinearGrads, linear_bwd, linear_fwd


def one_sequence_layout(name: str, x: Array) -> Layout:
    """The layout of a sequence (*batch, T, N) without heads."""
    if x.ndim < 2:
        raise ValueError(
            f"`{name}` has shape {tuple(x.shape)}, expected at least two axes: (*batch, positions, features)."
        )
    return Layout(x.ndim, "BHTD", tuple(x.shape[:-2]), False)


def check_sequence(
    name: str, array: Array, layout: Layout, positions: int | None, features: int | None, because: str
) -> None:
    """Check for (*batch, positions, features) with the batch of the layout; None allows any number."""
    own = (1, 1, *array.shape)[-2:]
    expected = (own[0] if positions is None else positions, own[1] if features is None else features)
    checks.shape(name, array, (*layout.batch, *expected), because)


def without_padding(x: ArrayT, lengths: Array | None) -> ArrayT:
    """x (B, 1, S, N) with 0 at positions past the lengths (B,), also in place of NaN; so is its gradient."""
    if lengths is None:
        return x
    exists = within(lengths, x.shape[2], x)  # (B, 1, 1, S)
    return namespace_of(x).where(exists.mT, x, 0.0)


def wide(x: ArrayT) -> ArrayT:
    """x in the dtype that sums are kept in: 16-bit floats are rounded once, in the result."""
    xp = namespace_of(x)
    return xp.astype(x, accumulator_dtype(xp, x.dtype), copy=False)


def narrow(x: Array | None, like: Array) -> Any:
    """A result, or None, as an array in the dtype of the argument `like`: NumPy makes scalars of 0-d arrays."""
    return None if x is None else namespace_of(x).astype(namespace_of(x).asarray(x), like.dtype, copy=False)


def result_cotangents(
    dout: Any, kind: Any, shapes: tuple[tuple[int, ...], ...], like: Array, wide_fields: tuple[str, ...] = ()
) -> list[Any]:
    """The cotangents of the fields of a result, checked, in the dtype of sums; 0 for None.

    Those of `wide_fields` are in that dtype, others in that of `like`.
    """
    if not isinstance(dout, tuple | list) or len(dout) != len(kind._fields):
        raise TypeError(
            f"`dout` is {checks.shown(dout)}, expected {kind.__name__}({', '.join(kind._fields)}): the cotangent of "
            "each, None for one that does not count."
        )
    named = {f"dout.{name}": array for name, array in zip(kind._fields, dout, strict=True)}
    xp, found = checks.namespace(**named, query=like), []
    for (name, array), shape in zip(named.items(), shapes, strict=True):
        other = wide(like) if name.removeprefix("dout.") in wide_fields else like
        if array is None:
            array = xp.zeros(shape, dtype=other.dtype, device=device_of(like))
        checks.shape(name, array, shape, "the shape of that result")
        checks.floating(**{name: array}, query=other)
        found.append(wide(array))
    return found


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
