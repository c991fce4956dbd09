"""What is used of an mpi4py communicator: arrays that travel while ranks compute, and errors that reach every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from attnarray.backend import Array, device_of, dtype_called, namespace_of, to_numpy

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
        self._host = [np.empty(shape, to_numpy(x[..., :0]).dtype) for shape, x in zip(shapes, like, strict=True)]
        self.requests: list[Request] = [comm.Irecv(_bytes(x), rank, tag) for x in self._host if x.size]

    def wait(self) -> list[Any]:
        wait(self.requests)
        return [_moved(host, like) for host, like in zip(self._host, self._like, strict=True)]


class Outgoing:
    """Arrays that are being sent; they must not be changed before `requests` are complete."""

    def __init__(self, comm: Communicator, arrays: Sequence[Array], rank: int, tag: int) -> None:
        self._host = [np.ascontiguousarray(to_numpy(array)) for array in arrays]
        self.requests: list[Request] = [comm.Isend(_bytes(x), rank, tag) for x in self._host if x.size]


def wait(requests: list[Request]) -> None:
    for request in requests:
        request.Wait()
    requests.clear()


def _bytes(array: np.ndarray) -> np.ndarray:
    """The memory of a contiguous array: MPI has no name for 16-bit floats."""
    return array.reshape(-1).view(np.uint8)


def _moved(host: np.ndarray, like: Array) -> Any:
    """A received array on the library and device of `like`."""
    xp = namespace_of(like)
    return host if xp is np else xp.asarray(host, dtype=dtype_called(xp, host.dtype), device=device_of(like))


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


def everywhere(comm: Gathering, action: Callable[..., T], *args: Any) -> T:
    """Return what `action` returns on this rank; if it raises on one rank, every rank raises."""
    guard = Guard()
    result = guard.run(action, *args)
    agree(comm, guard.error)
    return result  # type: ignore[return-value]  # there was no error


def gathered(comm: Gathering, action: Callable[..., T], *args: Any) -> list[T]:
    """Return what `action` returns on each of the ranks; if it raises on one, every rank raises."""
    guard = Guard()
    result = guard.run(action, *args)
    return agree(comm, guard.error, result)


def agree(comm: Gathering, error: Exception | None, result: Any = None) -> list[Any]:
    """The results of all ranks, unless one of them has an error: then every rank raises."""
    replies = comm.allgather((None if error is None else f"{type(error).__name__}: {error}", result))
    if error is not None:
        raise error
    failed = next((rank for rank, (text, _) in enumerate(replies) if text is not None), None)
    if failed is not None:
        _stop(failed, len(replies), replies[failed][0])
    return [reply for _, reply in replies]


def _stop(rank: int, size: int, text: str) -> NoReturn:
    raise RankError(f"Rank {rank} of {size} stopped, and so every other rank stops. It raised {text}")


def same(name_values: list[dict[str, Any]]) -> None:
    """Check that the ranks gave the same for every name; every rank raises the same error."""
    for name, first in name_values[0].items():
        values = [given[name] for given in name_values]
        if any(value != first for value in values):
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
