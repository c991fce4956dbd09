"""From a CUDA source to a launch: compiled by NVRTC, kept on disk, loaded by CuPy. All that is known of CuPy is here.

A launch goes to CuPy's current stream and to the device of its arrays.
"""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined
from attnarray.kernels.cuda import cache, nvrtc
from attnarray.kernels.cuda.grid import Grid

OLDEST = 80  # compute capability 8.0: asynchronous copies and bfloat16
LARGE_SHARED = 48 * 1024  # a kernel that wants more bytes of shared memory must say so
STORED = {"float64": "double", "float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
OPTIONS = ("-std=c++17", "-default-device", "--ptxas-options=-v")

_lock = threading.Lock()


class Kernel(NamedTuple):
    """A kernel by its source file, its name and the types of its parameters, one letter each.

    p an array or None, i int64, w uint32, r a number in the dtype that sums are kept in.
    """

    source: str
    name: str
    parameters: str


def cupy() -> Any:
    return importlib.import_module("cupy")


def unavailable() -> str:
    """Why no kernel can run here: no CuPy, no driver, no GPU, too old a one, no compiler. Empty when they can."""
    try:
        library = cupy()
    except ImportError as error:
        if error.name == "cupy":
            return "cupy is not installed; pip install 'attnarray[cuda12]' or 'attnarray[cuda13]'"
        return f"importing cupy failed ({error})"
    try:
        if library.cuda.runtime.getDeviceCount() < 1:
            return "no CUDA device was found"
        capability = capability_of(library.cuda.Device().id)
    except library.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU can be used ({error})"
    if capability < OLDEST:
        return f"the GPU has compute capability {capability / 10}, the kernels need {OLDEST / 10} or newer"
    return "" if _compiler() else nvrtc.MISSING


def _compiler() -> nvrtc.Nvrtc | None:
    if nvrtc.find() is None:
        try:  # CuPy knows more places; once it has loaded the library, its bare name is enough
            importlib.import_module("cupy_backends.cuda.libs.nvrtc").getVersion()
        except Exception:
            return None
        nvrtc.find.cache_clear()
    return nvrtc.find()


@functools.cache
def capability_of(device: int) -> int:
    """90 for compute capability 9.0."""
    return int(cupy().cuda.Device(device).compute_capability)


@functools.cache
def multiprocessors(device: int) -> int:
    return int(cupy().cuda.Device(device).attributes["MultiProcessorCount"])


def options_of(dtype: str) -> tuple[str, ...]:
    """The compiler's options for arrays of a dtype."""
    return (*OPTIONS, f"-DStored={STORED[dtype]}")


def compile_for(source: str, dtype: str, architecture: str) -> nvrtc.Compiled:
    """Compile a file of sources/, anew."""
    return nvrtc.compile_source(
        cache.source_of(source), source, cache.headers_of(source), options_of(dtype), architecture
    )


def compiled(source: str, dtype: str, architecture: str) -> Path:
    """The file with the machine code of a source, from the cache if it is there."""
    found = _compiler()
    version = found.version if found else None
    name = cache.key(cache.source_of(source), cache.headers_of(source), options_of(dtype), architecture, version)
    return cache.entry(name, lambda: compile_for(source, dtype, architecture).image)


@functools.cache
def _function(kernel: Kernel, dtype: str, device: int) -> Any:
    """The kernel, loaded on a device; Declined if that does not work."""
    with _lock:
        reason = _broken(kernel.source, dtype, device)
    if reason:
        raise Declined(reason)
    return cupy().RawModule(path=str(_image(kernel.source, dtype, device))).get_function(kernel.name)


def _image(source: str, dtype: str, device: int) -> Path:
    found = _compiler()
    return compiled(source, dtype, nvrtc.target(capability_of(device), found.architectures if found else ()))


@functools.cache
def _broken(source: str, dtype: str, device: int) -> str:
    """Why a source cannot be used on a device, said once as a warning too; empty if it can."""
    try:
        with cupy().cuda.Device(device):
            _load(source, dtype, device)
    except (nvrtc.CompileError, OSError) as error:
        reason = f"its CUDA source {source} does not compile for {dtype}: {error}"
    except cupy().cuda.driver.CUDADriverError as error:
        reason = f"its machine code of {source} cannot be loaded ({error})"
    else:
        return ""
    warnings.warn(f"A CUDA kernel is left out, array code runs instead: {reason}", RuntimeWarning, stacklevel=2)
    return reason


def _load(source: str, dtype: str, device: int) -> None:
    """Load an image; a kept one that the driver refuses is compiled anew."""
    path = _image(source, dtype, device)
    try:
        cupy().RawModule(path=str(path)).module  # noqa: B018 - the property loads it
    except cupy().cuda.driver.CUDADriverError:
        cache.forget(path)
        cupy().RawModule(path=str(_image(source, dtype, device))).module  # noqa: B018


@functools.cache
def _converters(parameters: str, dtype: str) -> tuple[Any, ...]:
    real = np.float64 if dtype == "float64" else np.float32
    return tuple({"p": _pointer, "i": np.int64, "w": np.uint32, "r": real}[letter] for letter in parameters)


def _pointer(array: Any) -> Any:
    return np.uintp(0) if array is None else array


def launch(kernel: Kernel, dtype: str, grid: Grid, *arguments: Any) -> None:
    """Run a kernel on the current stream, for arrays that are stored as `dtype`.

    Arguments are converted to the types of the parameters; arrays must be contiguous and on one device.

    Raises
    ------
    Declined
        If the kernel cannot be compiled or loaded.
    ValueError
        If the arrays are on different devices.
    """
    device = device_of(kernel, arguments)
    function = _function(kernel, dtype, device)
    if grid.is_empty:
        return
    values = tuple(
        convert(value) for convert, value in zip(_converters(kernel.parameters, dtype), arguments, strict=True)
    )
    if device == cupy().cuda.runtime.getDevice():
        _run(function, grid, values)
    else:
        with cupy().cuda.Device(device):
            _run(function, grid, values)


def _run(function: Any, grid: Grid, values: tuple[Any, ...]) -> None:
    if grid.shared > LARGE_SHARED:
        function.max_dynamic_shared_size_bytes = grid.shared
    function(grid.blocks, grid.threads, values, shared_mem=grid.shared)


def device_of(kernel: Kernel, arguments: tuple[Any, ...]) -> int:
    """The device of the arrays among the arguments."""
    pairs = zip(kernel.parameters, arguments, strict=True)
    devices = {int(array.data.device_id) for letter, array in pairs if letter == "p" and array is not None}
    if len(devices) != 1:
        raise ValueError(
            f"{kernel.name}: the arrays are on the devices {sorted(devices)}, expected one. Copy them to one device."
        )
    return devices.pop()


def warmup(kernels: tuple[Kernel, ...], dtype: str) -> None:
    """Compile and load kernels on the current device."""
    device = int(cupy().cuda.runtime.getDevice())
    for kernel in kernels:
        _function(kernel, dtype, device)


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array for results; if there is no memory for it, the error says how much was wanted."""
    library = cupy()
    try:
        return library.empty(shape, dtype=dtype)
    except library.cuda.memory.OutOfMemoryError as error:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raise MemoryError(
            f"No room on the GPU for an array {tuple(shape)} of {np.dtype(dtype).name}, {size / 2**20:.1f} MiB "
            f"({error}). Free arrays, or work on fewer rows at a time."
        ) from None
