"""Ring attention on threads: equal to one process, balanced, and stopped on every rank by an error on one."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.distributed import (
    RankError,
    ThreadComm,
    join_sequence,
    ring_attention,
    ring_attention_bwd,
    ring_attention_fwd,
    split_sequence,
    tiles,
)
from attnarray.distributed.sequence import Band, Route, part_lengths, sequence_parts
from tests.naive.scaled_dot_product_attention import scaled_dot_product_attention as naive
from tests.support.libraries import Library, assert_close
from tests.support.ring_calls import (
    OPTIONS,
    TOLERANCES,
    Call,
    errors,
    joined,
    make_call,
    rank_arrays,
    rank_results,
    whole_results,
)
from tests.support.tiers import first

SIZES = first(3, [(3, "zigzag"), (2, "contiguous"), (5, "contiguous"), *itertools.product((1, 2, 4, 5), ["zigzag"])])


def run(call: Call, size: int, order: str) -> list[dict[str, Any]]:
    return ThreadComm(size).run(rank_results, call, order)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("size", "order"), SIZES)
@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_equal_one_process(name: str, size: int, order: str, dtype: str) -> None:
    call = make_call(name, dtype)
    found = joined(run(call, size, order), call, order)
    for result, error in errors(found, whole_results(call)).items():
        assert error <= TOLERANCES[dtype], result


@pytest.mark.parametrize("name", ["causal, offset of each batch", "bias", "sinks", "lengths"])
def test_the_output_equals_naive_loops(name: str) -> None:
    call = make_call(name, "float64")
    found = joined(run(call, 3, "zigzag"), call, "zigzag")["out"]
    np.testing.assert_allclose(found, naive(**call.arrays, **call.options), rtol=0, atol=1e-13)  # a few roundings


@pytest.mark.parametrize("size", [8, 32])
def test_the_error_does_not_grow_with_the_number_of_ranks(size: int) -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 1, 256, 8))
    expected = aa.scaled_dot_product_attention(q, k, v)
    parts = [split_sequence(x.astype(np.float32), size) for x in (q, k, v)]
    out = join_sequence(ThreadComm(size).run(lambda comm: ring_attention(comm, *(x[comm.rank] for x in parts))))
    assert_close(out, expected, 5e-7)  # 4 units in the last place of float32, as for one rank


def test_results_are_the_same_bits_each_time() -> None:
    call = make_call("sinks", "float32")
    once, again = (run(call, 5, "zigzag") for _ in range(2))
    for a, b in zip(once, again, strict=True):
        for name, value in a.items():
            np.testing.assert_array_equal(value, b[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_rounded_once(dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = np.random.default_rng(0).standard_normal((3, 1, 2, 24, 4)).astype(kind)
    expected = aa.scaled_dot_product_attention(*x.astype(np.float32)).astype(kind)
    parts = [split_sequence(array, 5) for array in x]
    results = ThreadComm(5).run(lambda comm: ring_attention_fwd(comm, *(array[comm.rank] for array in parts)))
    found = join_sequence([out for out, _ in results])
    assert found.dtype == kind
    unit = float(ml_dtypes.finfo(kind).eps)
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=unit, atol=1e-6)  # one rounding


@pytest.mark.parametrize(("shape", "layout"), [((7, 4), "BHTD"), ((2, 7, 4), "BHTD"), ((7, 3, 4), "BTHD")])
def test_layouts(shape: tuple[int, ...], layout: Any) -> None:
    axis = -2 if layout == "BHTD" else -3
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, *shape))
    out, pullback = aa.vjp(aa.scaled_dot_product_attention, q, k, v, is_causal=True, layout=layout)
    parts = [split_sequence(x, 3, order="zigzag", axis=axis) for x in (q, k, v, dout)]

    def on_rank(comm: Any) -> list[Any]:
        own = [x[comm.rank] for x in parts]
        found, back = aa.vjp(ring_attention, comm, *own[:3], is_causal=True, order="zigzag", layout=layout)
        return [found, *back(own[3])[:3]]

    results = zip(*ThreadComm(3).run(on_rank), strict=True)
    for found, expected in zip(results, [out, *pullback(dout)[:3]], strict=True):
        np.testing.assert_allclose(join_sequence(found, order="zigzag", axis=axis), expected, rtol=0, atol=1e-12)


def test_every_array_library(library: Library) -> None:
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 1, 2, 9, 4))
    out, pullback = aa.vjp(aa.scaled_dot_product_attention, q, k, v, is_causal=True)
    parts = [[library.array(part, "float64") for part in split_sequence(x, 2)] for x in (q, k, v, dout)]

    def on_rank(comm: Any) -> list[Any]:
        own = [x[comm.rank] for x in parts]
        found, ctx = ring_attention_fwd(comm, *own[:3], is_causal=True)
        return [found, *ring_attention_bwd(own[3], ctx)[:3]]

    results = ThreadComm(2).run(on_rank)
    for n, expected in enumerate([out, *pullback(dout)[:3]]):
        assert type(results[0][n]) is type(parts[0][0])
        found = join_sequence([aa.to_numpy(result[n]) for result in results])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
def test_parts_of_unequal_length_and_empty_parts(order: Any) -> None:
    rng = np.random.default_rng(0)
    lengths = {"query": (5, 0, 9, 1), "key": (0, 7, 2, 8)}
    parts = {name: [rng.standard_normal((1, 2, n, 4)) for n in sizes] for name, sizes in lengths.items()}
    whole = {name: join_sequence(arrays, order=order) for name, arrays in parts.items()}
    call = {"is_causal": True, "q_offset": 2, "order": order}
    out, pullback = aa.vjp(
        aa.scaled_dot_product_attention, whole["query"], whole["key"], whole["key"], is_causal=True, q_offset=2
    )

    def on_rank(comm: Any) -> list[Any]:
        q, k = parts["query"][comm.rank], parts["key"][comm.rank]
        found, back = aa.vjp(ring_attention, comm, q, k, k, **call)
        return [found, *back(np.cos(found))[:3]]

    results = ThreadComm(4).run(on_rank)
    for n, expected in enumerate([out, *pullback(np.cos(out))[:3]]):
        found = join_sequence([result[n] for result in results], order=order)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_keys_beyond_the_lengths_may_be_nan() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 12, 4))
    expected = aa.scaled_dot_product_attention(q, k, v, kv_lengths=5)
    k[:, :, 5:], v[:, :, 5:] = np.nan, np.nan
    parts = [split_sequence(x, 3) for x in (q, k, v)]
    outs = ThreadComm(3).run(lambda comm: ring_attention(comm, *(x[comm.rank] for x in parts), kv_lengths=5))
    np.testing.assert_allclose(join_sequence(outs), expected, rtol=0, atol=1e-13)


class Recording:
    """A communicator that writes down what is sent and received."""

    def __init__(self, comm: Any, events: list[Any]) -> None:
        self._comm, self._events = comm, events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Any:
        self._events.append(("send", dest, buf.size))
        return self._comm.Isend(buf, dest, tag)

    def Irecv(self, buf: Any, source: int, tag: int = 0) -> Any:
        self._events.append(("receive", source, buf.size))
        return self._comm.Irecv(buf, source, tag)


def recorded(monkeypatch: pytest.MonkeyPatch, size: int, **options: Any) -> list[list[Any]]:
    """What each rank does in a forward: sends, receives and computes."""
    events: list[list[Any]] = [[] for _ in range(size)]
    attention = tiles.attention

    def computing(*args: Any) -> Any:
        events[int(threading.current_thread().name.split()[1])].append(("compute",))
        return attention(*args)

    monkeypatch.setattr(tiles, "attention", computing)
    parts = [split_sequence(x, size) for x in np.random.default_rng(0).standard_normal((3, 1, 1, 8 * size, 4))]
    ThreadComm(size).run(
        lambda comm: ring_attention(Recording(comm, events[comm.rank]), *(x[comm.rank] for x in parts), **options)
    )
    return events


def test_keys_travel_while_ranks_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, events in enumerate(recorded(monkeypatch, 3)):
        kinds = [event[0] for event in events]
        step = ["send", "send", "receive", "receive", "compute"]  # of keys and of values
        assert kinds == [*step, *step, "compute"]
        assert {event[1] for event in events if event[0] == "send"} == {(rank + 1) % 3}  # to the neighbor alone


def test_ranks_that_see_nothing_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    events = recorded(monkeypatch, 6, window=(8, 0))  # the own part and the one before
    for rank, own in enumerate(events):
        kinds = [event[0] for event in own]
        assert kinds.count("compute") == (1 if rank == 0 else 2)
        assert kinds.count("send") == (0 if rank == 5 else 2)
        assert kinds.count("receive") == (0 if rank == 0 else 2)


def test_causal_keys_do_not_travel_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    sends = [[e for e in own if e[0] == "send"] for own in recorded(monkeypatch, 4, is_causal=True)]
    assert [len(own) // 2 for own in sends] == [1, 2, 3, 0]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 64])
@pytest.mark.parametrize("total", [65_536, 10_007])
def test_zigzag_balances_causal_work(size: int, total: int) -> None:
    def work(order: Any) -> list[int]:
        parts = sequence_parts(part_lengths(total, size, order), order)
        route = Route(parts, parts, Band(-np.inf, 0, np.inf))
        return [route.work(rank) for rank in range(size)]

    assert sum(work("zigzag")) == sum(work("contiguous")) == total * (total + 1) // 2
    assert max(work("zigzag")) <= 1.05 * sum(work("zigzag")) / size
    assert max(work("contiguous")) >= 1.49 * sum(work("contiguous")) / size


DISAGREEING = {
    "dtype": lambda x: {"query": x.astype(np.float32), "key": x.astype(np.float32), "value": x.astype(np.float32)},
    "order": lambda x: {"order": "zigzag"},
    "window": lambda x: {"is_causal": True},
    "scale": lambda x: {"scale": 0.7},
    "softcap": lambda x: {"softcap": 3.0},
    "q_offset": lambda x: {"q_offset": 1},
    "kv_lengths": lambda x: {"kv_lengths": 3},
    "sinks": lambda x: {"sinks": np.zeros(2)},
    "dropout": lambda x: {"dropout_p": 0.5, "rng": 0},
    "head dim": lambda x: {"query": x[..., :3], "key": x[..., :3]},
    "value dim": lambda x: {"value": x[..., :3]},
    "query heads": lambda x: {"query": np.concatenate([x, x], axis=1)},
    "batch": lambda x: {name: np.concatenate([x, x]) for name in ("query", "key", "value")},
    "bias": lambda x: {"bias": np.zeros((x.shape[2], 1))},
    "attn_mask": lambda x: {"attn_mask": np.ones((x.shape[2], 1), bool)},
}


@pytest.mark.parametrize("what", DISAGREEING)
def test_ranks_that_disagree_all_raise(what: str) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 4))
    messages = []

    def on_rank(comm: Any) -> None:
        call = {"query": x, "key": x, "value": x, **(DISAGREEING[what](x) if comm.rank == 1 else {})}
        with pytest.raises(ValueError, match=f"{what}.* differs between ranks: .* on rank") as raised:
            ring_attention(comm, **call)
        messages.append(str(raised.value))

    ThreadComm(3).run(on_rank)
    assert len(messages) == 3
    assert len(set(messages)) == 1


def test_wrong_input_on_one_rank_stops_all() -> None:
    x = np.ones((1, 2, 5, 4))

    def on_rank(comm: Any) -> None:
        error, text = (
            (TypeError, "expected one of float16") if comm.rank == 2 else (RankError, "Rank 2 of 4.*TypeError")
        )
        with pytest.raises(error, match=text):
            ring_attention(comm, x.astype(int) if comm.rank == 2 else x, x, x)

    ThreadComm(4).run(on_rank)


@pytest.mark.parametrize("function", ["attention", "attention_backward"])
def test_an_error_while_computing_stops_all(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, call = getattr(tiles, function), make_call("causal", "float64")

    def failing(*args: Any) -> Any:
        if threading.current_thread().name == "rank 1":
            raise MemoryError("no memory left")
        return computed(*args)

    monkeypatch.setattr(tiles, function, failing)

    def on_rank(comm: Any) -> None:
        with pytest.raises(MemoryError if comm.rank == 1 else RankError, match="no memory left"):
            rank_results(comm, call, "zigzag")

    ThreadComm(4).run(on_rank)


def test_a_wrong_cotangent_on_one_rank_stops_all() -> None:
    call = make_call("plain", "float64")

    def on_rank(comm: Any) -> None:
        out, ctx = ring_attention_fwd(comm, **rank_arrays(call, 3, comm.rank, "contiguous"))
        with pytest.raises(ValueError if comm.rank == 0 else RankError, match="`dout` has shape"):
            ring_attention_bwd(out[:1] if comm.rank == 0 else out, ctx)

    ThreadComm(3).run(on_rank)
    with pytest.raises(TypeError, match="expected the RingContext"):
        ring_attention_bwd(call.dout, None)


def test_a_bias_needs_a_column_for_every_key() -> None:
    x = np.ones((1, 1, 4, 2))

    def on_rank(comm: Any) -> None:
        with pytest.raises(ValueError, match=r"`bias` has shape \(4, 4\), which does not broadcast to .* 8\)"):
            ring_attention(comm, x, x, x, bias=np.zeros((4, 4)))

    ThreadComm(2).run(on_rank)
