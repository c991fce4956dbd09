"""A stage of `gpu_check`: the test suite on CuPy."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import ROOT

SECONDS = 130  # a little less than the stage has
SHOWN = 10  # failures
PROCESSES = 8  # that share the GPU


def suite() -> dict[str, Any]:
    """All tests that need a GPU, in a pytest of their own."""
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
    """Without plugins that write files or take times; on several processes where pytest-xdist is installed."""
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
