"""Hooks: functions that are called with values inside a forward or backward pass, and may replace them.

They are set for a block of code, in this thread alone; `interpret` is made with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

ForwardHook = Callable[[Any, int, Any], Any]  # stack, index of the block, output of the block -> output
BackwardHook = Callable[[Any, Any], None]  # context of an attention function, cotangent of its output

_FORWARD: ContextVar[ForwardHook | None] = ContextVar("attnarray_forward_hook", default=None)
_BACKWARD: ContextVar[BackwardHook | None] = ContextVar("attnarray_backward_hook", default=None)


@contextlib.contextmanager
def forward_hook(hook: ForwardHook) -> Iterator[None]:
    """Within the block, call ``hook(stack, n, x)`` with the output x of each block n of an encoder or decoder.

    What it returns goes on in its place. A backward pass does not know of replacements.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> encoder = aa.models.Encoder(dim=8, num_layers=2, num_heads=2)
    >>> x, params, found = np.ones((1, 3, 8), np.float32), encoder.init(aa.Philox(0)), []
    >>> with aa.interpret.forward_hook(lambda stack, n, x: found.append(n) or x):
    ...     y = encoder(params, x)
    >>> found
    [0, 1]
    """
    token = _FORWARD.set(hook)
    try:
        yield
    finally:
        _FORWARD.reset(token)


@contextlib.contextmanager
def backward_hook(hook: BackwardHook) -> Iterator[None]:
    """Within the block, call ``hook(ctx, dout)`` with the context and the cotangent of each attention's backward.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v)
    >>> with aa.interpret.backward_hook(lambda ctx, dout: print(type(ctx).__name__, dout.shape)):
    ...     grads = aa.scaled_dot_product_attention_bwd(np.ones_like(out), ctx)
    SDPAContext (1, 2, 4, 8)
    """
    token = _BACKWARD.set(hook)
    try:
        yield
    finally:
        _BACKWARD.reset(token)


def block_output(stack: Any, n: int, x: Any) -> Any:
    """The output of block n, after a forward hook."""
    hook = _FORWARD.get()
    return x if hook is None else hook(stack, n, x)


def attention_cotangent(ctx: Any, dout: Any) -> None:
    """Call a backward hook, if there is one."""
    hook = _BACKWARD.get()
    if hook is not None:
        hook(ctx, dout)
