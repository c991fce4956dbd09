"""Tiled attention on the CPU for whoever relies on it: threads, forks, memory, other processors, and vector code."""

from __future__ import annotations

import ctypes
import math
import os
import re
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features

from attnarray.kernels.numba.attention import backward as attention_backward
from attnarray.kernels.numba.attention import call as ac
from attnarray.kernels.numba.attention import forward as attention_forward
from attnarray.kernels.numba.attention import tiled as attention
from attnarray.kernels.numba.runtime import team, threads
from attnarray.kernels.numba.runtime.jit import EXACT, OPTIONS
from attnarray.kernels.numba.vector import lanes
from tests.support.fork_template import forking
from tests.support.kernel_calls import DTYPES, KINDS, Sizes, assert_equal, call_of, checks, in_dtype, kinds, run
from tests.support.processes import MACHINE, python

# Few panels of one head, heads that are no multiple of the threads, and few queries of one head.
SPLIT = [Sizes(320, 330, 16, 8, 1, 1, 1), Sizes(41, 60, 8, 12, 3, 1, 2), Sizes(2, 3000, 16, 8, 3, 1, 1)]
SUMMED = ("dkey", "dvalue", "dbias", "dsinks")  # over the threads


@pytest.fixture
def use_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Splits even the smallest call over so many threads; returns into how many parts calls have been split since."""
    original = attention.run_parts

    def use(count: int) -> list[int]:
        parts: list[int] = []

        def counted(kernel: Any, given: Any, *work: Any) -> None:
            parts.append(len(given))
            original(kernel, given, *work)

        monkeypatch.setattr(attention, "run_parts", counted)
        monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
        attention._plan.cache_clear()
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", str(count))
        return parts

    return use


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", range(3), ids=KINDS)
@pytest.mark.parametrize("sizes", SPLIT)
def test_the_number_of_threads_does_not_matter(
    sizes: Sizes, kind: int, dtype: str, use_threads: Callable[[int], list[int]]
) -> None:
    call = in_dtype(kinds(sizes)[kind], dtype)
    use_threads(1)
    expected = run(call)
    for count in (1, 2, 3, 5):
        parts = use_threads(count)
        found = run(call)
        assert max(parts, default=1) == count or (kind == 1 and sizes is SPLIT[2])  # one panel
        assert_equal(run(call), found)  # once more, the same bits
        for name, array in found.items():
            rounding = 1e-5 if dtype == "float32" else 1e-13
            assert_equal({name: array}, {name: expected[name]}, rounding if name in SUMMED else 0.0)


def contiguous(integers: np.ndarray, slot: int, dtype: Any) -> np.ndarray:
    """The array that a call has in a slot."""
    address, shape = int(integers[slot]), integers[ac.SLOTS + 8 * slot :][:4].tolist()
    memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


@pytest.mark.parametrize("count", [2, 50], ids=["two threads", "a thread for each panel"])
@pytest.mark.parametrize("sizes", SPLIT)
def test_no_two_threads_write_to_the_same_gradient(
    sizes: Sizes, count: int, use_threads: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would seldom do so at the same moment; here they come one after the other."""

    def one_by_one(kernel: Any, given: Any, *work: Any) -> None:
        written = []
        for part in given:
            slots = (ac.DK, ac.DV) if kernel is attention.backward else ()
            gradients = [contiguous(part[2], slot, part[3].dtype) for slot in slots]
            before = [gradient.copy() for gradient in gradients]
            kernel(*part)
            written.append([gradient != old for gradient, old in zip(gradients, before, strict=True)])
        assert all(np.max(np.sum(by_thread, axis=0)) == 1 for by_thread in zip(*written, strict=True))

    use_threads(count)
    monkeypatch.setattr(attention, "run_parts", one_by_one)
    run(in_dtype(kinds(sizes)[0], "float32"))


def test_eight_python_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "3")
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(check) for check in 4 * checks()]:
            done.result()
    assert team.team_sizes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_too() -> None:
    code = forking("from tests.support.kernel_calls import checks\ncheck = checks()[0]")
    python(code, ATTNARRAY_NUM_THREADS="3")


# By tiles, and by blocks of keys where there are few queries.
WAYS = [Sizes(21, 50, 6, 9, 3), Sizes(35, 37, 16, 32), Sizes(2, 90, 6, 9), Sizes(2, 90, 16, 32), Sizes(1, 577, 64, 64)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_between_the_rows_is_read(dtype: str) -> None:
    def amid_rubbish(x: np.ndarray) -> np.ndarray:
        rubbish = np.full(tuple(size + 2 for size in x.shape), np.nan if x.dtype.kind == "f" else 77).astype(x.dtype)
        inner = tuple(slice(1, -1) for _ in x.shape)
        rubbish[inner] = x
        return rubbish[inner]

    for call in (in_dtype(call, dtype) for sizes in WAYS for call in kinds(sizes)):
        placed = {name: amid_rubbish(x) if isinstance(x, np.ndarray) else x for name, x in call.items()}
        before = {name: x.base.copy() for name, x in placed.items() if isinstance(x, np.ndarray)}
        assert_equal(run(placed), run(call))
        for name, rubbish in before.items():
            np.testing.assert_array_equal(placed[name].base, rubbish)


GUARDED = """
import mmap
import numpy as np
from tests.support.guarded_memory import before_a_guard, behind_a_guard, new_arrays, rows_alone
from tests.support.kernel_calls import Sizes, assert_equal, call_of, in_dtype, kinds, run
"""
NEEDS_PAGES = pytest.mark.skipif(os.name != "posix", reason="pages are protected by mprotect")


@NEEDS_PAGES
def test_no_byte_beyond_the_arrays_is_touched() -> None:
    code = f"""
for sizes in {[tuple(sizes) for sizes in WAYS]}:
    for kind in kinds(Sizes(*sizes)):
        for dtype in ("float32", "float64"):
            call = in_dtype(kind, dtype)
            expected = run(call)
            for place in (before_a_guard, behind_a_guard):
                placed = {{name: place(x) if isinstance(x, np.ndarray) else x for name, x in call.items()}}
                with new_arrays(place):
                    assert_equal(run(placed), expected)
"""
    python(GUARDED + code)
    with pytest.raises(AssertionError):  # it would have been seen
        python(GUARDED + "np.lib.stride_tricks.as_strided(before_a_guard(np.ones(9)), (10,)).sum()")


@NEEDS_PAGES
def test_keys_outside_the_window_are_not_read() -> None:
    code = """
rows = mmap.PAGESIZE // 64  # of 16 numbers in float32
for queries in (1, rows):
    call = in_dtype(call_of(Sizes(queries, 16 * rows, 16, 16)), "float32")
    last = 7 * rows - queries
    for options, first, past in (
        ({"is_causal": True}, 0, rows),
        ({"kv_lengths": 5 * rows}, 0, 5 * rows),
        ({"kv_lengths": np.array([0, 5 * rows])}, 0, 5 * rows),
        ({"window": (3 * rows - queries, 0), "q_offset": last}, 4 * rows, 7 * rows),
        ({"window": (None, rows - 1), "q_offset": last}, 0, 8 * rows),
        ({"window": (0, None), "q_offset": 16 * rows}, 0, 0),
    ):
        expected = run(call | options)
        alone = {name: rows_alone(call[name], first, past) for name in ("key", "value")}
        assert_equal(run(call | alone | options), expected)
"""
    python(GUARDED + code)


@pytest.fixture
def code_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """A folder for code that is compiled in another way, which the next run of the tests finds again."""
    kept = getattr(request.config, "cache", None)
    return lambda name: str(tmp_path if kept is None else kept.mkdir(f"numba-{name}"))


RIGHT = """
import numba
from tests.support.kernel_calls import Sizes, assert_right, kinds
from attnarray.kernels.numba.vector import lanes
"""


def right(dtype: str) -> str:
    """Code that checks a handful of calls."""
    return f"""
for sizes in ((37, 61, 5, 7, 3), (16, 250, 80, 33, 1), (111, 17, 3, 64, 2), (1, 577, 33, 16, 2), (2, 90, 16, 32, 2)):
    for call in kinds(Sizes(*sizes)):
        assert_right(call, "{dtype}")
"""


@pytest.mark.slow
def test_no_index_is_out_of_bounds(code_folder: Callable[[str], str]) -> None:
    code = "assert numba.config.BOUNDSCHECK == 1"
    environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": code_folder("bounds")}
    python(RIGHT + code + right("float64"), **environment)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_processor_of_which_nothing_is_known(dtype: str, code_folder: Callable[[str], str]) -> None:
    code = "assert [lanes.tile_size(bits) for bits in (32, 64)] == [(8, 6), (4, 6)]"
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": code_folder("generic")}
    python(RIGHT + code + right(dtype), **environment)


@pytest.mark.slow
def test_the_tiles_of_another_processor(code_folder: Callable[[str], str]) -> None:
    other = "avx2" if "avx512f" in lanes.cpu_features() else "avx512f"
    code = f"""
lanes.cpu_features = lambda: {{{other!r}}}
"""
    python(RIGHT + code + right("float32"), NUMBA_CACHE_DIR=code_folder(other))


@pytest.mark.parametrize(
    ("features", "row", "rows"),
    [({"avx512f", "avx2"}, 2 * 64, 12), ({"avx2", "fma"}, 2 * 32, 6), ({"neon"}, 4 * 16, 6), ({"sse2"}, 2 * 16, 6)],
)
def test_tiles_fill_the_registers(features: set[str], row: int, rows: int) -> None:
    assert [lanes.tile_shape(features, size) for size in (4, 8)] == [(row // 4, rows), (row // 8, rows)]


def test_memory_does_not_grow_with_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "1")
    call = in_dtype(call_of(Sizes(2048, 2048, 16, 16, 1, 2, 1)), "float32")
    run(in_dtype(call_of(Sizes(64, 64, 16, 16, 1, 2, 1)), "float32"))  # kernels are compiled now, or loaded
    tracemalloc.start()  # sees the memory of NumPy, not that of compiled code
    try:
        results = run(call)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # T S numbers of 2 heads are 32 MB.
    assert peak - sum(array.nbytes for array in results.values()) < 4e6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_the_process_does_not_grow_with_the_scores() -> None:
    # The peak of getrusage is no use here: a new process takes over that of its parent.
    code = """
import re
from pathlib import Path
import numpy as np
from tests.support.kernel_calls import Sizes, call_of, in_dtype, run

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

calls = [in_dtype(call_of(Sizes(n, n, 16, 16, 1, 1, 1)), "float32") for n in (64, 8192)]
run(calls[0])
before = peak()
run(calls[1])
assert peak() - before < 60e6, peak() - before  # T S numbers are 268 MB
held = np.ones(int(peak() - before + 70e6), np.uint8)
assert peak() - before > 60e6  # it would have been seen
"""
    python(code)


# Of whole registers of float32: products with a sum, the shift of a number into the exponent, and what is spilled.
PRODUCT = {"x86_64": r"\tvfn?m(?:add|sub)\d+ps\b.*%[yz]mm", "aarch64": r"\tfml[as](?:\.4s\s+v\d+|\s+v\d+\.4s)"}
SHIFT = {"x86_64": r"\tvpslld\s+\$23,.*%[yz]mm", "aarch64": r"\tshl(?:\.4s\s+v\d+|\s+v\d+\.4s).*#23"}
STACK = {"x86_64": r"\(%rsp", "aarch64": r"\[sp"}
LOOP = re.compile(r"^(\.?L\w+):.*\n((?:\t.*\n)*?)\t(?:j|b\.|cbn?z|tbn?z).*\s\1\n", re.MULTILINE)  # one block


@pytest.mark.parametrize(
    ("kernel", "products"),
    # Scores and outputs; scores, dP, dQ, and one for dK and dV or one for each.
    [(attention_forward.forward, 2), (attention_backward.backward, 4)],
    ids=["forward", "backward"],
)
def test_products_and_exponentials_are_vector_code(kernel: Any, products: int) -> None:
    if MACHINE not in PRODUCT:
        pytest.skip(f"it is not known what vector code looks like on {MACHINE}")
    if MACHINE == "x86_64" and not get_host_cpu_features().get("avx2"):
        pytest.skip("this processor has no AVX2")
    types = [numba.intp, numba.intp, numba.typeof(np.zeros(1, np.int64)), numba.typeof(np.zeros(1, np.float32))]
    fresh = numba.njit(kernel.real.py_func, **{**OPTIONS, "fastmath": set(EXACT)})  # cached code cannot be looked at
    fresh.compile(tuple(types))
    loops = [found[2] for found in LOOP.finditer(fresh.inspect_asm(tuple(types)))]
    counts = {loop: len(re.findall(PRODUCT[MACHINE], loop)) for loop in loops}
    exponentials = [loop for loop in loops if re.search(SHIFT[MACHINE], loop)]
    held = [loop for loop in loops if not re.search(STACK[MACHINE], loop) and loop not in exponentials]
    assert len([loop for loop in held if counts[loop] >= 12]) >= products, "sums are not held in registers"
    assert any(counts[loop] >= 18 for loop in exponentials), "nine for each of at least two registers of a row"
