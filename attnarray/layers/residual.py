"""The residual connection around a branch, with norms before it, of its output, or after the sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from attnarray.backend import Array, ArrayT
from attnarray.layers.checking import check_same
from attnarray.layers.initial import Params
from attnarray.ops.dropout import DropoutContext, dropout_bwd, dropout_fwd
from attnarray.random import Philox

Branch = Callable[[Array], tuple[Array, Any]]  # x -> y, and its context
BranchBackward = Callable[[Array, Any], tuple[Array, Any]]  # dy and that context -> dx, and other gradients


class ResidualContext(NamedTuple):
    norm: Any
    branch: Any
    dropout: DropoutContext
    branch_norm: Any = None


class ResidualGrads(NamedTuple):
    """The gradients of x and of the parameters of the norms, and what the backward of the branch returns besides."""

    x: Any
    params: Params
    branch: Any


@dataclass(frozen=True)
class Residual:
    r"""A residual connection around a branch f: pre-norm, post-norm, sandwich norm, or a norm of the branch alone.

    .. math::
        \text{pre-norm:} \quad y = x + s\, \mathrm{drop}(f(\mathrm{norm}(x))) \qquad
        \text{post-norm:} \quad y = \mathrm{norm}(x + s\, \mathrm{drop}(f(x)))

    With a `branch_norm`, f is followed by it; without `pre_norm`, it is then the only norm. The parameters are those of
    the norms, by the names in `parts`.
    """

    name: str  # of the branch
    norm: Any  # a LayerNorm or an RMSNorm; None for pre-norm without a norm
    pre_norm: bool
    dropout: float
    branch_norm: bool = False
    scale: float = 1.0  # s

    def parts(self) -> dict[str, Any]:
        """The norms, by the names of their parameters in the block."""
        without = self.norm is None or (self.branch_norm and not self.pre_norm)
        first = {} if without else {f"{self.name}_norm": self.norm}
        return {**first, f"{self.name}_branch_norm": self.norm} if self.branch_norm else first

    def fwd(self, params: Params, x: ArrayT, branch: Branch, rng: Philox | None) -> tuple[ArrayT, ResidualContext]:
        """Return y and the context; `params` are those of the block. Without an `rng` there is no dropout."""
        dx, ctx = self.increment(params, x, branch, rng)
        if self.pre_norm or self.branch_norm:
            return x + dx, ctx
        y, norm_ctx = self.norm.fwd(params[f"{self.name}_norm"], x + dx)
        return y, ctx._replace(norm=norm_ctx)

    def increment(
        self, params: Params, x: ArrayT, branch: Branch, rng: Philox | None
    ) -> tuple[ArrayT, ResidualContext]:
        """Return what is added to x, and the context, without a norm after the sum."""
        norm_ctx = branch_norm_ctx = None
        if self.pre_norm and self.norm is not None:
            x, norm_ctx = self.norm.fwd(params[f"{self.name}_norm"], x)
        y: Any
        y, branch_ctx = branch(x)
        if self.branch_norm:
            y, branch_norm_ctx = self.norm.fwd(params[f"{self.name}_branch_norm"], y)
        y, dropout_ctx = dropout_fwd(y, self.dropout if rng else 0.0, rng=rng)
        y = y if self.scale == 1 else y * self.scale
        return y, ResidualContext(norm_ctx, branch_ctx, dropout_ctx, branch_norm_ctx)

    def bwd(self, dout: ArrayT, ctx: ResidualContext, branch_bwd: BranchBackward) -> ResidualGrads:
        """Return the gradients of `fwd`."""
        params: Params = {}
        if not (self.pre_norm or self.branch_norm):
            norm = self.norm.bwd(dout, ctx.norm)
            dout, params = norm.x, {f"{self.name}_norm": norm.params}
        grads = self.increment_bwd(dout, ctx, branch_bwd)
        return ResidualGrads(dout + grads.x, {**params, **grads.params}, grads.branch)

    def increment_bwd(self, dout: ArrayT, ctx: ResidualContext, branch_bwd: BranchBackward) -> ResidualGrads:
        """Return the gradients of `increment`."""
        params: Params = {}
        check_same(self, "norm of the branch", ctx.branch_norm is not None, self.branch_norm)
        dy: Any = dropout_bwd(dout if self.scale == 1 else dout * self.scale, ctx.dropout).x
        if self.branch_norm:
            norm = self.norm.bwd(dy, ctx.branch_norm)
            dy, params[f"{self.name}_branch_norm"] = norm.x, norm.params
        dx, others = branch_bwd(dy, ctx.branch)
        check_same(self, "norm", ctx.norm is not None or not self.pre_norm, self.norm is not None or not self.pre_norm)
        if self.pre_norm and self.norm is not None:
            norm = self.norm.bwd(dx, ctx.norm)
            dx, params[f"{self.name}_norm"] = norm.x, norm.params
        return ResidualGrads(dx, params, others)
