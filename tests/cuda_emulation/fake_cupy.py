"""A CuPy without a GPU: NumPy behind arrays that refuse what CuPy refuses, and kernels that run under emulation.

Refused are: implicit conversion to NumPy, NumPy arrays among CuPy's, functions that CuPy does not have. What would
wait for the GPU (float, int, bool, item, get) is counted in `synchronisations`.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.cuda import loader, nvrtc, unavailable
from attnarray.kernels.cuda.grid import Grid
from cuda_emulation import building

# The functions of CuPy 14 that kernels may use; any other name of NumPy is refused, as it may not be there.
KNOWN = {
    "arange",
    "argsort",
    "ascontiguousarray",
    "broadcast_to",
    "moveaxis",
    "searchsorted",
}


class State:
    """What a test may look at or set."""

    synchronisations = 0
    launches = 0
    seed = 0
    device = 0
    capability = "90"
    devices = 1
    memory_left = 2**62


class Memory(NamedTuple):
    device_id: int
    ptr: int


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    __array_priority__ = 100

    def __init__(self, held: np.ndarray, device: int | None = None) -> None:
        self.held = held
        self.device_id = State.device if device is None else device

    @property
    def data(self) -> Memory:
        return Memory(self.device_id, self.held.ctypes.data)

    def __array__(self, *_: Any, **__: Any) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return wrapped(getattr(function, method)(*(bare(x) for x in inputs), **options))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.held, name)
        if not callable(found):
            return wrapped(found)
        return lambda *args, **options: wrapped(found(*map(bare, args), **{k: bare(v) for k, v in options.items()}))

    def __getitem__(self, place: Any) -> Any:
        return wrapped(self.held[bare(place)])

    def __len__(self) -> int:
        return len(self.held)

    def _waited(self) -> np.ndarray:
        State.synchronisations += 1
        return self.held

    def get(self) -> np.ndarray:
        return self._waited().copy()

    def item(self) -> Any:
        return self._waited().item()

    def __float__(self) -> float:
        return float(self._waited())

    def __int__(self) -> int:
        return int(self._waited())

    def __bool__(self) -> bool:
        return bool(self._waited())


ndarray.__module__ = "cupy"  # by which the dispatch knows it


def bare(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.held
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError(f"Unsupported type {type(value)}: a NumPy array among CuPy's")
    return type(value)(map(bare, value)) if type(value) in (tuple, list) else value


def wrapped(value: Any) -> Any:
    return ndarray(value) if isinstance(value, np.ndarray) else value


class OutOfMemoryError(MemoryError):
    pass


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Poisoned, so that what a kernel does not write is seen."""
    held = np.empty(shape, dtype)
    if held.nbytes > State.memory_left:
        raise OutOfMemoryError(f"Out of memory allocating {held.nbytes:,} bytes")
    held.view(np.uint8).fill(255) if held.size and held.ndim else held.fill(0)  # 255s are NaN in every dtype
    return ndarray(held)


class Device:
    def __init__(self, number: int | None = None) -> None:
        self.id = State.device if number is None else number
        self.attributes = {"MultiProcessorCount": 2}

    @property
    def compute_capability(self) -> str:
        return State.capability

    def __enter__(self) -> Device:
        self.before, State.device = State.device, self.id
        return self

    def __exit__(self, *_: Any) -> None:
        State.device = self.before


class RawKernel:
    """One kernel of an emulation library; takes its arguments as CuPy's does."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid: Any, block: Any, args: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        values = []
        for value in args:
            if not isinstance(value, ndarray | np.generic):
                raise TypeError(f"Unsupported type {type(value)}")
            if isinstance(value, ndarray) and value.device_id != State.device:
                raise CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS: an array of another device")
            values.append(bare(value))
        State.launches += 1
        building.run(self.function, Grid(tuple(grid), tuple(block), shared_mem), values, State.seed)


class RawModule:
    """`path` is the name of a source and a dtype, as `installed` makes it."""

    def __init__(self, *, path: str) -> None:
        self.source, self.type = Path(path).name.split("@")
        self.module = building.library_of(self.source)

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(getattr(self.module, f"{name}_{self.type}"))


class Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in KNOWN:
            raise AttributeError(f"cupy has no {name}, or it is not in KNOWN of {Path(__file__).name}")
        function = getattr(np, name)
        return lambda *args, **options: wrapped(function(*map(bare, args), **{k: bare(v) for k, v in options.items()}))


def module() -> Module:
    """The module that stands in for `cupy`."""
    fake = Module("cupy")
    fake.ndarray, fake.empty, fake.RawModule = ndarray, empty, RawModule
    fake.asarray = lambda x, dtype=None: ndarray(np.array(x, dtype=dtype))
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: State.devices, getDevice=lambda: State.device, CUDARuntimeError=CUDARuntimeError
    )
    fake.cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=Device,
        driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )
    return fake


def forget() -> None:
    """Drop all that the loader remembers of a CuPy."""
    from attnarray import dispatch

    remembered = (unavailable, loader.capability_of, loader.multiprocessors, loader._function, loader._broken)
    for function in (*remembered, dispatch._find, dispatch._choose):
        function.cache_clear()


@contextlib.contextmanager
def installed(*, emulated: bool = True) -> Iterator[Module]:
    """Within the block `import cupy` gives the fake one; kernels are not compiled by NVRTC if they are emulated."""
    before = sys.modules.get("cupy")
    compiled, compiler = loader.compiled, loader._compiler
    for name in ("synchronisations", "launches", "seed", "device", "capability", "devices", "memory_left"):
        if name in vars(State):
            setattr(State, name, INITIAL[name])
    sys.modules["cupy"] = fake = module()
    if emulated:
        loader.compiled = lambda source, dtype, architecture: Path(f"{source}@{loader.STORED[dtype]}")
        loader._compiler = lambda: nvrtc.Nvrtc(None, "", (13, 0), (80, 90))
    forget()
    try:
        yield fake
    finally:
        loader.compiled, loader._compiler = compiled, compiler
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
        forget()


INITIAL = {name: value for name, value in vars(State).items() if not name.startswith("_")}
