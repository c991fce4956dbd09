"""GPU kernels on CuPy arrays: CUDA sources, compiled when first called and cached on disk where that is possible."""

from __future__ import annotations

import functools


@functools.cache
def unavailable(_mode: str = "auto") -> str:
    """Why no CUDA kernel can be used here; empty when they can."""
    from attnarray.kernels.cuda import loader

    return loader.unavailable()
