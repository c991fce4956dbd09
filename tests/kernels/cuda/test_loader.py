"""From source to launch: the compiler, its cache, the choice of an architecture, and errors."""

from __future__ import annotations

import importlib
import re
import stat
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.dispatch import KernelUnavailableError
from attnarray.kernels import Declined
from attnarray.kernels.cuda import cache, grid, loader, norm, nvrtc, unavailable
from attnarray.kernels.cuda.grid import Grid
from attnarray.kernels.table import KERNELS
from attnarray.ops.softmax import _softmax
from tests.cuda_emulation import fake_cupy
from tests.cuda_emulation.fake_cupy import State
from tests.support.tiers import slow

SMALL = 'extern "C" __global__ void one(float* x) { x[0] = 1; }'


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNARRAY_CUDA_CACHE", str(tmp_path / "cache"))


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> bytes:
        made.append(1)
        return b"code"

    paths = {cache.entry("a", make) for _ in range(3)}
    assert paths == {tmp_path / "cache" / "a.cubin"}
    assert len(made) == 1
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a.cubin", "a.sha256"]


@pytest.mark.parametrize("broken", [b"", b"cod", b"code and more"])
def test_a_broken_entry_is_made_again(broken: bytes) -> None:
    path = cache.entry("a", lambda: b"code")
    path.write_bytes(broken)
    assert cache.entry("a", lambda: b"code").read_bytes() == b"code"
    path.with_suffix(".sha256").unlink()
    assert cache.entry("a", lambda: b"newer").read_bytes() == b"newer"


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTNARRAY_CUDA_CACHE", str(tmp_path / "file" / "below"))
    path = cache.entry("a", lambda: b"code")
    assert path.read_bytes() == b"code"
    assert tmp_path not in path.parents
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("ATTNARRAY_CUDA_CACHE", str(locked / "below"))
    assert cache.entry("b", lambda: b"code").read_bytes() == b"code"


def test_the_key_is_that_of_everything_that_decides_the_code() -> None:
    given: list[Any] = ["text", {"a.cuh": "header"}, ("-O3",), "sm_90", (13, 0)]
    others: list[Any] = ["texts", {"a.cuh": "other"}, ("-O2",), "sm_90a", (13, 1)]
    keys = {cache.key(*given)}
    for place, other in enumerate(others):
        keys.add(cache.key(*given[:place], other, *given[place + 1 :]))
    assert len(keys) == 6
    assert set(cache.included_headers("dropout.cu")) == {"philox.cuh", "primitives.cuh", "rows.cuh"}


def test_the_architecture_fits_the_device_and_the_compiler() -> None:
    known = (80, 86, 90, 100, 120)
    found = [nvrtc.target(number, known) for number in (80, 86, 89, 90, 103, 121, 130)]
    assert found == ["sm_80", "sm_86", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
    with pytest.raises(nvrtc.CompileError, match=r"compute capability 7\.5"):
        nvrtc.target(75, known)


@pytest.mark.nvrtc
def test_the_compiler_makes_machine_code_and_says_what_is_wrong() -> None:
    assert nvrtc.compile_source(SMALL, "one.cu", {}, ("--ptxas-options=-v",), "sm_90").image[:4] == b"\x7fELF"
    assert b".target sm_90" in nvrtc.compile_source(SMALL, "one.cu", {}, (), "compute_90").image
    with pytest.raises(nvrtc.CompileError, match=r'one.cu\(1\): error: identifier "y" is undefined'):
        nvrtc.compile_source(SMALL.replace("= 1", "= y"), "one.cu", {}, (), "sm_90")


@pytest.mark.nvrtc
def test_a_compiled_kernel_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    path = loader.compiled("columns.cu", "float32", "sm_90")
    assert path.read_bytes()[:4] == b"\x7fELF"
    monkeypatch.setattr(nvrtc, "compile_source", None)
    assert loader.compiled("columns.cu", "float32", "sm_90") == path


def test_plans() -> None:
    assert grid.plan_rows(100, 1, 4) == Grid((13, 1, 1), (32, 8, 1))
    assert grid.plan_rows(100, 256, 4) == Grid((13, 1, 1), (32, 8, 1))
    assert grid.plan_rows(100, 257, 4) == Grid((100, 1, 1), (64, 1, 1), 512)
    assert grid.plan_rows(100, 257, 8) == Grid((100, 1, 1), (128, 1, 1), 1024)
    assert grid.plan_rows(100, 10**6, 4).threads == (512, 1, 1)
    assert grid.plan_rows(2**40, 1, 4).blocks == (2**31 - 1, 1, 1)
    assert grid.plan_rows(0, 5, 4).is_empty
    assert grid.plan_held(100, 2048, 64, 1024, 4) == Grid((25, 1, 1), (32, 4, 1))
    assert grid.plan_held(100, 4096, 64, 1024, 4) == Grid((100, 1, 1), (64, 1, 1), 512)
    assert grid.plan_held(100, 10**6, 64, 256, 8) == Grid((100, 1, 1), (256, 1, 1), 1024)
    assert grid.plan_numbers(2049, 4) == Grid((2, 1, 1), (256, 1, 1))
    assert grid.plan_columns(33, 8) == Grid((2, 1, 1), (32, 32, 1), 8192)


def test_plans_of_norm_gradients() -> None:
    for width in (1, 256, 257, 5000):
        rows = grid.plan_rows(10**6, width, 4)
        plan = norm.plan_backward(rows, width, 4, 132)
        assert plan.threads == rows.threads
        assert rows.shared <= plan.shared <= 48 * 1024
        assert 132 <= plan.blocks[0] <= 132 * 16
    assert norm.plan_backward(grid.plan_rows(3, 1000, 4), 1000, 4, 132).blocks == (3, 1, 1)
    assert norm.plan_parameter_sums(10**6, 20000, 132).blocks == (79, 13, 1)
    assert norm.plan_parameter_sums(10, 10**6, 132).blocks == (3907, 1, 1)


def fake(x: np.ndarray) -> Any:
    return fake_cupy.ndarray(x)


@pytest.mark.parametrize(
    ("set_up", "reason"),
    [
        ({"devices": 0}, "no CUDA device was found"),
        ({"capability": "75"}, r"the GPU has compute capability 7\.5, the kernels need 8\.0 or newer"),
    ],
)
def test_an_unsupported_gpu_is_named(set_up: dict[str, Any], reason: str) -> None:
    with fake_cupy.installed():
        for name, value in set_up.items():
            setattr(State, name, value)
        assert re.search(reason, unavailable())
        with aa.use_kernels("cuda"), pytest.raises(KernelUnavailableError, match=reason):
            _softmax(fake(np.ones((2, 3))), None, 1)


def test_no_driver_and_no_compiler_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cupy.installed() as module:

        def fail() -> int:
            raise module.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver")

        monkeypatch.setattr(module.cuda.runtime, "getDeviceCount", fail)
        assert loader.unavailable() == "no GPU can be used (cudaErrorInsufficientDriver)"
    with fake_cupy.installed():
        monkeypatch.setattr(loader, "_compiler", lambda: None)
        assert loader.unavailable() == nvrtc.MISSING


def test_without_cupy_the_reason_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "cupy" in loader.unavailable()


@pytest.mark.emulation
def test_public_functions_find_the_kernels() -> None:
    with fake_cupy.installed():
        choices = aa.explain(_softmax, fake(np.ones((2, 3), np.float32)), None, 1).choices
        assert [(choice.kernel, choice.reason) for choice in choices] == [("cuda", "")]
        assert State.launches == 1


@pytest.mark.emulation
def test_a_launch_goes_to_the_device_of_its_arrays() -> None:
    with fake_cupy.installed():
        State.devices, kernel = 2, loader.Kernel("columns.cu", "column_sums", "ppii")
        x, out = (fake_cupy.ndarray(np.ones(shape, np.float32), 1) for shape in ((2, 3), (3,)))
        plan = grid.plan_columns(3, 4)
        loader.launch(kernel, "float32", plan, x, out, 2, 3)
        np.testing.assert_array_equal(out.held, 2.0)
        assert State.device == 0
        with pytest.raises(ValueError, match=r"column_sums: the arrays are on the devices \[0, 1\], expected one"):
            loader.launch(kernel, "float32", plan, fake(np.ones((2, 3), np.float32)), out, 2, 3)


@pytest.mark.parametrize(("dtype", "letters"), [("float32", "piwff"), ("float64", "piwdd")])
def test_arguments_are_packed_as_the_parameters_say(dtype: str, letters: str) -> None:
    values, taken = [7, -(2**40), 2**32 - 1, 0.1, 1e300], []
    with fake_cupy.installed() as module:
        raw, kernel = fake_cupy.RawKernel(None, letters, [8] * 5), loader.Kernel("none.cu", "none", "piwrr")
        module.cuda.driver.launchKernel = lambda *numbers: taken.extend(fake_cupy.arguments_at(numbers[9], raw))
        function = loader.Function(raw, kernel, dtype)
        function.run(module, Grid((1, 1, 1), (32, 1, 1)), list(values))
    with np.errstate(over="ignore"):
        assert taken == [*values[:3], *(float(np.dtype(dtype).type(value)) for value in values[3:])]


@pytest.mark.emulation
def test_threads_do_not_share_memory_for_arguments() -> None:
    with fake_cupy.installed():
        kernel, plan = loader.Kernel("columns.cu", "column_sums", "ppii"), grid.plan_columns(3, 4)
        x, out = (fake(np.ones(shape, np.float32)) for shape in ((2, 3), (3,)))
        loader.launch(kernel, "float32", plan, x, out, 2, 3)
        function = loader._function(kernel, "float32", 0)
        mine, others = loader._threads().buffers[function], []
        thread = threading.Thread(target=lambda: others.append(loader._threads().buffers.get(function)))
        thread.start()
        thread.join()
        assert others == [None]
        assert loader._threads().buffers[function] is mine


def test_a_kernel_that_does_not_compile_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Path:
        raise nvrtc.CompileError("softmax.cu(7): error")

    with fake_cupy.installed():
        monkeypatch.setattr(loader, "compiled", fail)
        x = fake(np.ones((2, 3), np.float32))
        kernel = aa.dispatch._find("ops.softmax:_softmax", "cuda", "auto")[0]
        said = r"array code runs instead: its CUDA source softmax.cu does not compile"
        with pytest.warns(RuntimeWarning, match=said) as warned:
            out = _softmax(x, None, 1)
        assert len(warned) == 1
        np.testing.assert_allclose(out.held, 1 / 3, rtol=1e-6)  # a rounding
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(Declined):
                kernel(x, None, 1)
        with aa.use_kernels("cuda"), pytest.raises(KernelUnavailableError, match=r"softmax.cu\(7\): error"):
            _softmax(x, None, 1)


def test_machine_code_that_cannot_be_loaded_is_compiled_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_cupy.installed() as module:
        path = tmp_path / "entry.cubin"
        cache.write(path, b"code")
        monkeypatch.setattr(loader, "compiled", lambda *_: path)
        loaded = []

        class Refusing:
            def __init__(self, path: str) -> None:
                loaded.append(Path(path).exists())
                if len(loaded) == 1:
                    raise module.cuda.driver.CUDADriverError("CUDA_ERROR_INVALID_IMAGE")
                self.module = None

        monkeypatch.setattr(module, "RawModule", Refusing)
        assert loader._broken("softmax.cu", "float32", 0, ()) == ""
        assert loaded == [True, False]


@pytest.mark.emulation
def test_out_of_memory_names_the_sizes_and_the_next_call_works() -> None:
    with fake_cupy.installed():
        x = fake(np.ones((1000, 500), np.float32))
        kernel = aa.dispatch._find("ops.activations:_relu", "cuda", "auto")[0]
        State.memory_left = 1000
        with pytest.raises(MemoryError, match=r"array \(1000, 500\) of float32, 1\.9 MiB"):
            kernel(x)
        State.memory_left = 2**40
        assert kernel(fake(np.ones(3, np.float32))).shape == (3,)


@pytest.mark.emulation
@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
def test_warmup_loads_every_kernel(dtype: str) -> None:
    modules = {row["cuda"].partition(":")[0] for row in KERNELS.values() if "cuda" in row}
    with fake_cupy.installed():
        for module in modules:
            importlib.import_module(f"attnarray.kernels.cuda.{module}").warmup(dtype)
        assert loader._function.cache_info().currsize >= (30 if dtype == "float32" else 20)


def test_info_knows_the_kernels() -> None:
    rows = [status for status in aa.dispatch.available_kernels() if status.backend == "cuda"]
    assert {"ops.softmax:_softmax", "attention.normalizers:masked_softmax_backward"} <= {row.function for row in rows}
    assert all(row.reason for row in rows) == bool(unavailable())
