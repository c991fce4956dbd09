"""The config.json and the model.safetensors of a folder, which belong together although no system renames two files at
once.

The weights are moved to their place first, and from then on the folder holds the new model: they keep a copy of their
config.json and a checksum of the one that they found. Where config.json is still the one of before, or has the mark of
another save, the copy is read. What a person or a program has changed or replaced is read as it is.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnarray.checkpoints.config import Config
from attnarray.checkpoints.files import TensorFile, check_tensors, json_object, read_json, tensor_chunks
from attnarray.checkpoints.replacing import make_folder, replacing

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
KEPT, FOUND = "attnarray.config", "attnarray.found"  # of the metadata of the weights
MARK = "attnarray_save"  # of config.json: equal for equal ones alone


def write_pair(folder: Path, tensors: Mapping[str, np.ndarray], config: Config) -> None:
    """Write both files. At any moment `read_config` and the weights give the model of before or the new one."""
    path = folder / CONFIG
    text = _json_text({**config, MARK: _checksum(_json_text(config))})
    metadata = {"format": "pt", KEPT: text.decode()}
    if path.is_file() and (before := path.read_bytes()) != text:
        metadata[FOUND] = _checksum(before)
    chunks = tensor_chunks(tensors, metadata)
    make_folder(folder)
    with replacing(folder / WEIGHTS) as weights, replacing(path) as described:
        check_tensors(weights.write(chunks), tensors)
        described.write([text])
        weights.commit()
        described.commit()
    _remove_parts(folder)


def read_config(path: Path, weights: list[TensorFile]) -> Config:
    """The config.json that belongs to the weights."""
    text = path.read_bytes()
    kept = weights[0].metadata.get(KEPT) if len(weights) == 1 else None
    if kept is None:
        return json_object(text, path)
    own = json_object(kept.encode(), weights[0].path)
    if _checksum(text) == weights[0].metadata.get(FOUND):
        return own
    config = json_object(text, path)
    return own if config.get(MARK, own.get(MARK)) != own.get(MARK) else config


def _remove_parts(folder: Path) -> None:
    """Delete the index and the parts of a model before, which would be a second one in the folder."""
    with contextlib.suppress(OSError, ValueError):  # what is in the index is no matter, if it is no index
        listed = read_json(folder / INDEX).get("weight_map")
        for name in set(map(str, listed.values())) if isinstance(listed, dict) else ():
            if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name):
                (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / INDEX).unlink(missing_ok=True)


def _json_text(config: Any) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _checksum(text: bytes) -> str:
    return f"{zlib.crc32(text):08x}"
