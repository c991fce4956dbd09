"""GELU, ReLU, SiLU, tanh and sigmoid. References: ops/gelu.py, ops/activations.py; source: activations.cu."""

from __future__ import annotations

from typing import Any

from attnarray.kernels.cuda import arrays as ga
from attnarray.kernels.cuda.grid import plan_numbers
from attnarray.kernels.cuda.loader import Kernel, empty, launch
from attnarray.kernels.cuda.loader import warmup as load

NAMES = ("relu", "silu", "tanh", "sigmoid", "gelu", "gelu_tanh")
FORWARD = {name: Kernel("activations.cu", f"{name}_forward", "ppi") for name in NAMES}
BACKWARD = {name: Kernel("activations.cu", f"{name}_backward", "pppi") for name in NAMES}
KERNELS = (*FORWARD.values(), *BACKWARD.values())


def gelu_forward(x: Any, approximate: str) -> Any:
    """See the reference."""
    return _forward("gelu" if approximate == "none" else "gelu_tanh", x)


def gelu_backward(dout: Any, x: Any, approximate: str) -> Any:
    """See the reference."""
    return _backward("gelu" if approximate == "none" else "gelu_tanh", dout, x)


def relu_forward(x: Any) -> Any:
    """See the reference."""
    return _forward("relu", x)


def relu_backward(dout: Any, out: Any) -> Any:
    """See the reference."""
    return _backward("relu", dout, out)


def silu_forward(x: Any) -> Any:
    """See the reference."""
    return _forward("silu", x)


def silu_backward(dout: Any, x: Any) -> Any:
    """See the reference."""
    return _backward("silu", dout, x)


def tanh_forward(x: Any) -> Any:
    """See the reference."""
    return _forward("tanh", x)


def tanh_backward(dout: Any, out: Any) -> Any:
    """See the reference."""
    return _backward("tanh", dout, out)


def sigmoid_forward(x: Any) -> Any:
    """See the reference."""
    return _forward("sigmoid", x)


def sigmoid_backward(dout: Any, out: Any) -> Any:
    """See the reference."""
    return _backward("sigmoid", dout, out)


def warmup(dtype: str) -> None:
    """Compile all kernels for one dtype."""
    load(KERNELS, dtype)


def _forward(name: str, x: Any) -> Any:
    how, out = ga.stored(x), empty(x.shape, x.dtype)
    launch(FORWARD[name], how.name, plan_numbers(x.size, how.stored_itemsize), ga.contiguous(x), out, x.size)
    return out


def _backward(name: str, dout: Any, x: Any) -> Any:
    how, dx = ga.stored(x), empty(x.shape, x.dtype)
    grid = plan_numbers(x.size, how.stored_itemsize)
    launch(BACKWARD[name], how.name, grid, ga.contiguous_like(dout, x), ga.contiguous(x), dx, x.size)
    return dx
