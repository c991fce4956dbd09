"""Validation of the cotangents of a model's outputs."""

from __future__ import annotations

from attnarray import checks
from attnarray.backend import Array
from attnarray.ops.linear import LinearContext


def check_gradient(name: str, gradient: Array, expected: tuple[int, ...], like: Array) -> None:
    """Check that a gradient has the shape of the output, and the library and dtype of `like`."""
    checks.namespace(**{name: gradient, "output": like})
    checks.shape(name, gradient, expected, "the shape of the output")
    checks.floating(**{name: gradient, "output": like})


def check_dlogits(dlogits: Array, ctx: LinearContext) -> None:
    """Check the gradient of logits from a linear layer."""
    check_gradient("dlogits", dlogits, (*ctx.x.shape[:-1], ctx.weight.shape[0]), ctx.x)
