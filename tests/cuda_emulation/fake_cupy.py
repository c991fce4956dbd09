"""A CuPy without a GPU: NumPy behind arrays that refuse what CuPy refuses, and kernels that run in the emulation.

Refused are: implicit conversion to NumPy, NumPy arrays among CuPy's, functions that CuPy does not have. What would
wait for the GPU (float, int, bool, item, get) is counted in `synchronisations`.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from attnarray.kernels.cuda import loader, nvrtc, unavailable
from attnarray.kernels.cuda.grid import Grid
from tests.cuda_emulation import building
from tests.cuda_emulation.fake_arrays import (
    CUDADriverError,
    CUDARuntimeError,
    OutOfMemoryError,
    State,
    bare,
    empty,
    ndarray,
    wrapped,
)

# The functions of CuPy 14 that kernels may use; any other name of NumPy is refused, as CuPy may not have it.
KNOWN = {
    "arange",
    "argsort",
    "ascontiguousarray",
    "broadcast_to",
    "moveaxis",
    "searchsorted",
    "zeros",
}


class Device:
    def __init__(self, number: int | None = None) -> None:
        self.id = State.device if number is None else number
        self.attributes = {"MultiProcessorCount": 2, "MaxSharedMemoryPerBlockOptin": State.shared}

    @property
    def compute_capability(self) -> str:
        return State.capability

    def __enter__(self) -> Device:
        self.before, State.device = State.device, self.id
        return self

    def __exit__(self, *_: Any) -> None:
        State.device = self.before


class RawKernel:
    """One kernel of an emulation library, with the address that the driver knows it by."""

    loaded: ClassVar[dict[int, RawKernel]] = {}

    def __init__(self, function: Any, parameters: str, sizes: list[int]) -> None:
        self.function, self.parameters, self.sizes = function, parameters, sizes
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self.ptr = 1 + len(self.loaded)
        self.loaded[self.ptr] = self

    @property
    def kernel(self) -> RawKernel:
        return self


def launch_kernel(*numbers: int) -> None:
    """The driver's call: a kernel, blocks, threads, shared memory, stream, the pointers to the arguments, and 0."""
    kernel, blocks, threads = RawKernel.loaded[numbers[0]], numbers[1:4], numbers[4:7]
    shared, _, address, extra = numbers[7:]
    if shared > kernel.max_dynamic_shared_size_bytes or extra:
        raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
    values = [
        array_at(value) if letter == "p" else value if letter == "s" else np.asarray(PARAMETERS[letter](value))[()]
        for letter, value in zip(kernel.parameters, arguments_at(address, kernel), strict=True)
    ]
    State.launches += 1
    building.run(kernel.function, Grid(blocks, threads, shared), values, State.seed)


def arguments_at(address: int, kernel: RawKernel) -> list[Any]:
    """The values that an array of pointers at an address points to."""
    places = (ctypes.c_void_p * len(kernel.parameters)).from_address(address)
    return [
        np.void(ctypes.string_at(place, size)) if letter == "s" else PARAMETERS[letter].from_address(place).value
        for place, letter, size in zip(places, kernel.parameters, kernel.sizes, strict=True)
    ]


def array_at(address: int) -> Any:
    """The array whose address was looked up."""
    if not address:
        return np.uintp(0)
    array = ndarray.known.get(address)
    if array is None or array.device_id != State.device:
        raise CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS: no array of this device")
    return array.held


PARAMETERS: dict[str, Any] = {
    "p": ctypes.c_uint64,
    "i": ctypes.c_int64,
    "w": ctypes.c_uint32,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


class RawModule:
    """`path` is the name of a source, a dtype and constants, as `installed` makes it."""

    def __init__(self, *, path: str) -> None:
        self.source, self.type, *constants = Path(path).name.split("@")
        self.module = building.library_of(self.source, self.type, constants)

    def get_function(self, name: str) -> RawKernel:
        kernel = f"{name}_{self.type}"
        parameters, sizes = (getattr(self.module, f"{kernel}_{what}") for what in ("parameters", "sizes"))
        parameters.restype, sizes.restype = ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint)
        letters = parameters().decode()
        return RawKernel(getattr(self.module, kernel), letters, sizes()[: len(letters)])


class Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in KNOWN:
            raise AttributeError(f"cupy has no {name}, or it is not in KNOWN of {Path(__file__).name}")
        function = getattr(np, name)
        return lambda *args, **options: wrapped(function(*map(bare, args), **{k: bare(v) for k, v in options.items()}))


class ArrayApi(types.ModuleType):
    """The namespace of array-api-compat for CuPy: NumPy's functions on these arrays."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def call(*args: Any, device: Any = None, **options: Any) -> Any:
            return wrapped(found(*map(bare, args), **{k: bare(v) for k, v in options.items()}))

        return call


def module() -> Module:
    """The module that stands in for `cupy`."""
    fake = Module("cupy")
    fake.ndarray, fake.empty, fake.RawModule = ndarray, empty, RawModule
    fake.asarray = lambda x, dtype=None: ndarray(np.array(x, dtype=dtype))
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: State.devices,
        getDevice=lambda: State.device,
        free=lambda address: None,
        CUDARuntimeError=CUDARuntimeError,
    )
    fake.cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=Device,
        driver=types.SimpleNamespace(CUDADriverError=CUDADriverError, launchKernel=launch_kernel),
        device=types.SimpleNamespace(get_cublas_handle=lambda: 77),
        get_current_stream=lambda: types.SimpleNamespace(ptr=0),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )
    return fake


def forget() -> None:
    """Clear the caches of the loader for a CuPy."""
    from attnarray import backend, dispatch
    from attnarray.kernels.cuda import grid

    remembered = (unavailable, loader.compute_capability, loader.multiprocessors, loader.shared_bytes)
    loaded = (loader._function, loader._broken, loader._threads)
    others = (grid.plan_rows, backend._cupy_namespace, dispatch._find, dispatch._choose)
    for function in (*remembered, *loaded, *others):
        function.cache_clear()


NAMES = ("cupy", "array_api_compat.cupy", "cupy_backends.cuda.libs.cublas")


@contextlib.contextmanager
def installed(*, emulated: bool = True) -> Iterator[Module]:
    """Within the block `import cupy` gives the fake one; kernels are not compiled by NVRTC if they are emulated."""
    from tests.cuda_emulation import fake_cublas

    before = {name: sys.modules.get(name) for name in NAMES}
    compiled, compiler = loader.compiled, loader._compiler
    for name in ("synchronisations", "launches", "seed", "device", "capability", "devices", "memory_left", "shared"):
        if name in vars(State):
            setattr(State, name, INITIAL[name])
    sys.modules["cupy"] = fake = module()
    sys.modules["array_api_compat.cupy"] = ArrayApi("array_api_compat.cupy")
    sys.modules[NAMES[2]] = fake_cublas
    if emulated:
        loader.compiled = lambda source, dtype, architecture, constants: Path(
            "@".join((source, loader.STORED[dtype], *constants))
        )
        loader._compiler = lambda: nvrtc.Nvrtc(None, "", (13, 0), (80, 90))
    forget()
    try:
        yield fake
    finally:
        loader.compiled, loader._compiler = compiled, compiler
        for name, real in before.items():
            if real is None:
                del sys.modules[name]
            else:
                sys.modules[name] = real
        forget()


INITIAL = {name: value for name, value in vars(State).items() if not name.startswith("_")}
