"""What is on this machine, for `attnarray info` and benchmark files: backends, kernels, versions, threads, caches."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import attnarray
from attnarray.backend import available_backends
from attnarray.dispatch import available_kernels, tensor_core_tiles, threads_and_cache


def collect() -> dict[str, Any]:
    """All facts as plain values that JSON can hold."""
    return {
        "backends": [status._asdict() for status in available_backends()],
        "kernels": [status._asdict() for status in available_kernels()],
        "tensor core tiles": tensor_core_tiles(),
        "here": {
            "attnarray": attnarray.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            **{name: _version(name) for name in ("numpy", "numba", "array-api-compat")},
            **threads_and_cache(),
        },
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
