"""Which array library: that of the arrays themselves; `use_backend` decides only where new arrays are made."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from attnarray.numpy_arrays import check_plain, plain


class Array(Protocol):
    """An array of NumPy, CuPy or any library that array-api-compat knows: what attnarray uses of the standard's arrays.

    Results are Any, as they are what the library says.
    """

    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> tuple[Any, ...]: ...
    @property
    def mT(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __bool__(self) -> bool: ...
    def __int__(self) -> int: ...
    def __float__(self) -> float: ...
    def __eq__(self, other: Any, /) -> Any: ...
    def __ne__(self, other: Any, /) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __rtruediv__(self, other: Any, /) -> Any: ...
    def __floordiv__(self, other: Any, /) -> Any: ...
    def __mod__(self, other: Any, /) -> Any: ...
    def __pow__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...
    def __rshift__(self, other: Any, /) -> Any: ...
    def __and__(self, other: Any, /) -> Any: ...
    def __or__(self, other: Any, /) -> Any: ...
    def __xor__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...


if TYPE_CHECKING:
    import typing_extensions  # for the default of a type variable, which typing has from Python 3.13 on

    ArrayT = typing_extensions.TypeVar("ArrayT", bound=Array, default=Any)  # results are of the type of the arguments
else:
    ArrayT = TypeVar("ArrayT")

Namespace: TypeAlias = Any  # the module whose functions act on such arrays

_CREATION: ContextVar[str] = ContextVar("attnarray_backend", default="numpy")
_IMPORTS = {
    "numpy": "numpy",
    "cupy": "array_api_compat.cupy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "array_api_strict": "array_api_strict",
}


class BackendStatus(NamedTuple):
    """One line of `available_backends`: `reason` says why a backend is not available, and is empty when it is."""

    name: str
    available: bool
    version: str
    device: str
    reason: str


def namespace_of(*arrays: Array | None) -> Namespace:
    """The array namespace that all `arrays` share; `None` entries are skipped.

    Returns
    -------
    module
        `numpy` for NumPy arrays, else what array-api-compat gives for CuPy, PyTorch, JAX, array-api-strict ...

    Raises
    ------
    TypeError
        If the arrays come from different libraries, or something is not an array.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.namespace_of(np.zeros(3), None).__name__
    'numpy'
    """
    for array in arrays:
        if array is not None and type(array) is not np.ndarray:
            return _namespace_of_others(arrays)
    return np


def namespace_of_cupy(arrays: Iterable[Array | None]) -> Namespace | None:
    """The result of `namespace_of` for CuPy arrays only, without microseconds of overhead; else None."""
    kinds = {type(array) for array in arrays if array is not None}
    return _cupy_namespace(kinds.pop()) if len(kinds) == 1 else None


@functools.lru_cache(maxsize=256)
def _cupy_namespace(kind: Any) -> Namespace | None:
    if kind is not getattr(sys.modules.get("cupy"), "ndarray", None):
        return None
    return importlib.import_module(_IMPORTS["cupy"])


def _namespace_of_others(arrays: tuple[Array | None, ...]) -> Namespace:
    import array_api_compat

    xp = namespace_of_cupy(arrays)
    if xp is not None:
        return xp
    given = [a for a in arrays if a is not None]
    for array in given:
        check_plain(array)
        if not array_api_compat.is_array_api_obj(array):
            raise TypeError(f"Expected arrays, but got {type(array).__name__}. Convert it first: attnarray.asarray(x).")
    libraries = sorted({library_name(a) for a in given})
    if len(libraries) > 1:
        raise TypeError(
            f"The arrays come from different libraries: {', '.join(libraries)}. Bring them to one library first, "
            "for example with attnarray.to_numpy(x) or with use_backend(...) and asarray(x)."
        )
    if libraries == ["numpy"]:
        return np
    if libraries == ["dask"]:
        raise TypeError(
            "Dask's arrays are computed by attnarray.distributed.dask, which has scaled_dot_product_attention and "
            "multi_head_attention. What works row by row is mapped over chunks: x.map_blocks(attnarray.layer_norm)."
        )
    return array_api_compat.array_namespace(*given)


@functools.lru_cache(maxsize=256)
def type_library(kind: Any) -> str:
    """The name of the library whose arrays are of this type."""
    if issubclass(kind, np.ndarray | np.generic):
        return "numpy"
    roots: list[str] = [base.__module__.partition(".")[0] for base in kind.__mro__]  # its own first
    root = next((root for root in roots if root in _IMPORTS), roots[0])
    return {"jaxlib": "jax"}.get(root, root)


def library_name(array: Array) -> str:
    """The name of the library that `array` belongs to: "numpy", "cupy", "torch", "jax", "array_api_strict" ..."""
    return type_library(type(array))


def device_of(array: Array) -> Any:
    """The device of `array`, as an object of its own library, for `device=`."""
    return getattr(array, "device", None)


@functools.lru_cache(maxsize=256, typed=True)  # typed: dtypes of different libraries must not be compared
def dtype_name(dtype: Any) -> str:
    """The plain name of a dtype of any library, e.g. "float32", "bfloat16", "int64"."""
    return str(getattr(dtype, "name", None) or str(dtype).rpartition(".")[2].rstrip("'>"))


def accumulator_dtype(xp: Namespace, dtype: Any) -> Any:
    """The dtype that sums are kept in: float64 for float64, float32 for float32 and the 16-bit types."""
    return xp.float64 if dtype_name(dtype) == "float64" else xp.float32


def operand_dtype(array: Array) -> Any:
    """The dtype in which `array` goes into matrix products: its own if they take 16-bit numbers, else the wider one."""
    if library_name(array) == "cupy" and dtype_name(array.dtype) in ("float16", "bfloat16"):
        return array.dtype
    return accumulator_dtype(namespace_of(array), array.dtype)


def index_dtype(xp: Namespace, array: Array) -> Any:
    """The integer dtype for positions on the device of `array`: int64 wherever the library has it."""
    return xp.arange(0, device=device_of(array)).dtype


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[Namespace]:
    """Within the block, `asarray`, parameter initialization and random numbers make arrays of this library.

    Arrays that exist already are never moved: functions compute where their inputs live.

    Parameters
    ----------
    name : str
        "numpy", "cupy", "torch", "jax" or "array_api_strict".

    Raises
    ------
    ValueError
        If the name is unknown.
    RuntimeError
        If the backend cannot be used here; the message says why.

    Examples
    --------
    >>> import attnarray as aa
    >>> with aa.use_backend("numpy"):
    ...     x = aa.asarray([1.0, 2.0])
    >>> type(x).__module__
    'numpy'
    """
    if name not in _IMPORTS:
        raise ValueError(f"Unknown backend {name!r}. Known backends: {', '.join(_IMPORTS)}.")
    xp = creation_namespace(name)
    token = _CREATION.set(name)
    try:
        yield xp
    finally:
        _CREATION.reset(token)


def creation_namespace(name: str | None = None) -> Namespace:
    """The namespace in which new arrays are made: that of `name`, or of the enclosing `use_backend`."""
    name = _CREATION.get() if name is None else name
    if name == "numpy":
        return np
    status = _status(name)
    if not status.available:
        raise RuntimeError(f"Backend {name!r} cannot be used here: {status.reason}.")
    return importlib.import_module(_IMPORTS[name])


def asarray(data: Any, dtype: str | None = None, *, device: Any = None) -> Any:
    """`data` as an array of the current backend (see `use_backend`).

    Parameters
    ----------
    data : array or nested sequence
        NumPy arrays and arrays of any other known library are converted (through host memory where needed).
    dtype : str, optional
        The name of a dtype, e.g. "float32"; the data's own by default. "bfloat16" needs the ml_dtypes package on NumPy.
    device : optional
        A device in the terms of the current backend.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.asarray([[1, 2]], dtype="float32").dtype
    dtype('float32')
    """
    xp = creation_namespace()
    if library_name(data) == _CREATION.get() != "numpy":
        array = data if device is None else xp.asarray(data, device=device)
    else:
        host = to_numpy(data)
        if dtype_name(host.dtype) == "bfloat16" and _CREATION.get() == "torch":  # cannot read them from NumPy
            host, dtype = np.asarray(host, dtype=np.float32), dtype or "bfloat16"
        array = xp.asarray(host) if device is None else xp.asarray(host, device=device)
    return array if dtype is None else xp.astype(array, dtype_called(xp, dtype))


def dtype_called(xp: Namespace, name: Any) -> Any:
    name = dtype_name(name)
    if name == "bfloat16" and xp.__name__ in ("numpy", "array_api_compat.cupy"):
        return importlib.import_module("ml_dtypes").bfloat16
    found = getattr(xp, name, None) if re.fullmatch(r"bool|(u?int|b?float|complex)\d+", name) else None
    if found is None:
        raise ValueError(f"{name!r} is not a dtype of {xp.__name__}. Use a name such as 'float32' or 'float64'.")
    return found


def to_numpy(array: Any) -> np.ndarray:
    """`array` as a NumPy array on the host, whatever library and device it comes from.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.to_numpy(aa.asarray([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    library = library_name(array)
    if library == "cupy":
        return np.asarray(array.get())
    if library == "torch":
        tensor = array.detach().cpu()
        if dtype_name(tensor.dtype) == "bfloat16":  # torch cannot convert it to NumPy
            return np.asarray(tensor.float().numpy(), dtype=importlib.import_module("ml_dtypes").bfloat16)
        return np.asarray(tensor.numpy())
    if library == "array_api_strict":
        cpu = importlib.import_module("array_api_strict").Device("CPU_DEVICE")
        return np.asarray(array.to_device(cpu))
    return plain(array)


def scatter_add(values: Array, rows: Array, count: int) -> Array:
    """Sum the rows of `values` (N, E) into `count` rows (count, E): out[rows[n]] += values[n]."""
    xp = namespace_of(values, rows)
    library = library_name(values)
    if library in ("numpy", "cupy"):
        out = xp.zeros((count, values.shape[1]), dtype=values.dtype)
        xp.add.at(out, rows, values)
        return out
    if library == "torch":
        out = xp.zeros((count, values.shape[1]), dtype=values.dtype, device=device_of(values))
        return out.index_add_(0, rows, values)
    if library == "jax":
        return xp.zeros((count, values.shape[1]), dtype=values.dtype).at[rows].add(values)
    one_hot = xp.arange(count, dtype=rows.dtype, device=device_of(rows))[:, None] == rows[None, :]  # (count, N)
    return xp.matmul(xp.astype(one_hot, values.dtype), values)


def write_rows(array: Any, start: int, rows: Array) -> Any:
    """Write `rows` (..., N, E) into `array` (..., S, E) from row `start` on; into a copy if `array` is immutable."""
    past = start + rows.shape[-2]
    if library_name(array) == "jax":
        return array.at[..., start:past, :].set(rows)
    array[..., start:past, :] = rows
    return array


def available_backends() -> list[BackendStatus]:
    """Every known backend with its version and device, or the reason why it cannot be used here.

    Examples
    --------
    >>> import attnarray as aa
    >>> aa.available_backends()[0].name
    'numpy'
    """
    return [_status(name) for name in _IMPORTS]


def _status(name: str) -> BackendStatus:
    if name not in _IMPORTS:
        raise ValueError(f"Unknown backend {name!r}. Known backends: {', '.join(_IMPORTS)}.")
    try:
        importlib.import_module(_IMPORTS[name])
        library = sys.modules[name]
    except ImportError as error:
        hint = "; install it with pip install 'attnarray[cuda12]' or 'attnarray[cuda13]'" if name == "cupy" else ""
        missing = isinstance(error, ModuleNotFoundError) and error.name in (name, name.partition(".")[0])
        reason = f"{name} is not installed" if missing else f"importing {name} failed ({error})"
        return BackendStatus(name, False, "", "", reason + hint)
    version = str(getattr(library, "__version__", ""))
    device, reason = _first_gpu(library) if name == "cupy" else (_device_name(name, library), "")
    return BackendStatus(name, not reason, version, device, reason)


def _first_gpu(cupy: Any) -> tuple[str, str]:
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return "", "no CUDA device was found"
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        return str(properties["name"], "utf-8"), ""
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return "", f"CuPy is installed but no GPU can be used ({error})"


def _device_name(name: str, library: Any) -> str:
    if name == "jax":
        return str(library.devices()[0])
    return "CPU (strict, for tests)" if name == "array_api_strict" else "CPU"


def supported_backend_names(names: Sequence[str] | None = None) -> list[str]:
    """The names among `names` (all by default) that can be used here."""
    return [name for name in (names or _IMPORTS) if _status(name).available]
