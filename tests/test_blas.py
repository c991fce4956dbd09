"""The threads of NumPy's products: limited only by our commands, while they run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attnarray import blas, check, cli
from benchmarks import busy
from tests.support.processes import python

threadpoolctl = pytest.importorskip("threadpoolctl")


def counts() -> set[int]:
    """The numbers of threads of the libraries that compute NumPy's products."""
    np.ones((2, 2)) @ np.ones((2, 2))
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def _two_threads() -> Any:
    """NumPy's products have 2 threads before the test."""
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        if counts() != {2}:
            pytest.skip("NumPy's products come from a library whose threads cannot be chosen")
        yield


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("variable", ["", *blas.VARIABLES])
def test_commands_use_one_thread_unless_the_environment_says_otherwise(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    for name in blas.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "2")
    original = check.run

    def run(*arguments: Any) -> Any:
        seen.extend(counts())
        return original(*arguments)

    monkeypatch.setattr(check, "run", run)
    assert cli.main(["check", "--only", "softmax", "--kernels", "reference", "--backend", "numpy"]) == 0
    assert set(seen) == {2 if variable else 1}
    assert counts() == {2}


def test_the_library_itself_changes_nothing() -> None:
    said = python("""
import threadpoolctl
import numpy as np
def counts(): return {library["filepath"]: library["num_threads"] for library in threadpoolctl.threadpool_info()}
before = counts()
import attnarray as aa
q = np.ones((1, 2, 64, 16), np.float32)
aa.vjp(aa.scaled_dot_product_attention, q, q, q)[1](q)
assert before.items() <= counts().items()
""")
    assert said == ""


def test_without_threadpoolctl_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in blas.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(blas.importlib.util, "find_spec", lambda name: None)
    before = counts()
    with blas.one_thread_unless_asked():
        assert counts() == before


def test_the_measurement_of_busy_machines() -> None:
    assert busy.measure(busy.Kind("multi-head", 1, 1, 1), 2) > 0
    samples = {busy.Kind("additive", 2, 1, None): [4.0, 1.0, 2.0]}
    assert busy.table(samples)[2:] == ["| additive | 2 | 1 | default | 2.0 | 1.5 to 3.0 |"]
