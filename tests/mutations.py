"""Mutation testing with a fixed list of mutations: python -m tests.mutations [WORD ...]

Each replaces a text that a file has once, in a copy of the sources, and runs the tests listed for it:
the quick ones first, then the slow ones. WORDs choose the mutations whose file or description holds one of them. What
is printed are rows of tests/MUTATIONS.md. Mutations of kernels recompile them: all together take half an hour.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.support.mutation_list import MUTATIONS, Mutation
from tests.support.paths import ROOT

COPIED = ("attnarray", "benchmarks", "docs", "tests", "pyproject.toml", "README.md")


class Outcome(NamedTuple):
    """The tier of a mutation's tests that found it, "" if none did, and the first test that failed."""

    tier: str
    test: str


def run(mutation: Mutation, copy: Path) -> Outcome:
    """Plant a mutation in a copy of the sources, run its tests, and take it back."""
    path = copy / "attnarray" / mutation.file
    text, times = path.read_text(encoding="utf-8"), path.stat()
    if text.count(mutation.old) != 1:
        return Outcome("stale", f"the text is there {text.count(mutation.old)} times")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        quick = failed(mutation.tests, copy, "not slow")
        return Outcome("quick", quick) if quick else Outcome("all", failed(mutation.tests, copy, "slow"))
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # or compiled kernels would count as outdated


def failed(tests: str, copy: Path, tier: str) -> str:
    """The first of the tests that failed, "" if none did."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", tier]
    command = [sys.executable, "-m", "pytest", *options, *shlex.split(tests)]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy / "tests", env=environment, capture_output=True, text=True, check=False)
    if done.returncode in (0, 5):  # 5: none of that tier
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (?:\S*::)?(\S+)", done.stdout, re.MULTILINE)
    return found[1].removeprefix("test_").split("[")[0] if found else f"pytest ended with {done.returncode}"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in f"{m.file} {m.what}" for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, Path(folder) / name)
        for mutation in chosen:
            tier, test = run(mutation, Path(folder))
            missed += not test or tier == "stale"
            caught = {"quick": f"`{test}`", "all": f"`{test}`, slow"}.get(tier, test) if test else "none"
            print(f"| `{mutation.file}` | {mutation.what} | {caught} |", flush=True)
    print(f"{len(chosen)} mutations, {missed} of them not caught.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
