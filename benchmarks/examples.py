"""The full runs of the programs in docs/examples: what each reaches, and the processor time that it takes.

    OPENBLAS_NUM_THREADS=1 ATTNARRAY_NUM_THREADS=1 python benchmarks/examples.py [NAME ...] [--into FILE]

Each program runs in a process of its own, on one core, and what it prints at its end is kept. The time is that of the
processor in minutes, without waiting: other work on the machine changes it little. Results of other programs that
are in the file already stay there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("recall", "karate", "induction", "digits", "translation", "text_classification", "language_model")


def measured(name: str) -> dict[str, object]:
    """One full run: what it prints, and its processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "docs" / "examples" / f"{name}.py")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
        ran = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor_minutes": round(seconds / 60, 2), "printed": ran.stdout.strip().splitlines()[-20:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--into", type=Path, default=ROOT / "benchmarks" / "results" / "examples.json", metavar="FILE")
    options = parser.parse_args()
    for name in options.names:
        found = measured(name)
        kept = json.loads(options.into.read_text(encoding="utf-8")) if options.into.exists() else {}
        kept[name] = found
        options.into.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, found["processor_minutes"], "minutes", flush=True)


if __name__ == "__main__":
    main()
