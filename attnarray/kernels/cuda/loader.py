"""From a CUDA source to a launch: compiled by NVRTC, cached on disk, loaded by CuPy. Calls of CuPy are here.

A launch goes to CuPy's current stream and to the device of its arrays.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import itertools
import math
import struct
import sys
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels import Declined, compiling
from attnarray.kernels.cuda import cache, nvrtc
from attnarray.kernels.cuda.grid import Grid

OLDEST = 80  # compute capability 8.0: asynchronous copies and bfloat16
LARGE_SHARED = 48 * 1024  # more bytes of shared memory must be requested by an attribute of the kernel
FLOAT32_MAX = float(np.finfo(np.float32).max)
STORED = {"float64": "double", "float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
OPTIONS = ("-std=c++17", "-default-device", "--ptxas-options=-v")

WARPGROUP = "warpgroup"  # sources with this prefix need architecture-specific instructions: sm_90a

_lock = threading.Lock()


class Kernel(NamedTuple):
    """A kernel by its source file, its name and the types of its parameters, one letter each.

    p an array or None, i int64, w uint32, r a number in the dtype of sums, s a struct of `struct_bytes` bytes.
    The source is compiled for the `constants`, "NAME=1" each.
    """

    source: str
    name: str
    parameters: str
    struct_bytes: int = 0
    constants: tuple[str, ...] = ()


def cupy() -> Any:
    return sys.modules.get("cupy") or importlib.import_module("cupy")


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
        capability = compute_capability(library.cuda.Device().id)
    except library.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU can be used ({error})"
    if capability < OLDEST:
        return f"the GPU has compute capability {capability / 10}, the kernels need {OLDEST / 10} or newer"
    return "" if _compiler() else nvrtc.MISSING


def _compiler() -> nvrtc.Nvrtc | None:
    if nvrtc.find() is None:
        try:  # CuPy searches more folders; once it has loaded the library, its bare name is enough
            importlib.import_module("cupy_backends.cuda.libs.nvrtc").getVersion()
        except Exception:
            return None
        nvrtc.find.cache_clear()
    return nvrtc.find()


@functools.cache
def compute_capability(device: int) -> int:
    """90 for compute capability 9.0."""
    return int(cupy().cuda.Device(device).compute_capability)


@functools.cache
def shared_bytes(device: int) -> int:
    """The most shared memory that a block can have."""
    return int(cupy().cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"])


@functools.cache
def multiprocessors(device: int) -> int:
    return int(cupy().cuda.Device(device).attributes["MultiProcessorCount"])


def compiler_options(dtype: str, constants: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The compiler's options for arrays of a dtype."""
    return (*OPTIONS, f"-DStored={STORED[dtype]}", *(f"-D{constant}" for constant in constants))


def compile_for(source: str, dtype: str, architecture: str, constants: tuple[str, ...] = ()) -> nvrtc.Compiled:
    """Compile a file of sources/."""
    options = compiler_options(dtype, constants)
    compiling(source, True)
    return nvrtc.compile_source(
        cache.source_text(source), source, cache.included_headers(source), options, architecture
    )


def compiled(source: str, dtype: str, architecture: str, constants: tuple[str, ...] = ()) -> Path:
    """The file with the machine code of a source, from the cache if it is there."""
    found = _compiler()
    version, options = found.version if found else None, compiler_options(dtype, constants)
    name = cache.key(cache.source_text(source), cache.included_headers(source), options, architecture, version)
    return cache.entry(name, lambda: compile_for(source, dtype, architecture, constants).image)


@functools.cache
def _function(kernel: Kernel, dtype: str, device: int) -> Function:
    """The kernel, loaded on a device; Declined if that does not work."""
    with _lock:
        reason = _broken(kernel.source, dtype, device, kernel.constants)
    if reason:
        raise Declined(reason)
    with cupy().cuda.Device(device):
        path = _image(kernel.source, dtype, device, kernel.constants)
        return Function(cupy().RawModule(path=str(path)).get_function(kernel.name), kernel, dtype)


def _image(source: str, dtype: str, device: int, constants: tuple[str, ...]) -> Path:
    found = _compiler()
    target = nvrtc.target(compute_capability(device), found.architectures if found else ())
    return compiled(source, dtype, target + "a" * source.startswith(WARPGROUP), constants)


@functools.cache
def _broken(source: str, dtype: str, device: int, constants: tuple[str, ...]) -> str:
    """Why a source cannot be used on a device, with one warning; empty if it can."""
    try:
        with cupy().cuda.Device(device):
            _load(source, dtype, device, constants)
    except (nvrtc.CompileError, OSError) as error:
        reason = f"its CUDA source {source} does not compile for {dtype}: {error}"
    except cupy().cuda.driver.CUDADriverError as error:
        reason = f"its machine code of {source} cannot be loaded ({error})"
    else:
        return ""
    warnings.warn(f"A CUDA kernel is left out, array code runs instead: {reason}", RuntimeWarning, stacklevel=2)
    return reason


def _load(source: str, dtype: str, device: int, constants: tuple[str, ...]) -> None:
    """Load an image; a cached one that the driver refuses is compiled again."""
    path = _image(source, dtype, device, constants)
    try:
        cupy().RawModule(path=str(path)).module  # noqa: B018 - the property loads it
    except cupy().cuda.driver.CUDADriverError:
        cache.forget(path)
        cupy().RawModule(path=str(_image(source, dtype, device, constants))).module  # noqa: B018


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
    values, device = list(arguments), -1
    for index in _array_indices(kernel.parameters):
        array = values[index]
        if array is None:
            values[index] = 0
            continue
        memory = array.data
        values[index] = memory.ptr
        if device != memory.device_id:
            if device >= 0:
                raise _different_devices(kernel.name, map(arguments.__getitem__, _array_indices(kernel.parameters)))
            device = memory.device_id
    if device < 0:
        raise ValueError(f"{kernel.name}: no array was given, expected at least one.")
    function = _function(kernel, dtype, device)
    if 0 in grid.blocks:
        return
    library = cupy()
    if device == library.cuda.runtime.getDevice():
        function.run(library, grid, values)
    else:
        with library.cuda.Device(device):
            function.run(library, grid, values)


@functools.cache
def _array_indices(parameters: str) -> tuple[int, ...]:
    return tuple(index for index, letter in enumerate(parameters) if letter == "p")


def same_device(name: str, *arrays: Any) -> int:
    """The device of all arrays."""
    devices = {int(array.data.device_id) for array in arrays}
    if len(devices) != 1:
        raise _different_devices(name, arrays)
    return devices.pop()


def _different_devices(name: str, arrays: Iterable[Any]) -> ValueError:
    devices = sorted({int(array.data.device_id) for array in arrays if array is not None})
    return ValueError(f"{name}: the arrays are on the devices {devices}, expected one. Copy them to one device.")


class Function:
    """A kernel as loaded on a device. Launched by CuPy's driver call: `RawKernel` takes a microsecond per argument."""

    def __init__(self, raw: Any, kernel: Kernel, dtype: str) -> None:
        formats = {"p": "Q", "i": "q", "w": "I4x", "r": "d" if dtype == "float64" else "f4x"}
        formats["s"] = f"{-(-kernel.struct_bytes // 8) * 8}s"
        self._raw = raw  # keeps the machine code loaded
        self._handle = raw.kernel.ptr
        self._shared = LARGE_SHARED
        self._layout = struct.Struct("=" + "".join(formats[letter] for letter in kernel.parameters))
        sizes = [struct.calcsize(f"={formats[letter]}") for letter in kernel.parameters]
        self._offsets = list(itertools.accumulate(sizes[:-1], initial=0))

    def run(self, library: Any, grid: Grid, values: list[Any]) -> None:
        """Launch it on the current stream of the current device; `values` holds addresses in place of arrays."""
        if grid.shared > self._shared:
            self._raw.max_dynamic_shared_size_bytes = self._shared = grid.shared
        buffer = _threads().buffers.get(self) or self._new_buffer()
        stream = library.cuda.get_current_stream().ptr
        try:
            self._layout.pack_into(buffer.values, 0, *values)
        except OverflowError:  # a float64 beyond float32
            self._layout.pack_into(buffer.values, 0, *map(_narrowed, values))
        library.cuda.driver.launchKernel(
            self._handle, *grid.blocks, *grid.threads, grid.shared, stream, buffer.address, 0
        )

    def _new_buffer(self) -> _Buffer:
        values = ctypes.create_string_buffer(self._layout.size)
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * len(self._offsets))(*(start + index for index in self._offsets))
        buffer = _threads().buffers[self] = _Buffer(values, pointers, ctypes.addressof(pointers))
        return buffer


class _Buffer(NamedTuple):
    """The bytes of the arguments of a kernel, pointers to them, and the address of these. The driver copies them."""

    values: Any
    pointers: Any
    address: int


class _Thread(threading.local):
    """The buffers of a thread that launches kernels."""

    def __init__(self) -> None:
        cupy().cuda.runtime.free(0)  # a thread has no CUDA context before it has called the runtime
        self.buffers: dict[Function, _Buffer] = {}


@functools.cache
def _threads() -> _Thread:
    return _Thread()


def _narrowed(value: Any) -> Any:
    return math.copysign(math.inf, value) if isinstance(value, float) and abs(value) > FLOAT32_MAX else value


def warmup(kernels: tuple[Kernel, ...], dtype: str) -> None:
    """Compile and load kernels on the current device."""
    device = int(cupy().cuda.runtime.getDevice())
    for kernel in kernels:
        _function(kernel, dtype, device)


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array for results; if there is no memory for it, the error says how much was wanted."""
    library = cupy()
    try:
        return library.ndarray(shape, dtype)  # what cupy.empty calls
    except library.cuda.memory.OutOfMemoryError as error:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raise MemoryError(
            f"No room on the GPU for an array {tuple(shape)} of {np.dtype(dtype).name}, {size / 2**20:.1f} MiB "
            f"({error}). Free arrays, or work on fewer rows at a time."
        ) from None
