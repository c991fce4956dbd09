"""Precompiled kernels: one shared library for each level of CPUs, in the wheels for a platform; loaded by ctypes.

`attnarray_build` makes a library, and a JSON file that lists its kernels. A library is loaded if it is undamaged, was
compiled from these sources, and this CPU has all the instructions that it uses: the highest such level.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnarray.kernels import MODE
from attnarray.kernels.numba.runtime.call import address

KERNELS = Path(__file__).parents[1]
FOLDER = KERNELS.parents[1] / "_compiled"
PREFIX = __name__.removesuffix("runtime.library")  # of the names of modules with kernels
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
X86_64 = ("x86-64-v4", "x86-64-v3", "x86-64-v2")  # https://gitlab.com/x86-psABIs/x86-64-ABI
LEVELS = {"x86_64": X86_64, "amd64": X86_64, "arm64": ("arm64",), "aarch64": ("arm64",)}  # the best first
ALLOWED = "ATTNARRAY_CPU_LEVEL"  # the highest level to load; "none" for no precompiled kernels

# Kinds of arguments: integers, truth values, numbers of the dtype of the call, arrays of integers and of such numbers.
C_TYPES: dict[str, Any] = {"i": ctypes.c_int64, "b": ctypes.c_bool, "I": ctypes.c_void_p, "R": ctypes.c_void_p}
C_REALS = {"float32": ctypes.c_float, "float64": ctypes.c_double}
CONVERT: dict[str, Callable[[Any], Any]] = {"i": int, "b": bool, "r": float, "I": address, "R": address}


class Entry:
    """One kernel of a library: the kinds of its arguments, which of them has the dtype, and a C function by dtype."""

    def __init__(self, kinds: str, functions: dict[Any, Any]) -> None:
        self.kinds, self.functions = kinds, functions
        self.at = next((n for n, kind in enumerate(kinds) if kind in "rR"), None)

    def __call__(self, *args: Any) -> Any:
        return self._function(args)(*self._converted(args))

    def prepared(self, parts: Sequence[tuple[Any, ...]]) -> tuple[Any, list[tuple[Any, ...]]]:
        """The C function, and its arguments for each part; the arrays must stay alive."""
        return self._function(parts[0]), [self._converted(part) for part in parts]

    def _function(self, args: Sequence[Any]) -> Any:
        return self.functions[None if self.at is None else args[self.at].dtype]

    def _converted(self, args: Sequence[Any]) -> tuple[Any, ...]:
        return tuple([CONVERT[kind](x) for kind, x in zip(self.kinds, args, strict=True)])


class RangeEntry(Entry):
    """The most frequent kind: the first and the last unit of work, integers and numbers."""

    KINDS = "iiIR"

    def __call__(self, first: int, past: int, integers: Any, numbers: Any) -> Any:
        return self.functions[numbers.dtype](first, past, address(integers), address(numbers))


class Library:
    """A loaded library; `contents` is its JSON file."""

    def __init__(self, level: str, contents: dict[str, Any], functions: ctypes.CDLL) -> None:
        self.level = level
        self.tiles = {int(bits): tuple(tile) for bits, tile in contents["tiles"].items()}
        self._kernels, self._functions = contents["kernels"], functions

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether this CPU multiplies bfloat16 numbers, which no level promises."""
        return bool(self._functions.attnarray_multiplies_bfloat16())

    def function_address(self, name: str) -> int:
        """The address of a C function."""
        return ctypes.cast(self._functions[name], ctypes.c_void_p).value or 0

    def entry(self, name: str) -> Entry:
        """The kernel "module:function"."""
        kernel = self._kernels[name]
        functions = {}
        for dtype, symbol in kernel["symbols"].items():
            kinds = C_TYPES | ({"r": C_REALS[dtype]} if dtype else {})
            function = self._functions[symbol]
            function.argtypes = [kinds[kind] for kind in kernel["kinds"]]
            function.restype = ctypes.c_int64 if kernel["returns"] else _check
            functions[np.dtype(dtype) if dtype else None] = function
        return (RangeEntry if kernel["kinds"] == RangeEntry.KINDS else Entry)(kernel["kinds"], functions)


def _check(status: int) -> None:
    if status:
        raise MemoryError("A kernel could not allocate its scratch memory.")


def library() -> Library | None:
    """The library to run kernels from; None where Numba compiles them."""
    return None if MODE.get() == "numba" else load()[0]


@functools.cache
def load() -> tuple[Library | None, str]:
    """The library of the highest level that this CPU can run, and why none of a higher one was loaded."""
    machine = platform.machine().lower()
    levels, allowed = LEVELS.get(machine, ()), os.environ.get(ALLOWED, "").strip()
    if not levels:
        return None, f"there are no precompiled kernels for {machine or 'this CPU'}"
    if allowed == "none":
        return None, f"{ALLOWED} is none"
    if allowed and allowed not in levels:
        return None, f"{ALLOWED} is {allowed!r}, expected none or one of {', '.join(levels)}"
    reasons: list[str] = []
    for level in levels[levels.index(allowed) if allowed else 0 :]:
        try:
            return _loaded(level), "; ".join(reasons)
        except (FileNotFoundError, NotADirectoryError):  # the latter in an archive
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reasons.append(f"{level}: {error}")
    return None, "; ".join(reasons) or "this installation has no precompiled kernels"


def _loaded(level: str) -> Library:
    path = FOLDER / f"{level}{SUFFIX}"
    contents = _listed(path.with_suffix(".json"))
    if not os.path.lexists(path):
        raise ValueError(f"{path} is missing, and only the list beside it is there: install attnarray again")
    if contents["sources"] != source_digest():
        raise ValueError(f"{path} was compiled from other sources: run python -m attnarray_build")
    if library_digest(path, contents) != contents["digest"]:
        raise ValueError(f"{path} or the list beside it is damaged: install attnarray again")
    functions = ctypes.CDLL(str(path))
    if not functions.attnarray_runs_here():
        raise ValueError("this CPU lacks some of its instructions")
    names = contents["python"]
    addresses = [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in names]
    functions.attnarray_use_python((ctypes.c_void_p * len(names))(*addresses))
    return Library(level, contents, functions)


def _listed(path: Path) -> dict[str, Any]:
    """What a library has, by the list beside it; its digests are there."""
    try:
        contents: dict[str, Any] = json.loads(path.read_bytes())
        contents["sources"], contents["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): install attnarray again") from error
    return contents


def library_digest(path: Path, contents: dict[str, Any]) -> str:
    """Of a library and of all that the list beside it says: by a damaged one, kernels would read any memory."""
    listed = {name: value for name, value in contents.items() if name != "digest"}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode() + path.read_bytes()).hexdigest()


@functools.cache
def source_digest() -> str:
    """Of all modules with kernels, whatever ends their lines; OSError if they cannot be read."""
    digest = hashlib.sha256()
    for path in sorted(KERNELS.rglob("*.py")):
        digest.update(path.relative_to(KERNELS).as_posix().encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()
