"""The description of the machine, and equal conditions for all peers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnarray.bench import machine, results, session, threads
from attnarray.bench.catalog import CASES
from tests.support.bench_runs import CEILINGS, SMALL
from tests.support.paths import ROOT


def test_a_busy_machine_is_reported() -> None:
    assert machine.busy({"load": 0.1, "cpus": 2}) == ""
    assert machine.busy({"load": None, "cpus": 2}) == ""
    assert "The load of this machine was 1.8 before the start" in machine.busy({"load": 1.8, "cpus": 2})


def test_the_ceilings_bound_a_call_by_its_slowest_work() -> None:
    cost = CASES[0].cost._replace(flops=1e11, exps=2e9)
    assert CEILINGS.seconds(cost, 1e10, "float32") == 2.0
    assert CEILINGS.seconds(cost, 1e10, "float64") == 4.0
    assert CEILINGS.seconds(cost, 5e10, "float16") == 5.0
    assert machine.Ceilings({}, 0.0, {}).seconds(cost, 1e10, "float32") is None


def test_the_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GEMM_SIZE", {"numpy": {"float32": 64, "float64": 32}})
    monkeypatch.setattr(machine, "COPIED", {"numpy": 2**16})
    monkeypatch.setattr(machine, "EXP_REPEATS", 1)
    monkeypatch.setattr(machine, "_torch", lambda threads: None)
    found = machine.measure_ceilings("numpy", 2, session.clock_for("numpy"))
    assert set(found.gemm) == set(found.exp) == {"float32", "float64"}
    assert min(*found.gemm.values(), found.copy, *found.exp.values()) > 0


def test_threads_are_the_same_for_all_libraries() -> None:
    variables = threads.environment(3)
    assert (
        variables["OMP_NUM_THREADS"] == variables["OPENBLAS_NUM_THREADS"] == variables["ATTNARRAY_NUM_THREADS"] == "3"
    )


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["python", "/bin/attnarray", "bench", "--full"], True),
        (["python", "-W", "error", "-m", "attnarray.cli", "bench"], True),
        (["python", "-m", "attnarray", "bench", "--full"], True),
        (["python", "my_program.py", "bench"], False),
        (["python", "-m", "pytest", "tests"], False),
        (["python", "/bin/attnarray", "check"], False),
        ([], False),
    ],
)
def test_only_the_command_is_restarted(arguments: list[str], ours: bool) -> None:
    assert threads._is_our_command(arguments) == ours


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot replace a process by another")
def test_it_is_restricted_before_anything_counts_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    for name in threads.environment(2):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "error", "-m", "attnarray.cli", "bench", "--full"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {9, 4, 7}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: done.append(cpus), raising=False)
    monkeypatch.setattr(os, "execv", lambda _, command: done.append(command[1:]))
    threads.restrict(2)
    assert done == [[4, 7], ["-W", "error", "-m", "attnarray.cli", "bench", "--full"]]
    assert os.environ["OMP_NUM_THREADS"] == "2"
    threads.restrict(2)  # as it was started now: nothing is left to do
    assert len(done) == 2


def test_the_command_starts_itself_with_that_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    variables = {name: value for name, value in os.environ.items() if name not in threads.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "attnarray.cli", *SMALL, "--threads", "1", "--json", str(path)],
        capture_output=True, check=False, encoding="utf-8", timeout=600,
        env={**variables, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = results.load(path)
    assert saved.environment["threads"] == 1
    assert saved.environment.get("kernel threads", 1) == 1
    assert saved.complete
