"""What travels as it is, and what by way of host memory: CuPy is a stand-in here, on the CPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attnarray.distributed import (
    ContextParallel,
    RankError,
    ThreadComm,
    all_to_all_attention,
    all_to_all_attention_bwd,
    all_to_all_attention_fwd,
    grid,
    load_sharded,
    ring_attention,
    ring_attention_bwd,
    ring_attention_fwd,
    save_sharded,
    scan_linear_attention,
    sharded_init,
    sharded_update,
)
from attnarray.distributed.communicator import Incoming, Outgoing, same, wait


class Device:
    """A device that can be entered."""

    entered = 0

    def __enter__(self) -> None:
        Device.entered += 1

    def __exit__(self, *_: Any) -> None:
        pass


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """As much of CuPy's array as messages need."""

    def __init__(self, host: np.ndarray) -> None:
        self.host, self.device = host, Device()

    dtype, size, nbytes = (property(lambda self, n=n: getattr(self.host, n)) for n in ("dtype", "size", "nbytes"))

    def reshape(self, *shape: int) -> Any:
        return ndarray(self.host.reshape(*shape))

    def view(self, dtype: Any) -> Any:
        return ndarray(self.host.view(dtype))

    def __setitem__(self, index: Any, other: Any) -> None:
        self.host[index] = other.host


ndarray.__module__ = "cupy"


class Aware:
    """A communicator of an MPI that says which memory it takes."""

    def __init__(self, comm: Any, kinds: str | None) -> None:
        self._comm, self.Get_info, self.sent = comm, lambda: {"mpi_memory_alloc_kinds": kinds}, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Any:
        self.sent.append(type(buf).__name__)
        assert self._synchronized(), "a kernel may still write what is sent"
        return self._comm.Isend(buf, dest, tag)

    @staticmethod
    def _synchronized() -> bool:
        return bool(sys.modules["cupy"].log[-1] == "synchronize")


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    log: list[str] = []

    def contiguous(x: Any) -> Any:
        log.append("copy")
        return ndarray(np.ascontiguousarray(x.host))

    stream = SimpleNamespace(synchronize=lambda: log.append("synchronize"))
    module = SimpleNamespace(
        ndarray=ndarray, ascontiguousarray=contiguous, empty=lambda shape, dtype: ndarray(np.empty(shape, dtype)),
        cuda=SimpleNamespace(get_current_stream=lambda: stream), log=log,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.delenv("ATTNARRAY_CUDA_AWARE_MPI", raising=False)
    return module


@pytest.mark.parametrize("kinds", ["mpi,system,cuda:device", "mpi, cuda"])
def test_arrays_of_a_gpu_travel_as_they_are(kinds: str) -> None:
    host = np.arange(12.0).reshape(3, 4).T
    entered = Device.entered

    def on_rank(comm: Any) -> Any:
        aware = Aware(comm, kinds)
        incoming = Incoming(aware, [ndarray(host)], [(4, 3)], 1 - comm.rank, 5)
        wait(Outgoing(aware, [ndarray(host)], 1 - comm.rank, 5).requests)
        assert aware.sent == ["ndarray"]
        return incoming.wait()[0]

    for found in ThreadComm(2).run(on_rank):
        assert type(found) is ndarray
        np.testing.assert_array_equal(found.host, host)
    assert Device.entered > entered


@pytest.mark.parametrize(("kinds", "chosen"), [("mpi,system", None), (None, None), ("cuda", "0")])
def test_other_mpis_get_host_memory(kinds: Any, chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnarray.distributed import communicator

    if chosen is not None:
        monkeypatch.setenv("ATTNARRAY_CUDA_AWARE_MPI", chosen)
    aware = Aware(SimpleNamespace(), kinds)
    assert not communicator._takes(aware, ndarray(np.ones(2)))  # type: ignore[arg-type]
    monkeypatch.setenv("ATTNARRAY_CUDA_AWARE_MPI", "1")
    assert communicator._takes(aware, ndarray(np.ones(2)))  # type: ignore[arg-type]
    assert not communicator._takes(aware, np.ones(2))  # type: ignore[arg-type]


def test_options_that_are_nan_on_all_ranks_do_not_differ() -> None:
    same([{"sinks": [float("nan")]}, {"sinks": [float("nan")]}])
    with pytest.raises(ValueError, match=r"`sinks` differs between ranks: \[nan\] on rank 0; \[1.0\] on rank 1"):
        same([{"sinks": [float("nan")]}, {"sinks": [1.0]}])


X = np.ones((1, 2, 4, 3))
PARAMS = {"w": np.ones(3)}
CALLS: dict[str, Any] = {
    "ring_attention": lambda comm: ring_attention(comm, X, X, X),
    "all_to_all_attention": lambda comm: all_to_all_attention(comm, X, X, X),
    "scan_linear_attention": lambda comm: scan_linear_attention(comm, X, X, X),
    "sharded_init": lambda comm: sharded_init(comm, PARAMS),
    "sharded_update": lambda comm: sharded_update(comm, PARAMS, PARAMS, None, lr=0.1),
    "save_sharded": lambda comm: save_sharded("folder", comm, PARAMS, None, 0),
    "load_sharded": lambda comm: load_sharded("folder", comm, PARAMS),
    "a layer with context_parallel": lambda comm: ContextParallel(comm).positions(lambda: 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_communicator(name: str) -> None:
    for wrong in (None, ThreadComm(2), X):
        with pytest.raises(TypeError, match=r"`comm` is .*, expected a communicator: mpi4py"):
            CALLS[name](wrong)
    with pytest.raises(TypeError, match="expected a communicator"):
        grid(None, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("load_sharded", "save_sharded")])
def test_ranks_that_make_different_calls_all_raise(name: str) -> None:
    other = "sharded_init" if name == "ring_attention" else "ring_attention"

    def on_rank(comm: Any) -> None:
        error, text = ((ValueError, RankError), "`call` differs between ranks|Rank . of 2 stopped|`lr`|state")
        with pytest.raises(error, match=text):
            CALLS[name if comm.rank else other](comm)

    ThreadComm(2).run(on_rank)


def test_backwards_of_different_calls_all_raise() -> None:
    def on_rank(comm: Any) -> None:
        (out, ring), (_, exchanged) = ring_attention_fwd(comm, X, X, X), all_to_all_attention_fwd(comm, X, X, X)
        with pytest.raises(ValueError, match="`call` differs between ranks"):
            ring_attention_bwd(out, ring) if comm.rank else all_to_all_attention_bwd(out, exchanged)
        with pytest.raises(ValueError, match=r"`call` differs between ranks: .*without dlse.* on rank 0"):
            all_to_all_attention_bwd(out, exchanged, X[..., 0] if comm.rank else None)

    ThreadComm(2).run(on_rank)
