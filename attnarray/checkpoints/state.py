"""The state of a training run in one file, written atomically and verified when read."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnarray.backend import to_numpy
from attnarray.checkpoints.description import Described, described, restored
from attnarray.checkpoints.files import TensorFile, native, opened, write_tensors

FORMAT, VERSION = "attnarray.state", 1


def save_state(path: str | os.PathLike[str], state: Any) -> None:
    """Save the state of a training run in one file, replacing an existing one atomically.

    The file is written to the folder of `path`, synced and then renamed, so at any moment, even if the process is
    killed or the disk is full, `path` is the complete old state or the new one. A killed process leaves a file
    "attnarray-*.partial", which may be deleted; the next save to the folder deletes it. Symbolic links are followed and
    kept, as are permissions.

    Parameters
    ----------
    path : path
        Such as "run.safetensors"; its folder must exist.
    state : tree
        Dicts, lists, tuples, NamedTuples and dataclasses of arrays of any library, numbers, strings, booleans and None:
        parameters, the state of an optimizer, a step, a `Philox`, the ``bit_generator.state`` of a NumPy generator.
        Keys of dicts are strings or integers. Shared objects are saved once per occurrence.

    Raises
    ------
    TypeError
        If something in the state is none of these, or cannot be restored unchanged; the message names its path.
    ValueError
        If the description of the state exceeds 100 MB, the limit of safetensors.
    OSError
        If the file cannot be written; the message names it. FileNotFoundError if there is no such folder.
    ModuleNotFoundError
        Without the package safetensors.

    Examples
    --------
    >>> import tempfile, numpy as np, attnarray as aa
    >>> params = {"weight": np.ones(3, np.float32)}
    >>> state = {"params": params, "optimizer": aa.optim.adamw_init(params), "step": 5, "rng": aa.Philox(7)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     aa.checkpoints.save_state(f"{folder}/run.safetensors", state)
    ...     again = aa.checkpoints.load_state(f"{folder}/run.safetensors")
    >>> again["step"], again["rng"], type(again["optimizer"]).__name__
    (5, Philox(seed=7), 'AdamWState')
    """
    found = described(state)
    text, hosts = _text(found)
    _check_classes(found, text, Path(path))
    metadata = {"format": FORMAT, "version": str(VERSION), "state": text, "checksum": str(zlib.crc32(text.encode()))}
    write_tensors(Path(path), hosts, metadata)


def load_state(path: str | os.PathLike[str], *, types: type | Sequence[type] = ()) -> Any:
    """Load a state of `save_state`, bit by bit, with arrays on the current backend (see `use_backend`).

    Parameters
    ----------
    path : path
    types : class or sequence of classes
        Your own NamedTuples and dataclasses in the state. Those of attnarray.optim and `Philox` are known.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged or not from `save_state`, or holds a class that is not in `types`.
    ModuleNotFoundError
        Without the package safetensors.
    """
    path, types = Path(path), (types,) if isinstance(types, type) else types
    with opened(path) as file:
        content = _content(file)
        arrays: dict[str, Any] = {}
        for name, checksum in content["arrays"].items():
            arrays[name] = file.read(name)
            if _checksum(arrays[name]) != checksum:
                raise _damaged(path, f"`{name}` differs from what was written")
    return restored(Described(content["tree"], arrays, types), path)


def _text(found: Described) -> tuple[str, dict[str, np.ndarray]]:
    """The JSON description of the state, and its arrays as they are written."""
    hosts = {name: native(to_numpy(array)) for name, array in found.arrays.items()}
    content = {"tree": found.tree, "arrays": {name: _checksum(array) for name, array in hosts.items()}}
    return json.dumps(content, separators=(",", ":")), hosts


def _check_classes(found: Described, text: str, path: Path) -> None:
    """Check that objects of custom classes are restored from their fields unchanged."""
    if not found.types:
        return
    try:
        again, why = _text(described(restored(found, path, convert=lambda array: array)))[0], "have other fields"
    except Exception as error:
        again, why = "", f"raise {type(error).__name__}: {error}"
    if again != text:
        names = " or ".join(kind.__name__ for kind in found.types)
        raise TypeError(
            f"`state` holds a {names}. Restored from their fields, they {why}. Give their fields in a dict."
        )


def _content(file: TensorFile) -> dict[str, Any]:
    """Read and verify the description of the state."""
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise ValueError(f"`{file.path}` is a safetensors file, but not from save_state. Load it as what it is.")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"`{file.path}` has version {metadata.get('version')} of the format, expected {VERSION}: it was written by "
            "another version of attnarray. Load it with that one."
        )
    text = metadata.get("state", "")
    if str(zlib.crc32(text.encode())) != metadata.get("checksum"):
        raise _damaged(file.path, "its description differs from what was written")
    content: dict[str, Any] = json.loads(text)
    if set(content["arrays"]) != set(file.names):
        raise _damaged(file.path, "arrays are missing")
    return content


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"`{path}` is damaged: {why}. Use an earlier state.")


def _checksum(array: np.ndarray) -> int:
    """The checksum of dtype, shape and bytes."""
    head = f"{array.dtype.name}{array.shape}".encode()
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, zlib.crc32(head))
