"""CPU kernels wherever Python takes them: threads, forks, no compiler, no folder for the cache; and as vector code."""

from __future__ import annotations

import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features

import attnarray as aa
from attnarray.kernels.numba.attention import masked_softmax
from attnarray.kernels.numba.runtime import team, team_code, threads
from attnarray.kernels.numba.runtime.jit import OPTIONS
from tests.support.attention_calls import assert_equal_results, run
from tests.support.fork_template import forking
from tests.support.paths import ROOT
from tests.support.processes import CHECKED, EXPLAIN, MACHINE, python


def call(seed: int = 0, dtype: str = "float32") -> dict:
    """Attention with every option that the kernels know."""
    rng = np.random.default_rng(seed)
    sizes = {"query": (2, 6, 33, 8), "key": (2, 3, 47, 8), "value": (2, 3, 47, 5), "bias": (6, 1, 47), "sinks": (6,)}
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in sizes.items()}
    options = {"attn_mask": rng.random((33, 47)) < 0.8, "kv_lengths": np.array([40, 47]), "q_offset": np.array([14, 9])}
    return {**arrays, **options, "is_causal": True, "window": (30, 0), "softcap": 3.0}


@pytest.fixture
def thread_memory() -> Iterator[Callable[[int, int], None]]:
    """Sets a word that all threads look at, until the test ends."""
    threads.run_parts(int, [(0,), (0,)])
    before = {}

    def write(at: int, word: int) -> None:
        before.setdefault(at, team.read(at))
        team.write({at: word})

    yield write
    team.write(before)


def test_the_number_of_threads_does_not_matter(always_parallel: pytest.MonkeyPatch) -> None:
    always_parallel.delenv("OMP_NUM_THREADS", raising=False)
    results = []
    for count in (1, 2, 5):
        always_parallel.setenv("ATTNARRAY_NUM_THREADS", str(count))
        team.forget_teams()
        assert threads.thread_count() == count
        results.append(run(call()))
        assert (not team.team_sizes()) == (count == 1)
    summed_by_each = ("key", "value", "bias", "sinks")  # and then over the threads
    for other in results[1:]:
        for name, array in results[0].items():
            rounding = 1e-6 * np.max(np.abs(array)) if name in summed_by_each else 0.0
            np.testing.assert_allclose(other[name], array, rtol=0, atol=rounding, err_msg=name)


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_row_is_computed_once(rows: int, count: int, always_parallel: pytest.MonkeyPatch) -> None:
    always_parallel.setenv("ATTNARRAY_NUM_THREADS", str(count))
    visits = np.zeros(rows, int)

    def visit(start: int, stop: int, step: int) -> None:
        visits[start:stop] += step

    threads.split_rows(visit, rows, 10**6, 1)
    np.testing.assert_array_equal(visits, 1)


def test_an_error_in_a_thread_is_raised(always_parallel: pytest.MonkeyPatch) -> None:
    always_parallel.setenv("ATTNARRAY_NUM_THREADS", "2")

    def fail(start: int, stop: int) -> None:
        if start:
            raise ZeroDivisionError("in a thread")

    with pytest.raises(ZeroDivisionError, match="in a thread"):
        threads.split_rows(fail, 4, 10**6)


@pytest.mark.parametrize("count", ["1", "3"])
def test_eight_python_threads_at_once(count: str, always_parallel: pytest.MonkeyPatch) -> None:
    always_parallel.setenv("ATTNARRAY_NUM_THREADS", count)
    expected = [run(call(seed), kernels="reference") for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for found, other in zip(pool.map(lambda seed: run(call(seed)), range(8)), expected, strict=True):
                assert_equal_results(found, other, 1e-5)  # float32


@pytest.mark.parametrize("spin", [0, 10**4])
def test_threads_take_task_after_task_spinning_or_asleep(spin: int, thread_memory: Callable[[int, int], None]) -> None:
    thread_memory(team_code.SPINS, spin)
    found: list[tuple[int, int]] = []
    for n in range(200):
        pause = 0.002 if n % 50 == 0 else 0.0
        threads.run_parts(lambda rest, *part: (time.sleep(rest), found.append(part)), [(pause, n, k) for k in range(3)])
        time.sleep(pause)
        assert sorted(found[-3:]) == [(n, 0), (n, 1), (n, 2)]


def test_no_thread_is_made_where_one_is_idle() -> None:
    team.forget_teams()
    for _ in range(5):
        threads.run_parts(int, [(0,)] * 3)
    assert team.team_sizes() == [2]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_an_error_in_any_part_reaches_the_caller_when_all_are_done(wrong: int) -> None:
    together = threading.Barrier(3)
    done: list[int] = []

    def part(n: int) -> None:
        together.wait()
        time.sleep(0.01 * (n != wrong))
        done.append(1 // (n != wrong))

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            threads.run_parts(part, [(0,), (1,), (2,)])
    assert len(done) == 4
    threads.run_parts(done.append, [(7,), (8,)])
    assert sorted(done[4:]) == [7, 8]


def test_use_kernels_in_one_thread_does_not_reach_another() -> None:
    x = np.ones((1, 1, 2, 3))
    with ThreadPoolExecutor(1) as pool, aa.use_kernels("reference"):
        assert "numba" in str(pool.submit(aa.explain, aa.scaled_dot_product_attention, x, x, x).result())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_too() -> None:
    always_split = "from attnarray.kernels.numba.runtime import threads\nthreads.MIN_WORK_PER_THREAD = 1"
    python(forking(f"{always_split}\n{CHECKED}"), ATTNARRAY_NUM_THREADS="3")


FREED = """
import ctypes
import numpy as np
from tests.support.kernel_calls import Sizes, assert_equal, in_dtype, kinds, run
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to give memory back at once")
def test_no_memory_is_used_after_it_was_freed() -> None:
    # Every large array is a mapping of its own, which ends when the array is freed.
    environment = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TOP_PAD_": "0"}
    code = """
for sizes in (Sizes(41, 60, 256, 256, 3), Sizes(2, 100, 256, 256)):
    for call in (in_dtype(call, dtype) for call in kinds(sizes) for dtype in ("float32", "float64")):
        assert_equal(run(call), run(call))
"""
    python(FREED + code, **environment)
    with pytest.raises(AssertionError):  # it would have been seen
        python(FREED + "x = np.ones(10**6)\nplace = x.ctypes.data\ndel x\nctypes.string_at(place, 1)", **environment)


def test_without_the_compiler() -> None:
    assert "NUMBA_DISABLE_JIT is set" in python(CHECKED + EXPLAIN, NUMBA_DISABLE_JIT="1")


@pytest.mark.parametrize(
    "obstacle",
    [
        "import sys; sys.modules['numba'] = None",
        """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
""",
    ],
    ids=["no module", "no spec"],
)
def test_without_numba(obstacle: str) -> None:
    said = python(f"{obstacle}\n{CHECKED}{EXPLAIN}\nprint(aa.warmup())")
    assert "numba is not installed" in said
    assert said.endswith("{}\n")


def test_with_a_numba_that_cannot_be_imported(tmp_path: Path) -> None:
    # What happens, for example, when NumPy is newer than Numba allows.
    (tmp_path / "numba.py").write_text('raise ImportError("Numba needs NumPy 9.9 or less")')
    said = python(CHECKED + EXPLAIN, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert "importing numba failed (Numba needs NumPy 9.9 or less)" in said


@pytest.mark.slow
def test_without_a_folder_for_the_cache(tmp_path: Path) -> None:
    # Root may write anywhere, so that files stand where the folders for caches would have to be made.
    package = tmp_path / "attnarray"
    shutil.copytree(ROOT / "attnarray", package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("")
    blocked = tmp_path / "file"
    blocked.write_text("")
    places = ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "IPYTHONDIR")
    facts = "from attnarray.kernels.numba.runtime.jit import facts; print(facts()['kernel cache'])"
    said = python(f"{CHECKED}{EXPLAIN}\n{facts}", tmp_path, **{place: str(blocked / "folder") for place in places})
    assert "attention.engine:attention  numba" in said
    assert "none can be written" in said


# A product of whole registers of float32: 8 or 16 numbers with AVX, 4 with NEON.
PACKED_PRODUCT = {"x86_64": r"v(mul|fn?m(add|sub)\d+)ps\b.*%[yz]mm", "aarch64": r"fm(ul|la|ls)\s+v\d+\.4s"}


@pytest.mark.parametrize(
    "kernel", [masked_softmax.softmax, masked_softmax.softmax_backward], ids=["forward", "backward"]
)
def test_the_loops_are_vector_code(kernel: Any) -> None:
    if MACHINE not in PACKED_PRODUCT:
        pytest.skip(f"it is not known what vector code looks like on {MACHINE}")
    if MACHINE == "x86_64" and not get_host_cpu_features().get("avx2"):
        pytest.skip("this processor has no AVX2")
    aa.warmup(("float32",))
    (signature,) = [types for types in kernel.real.signatures if types[3].dtype == numba.float32]
    fresh = numba.njit(kernel.real.py_func, **OPTIONS)  # code that comes from the cache cannot be looked at
    fresh.compile(signature)
    products = re.findall(PACKED_PRODUCT[MACHINE], fresh.inspect_asm(signature))
    assert len(products) >= 7, "the polynomial of exp2 alone has seven"
