"""Folders of checkpoints, and changes that damage them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.checkpoints import save_pretrained
from attnarray.models import BERT

safetensors_numpy = pytest.importorskip("safetensors.numpy")

SMALL_BERT = BERT(11, 8, 6, 2, 2, 5, eps=1e-5, init_std=0.1)
PARAMS = SMALL_BERT.init(aa.Philox(0))


def saved(folder: Path, model: Any = SMALL_BERT, params: Any = PARAMS) -> Path:
    save_pretrained(folder, model, params)
    return folder


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return safetensors_numpy.load_file(folder / "model.safetensors")


def rewrite(folder: Path, change: Any) -> Path:
    """The tensors of a folder after `change` has been called with them."""
    tensors = tensors_of(folder)
    safetensors_numpy.save_file(change(tensors) or tensors, folder / "model.safetensors")
    return folder


def reconfigure(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    changed = {name: value for name, value in {**config, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


def shard(folder: Path) -> Path:
    """The folder with its tensors in three files and an index."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    where = {name: f"model-0000{n % 3 + 1}-of-00003.safetensors" for n, name in enumerate(sorted(tensors))}
    for part in set(where.values()):
        mine = {name: tensors[name] for name in tensors if where[name] == part}
        safetensors_numpy.save_file(mine, folder / part, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def fails(error: type[Exception], expected: str, call: Any) -> None:
    """`call` raises `error` with `expected` in one paragraph."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert expected in message, message
    assert "\n" not in message
    assert message.endswith((".", ")")), message


def same(found: Any, expected: Any) -> None:
    """Equal in types, structure and bits."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, np.ndarray | np.generic):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    else:
        assert repr(found) == repr(expected)
