"""Compile all kernels of attnarray into one shared library for each level of CPUs."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attnarray.kernels.numba.runtime.library import ALLOWED, FOLDER, LEVELS
from attnarray_build.levels import c_compiler, environment, known, native


def main(arguments: list[str] | None = None) -> int:
    levels = known()
    parser = argparse.ArgumentParser(prog="python -m attnarray_build", description=__doc__)
    parser.add_argument(
        "levels", nargs="*", metavar="LEVEL", default=["native"],
        help=f"native (the best that this machine has; default), all, or some of {', '.join(levels)}",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where to write libraries (default: {FOLDER})")
    given = parser.parse_args(arguments)
    if not levels:
        parser.error(f"no level of CPUs is known for {platform.machine()!r}, only for {', '.join(sorted(LEVELS))}")
    asked = [*levels] if given.levels == ["all"] else [native() if x == "native" else x for x in given.levels]
    for level in asked:
        if level not in levels:
            parser.error(f"{level!r} is no level of this machine; expected native, all or some of {', '.join(levels)}")
    try:
        compiler = c_compiler()[0]
    except ValueError as error:
        parser.error(f"CC is {os.environ['CC']!r}: {error}")
    if shutil.which(compiler) is None:
        parser.error(f"no C compiler {compiler!r} was found; CC names another one")
    try:
        given.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=given.folder).close()
    except OSError as error:
        parser.error(f"nothing can be written to {given.folder}: {error.strerror}")
    for level in asked:
        start = time.monotonic()
        print(f"{level}: compiling all kernels ...", flush=True)
        with tempfile.TemporaryDirectory() as work:
            command = [sys.executable, "-m", "attnarray_build.compile", level, work, str(given.folder)]
            variables = {**os.environ, **environment(level), ALLOWED: "none"}
            if subprocess.run(command, env=variables, check=False).returncode:
                print(f"{level}: failed", file=sys.stderr)
                return 1
        print(f"{level}: done in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
