"""What is used of an mpi4py communicator: arrays that travel while ranks compute, and errors that reach every rank."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, dtype_called, library_name, namespace_of, to_numpy

T = TypeVar("T")


class Request(Protocol):
    """A message on its way."""

    def Test(self) -> Any: ...
    def Wait(self) -> Any: ...


class Gathering(Protocol):
    """Ranks that exchange small objects."""

    def Get_rank(self) -> int: ...
    def Get_size(self) -> int: ...
    def allgather(self, sendobj: Any, /) -> list[Any]: ...


class Communicator(Gathering, Protocol):
    """The methods of `mpi4py.MPI.Comm` that this package calls; `ThreadComm` gives them to threads."""

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Any: ...
    def Irecv(self, buf: Any, source: int, tag: int = 0) -> Any: ...
    def Split(self, color: int = 0, key: int = 0) -> Any: ...


class RankError(RuntimeError):
    """Another rank raised an error, so this one stops, too."""


class Incoming:
    """Arrays that are being received, with the dtypes of `like`; `wait` returns them when they are complete."""

    def __init__(
        self, comm: Communicator, like: Sequence[Array], shapes: Sequence[tuple[int, ...]], rank: int, tag: int
    ) -> None:
        self._like = like
        self._buffers = [_empty(comm, x, shape) for shape, x in zip(shapes, like, strict=True)]
        self.requests: list[Request] = [comm.Irecv(_bytes(x), rank, tag) for x in self._buffers if x.size]

    def wait(self) -> list[Any]:
        wait(self.requests)
        return [_moved(buffer, like) for buffer, like in zip(self._buffers, self._like, strict=True)]


class Outgoing:
    """Arrays that are being sent; they must not be changed before `requests` are complete."""

    def __init__(self, comm: Communicator, arrays: Sequence[Array], rank: int, tag: int) -> None:
        self._buffers = [_contiguous(comm, array) for array in arrays]
        self.requests: list[Request] = [comm.Isend(_bytes(x), rank, tag) for x in self._buffers if x.size]


def wait(requests: list[Request]) -> None:
    for request in requests:
        request.Wait()
    requests.clear()


def _bytes(array: Any) -> Any:
    """The memory of a contiguous array: MPI has no name for 16-bit floats."""
    return array.reshape(-1).view(np.uint8)


def _empty(comm: Communicator, like: Array, shape: tuple[int, ...]) -> Any:
    """A buffer to receive into."""
    if not _takes(comm, like):
        return np.empty(shape, to_numpy(like[..., :0]).dtype)
    cupy = importlib.import_module("cupy")
    with device_of(like):
        buffer = cupy.empty(shape, like.dtype)
        cupy.cuda.get_current_stream().synchronize()  # its memory may still be in use by kernels before
    return buffer


def _contiguous(comm: Communicator, array: Array) -> Any:
    """The numbers of an array in a buffer to send."""
    if not _takes(comm, array):
        return np.ascontiguousarray(to_numpy(array))
    cupy = importlib.import_module("cupy")
    with device_of(array):
        buffer = cupy.ascontiguousarray(array)
        cupy.cuda.get_current_stream().synchronize()  # MPI does not wait for kernels
    return buffer


def _takes(comm: Communicator, array: Array) -> bool:
    """Whether the MPI takes the memory of an array as it is: CuPy's, if it says that it knows CUDA or the user does."""
    if library_name(array) != "cupy":
        return False
    chosen = os.environ.get("ATTNARRAY_CUDA_AWARE_MPI")
    if chosen is not None:
        return chosen == "1"
    get_info = getattr(comm, "Get_info", None)  # from MPI 4.1 on
    kinds = None if get_info is None else get_info().get("mpi_memory_alloc_kinds")
    return any(kind.strip() in ("cuda", "cuda:device") for kind in (kinds or "").split(","))


def _moved(buffer: Any, like: Array) -> Any:
    """A received array on the library and device of `like`."""
    if type(buffer) is type(like):
        return buffer
    xp = namespace_of(like)
    return xp.asarray(buffer, dtype=dtype_called(xp, buffer.dtype), device=device_of(like))


class Guard:
    """Runs actions until one raises an error, which is kept: what was promised to other ranks must still be sent."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def run(self, action: Callable[..., T], *args: Any) -> T | None:
        if self.error is None:
            try:
                return action(*args)
            except Exception as error:
                self.error = error
        return None


def check_comm(comm: Any) -> None:
    """Check for something that ranks can be asked about."""
    if not (hasattr(comm, "allgather") and hasattr(comm, "Get_rank")):
        raise TypeError(
            f"`comm` is {checks.shown(comm)}, expected a communicator: mpi4py.MPI.COMM_WORLD, or the argument that "
            "ThreadComm(n).run(function) gives to the function."
        )


def everywhere(comm: Gathering, action: Callable[..., T], *args: Any, call: str = "") -> T:
    """Return what `action` returns on this rank; if it raises on one rank, every rank raises."""
    guard = Guard()
    result = guard.run(action, *args)
    agree(comm, guard.error, call=call)
    return result  # type: ignore[return-value]  # there was no error


def gathered(comm: Gathering, action: Callable[..., T], *args: Any, call: str = "") -> list[T]:
    """Return what `action` returns on each of the ranks; if it raises on one, every rank raises."""
    guard = Guard()
    result = guard.run(action, *args)
    return agree(comm, guard.error, result, call=call)


def agree(comm: Gathering, error: Exception | None, result: Any = None, *, call: str = "") -> list[Any]:
    """The results of all ranks; if one has an error, or they make different calls, every rank raises."""
    replies = comm.allgather((None if error is None else f"{type(error).__name__}: {error}", call, result))
    if error is not None:
        raise error
    failed = next((rank for rank, reply in enumerate(replies) if reply[0] is not None), None)
    if failed is not None:
        _stop(failed, len(replies), replies[failed][0])
    same([{"call": name} for _, name, _ in replies])
    return [reply for *_, reply in replies]


def _stop(rank: int, size: int, text: str) -> NoReturn:
    raise RankError(f"Rank {rank} of {size} stopped, and so every other rank stops. It raised {text}")


def same(name_values: list[dict[str, Any]]) -> None:
    """Check that the ranks gave the same for every name; every rank raises the same error."""
    for name, first in name_values[0].items():
        values = [given[name] for given in name_values]
        if any(value != first and repr(value) != repr(first) for value in values):  # NaN is not equal to itself
            ranks: dict[str, list[int]] = {}
            for rank, value in enumerate(values):
                ranks.setdefault(_shown(value), []).append(rank)
            listed = "; ".join(f"{value} on rank{'s' * (len(n) > 1)} {_numbers(n)}" for value, n in ranks.items())
            raise ValueError(f"`{name}` differs between ranks: {listed}. Give the same on every rank.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _numbers(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown}, ..."
