"""The command as a process: signals, broken pipes, terminals with ASCII only."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import attnarray
from attnarray import console
from tests.support.paths import ROOT


def run_process(*arguments: str, module: str = "attnarray", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a new process."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True, check=False, encoding=encoding, env=variables, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip


INTERRUPTED = """
import signal, sys
from attnarray import check, cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
check.check_gradients = lambda *_: signal.raise_signal(signal.SIGINT)  # in this thread, and at once
sys.exit(cli.main(["check", "--only", "relu"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to processes")
def test_ctrl_c_is_one_line_and_code_130() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, check=False, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    said = [line for line in done.stderr.splitlines() if line != console.COMPILING]
    assert [line for line in said if not line.startswith("checking ")] == ["attnarray: interrupted"]


@pytest.mark.parametrize("command", ["attnarray", "attnarray.cli"])
def test_as_a_module(command: str) -> None:
    done = run_process("--version", module=command)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"attnarray {attnarray.__version__}\n", "")
    done = run_process("check", "--only", module=command)
    assert done.returncode == 2
    assert done.stderr.startswith("attnarray check: argument --only: expected one argument.")


@pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX closes the streams")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", ["info", "--help", "check --only relu --kernels reference"])
def test_streams_that_are_closed(arguments: str, closed: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m attnarray {arguments} {closed}", shell=True, capture_output=True, check=False, text=True,
        timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert bool(done.stdout) == (" >" not in f" {closed}")


def test_on_a_terminal_that_has_ascii_only() -> None:
    done = run_process("check", "--only", "relu", "--kernels", "reference", PYTHONIOENCODING="ascii", COLUMNS="100")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert re.search(r"^relu +x +1 +30 +\de-\d\d  #+\.+ +ok$", done.stdout, re.MULTILINE)
    assert "0 results are wrong" in done.stdout


def test_characters_missing_in_ascii_are_replaced_by_similar_ones() -> None:
    assert "▏▋█·–≈±µ×é".encode("ascii", errors=console.ASCII) == b"-##.-~~ux?"


@pytest.mark.skipif(os.name != "posix", reason="pipes break by a signal or an error")
@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["--help"], ["bench", "--list"]], ids=" ".join)
def test_a_closed_pipe_shows_no_traceback(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "attnarray", *arguments],
            stdout=pipe, stderr=subprocess.PIPE, check=False, text=True, timeout=600,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 141 or arguments == ["--help"]  # where argparse takes no notice


def test_as_a_process_with_a_wrong_argument() -> None:
    done = run_process("frobnicate")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
