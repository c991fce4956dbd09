"""PyTorch's tensors as arrays of NumPy and CuPy, and back, without copies."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from attnarray.backend import dtype_name

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "attnarray.bridges.torch needs PyTorch, which is not installed: pip install torch"
    ) from error

__all__ = ["FLOATING", "autocast", "to_array", "to_tensor", "torch"]

FLOATING = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
NATIVE = {torch.float64, torch.float32}
NUMPY = {np.float64, np.float32}
READ = FLOATING | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def to_array(tensor: Any, name: str = "tensor") -> Any:
    """A tensor as an array that shares its memory: of NumPy on a CPU, of CuPy on a GPU."""
    if tensor.dtype in NATIVE and tensor.is_cpu and tensor.layout is torch.strided:
        return tensor.numpy(force=True)  # which copies nothing on a CPU
    if tensor.layout is not torch.strided or tensor.dtype not in READ:
        raise TypeError(
            f"`{name}` is a {tensor.layout} tensor of {tensor.dtype}, expected a dense one of a floating dtype, "
            "integers or booleans. Convert it first: tensor.to_dense(), tensor.dequantize() or tensor.real."
        )
    tensor = tensor.detach()
    if tensor.device.type == "cuda":
        return _cupy().from_dlpack(tensor)
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(importlib.import_module("ml_dtypes").bfloat16)
    return tensor.numpy()


def to_tensor(array: Any) -> Any:
    """An array as a tensor that shares its memory."""
    if type(array) is np.ndarray and array.dtype.type in NUMPY and array.flags.c_contiguous and array.flags.writeable:
        return torch.from_numpy(array)
    if not isinstance(array, np.ndarray):
        return torch.from_dlpack(array) if hasattr(array, "__dlpack__") else torch.from_numpy(np.asarray(array))
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    if array.dtype.kind == "V" or dtype_name(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def autocast(tensors: list[Any], function: Any) -> list[Any]:
    """The arguments of a function. Under autocast floating ones get its dtype, those of primitives their widest one."""
    if not tensors or not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    given = [tensor.dtype for tensor in tensors if tensor.dtype in FLOATING]
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    if torch.float64 in given or getattr(function, "__module__", "").startswith("attnarray.ops."):
        dtype = functools.reduce(torch.promote_types, given)
    return [tensor.to(dtype) if tensor.dtype in FLOATING else tensor for tensor in tensors]


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Tensors of a GPU are computed by CuPy, which is not installed: pip install 'attnarray[cuda13]' (or cuda12)"
        ) from error
