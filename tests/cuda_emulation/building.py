"""Kernel sources as shared libraries for the CPU: emulation.h in place of the GPU, all dtypes of a source together."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnarray.kernels.cuda import cache
from attnarray.kernels.cuda.grid import Grid
from attnarray.kernels.cuda.loader import STORED

HERE = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or ""
UNAVAILABLE = (
    "kernels are emulated on Linux only"
    if sys.platform != "linux"
    else ""
    if COMPILER
    else "no C++ compiler (g++) was found to emulate kernels with"
)
# As NVIDIA's compiler does, a product and a sum become one operation, rounded once, where the processor has it.
PROCESSOR = Path("/proc/cpuinfo")
HAS_FMA = PROCESSOR.exists() and " fma " in PROCESSOR.read_text()  # others than x86 have it by default
CONTRACTION = ("-ffp-contract=fast", "-fexpensive-optimizations", *(("-mfma",) if HAS_FMA else ()))
OPTIONS = ("-std=c++17", "-O1", *CONTRACTION, "-fPIC", "-w", f"-I{HERE}", f"-I{cache.SOURCES}")
WIDE_ONLY = ("masked_softmax.cu", "additive.cu", "lstm_cell.cu")
FLOAT32_ONLY = ("halves.cu",)


class Failed(Exception):
    """An error of a kernel that the emulation found."""


class Launch(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("seed", ctypes.c_uint),
    )


class Range(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


def unit(source: str, types: Sequence[str], constants: Sequence[str] = ()) -> str:
    """One C++ file that includes a source once for each type it is compiled for.

    With constants, which headers use, too, there can be one type only.
    """
    if constants:
        macros = [f"#define {constant.replace('=', ' ')}" for constant in (*constants, f"Stored={types[0]}")]
        return "\n".join((*macros, f'#include "{source}"')) + "\n"
    parts = [f'#include "{header}"' for header in ("rows.cuh", "philox.cuh")]
    for kind in types:
        parts += [f"namespace of_{kind} {{", f"#define Stored {kind}", f'#include "{source}"', "#undef Stored", "}"]
    return "\n".join(parts) + "\n"


def _compile(arguments: Sequence[str], target: Path) -> None:
    temporary = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([COMPILER, *arguments, "-o", str(temporary)], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(done.stderr[:4000])
    os.replace(temporary, target)


@functools.cache
def folder() -> Path:
    """The cache folder of these sources."""
    digest = hashlib.sha256(" ".join((COMPILER, *OPTIONS)).encode())
    for path in sorted((*HERE.glob("emulation.*"), *cache.SOURCES.iterdir())):
        digest.update(path.read_bytes())
    user = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(tempfile.gettempdir()) / f"attnarray-emulation-{user}" / digest.hexdigest()[:16]
    path.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def machine() -> Path:
    """The emulation itself, compiled."""
    target = folder() / "emulation.o"
    if not target.exists():
        _compile(("-O3", *OPTIONS[:1], *OPTIONS[2:], "-c", str(HERE / "emulation.cpp")), target)
    return target


@functools.cache
def library(text: str) -> Any:
    """The shared library of a C++ text."""
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    target = folder() / f"{name}.so"
    if not target.exists():
        source = folder() / f"{name}.cpp"
        source.write_text(text)
        _compile((*OPTIONS, "-shared", str(source), str(machine())), target)
    return ctypes.CDLL(str(target))


def library_of(source: str, kind: str, constants: Sequence[str] = ()) -> Any:
    """The shared library of a file of the kernels' sources, for all types together unless there are constants."""
    if constants:
        return library(unit(source, [kind], constants))
    types = [kind for dtype, kind in STORED.items() if not (source in WIDE_ONLY and "16" in dtype)]
    types = ["float"] if source in FLOAT32_ONLY else types
    return library(unit(source, types))


def run(function: Any, grid: Grid, values: Sequence[Any], seed: int = 0) -> None:
    """Launch a kernel on NumPy arrays and NumPy scalars; raise Failed with the error that the emulation found.

    The kernel may access the memory of these arrays only.
    """
    held = [np.asarray(value.ctypes.data if isinstance(value, np.ndarray) else value) for value in values]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    bounds = [np.lib.array_utils.byte_bounds(array) for array in arrays]
    ranges = (Range * max(len(bounds), 1))(*(Range(low, high - low) for low, high in bounds))
    pointers = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
    three = ctypes.c_uint * 3
    launch = Launch(three(*grid.blocks), three(*grid.threads), grid.shared, seed)
    message = ctypes.create_string_buffer(500)
    if function(ctypes.byref(launch), pointers, ranges, len(bounds), message):
        raise Failed(message.value.decode())
