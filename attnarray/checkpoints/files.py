"""Reading and writing of safetensors and JSON files, with errors that name the file."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import math
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from attnarray.checkpoints.replacing import replacing

# Supported dtypes: name in NumPy -> name in safetensors.
DTYPES = {
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}, **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}  # fmt: skip
LARGEST_HEADER = 100_000_000  # of safetensors
INSTALL = "pip install 'attnarray[checkpoints]'"


def safetensors() -> Any:
    """Import safetensors."""
    try:
        importlib.import_module("safetensors.numpy")
        return importlib.import_module("safetensors")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Checkpoints need the package `safetensors`, which cannot be imported ({error}). Install it: {INSTALL}."
        ) from error


class TensorFile:
    """An open file of tensors."""

    def __init__(self, path: Path, file: Any, descriptor: int | None = None) -> None:
        self.path, self.file, self.descriptor = path, file, descriptor
        self.names: list[str] = list(file.keys())
        self.metadata: dict[str, str] = dict(file.metadata() or {})
        self.bits: dict[str, Any] | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Read a tensor into a new array."""
        dtype = self.file.get_slice(name).get_dtype()
        if dtype == "BF16":
            return self._bfloat16(name)
        try:
            return np.asarray(self.file.get_tensor(name))
        except (AttributeError, KeyError, TypeError) as error:  # a dtype that NumPy does not have
            raise ValueError(f"`{name}` in `{self.path}` has dtype {dtype}, which cannot be read.") from error

    def mapped(self, name: str) -> np.ndarray:
        """Return a tensor in the mapped file: pages are read when they are used, and copied when they are written.

        It is read into memory where it cannot be mapped: on Windows, which cannot replace mapped files.
        """
        if self.descriptor is None or sys.platform == "win32" or sys.byteorder != "little":
            return self.read(name)
        entry = self._header[name]
        dtype = {theirs: ours for ours, theirs in DTYPES.items()}.get(entry["dtype"], "")
        if dtype == "bfloat16" and importlib.util.find_spec("ml_dtypes"):
            kind = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        elif dtype in ("", "bfloat16"):
            return self.read(name)
        else:
            kind = np.dtype(dtype)
        start = self._first + entry["data_offsets"][0]
        count = math.prod(entry["shape"])
        if not count or start % kind.itemsize:
            return self.read(name)
        return np.frombuffer(self._memory, kind, count, start).reshape(entry["shape"])

    @functools.cached_property
    def _memory(self) -> mmap.mmap:
        assert self.descriptor is not None, "the file was not replaced while it was opened"
        return mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_COPY)

    @functools.cached_property
    def _first(self) -> int:
        """Where the bytes of the tensors begin."""
        return 8 + int.from_bytes(self._memory[:8], "little")

    @functools.cached_property
    def _header(self) -> dict[str, Any]:
        """Dtype, shape and place of each tensor, as safetensors has checked them."""
        header: dict[str, Any] = json.loads(self._memory[8 : self._first])
        return header

    def _bfloat16(self, name: str) -> np.ndarray:
        try:
            bfloat16 = importlib.import_module("ml_dtypes").bfloat16
        except ImportError as error:
            raise ModuleNotFoundError(
                f"`{name}` in `{self.path}` has dtype bfloat16, which NumPy supports with the package `ml_dtypes`. "
                f"Install it: {INSTALL}."
            ) from error
        try:
            return np.asarray(self.file.get_tensor(name))
        except AttributeError:  # some versions of safetensors have no bfloat16 for NumPy; read the bytes
            self.bits = self.bits or dict(safetensors().deserialize(self.path.read_bytes()))
            found = self.bits[name]
            return np.frombuffer(found["data"], bfloat16).reshape(found["shape"])


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """Open a file of tensors; raise clear errors for missing and damaged ones."""
    library = safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    try:
        with path.open("rb") as raw, library.safe_open(str(path), framework="numpy") as file:
            same = os.path.samestat(os.fstat(raw.fileno()), path.stat())  # else another process replaced it just now
            yield TensorFile(path, file, raw.fileno() if same else None)
    except library.SafetensorError as error:
        raise ValueError(f"`{path}` is not a valid safetensors file ({error}). Get another copy of it.") from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a file of tensors, replacing an existing one atomically."""
    chunks = tensor_chunks(tensors, metadata)
    with replacing(path) as new:
        check_tensors(new.write(chunks), tensors)
        new.commit()


def tensor_chunks(tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> list[Any]:
    """The bytes of a safetensors file: the length of its header, the header, the arrays.

    They are assembled here without copies of the arrays: `safetensors.numpy.save` takes twice their memory, and
    `save_file` would replace the locked file.
    """
    safetensors()
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # aligned to their dtypes
    header: dict[str, Any] = {"__metadata__": metadata}
    arrays, end = [native(tensors[name]) for name in names], 0
    for name, array in zip(names, arrays, strict=True):
        start, end = end, end + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise ValueError(
            f"The description of the state takes {len(text)} bytes, but safetensors reads {LARGEST_HEADER} at "
            "most. Give long lists of numbers as arrays."
        )
    return [len(text).to_bytes(8, "little") + text, *(array.reshape(-1).view(np.uint8).data for array in arrays)]


def check_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Check that a new file can be read before it replaces another one."""
    with opened(path) as file:
        if {name: file.shape(name) for name in file.names} != {name: array.shape for name, array in tensors.items()}:
            raise ValueError(f"`{path}` does not hold the tensors that were written. Save again.")


def native(array: np.ndarray) -> np.ndarray:
    """The array in C order and native byte order."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    return json_object(path.read_bytes(), path)


def json_object(text: bytes, path: Path) -> dict[str, Any]:
    """Parse the text of a JSON file; `path` is named in errors."""
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError(f"`{path}` is nested too deeply. Get another copy of it.") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"`{path}` is not valid JSON ({error}). Get another copy of it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` holds {type(content).__name__}, expected a JSON object.")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict; duplicate names are an error, as programs differ in which value they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the name {next(name for name in names if names.count(name) > 1)!r} twice")
    return found
