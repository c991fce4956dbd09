"""Files of tensors: read one tensor at a time, written whole or not at all, with errors that say which file."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

INSTALL = "pip install 'attnarray[checkpoints]'"


def safetensors() -> Any:
    """The library that reads and writes the files."""
    try:
        importlib.import_module("safetensors.numpy")
        return importlib.import_module("safetensors")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Checkpoints need the package `safetensors`, which cannot be imported ({error}). Install it: {INSTALL}."
        ) from error


class TensorFile:
    """An open file of tensors."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.names: list[str] = list(file.keys())
        self.metadata: dict[str, str] = dict(file.metadata() or {})
        self.bits: dict[str, Any] | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A tensor as an array of its own."""
        dtype = self.file.get_slice(name).get_dtype()
        if dtype == "BF16":
            return self._bfloat16(name)
        try:
            return np.asarray(self.file.get_tensor(name))
        except (AttributeError, KeyError, TypeError) as error:  # a dtype that NumPy does not have
            raise ValueError(f"`{name}` in `{self.path}` has dtype {dtype}, which cannot be read.") from error

    def _bfloat16(self, name: str) -> np.ndarray:
        try:
            bfloat16 = importlib.import_module("ml_dtypes").bfloat16
        except ImportError as error:
            raise ModuleNotFoundError(
                f"`{name}` in `{self.path}` has dtype bfloat16, which NumPy has from the package `ml_dtypes`. "
                f"Install it: {INSTALL}."
            ) from error
        try:
            return np.asarray(self.file.get_tensor(name))
        except AttributeError:  # safetensors of some versions gives NumPy no bfloat16, but all bytes
            self.bits = self.bits or dict(safetensors().deserialize(self.path.read_bytes()))
            found = self.bits[name]
            return np.frombuffer(found["data"], bfloat16).reshape(found["shape"])


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """The file, open; damaged and missing ones are one clear error."""
    library = safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    try:
        with library.safe_open(str(path), framework="numpy") as file:
            yield TensorFile(path, file)
    except library.SafetensorError as error:
        raise ValueError(
            f"`{path}` is damaged, cut off or no safetensors file ({error}). Take another copy of it."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path for a new file, which takes the place of `path` when the block is done: whole, or not at all.

    Where the process is killed within, `path` is as before, and a folder "NAME.*.partial" stays that may be deleted. It
    is a folder, because what writes the file may itself write another beside it.
    """
    path = Path(os.path.realpath(path))  # where it is a link, what it points to is replaced
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder `{path.parent}` to write `{path.name}` to. Make it first.")
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    aside.mkdir()
    try:
        new = aside / path.name
        yield new
        new.chmod((path if path.exists() else aside).stat().st_mode & 0o666)  # as if it had been opened for writing
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """So that the new name outlives a loss of power, where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a file of tensors."""
    safetensors()
    save_file: Callable[..., None] = importlib.import_module("safetensors.numpy").save_file
    with replacing(path) as aside:
        save_file({name: native(array) for name, array in tensors.items()}, str(aside), metadata=metadata)


def native(array: np.ndarray) -> np.ndarray:
    """The same numbers as they are written: row by row, in the byte order of the machine."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def write_json(path: Path, content: Any) -> None:
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"`{path}` is no JSON ({error}). Take another copy of it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` holds {type(content).__name__}, expected a JSON object of names and values.")
    return content
