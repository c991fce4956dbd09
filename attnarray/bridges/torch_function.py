"""A triple or a layer as a function of PyTorch's autograd."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import attnarray
from attnarray import tree
from attnarray.bridges.tensors import FLOATING, autocast, to_array, to_tensor, torch
from attnarray.bridges.torch_graph import fits_graph, in_graph
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.triples import Triple, argument_gradient, find_triple

SCALARS = {bool, int, float, str, type(None)}  # parts of contexts that hold no array


class Call:
    """One call: the triple, its arguments, and the context between forward and backward."""

    __slots__ = ("context", "held", "keywords", "names", "nested", "out", "places", "triple", "values")

    def __init__(self, triple: Triple, names: Sequence[str], args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.triple, self.keywords, self.names = triple, tuple(keywords), (*names[: len(args)], *keywords)
        self.values = [*args, *keywords.values()]
        self.places: list[int] = []  # of the values that are tensors
        self.nested: list[tuple[int, Any]] = []  # values with tensors inside
        self.context: Any = None
        self.held: list[int] = []  # of the tensors and the outputs, those that the context holds
        self.out: Any = None

    def tensors(self) -> list[Any]:
        """All tensors of the arguments, in order; those inside of trees and masks come last."""
        found, inside = [], []
        for n, value in enumerate(self.values):
            if isinstance(value, torch.Tensor):
                self.places.append(n)
                found.append(value)
            elif isinstance(value, (tuple, list, dict, Mask)):
                parts = [leaf for _, leaf in tree.flatten(_open(value)) if isinstance(leaf, torch.Tensor)]
                if parts:
                    self.nested.append((n, value))
                    inside += parts
        return found + inside

    def run(self, function: Callable[..., Any], arrays: Sequence[Any]) -> Any:
        """Call a function with arrays in place of the tensors."""
        if len(arrays) == len(self.places) == len(self.values) and not self.keywords:
            return function(*arrays)
        values, rest = self.values.copy(), iter(arrays)
        for n in self.places:
            values[n] = next(rest)
        for n, value in self.nested:
            values[n] = _filled(value, rest)
        count = len(values) - len(self.keywords)
        return function(*values[:count], **dict(zip(self.keywords, values[count:], strict=True)))

    def gradients(self, grads: Any) -> list[Any]:
        """The gradients of the tensors, from those by name."""
        found = [argument_gradient(grads, self.names[n]) for n in self.places]
        for n, value in self.nested:
            grad = argument_gradient(grads, self.names[n])
            paths = [path for path, leaf in tree.flatten(_open(value)) if isinstance(leaf, torch.Tensor)]
            found += [None if grad is None or isinstance(value, Mask) else tree.get(grad, path) for path in paths]
        return found


def _open(value: Any) -> Any:
    """A mask as a tree of its fields."""
    if not isinstance(value, Mask):
        return value
    return {name: [_open(part) for part in x] if isinstance(x, tuple) else x for name, x in vars(value).items()}


def _filled(value: Any, arrays: Iterator[Any]) -> Any:
    if isinstance(value, Mask):
        filled = object.__new__(type(value))
        for name, x in vars(value).items():
            object.__setattr__(filled, name, _filled(x, arrays) if isinstance(x, (Mask, tuple, torch.Tensor)) else x)
        return filled
    if isinstance(value, tuple) and any(isinstance(part, Mask) for part in value):
        return tuple(_filled(part, arrays) for part in value)
    return tree.map(lambda leaf: next(arrays) if isinstance(leaf, torch.Tensor) else leaf, value)


def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which has `_fwd` and `_bwd` in its module or is a layer, for tensors, with autograd.

    Parameters
    ----------
    function : callable
        A function such as `attnarray.softmax` or one of your own, or a layer.

    Returns
    -------
    callable
        Takes the arguments of `function` with tensors in place of arrays, also inside trees and masks, and returns
        tensors. Under autocast floating tensors get its dtype. Seeds are `rng=`, as in `function`.

    Raises
    ------
    TypeError
        If `function` has no backward; when called, if a tensor is sparse, complex or quantized, or is neither on a CPU
        nor on a CUDA device.

    Examples
    --------
    >>> import torch, attnarray as aa
    >>> from attnarray.bridges import torch as bridge
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> bridge.differentiable(aa.silu)(x).sum().backward()
    >>> x.grad.shape
    torch.Size([2])
    """
    triple = find_triple(function)
    names = list(inspect.signature(function).parameters)
    public = getattr(attnarray, getattr(function, "__name__", ""), None) is function
    one_array = public and inspect.signature(function).return_annotation == "ArrayT"

    def applied(*args: Any, **keywords: Any) -> Any:
        call = Call(triple, names, args, keywords)
        return _applied(call, _cast(call, call.tensors()))

    outside = torch.compiler.disable(applied)

    @functools.wraps(function)
    def on_tensors(*args: Any, **keywords: Any) -> Any:
        if not torch.compiler.is_compiling():
            return applied(*args, **keywords)
        if one_array and fits_graph((*args, *keywords.values())):
            return in_graph(function, args, keywords)
        return outside(*args, **keywords)

    return on_tensors


def _cast(call: Call, tensors: list[Any]) -> list[Any]:
    """The tensors, of one device. Under autocast floating ones get its dtype, those of primitives their widest one."""
    if not torch.is_autocast_enabled("cpu"):
        for tensor in tensors:
            if not tensor.is_cpu:
                break
        else:
            return tensors  # a tiny call takes not much longer than these checks
    kinds = {tensor.device.type for tensor in tensors}
    if len({tensor.device for tensor in tensors}) > 1:
        found = ", ".join(sorted({str(tensor.device) for tensor in tensors}))
        raise TypeError(f"The tensors are on different devices: {found}. Move them to one: tensor.to(device).")
    if not kinds <= {"cpu", "cuda"}:
        raise TypeError(
            f"The tensors are on a device {kinds.pop()!r}, expected 'cpu' or 'cuda'. Move them: tensor.cpu()."
        )
    return autocast(tensors, call.triple.f)


def _applied(call: Call, tensors: list[Any]) -> Any:
    if torch._C._are_functorch_transforms_active():
        outs = _Transformed.apply(call, *tensors)
    elif torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        outs = _Function.apply(call, *tensors)
    else:
        outs = _outputs(call, call.run(call.triple.f, [to_array(tensor) for tensor in tensors]))
    if call.out is None:
        return outs[0]
    rest = iter(outs)
    return tree.map(lambda _: next(rest), call.out)


def _outputs(call: Call, out: Any) -> tuple[Any, ...]:
    """All arrays of a result as tensors; `call.out` gets their tree if they are several."""
    if not isinstance(out, tuple):
        return (to_tensor(out),)
    call.out = out
    return tuple(to_tensor(array) for _, array in tree.flatten(out))


class _Function(torch.autograd.Function):
    """The forward and the backward of a call for autograd."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Any) -> Any:
        outs = _forward(call, tensors)
        _save(ctx, call, tensors, outs)
        return outs

    @staticmethod
    def backward(ctx: Any, *douts: Any) -> Any:
        held = ctx.saved_tensors  # raises if one of them was changed, or freed
        if torch.is_grad_enabled():
            return None, *_Second.apply(ctx.call, len(douts), *douts, *held)
        grads = _gradients(ctx.call, douts)
        if any(grad is None for grad in grads):
            _check_needed(ctx, grads)
        return None, *grads


class _Transformed(torch.autograd.Function):
    """The same for transformations of torch.func, in the slower form that they need."""

    @staticmethod
    def forward(call: Call, *tensors: Any) -> Any:
        return _forward(call, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _save(ctx, inputs[0], inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, *douts: Any) -> Any:
        return _Function.backward(ctx, *douts)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Any) -> Any:
        raise _not_mapped(call)

    @staticmethod
    def jvp(ctx: Any, *unused: Any) -> Any:
        raise NotImplementedError(f"{_name(ctx.call)} has no derivative in forward mode: use torch.func.grad or vjp.")


def _not_mapped(call: Call) -> NotImplementedError:
    return NotImplementedError(
        f"{_name(call)} is not mapped by torch.vmap: give it tensors with an axis for the batch instead."
    )


def _check_needed(ctx: Any, grads: list[Any]) -> None:
    """Check that there is a gradient of each tensor that requires one."""
    call = ctx.call
    for n, (needed, grad) in enumerate(zip(ctx.needs_input_grad[1:], grads, strict=True)):
        if needed and grad is None:
            name = call.names[call.places[n]] if n < len(call.places) else call.names[call.nested[0][0]]
            raise TypeError(
                f"`{name}` has a tensor that requires a gradient, but {_name(call)} has none of it. "
                f"Give {name}.detach()."
            )


def _forward(call: Call, tensors: Sequence[Any]) -> tuple[Any, ...]:
    arrays = [to_array(tensor) for tensor in tensors]
    out, call.context = call.run(call.triple.fwd, arrays)
    outs = _outputs(call, writable(out))
    call.held = _held(call.context, [*arrays, *([out] if call.out is None else [x for _, x in tree.flatten(out)])])
    return outs


def _save(ctx: Any, call: Call, tensors: Sequence[Any], outs: tuple[Any, ...]) -> None:
    """Of what the context holds, so that autograd finds changes in place."""
    ctx.call = call
    every = (*tensors, *outs)
    ctx.save_for_backward(*[every[n] for n in call.held])
    if call.out is not None:
        ctx.mark_non_differentiable(*[out for out in outs if out.dtype not in FLOATING])


class _Second(torch.autograd.Function):
    """The backward in a graph of its own: its gradients depend on what the context holds, and have none themselves."""

    @staticmethod
    def forward(call: Call, cotangents: int, *tensors: Any) -> Any:
        return tuple(_gradients(call, tensors[:cotangents]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call = inputs[0]

    @staticmethod
    def backward(ctx: Any, *unused: Any) -> Any:
        raise NotImplementedError(
            f"The backward of {_name(ctx.call)} has no derivative: gradients of gradients need a function of PyTorch."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *unused: Any) -> Any:
        raise _not_mapped(call)


def _name(call: Call) -> str:
    return getattr(call.triple.f, "__name__", type(call.triple.f).__name__)


def _gradients(call: Call, douts: Sequence[Any]) -> list[Any]:
    arrays = [to_array(dout) for dout in douts]
    if call.out is None:
        grads = call.triple.bwd(arrays[0], call.context)
    else:
        rest = iter(arrays)
        grads = call.triple.bwd(tree.map(lambda _: next(rest), call.out), call.context)
    return [None if grad is None else to_tensor(grad) for grad in call.gradients(grads)]


def _held(context: Any, arrays: list[Any]) -> list[int]:
    """Which arrays a context holds, itself or as views."""
    inside: set[int] = set()
    found: list[int] = []
    level: list[Any] = [(context,)]
    while level and len(found) < len(arrays):  # most contexts have all of them on top
        below: list[Any] = []
        for node in level:
            for part in node:
                kind = type(part)
                if kind in SCALARS:
                    continue
                if kind is not np.ndarray and isinstance(part, (tuple, list)):
                    below.append(part)
                elif kind is dict:
                    below.append(part.values())
                elif hasattr(part, "base"):
                    inside.add(id(part))
                    inside.add(id(part.base))
        level = below
        inside.discard(id(None))
        found = [
            n for n, array in enumerate(arrays) if id(array) in inside or id(getattr(array, "base", None)) in inside
        ]
    return found
