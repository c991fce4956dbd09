"""Consistent saving of config.json and model.safetensors, although two files cannot be renamed atomically.

The weights are renamed first; from then on the folder holds the new model. Their metadata have a copy of their
config.json, and a checksum of the one that it replaces. If config.json is still the old one, or has the mark of another
save, the copy is used. A config.json that was edited or replaced since is used as it is.
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
KEPT, FOUND = "attnarray.config", "attnarray.found"  # keys of the metadata of the weights
MARK = "attnarray_save"  # of config.json: a checksum


def write_pair(folder: Path, tensors: Mapping[str, np.ndarray], config: Config) -> None:
    """Write both files. At any moment `read_config` and the weights are those of the old model or of the new one."""
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
    """Read the config.json of the weights."""
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
    """Delete the index and shards of a previous model, which would be a second model in the folder."""
    with contextlib.suppress(OSError, ValueError):  # ignore an invalid index
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
