"""Reads the results of PyTorch that the scripts in tests/references stored."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from tests.support.paths import REFERENCES


class Frozen(NamedTuple):
    """One configuration: its options, and all arrays by name: inputs, cotangents, expected results."""

    options: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def given(self, *names: str) -> dict[str, np.ndarray]:
        """Those of the named arrays that exist."""
        return {name: self.arrays[name] for name in names if name in self.arrays}

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names have this prefix, without it."""
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}

    def in_dtype(self, dtype: str) -> "Frozen":
        arrays = {name: a.astype(dtype) if a.dtype == np.float64 else a for name, a in self.arrays.items()}
        return self._replace(arrays=arrays)


def nested(arrays: dict[str, Any]) -> Any:
    """The tree of arrays with names such as "blocks.0.norm"; branches whose keys are numbers are lists."""
    branches: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        key, _, rest = name.partition(".")
        branches.setdefault(key, {})[rest] = array
    found = {key: below[""] if list(below) == [""] else nested(below) for key, below in branches.items()}
    return [found[key] for key in sorted(found, key=int)] if all(key.isdigit() for key in found) else found


def frozen(file: str) -> dict[str, Frozen]:
    """All configurations of a file in tests/references."""
    with np.load(REFERENCES / file) as stored:
        names = [key.removesuffix("/contents") for key in stored.files if key.endswith("/contents")]
        return {
            name: _unpacked(json.loads(str(stored[f"{name}/contents"])), stored[f"{name}/numbers"]) for name in names
        }


def _unpacked(contents: dict[str, Any], numbers: np.ndarray) -> Frozen:
    arrays = {}
    for name, dtype, shape in contents["arrays"]:
        array, numbers = np.split(numbers, [math.prod(shape)])
        arrays[name] = array.reshape(shape).astype(dtype)
    return Frozen(contents["kwargs"], arrays)
