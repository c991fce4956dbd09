"""NVIDIA's runtime compiler: found on this machine, and called without a GPU or a driver.

It is searched for in NVIDIA's wheels, in CUDA_PATH and CUDA_HOME, and in the library path of the system.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
MISSING = "NVRTC was not found; install it with pip install 'attnarray[cuda13]', or set CUDA_PATH"


class CompileError(RuntimeError):
    """The compiler refused a source; the message is its log."""


class Compiled(NamedTuple):
    """Machine code for one architecture, and the log of compiler and assembler."""

    image: bytes
    log: str


class Nvrtc(NamedTuple):
    """The compiler of one shared library."""

    functions: Any
    path: str
    version: tuple[int, int]
    architectures: tuple[int, ...]  # e.g. 80, 90, 120


def _folders() -> Iterator[Path]:
    for folder in sys.path:
        wheels = Path(folder) / "nvidia"
        yield from (wheels / "cu13" / "lib", wheels / "cuda_nvrtc" / "lib")
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            yield from (Path(os.environ[variable]) / name for name in ("lib64", "lib"))
    yield Path("/usr/local/cuda/lib64")


def _candidates() -> Iterator[str]:
    for folder in _folders():
        yield from (str(folder / name) for name in SONAMES if (folder / name).exists())
    yield from SONAMES  # also finds one that this process has loaded already, as CuPy does


@functools.cache
def find() -> Nvrtc | None:
    """The first compiler that can be loaded; None if there is none."""
    for path in _candidates():
        try:
            for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")) if "/" in path else ():
                ctypes.CDLL(str(builtins))  # NVRTC asks for it by its bare name, which is found once it is loaded
            functions = ctypes.CDLL(path)
        except OSError:
            continue
        return Nvrtc(functions, path, _version(functions), _architectures(functions))
    return None


def _version(functions: Any) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    functions.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _architectures(functions: Any) -> tuple[int, ...]:
    count = ctypes.c_int()
    functions.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    functions.nvrtcGetSupportedArchs(numbers)
    return tuple(sorted(numbers))


def target(capability: int, architectures: Sequence[int]) -> str:
    """The architecture to compile for on a device of this compute capability (90 is 9.0).

    Machine code of its own architecture, or of the newest older one of its generation, which it can run; else portable
    code (`compute_...`) that the driver compiles.
    """
    older = [number for number in architectures if number <= capability]
    same = [number for number in older if number // 10 == capability // 10]
    if same:
        return f"sm_{max(same)}"
    if not older:
        raise CompileError(f"NVRTC knows no architecture as old as compute capability {capability / 10}.")
    return f"compute_{max(older)}"


def compile_source(
    source: str, name: str, headers: Mapping[str, str], options: Sequence[str], architecture: str
) -> Compiled:
    """Compile for `architecture`: "sm_90", "sm_90a" ... to machine code, "compute_90" ... to PTX.

    Raises
    ------
    CompileError
        If there is no compiler or it refuses the source; the message is its log.
    """
    nvrtc = find()
    if nvrtc is None:
        raise CompileError(MISSING)
    call, program = nvrtc.functions, ctypes.c_void_p()
    texts = [text.encode() for text in headers.values()]
    names = [header.encode() for header in headers]
    _check(call.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), len(names), _strings(texts), _strings(names)
    ))  # fmt: skip
    try:
        words = [f"-arch={architecture}".encode(), *(option.encode() for option in options)]
        failed = call.nvrtcCompileProgram(program, len(words), _strings(words))
        log = _read(call.nvrtcGetProgramLogSize, call.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        if failed:
            raise CompileError(log.strip() or f"NVRTC error {failed}")
        if architecture.startswith("compute_"):
            return Compiled(_read(call.nvrtcGetPTXSize, call.nvrtcGetPTX, program), log)
        return Compiled(_read(call.nvrtcGetCUBINSize, call.nvrtcGetCUBIN, program), log)
    finally:
        call.nvrtcDestroyProgram(ctypes.byref(program))


def _strings(texts: Sequence[bytes]) -> Any:
    return (ctypes.c_char_p * len(texts))(*texts)


def _read(get_size: Any, read: Any, program: Any) -> bytes:
    size = ctypes.c_size_t()
    _check(get_size(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer))
    return buffer.raw


def _check(code: int) -> None:
    if code:
        raise CompileError(f"NVRTC error {code}")


class Usage(NamedTuple):
    """The resources of a kernel, from the assembler's log: registers of a thread, spilled bytes, stack."""

    registers: int
    spilled: int
    stack: int


def usage(log: str) -> dict[str, Usage]:
    """Kernel -> resources, from the log of a compilation with --ptxas-options=-v."""
    found = {}
    for name, rest in re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", log, re.S):
        stack, stores, loads = (
            sum(map(int, re.findall(rf"(\d+) bytes {what}", rest)))
            for what in ("stack frame", "spill stores", "spill loads")
        )
        registers = re.search(r"Used (\d+) registers", rest)
        found[name] = Usage(int(registers.group(1)) if registers else 0, stores + loads, stack)
    return found
