"""The digest of the results of each case, and the mode that kernels ran in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from attnarray import tree
from attnarray.kernels.numba import mode_in_use
from attnarray.kernels.numba.runtime import library
from tests.support.poisoned import DTYPES, runs


def digests() -> dict[str, str]:
    found = {}
    for dtype in (*DTYPES, "float16", "bfloat16"):
        for name, run in runs(dtype).items():
            arrays = [np.ascontiguousarray(array).tobytes() for _, array in tree.flatten(run())]
            found[f"{name} {dtype}"] = hashlib.sha256(b"".join(arrays)).hexdigest()
    return found


def say(folder: str) -> None:
    """Print both as JSON, with the libraries in a folder."""
    library.FOLDER = Path(folder)
    print(json.dumps({"mode": mode_in_use(), "digests": digests()}))
