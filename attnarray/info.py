"""Processor, backends, kernels, versions and caches of this machine, for `attnarray info` and benchmark files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import attnarray
from attnarray.backend import available_backends
from attnarray.dispatch import available_kernels, cpu_count, cpu_quota, tensor_core_tiles, threads_and_cache


def collect() -> dict[str, Any]:
    """All facts as JSON values."""
    backends = available_backends()
    gpu = any(status.name == "cupy" and status.available for status in backends)
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "usable cores": cpu_count(),
            "quota of cores": cpu_quota(),
            "memory": memory(),
            "gpus": [status.device for status in backends if status.name == "cupy" and status.available],
        },
        "here": {
            "attnarray": attnarray.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "numpy": np.__version__,
            "blas": blas(),
            **{name: _version(name) for name in ("numba", "array-api-compat")},
            **threads_and_cache(),
        },
        "backends": [status._asdict() for status in backends],
        "kernels": [status._asdict() for status in available_kernels()],
        "tensor core tiles": tensor_core_tiles() if gpu else [],
    }


def cpu_model() -> str:
    """The model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory() -> int | None:
    """The memory in bytes, None where it is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def blas() -> str:
    """The library of NumPy's matrix products, with its version."""
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{found.get('name', '')} {found.get('version', '')}".strip()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
