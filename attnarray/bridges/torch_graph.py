"""A call in a graph of `torch.compile`: one operator, of the tensors and of all other arguments as a literal."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import attnarray
from attnarray.backend import dtype_called, dtype_name
from attnarray.bridges.tensors import autocast, to_array, to_tensor, torch
from attnarray.triples import Triple, argument_gradient, find_triple


def fits_graph(values: Sequence[Any]) -> bool:
    """Whether all arguments are tensors or literals; with others, a call is outside of the graph."""
    kinds = (torch.Tensor, bool, int, float, str)
    return all(x is None or isinstance(x, kinds) or (type(x) is tuple and fits_graph(x)) for x in values)


def in_graph(function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The call as an operator."""
    given = dict(zip(inspect.signature(function).parameters, args, strict=False)) | keywords
    tensors = [value for value in given.values() if isinstance(value, torch.Tensor)]
    others = {name: value for name, value in given.items() if not isinstance(value, torch.Tensor)}
    names = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
    tensors = autocast(tensors, function)
    return _forward_op(tensors, f"{function.__name__}|{names}|{others}")


@functools.lru_cache(maxsize=1024)
def _decoded(key: str) -> tuple[Triple, list[str], dict[str, Any]]:
    function, names, others = key.split("|", 2)
    return find_triple(getattr(attnarray, function)), ast.literal_eval(names), ast.literal_eval(others)


@torch.library.custom_op("attnarray::forward", mutates_args=())
def _forward_op(tensors: Sequence[torch.Tensor], key: str) -> torch.Tensor:
    triple, names, others = _decoded(key)
    arrays = dict(zip(names, [to_array(tensor) for tensor in tensors], strict=True))
    return to_tensor(np.copy(triple.f(**arrays, **others)))


@torch.library.custom_op("attnarray::backward", mutates_args=())
def _backward_op(tensors: Sequence[torch.Tensor], dout: torch.Tensor, key: str) -> list[torch.Tensor]:
    """The gradients of floating tensors; the forward runs again, since a context is no tensor."""
    triple, names, others = _decoded(key)
    arrays = dict(zip(names, [to_array(tensor) for tensor in tensors], strict=True))
    grads = triple.bwd(to_array(dout), triple.fwd(**arrays, **others)[1])
    found = [argument_gradient(grads, name) for name in names]
    return [torch.zeros_like(x) if grad is None else to_tensor(grad) for x, grad in zip(tensors, found, strict=True)]


@_forward_op.register_fake
def _(tensors: Sequence[torch.Tensor], key: str) -> torch.Tensor:
    triple, names, others = _decoded(key)
    zeros = [np.zeros(tuple(map(int, x.shape)), dtype_called(np, str(x.dtype))) for x in tensors]
    out = triple.f(**dict(zip(names, zeros, strict=True)), **others)
    return tensors[0].new_empty(out.shape, dtype=getattr(torch, dtype_name(out.dtype)))


@_backward_op.register_fake
def _(tensors: Sequence[torch.Tensor], dout: torch.Tensor, key: str) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in tensors]


def _op_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.key = inputs[1]
    ctx.save_for_backward(*inputs[0])


def _op_backward(ctx: Any, dout: Any) -> Any:
    grads = _backward_op(ctx.saved_tensors, dout, ctx.key)
    return [grad if x.is_floating_point() else None for x, grad in zip(ctx.saved_tensors, grads, strict=True)], None


_forward_op.register_autograd(_op_backward, setup_context=_op_context)
