"""The threads of NumPy's products: set by our commands, for as long as they run, and by nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_kernel_safety import python

from attnarray import blas, cli
from benchmarks import busy


def counts() -> list[int]:
    return [functions[1]() for path in blas._libraries() if (functions := blas._functions(path)) is not None]


@pytest.fixture
def several_threads() -> Any:
    """NumPy's products have 2 threads before the test."""
    if not counts():
        pytest.skip("NumPy's products come from no library that is known here")
    with blas.blas_threads(2):
        if counts() != [2] * len(counts()):
            pytest.skip("the library was built for one thread")
        yield


def test_one_thread_within_the_block(several_threads: None) -> None:
    x = np.random.default_rng(0).standard_normal((300, 300))
    before = x @ x
    with blas.blas_threads(1) as found:
        assert counts() == [1] * len(found)
        np.testing.assert_allclose(x @ x, before, rtol=0, atol=1e-11)  # of sums of 300 in another order
    assert counts() == [2] * len(found)


def test_the_number_is_as_before_after_an_exception(several_threads: None) -> None:
    def fail() -> None:
        with blas.blas_threads(1):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert set(counts()) == {2}


@pytest.mark.parametrize("variable", ["", *blas.VARIABLES])
def test_commands_use_one_thread_unless_the_environment_says_otherwise(
    variable: str, several_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnarray import check

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
    assert set(counts()) == {2}


def test_the_library_itself_changes_nothing() -> None:
    said = python("""
import numpy as np
from attnarray import blas
def counts(): return {path: f[1]() for path in blas._libraries() if (f := blas._functions(path)) is not None}
before = counts()
import attnarray as aa
q = np.ones((1, 2, 64, 16), np.float32)
aa.vjp(aa.scaled_dot_product_attention, q, q, q)[1](q)
assert before.items() <= counts().items()
""")
    assert said == ""


def test_without_a_library_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_libraries", lambda: [blas.Path("/nowhere/libopenblas.so"), blas.Path(__file__)])
    with blas.blas_threads(1) as found:
        assert found == []


def test_the_measurement_of_busy_machines() -> None:
    assert busy.measure(busy.Kind("multi-head", 1, 1, 1), 2) > 0
    samples = {busy.Kind("additive", 2, 1, None): [4.0, 1.0, 2.0]}
    assert busy.table(samples)[2:] == ["| additive | 2 | 1 | default | 2.0 | 1.5 to 3.0 |"]
