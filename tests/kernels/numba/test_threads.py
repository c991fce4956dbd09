"""How many threads compute: as many as asked for, or the CPUs that affinity and cgroups leave."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import attnarray as aa
from attnarray import cli
from attnarray.kernels.numba.runtime import cpus, threads
from attnarray.kernels.numba.runtime.jit import facts

VARIABLES = ("ATTNARRAY_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, str | None], int]:
    """The number of threads when the variables have these values."""
    monkeypatch.setattr(cpus, "cpu_count", lambda: 7)

    def count(*values: str | None) -> int:
        for variable, value in zip(VARIABLES, values, strict=True):
            monkeypatch.delenv(variable, raising=False)
            if value is not None:
                monkeypatch.setenv(variable, value)
        return cpus.thread_count()

    return count


@pytest.mark.parametrize(
    ("own", "openmp", "expected"),
    [
        ("3", "4", 3),
        (" 3 ", None, 3),
        ("", "4", 4),
        (None, "4", 4),
        (None, "4,2", 4),
        (None, " 4 , 2", 4),
        (None, "0", 7),
        (None, "many", 7),
        (None, ",2", 7),
        (None, "-4", 7),
        (None, "²", 7),
        (None, "", 7),
        (None, None, 7),
    ],
)
def test_the_number_is_asked_for_or_that_of_the_cpus(
    own: str | None, openmp: str | None, expected: int, asked: Callable[[str | None, str | None], int]
) -> None:
    assert asked(own, openmp) == expected


@pytest.mark.parametrize("value", ["many", "0", "-2", "2.5", "2,1", "²", "1e3", "9" * 5000])
def test_another_value_of_our_own_variable_is_an_error(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", value)
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    said = "ATTNARRAY_NUM_THREADS is .*, expected a whole number above 0. Set it to .*, or unset it."
    x = np.ones((4, 8))
    with aa.use_kernels("numba"), pytest.raises(ValueError, match=said):
        aa.softmax(x)
    assert value in facts()["kernel threads"]
    for command in ("check", "demo", "bench"):
        assert cli.main([command]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("attnarray: ATTNARRAY_NUM_THREADS is ")
        assert printed.err.count("\n") == 1


def v2(folder: Path, limits: dict[str, str], path: str, root: str = "/") -> Path:
    """A process in the hierarchy of cgroup v2."""
    top = folder / "sys fs cgroup"
    for where, limit in limits.items():
        (top / where).mkdir(parents=True, exist_ok=True)
        (top / where / "cpu.max").write_text(f"{limit}\n")
    return process(folder, f"0::{path}\n", [(root, top, "cgroup2 cgroup2 rw,nsdelegate")])


def v1(folder: Path, limits: dict[str, str], path: str, root: str = "/") -> Path:
    """A process in the CPU hierarchy of cgroup v1, among others."""
    top = folder / "cpu,cpuacct"
    for where, limit in limits.items():
        (top / where).mkdir(parents=True, exist_ok=True)
        for name, number in zip(("quota", "period"), limit.split(), strict=True):
            (top / where / f"cpu.cfs_{name}_us").write_text(f"{number}\n")
    mounts = [("/", folder / "memory", "cgroup cgroup rw,memory"), (root, top, "cgroup cgroup rw,cpu,cpuacct")]
    return process(folder, f"5:memory:/other\n4:cpu,cpuacct:{path}\n0::/\n", mounts)


def process(folder: Path, cgroup: str, mounts: list[tuple[str, Path, str]]) -> Path:
    """A folder as those of /proc."""
    found = folder / "proc"
    found.mkdir()
    (found / "cgroup").write_text(cgroup)
    lines = ["24 1 0:22 / / rw shared:1 - overlay overlay rw"]
    lines += [f"35 24 0:29 {root} {_escaped(top)} rw,nosuid shared:9 master:2 - {about}" for root, top, about in mounts]
    (found / "mountinfo").write_text("\n".join(lines) + "\n")
    return found


def _escaped(path: Path) -> str:
    return str(path).replace(" ", r"\040")


INSIDE = "a/b"
QUOTAS = {
    "one and a half": ({INSIDE: "150000 100000"}, 1.5),
    "none": ({INSIDE: "max 100000"}, math.inf),
    "of a parent": ({"a": "200000 100000", INSIDE: "400000 100000"}, 2.0),
    "of the child": ({"a": "200000 100000", INSIDE: "50000 100000"}, 0.5),
    "of the root": ({"": "300000 100000", INSIDE: "max 100000"}, 3.0),
    "of a sibling": ({INSIDE: "max 100000", "a/c": "100000 100000"}, math.inf),
    "nonsense": ({INSIDE: "some 100000"}, math.inf),
    "no period": ({INSIDE: "100000 0"}, math.inf),
}


@pytest.mark.parametrize("version", [v1, v2])
@pytest.mark.parametrize(("limits", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_the_quota_of_a_cgroup(
    limits: dict[str, str], expected: float, version: Callable[..., Path], tmp_path: Path
) -> None:
    none = "max" if version is v2 else "-1"
    limits = {where: limit.replace("max", none) for where, limit in limits.items()}
    assert cpus.cpu_quota(version(tmp_path, limits, f"/{INSIDE}")) == expected


@pytest.mark.parametrize("version", [v1, v2])
@pytest.mark.parametrize(
    ("path", "root"), [("/docker/x", "/docker/x"), ("/", "/"), ("/../../x", "/"), ("/y", "/docker/x")]
)
def test_the_quota_in_a_container(path: str, root: str, version: Callable[..., Path], tmp_path: Path) -> None:
    """If the cgroup of the process is mounted as the root, whatever its path outside."""
    assert cpus.cpu_quota(version(tmp_path, {"": "250000 100000"}, path, root)) == 2.5


def test_without_cgroups(tmp_path: Path) -> None:
    assert cpus.cpu_quota(tmp_path) == math.inf
    assert cpus.cpu_quota(process(tmp_path, "", [])) == math.inf
    (tmp_path / "proc" / "cgroup").write_text("nonsense\n")
    assert cpus.cpu_quota(tmp_path / "proc") == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(0.1, 1), (1.0, 1), (1.5, 2), (2.0, 2), (999.0, 4), (math.inf, 4)])
def test_a_quota_is_rounded_up(quota: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(cpus, "cpu_quota", lambda _: quota)
    cpus.granted_cpus.cache_clear()
    try:
        assert cpus.cpu_count() == expected
    finally:
        cpus.granted_cpus.cache_clear()


@pytest.mark.parametrize(("work", "ended", "wakes"), [(1e5, -math.inf, False), (1e5, math.inf, True), (1e9, 0.0, True)])
def test_sleeping_threads_are_woken_for_much_work_alone(
    work: float, ended: float, wakes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, run, parallel = [(1, 2), (3, 4)], [], []
    monkeypatch.setattr(threads, "_ENDED", [ended])
    monkeypatch.setattr(threads, "run_parallel", lambda kernel, given: parallel.extend(given))
    threads.run_parts(lambda *part: run.append(part), parts, work)
    assert (run, parallel) == (([], parts) if wakes else (parts, []))
    assert threads._ENDED[0] != ended  # they are awake now
