r"""Functions and layers on PyTorch's tensors, with autograd: the forward and the backward are those of this package.

`bridges.torch.NAME` is the function NAME of this package for tensors, and `differentiable` makes one of any function
with `_fwd` and `_bwd`. Tensors of the CPU are read without copies, tensors of a GPU by CuPy. `Module` is a layer as an
`nn.Module`, `replace_sdpa` routes PyTorch's attention here.

Gradients of gradients raise an error. With `torch.compile` a call is one opaque operator of the graph.

Examples
--------
>>> import torch
>>> from attnarray.bridges import torch as bridge
>>> q, k, v = torch.randn(3, 2, 8, 5, 64, requires_grad=True)
>>> out = bridge.scaled_dot_product_attention(q, k, v, is_causal=True)
>>> out.square().mean().backward()
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import attnarray
from attnarray.bridges.tensors import to_array, to_tensor, torch
from attnarray.bridges.torch_function import differentiable
from attnarray.bridges.torch_module import Module

__all__ = ["Module", "differentiable", "replace_sdpa", "to_array", "to_tensor"]


@contextlib.contextmanager
def replace_sdpa() -> Iterator[None]:
    """Within the block, `torch.nn.functional.scaled_dot_product_attention` is that of this package, for all threads.

    What took the function from its module before, as `from torch.nn.functional import ...` does, keeps PyTorch's. The
    seed of the dropout is drawn from PyTorch's generator.

    Examples
    --------
    >>> import torch
    >>> from attnarray.bridges import torch as bridge
    >>> x = torch.randn(1, 2, 3, 4)
    >>> with bridge.replace_sdpa():
    ...     out = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    """
    attention = differentiable(attnarray.scaled_dot_product_attention)

    def scaled_dot_product_attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        seed = {"rng": int(torch.randint(2**62, ()))} if dropout_p else {}
        return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa, **seed)

    functional = torch.nn.functional
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = scaled_dot_product_attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def __getattr__(name: str) -> Any:
    if name not in attnarray.TRIPLES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = differentiable(getattr(attnarray, name))
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, *attnarray.TRIPLES])
