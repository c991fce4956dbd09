"""Stages of `gpu_check`: the test suite and the examples on CuPy."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import ROOT, NotRunError

SECONDS = 130  # a little less than the limit of the stage
SHOWN = 10  # failures
PROCESSES = 12  # that share the GPU
EXAMPLE_SECONDS = 55


def suite() -> dict[str, Any]:
    """All tests that need a GPU, in one pytest process."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        try:
            done = subprocess.run(command(report), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as expired:
            return {"wrong": f"not done after {SECONDS} seconds: {str(expired.stdout)[-500:]}"}
        if not report.exists():
            return {"wrong": f"pytest ended with code {done.returncode}: {(done.stdout + done.stderr)[-800:]}"}
        return found_in(report.read_text(encoding="utf-8"))


def command(report: Path) -> list[str]:
    """Without plugins that write files or measure; in several processes if pytest-xdist is installed."""
    plugins = ["-p", "no:benchmark", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        plugins += ["-n", str(min(PROCESSES, os.cpu_count() or 1))]
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *plugins, f"--junitxml={report}"]


def found_in(report: str) -> dict[str, Any]:
    """How many tests passed and failed, and the first failures, from pytest's report."""
    cases = list(ET.fromstring(report).iter("testcase"))
    failed = [(case, *(case.findall("failure") + case.findall("error"))[:1]) for case in cases]
    failed = [(case, reasons) for case, *reasons in failed if reasons]
    skipped = sum(case.find("skipped") is not None for case in cases)
    messages = [
        f"{case.get('classname')}::{case.get('name')}: {reasons[0].get('message', '')[:300]}"
        for case, reasons in failed[:SHOWN]
    ]
    passed = len(cases) - len(failed) - skipped
    return {
        "passed": passed,
        "failed": len(failed),
        "skipped": skipped,
        "wrong": messages or ("" if passed else "no test ran"),
    }


def examples(backend: str = "cupy", names: Sequence[str] = ()) -> dict[str, Any]:
    """The programs of docs/examples, with --quick, in parallel: which passed, and the errors of the others."""
    programs = sorted((ROOT / "docs" / "examples").glob("*.py"))
    names = names or [path.stem for path in programs if '"--backend"' in path.read_text(encoding="utf-8")]
    found: dict[str, Any] = {"passed": [], "wrong": [], "left out": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, done in zip(names, _run_examples(backend, names, folder), strict=True):
            last = (done.stderr.strip().splitlines() or [""])[-1]
            if done.returncode == 0:
                found["passed"].append(name)
            elif last.startswith("ModuleNotFoundError"):
                found["left out"].append(f"{name}: {last}")
            else:
                found["wrong"].append(f"{name}: code {done.returncode}: {last[:300]}")
    if not found["passed"] and not found["wrong"]:
        raise NotRunError("; ".join(found["left out"]))
    return found


def _run_examples(backend: str, names: Sequence[str], folder: str) -> list[subprocess.CompletedProcess[str]]:
    programs = [
        [sys.executable, f"docs/examples/{name}.py", "--quick", "--backend", backend, "--output", f"{folder}/{name}"]
        for name in names
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    running = [
        subprocess.Popen(
            program, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for program in programs
    ]
    until, ended = time.monotonic() + EXAMPLE_SECONDS, []
    for process in running:
        try:
            _, errors = process.communicate(timeout=max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            errors = f"{process.communicate()[1]}\nnot done after {EXAMPLE_SECONDS} seconds"
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, "", errors))
    return ended
