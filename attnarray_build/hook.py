"""Hatchling's build hook: a wheel brings precompiled kernels where Numba and a C compiler can make them.

ATTNARRAY_BUILD_LEVELS lists the levels of CPUs, with commas between them, or is `all`, or `none` for pure Python;
by default it is the level of this machine. Editable installations have no precompiled kernels.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

ASKED = "ATTNARRAY_BUILD_LEVELS"
NUMBA_KNOWS = (3, 15)  # Python below this version


class PrecompiledKernels(BuildHookInterface):  # type: ignore[misc]
    """Add `attnarray/_compiled` to a wheel."""

    def dependencies(self) -> list[str]:
        """What the build needs beside Hatchling."""
        core = self.metadata.core.dependencies
        return [*core, *self.metadata.core.optional_dependencies["jit"]] if not self.refused() else []

    def refused(self) -> str:
        """Why nothing can be compiled here; empty if it can."""
        if self.levels() == ["none"]:
            return f"{ASKED} is none"
        try:
            compiler, *_ = shlex.split(os.environ.get("CC", ""), posix=os.name == "posix") or ["cc"]
        except ValueError as error:
            return f"CC is {os.environ['CC']!r}, which is no command of a shell ({error})"
        if shutil.which(compiler) is None:
            return f"no C compiler {compiler!r} was found; CC names another one"
        if any("musllinux" in tag for tag in platform_tags()):
            return "Numba has no wheels for musl"
        return "" if sys.version_info < NUMBA_KNOWS else "Numba does not know this version of Python"

    def levels(self) -> list[str]:
        return [level.strip() for level in os.environ.get(ASKED, "native").split(",") if level.strip()]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        why = self.refused()
        if not why:
            self.folder = tempfile.TemporaryDirectory()
            command = [sys.executable, "-m", "attnarray_build", *self.levels(), "--folder", self.folder.name]
            result = subprocess.run(command, cwd=self.root, check=False)
            why = "" if result.returncode == 0 else "compiling failed, see above"
        if why and ASKED in os.environ and self.levels() != ["none"]:
            raise RuntimeError(f"{ASKED} asks for precompiled kernels, but {why}.")
        if why:
            self.app.display_warning(f"This wheel has no precompiled kernels: {why}.")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(platform_tags())}"
        files = sorted(Path(self.folder.name).iterdir())
        build_data["force_include"] |= {str(path): f"attnarray/_compiled/{path.name}" for path in files}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()
