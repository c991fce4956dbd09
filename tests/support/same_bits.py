"""As a script: how many results of all cases differ between precompiled kernels and those that Numba compiles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from attnarray import tree
from attnarray.cases import CASES
from attnarray.kernels.numba.runtime import jit, library
from tests.support.poisoned import runs

DTYPES = ("float32", "float64")


def arrays(results: Any) -> list[np.ndarray]:
    return [np.ascontiguousarray(array) for _, array in tree.flatten(results)]


def main(folder: str) -> None:
    library.FOLDER = Path(folder)
    loaded, reason = library.load()
    assert loaded is not None, reason
    different, count = [], 0
    for dtype in DTYPES:
        for name, run in runs(dtype).items():
            precompiled = arrays(run())
            jit.library = lambda: None
            compiled = arrays(run())
            jit.library = library.library
            count += len(compiled)
            if any(a.tobytes() != b.tobytes() for a, b in zip(precompiled, compiled, strict=True)):
                different.append(f"{name} {dtype}")
    assert count > 10 * len(CASES)
    print(loaded.level, count, different)


if __name__ == "__main__":
    main(sys.argv[1])
