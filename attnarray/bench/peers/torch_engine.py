"""Shared code of the peers on PyTorch: tensors as inputs, autograd for the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attnarray import tree
from attnarray.backend import to_numpy
from attnarray.bench.peers.peer import Call, Problem

INSTALL = "pip install torch (its build for the CPU is enough)"


def make_call(problem: Problem, function: Callable[..., Any]) -> Call:
    """A call of `function`, which takes the problem's arrays by name and returns a tensor or a tuple of them."""
    import torch

    torch.set_num_threads(problem.threads)
    device = "cuda" if problem.backend == "cupy" else "cpu"

    def tensor(array: np.ndarray) -> Any:
        if array.dtype.name == "bfloat16":  # which PyTorch cannot read from NumPy
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
        return torch.from_numpy(array.copy()).to(device)

    tensors = tree.map(tensor, problem.arrays)
    leaves = {tree.format_path(path): leaf for path, leaf in tree.flatten(tensors)}
    wanted = [leaves[name].requires_grad_() for name in problem.wanted]

    def named(result: Any) -> dict[str, np.ndarray]:
        out, grads = result  # a forward, or no gradients wanted
        outs = {".".join(["out", *map(str, path)]): leaf for path, leaf in tree.flatten(out)}
        found = {**outs, **dict(zip(problem.wanted, grads, strict=True))}
        return {name: to_numpy(leaf) for name, leaf in found.items()}

    if problem.case.direction == "forward":
        return Call(lambda: (function(**tensors), ()), named, torch.inference_mode)
    dout = tree.map(tensor, problem.dout)
    if problem.case.direction == "backward":
        kept = function(**tensors)
        return Call(lambda: (None, torch.autograd.grad(kept, wanted, dout, retain_graph=True)), named)

    def both() -> Any:
        out = function(**tensors)
        return out, torch.autograd.grad(out, wanted, dout)

    return Call(both, named)


def to_tensor(array: np.ndarray | None, backend: str) -> Any:
    """A constant, such as a mask; None stays None."""
    import torch

    return None if array is None else torch.from_numpy(array).to("cuda" if backend == "cupy" else "cpu")
