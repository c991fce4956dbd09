"""The gradient of the logits that a model returned, checked."""

from __future__ import annotations

from attnarray import checks
from attnarray.backend import Array
from attnarray.ops.linear import LinearContext


def check_dlogits(dlogits: Array, ctx: LinearContext) -> None:
    """Check that the gradient has the shape, library and dtype of the logits that a linear map made."""
    expected = (*ctx.x.shape[:-1], ctx.weight.shape[0])
    checks.namespace(dlogits=dlogits, logits=ctx.x)
    checks.shape("dlogits", dlogits, expected, "the shape of the logits")
    checks.floating(dlogits=dlogits, logits=ctx.x)
