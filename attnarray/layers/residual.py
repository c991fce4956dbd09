"""The residual connection: x + dropout(branch(norm(x))), or norm(x + dropout(branch(x)))."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray.backend import Array, ArrayT
from attnarray.layers.initial import Params
from attnarray.layers.layer import LayerGrads
from attnarray.layers.norm import LayerNorm, RMSNorm
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.random import Philox

Branch = Callable[[Array], tuple[Array, Any]]  # x -> y, and its context


class ResidualContext(NamedTuple):
    norm: Any
    branch: Any
    dropout: DropoutContext


@dataclass(frozen=True)
class Residual:
    r"""A residual connection around a branch, pre-norm or post-norm.

    .. math::
        \text{pre-norm:} \quad y = x + \mathrm{drop}(f(\mathrm{norm}(x))) \qquad
        \text{post-norm:} \quad y = \mathrm{norm}(x + \mathrm{drop}(f(x)))
    """

    norm: LayerNorm | RMSNorm
    pre_norm: bool
    dropout: float

    def fwd(self, params: Params, x: ArrayT, branch: Branch, rng: Philox | None) -> tuple[ArrayT, ResidualContext]:
        """Return y and the context; `params` are those of the norm. Without an `rng` there is no dropout."""
        p = self.dropout if rng else 0.0
        if self.pre_norm:
            normed, norm_ctx = self.norm.fwd(params, x)
            y, branch_ctx = branch(normed)
            y, dropout_ctx = dropout_fwd(y, p, rng=rng)
            return x + y, ResidualContext(norm_ctx, branch_ctx, dropout_ctx)
        y, branch_ctx = branch(x)
        y, dropout_ctx = dropout_fwd(y, p, rng=rng)
        y, norm_ctx = self.norm.fwd(params, x + y)
        return y, ResidualContext(norm_ctx, branch_ctx, dropout_ctx)

    def bwd(
        self, dout: ArrayT, ctx: ResidualContext, branch_bwd: Callable[[ArrayT, Any], tuple[ArrayT, Any]]
    ) -> tuple[LayerGrads[ArrayT], Any]:
        """Return the gradients of x and of the norm's parameters, and what `branch_bwd` returns besides dx."""
        if self.pre_norm:
            dnormed, others = branch_bwd(dropout_bwd(dout, ctx.dropout).x, ctx.branch)
            norm = self.norm.bwd(dnormed, ctx.norm)
            return LayerGrads(dout + norm.x, norm.params), others
        norm = self.norm.bwd(dout, ctx.norm)
        dx, others = branch_bwd(dropout_bwd(norm.x, ctx.dropout).x, ctx.branch)
        return LayerGrads(norm.x + dx, norm.params), others
