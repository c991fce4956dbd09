"""The communicator of threads: messages, groups, and errors instead of waiting for ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.dispatch import explain
from attnarray.distributed import RankError, ThreadComm


def test_messages_arrive_in_the_order_in_which_they_are_sent() -> None:
    def on_rank(comm: Any) -> list[int]:
        buffers = [np.full(1, n) for n in range(3)]
        if comm.Get_rank() == 0:
            sent = [comm.Isend(buffer, 1, 5) for buffer in buffers]
            assert [request.Wait() for request in sent] == [True] * 3
            return []
        received = [np.empty(1, int) for _ in range(3)]
        requests = [comm.Irecv(buffer, 0, 5) for buffer in received]
        for request in reversed(requests):
            request.Wait()
        return [int(buffer[0]) for buffer in received]

    assert ThreadComm(2).run(on_rank)[1] == [0, 1, 2]


def test_a_message_is_complete_only_when_it_is_received() -> None:
    def on_rank(comm: Any) -> None:
        if comm.rank == 0:
            request = comm.Isend(np.ones(2), 1)
            assert not request.Test()
            comm.allgather(None)
            request.Wait()
            assert request.Test()
        else:
            comm.allgather(None)
            comm.Irecv(np.empty(2), 0).Wait()

    ThreadComm(2).run(on_rank)


def test_groups_have_their_own_ranks_and_messages() -> None:
    def on_rank(comm: Any) -> tuple[int, int, list[int], float]:
        group = comm.Split(comm.rank % 2, -comm.rank)
        buffer = np.empty(1)
        receiving = group.Irecv(buffer, (group.rank - 1) % group.size)
        group.Isend(np.full(1, float(comm.rank)), (group.rank + 1) % group.size).Wait()
        receiving.Wait()
        return group.Get_rank(), group.Get_size(), group.allgather(comm.rank), float(buffer[0])

    found = ThreadComm(5).run(on_rank)
    assert found[4] == (0, 3, [4, 2, 0], 0.0)
    assert found[1] == (1, 2, [3, 1], 3.0)


def test_many_rounds_do_not_mix() -> None:
    found = ThreadComm(4).run(lambda comm: [comm.allgather((comm.rank, n)) for n in range(50)])
    assert found == [[[(rank, n) for rank in range(4)] for n in range(50)]] * 4


@pytest.mark.parametrize("wait", ["allgather", "receive", "send"])
def test_a_rank_that_raises_stops_those_that_wait_for_it(wait: str) -> None:
    def on_rank(comm: Any) -> None:
        if comm.rank == 1:
            raise ZeroDivisionError("my own")
        waiting = {
            "allgather": lambda: comm.allgather(1),
            "receive": lambda: comm.Irecv(np.empty(1), 1).Wait(),
            "send": lambda: comm.Isend(np.empty(1), 1).Wait(),
        }
        with pytest.raises(RankError, match="Rank 1 raised ZeroDivisionError: my own"):
            waiting[wait]()

    with pytest.raises(ZeroDivisionError, match="my own"):
        ThreadComm(3).run(on_rank)


def test_a_rank_that_returns_stops_those_that_wait_for_it() -> None:
    with pytest.raises(RankError, match="Rank 0 has returned, but another rank waits for it"):
        ThreadComm(2).run(lambda comm: comm.rank and comm.allgather(0))


def test_ranks_that_all_wait_stop() -> None:
    def on_rank(comm: Any) -> None:
        if comm.rank:
            comm.allgather(1)
        else:
            comm.Irecv(np.empty(1), 1).Wait()  # from a rank that waits for this one

    with pytest.raises(RankError, match="Every rank waits for another one"):
        ThreadComm(3).run(on_rank)


def test_messages_of_different_sizes_are_an_error() -> None:
    def on_rank(comm: Any) -> None:
        if comm.rank:
            comm.Isend(np.empty(2), 0)
        else:
            comm.Irecv(np.empty(3), 1).Wait()

    with pytest.raises(RankError, match="16 bytes were sent where 24 are expected"):
        ThreadComm(2).run(on_rank)


def test_ranks_use_the_kernels_of_their_caller() -> None:
    x = np.ones((1, 1, 2, 2))
    with aa.use_kernels("reference"):
        reasons = ThreadComm(2).run(lambda comm: explain(aa.scaled_dot_product_attention, x, x, x).choices[0].kernel)
    assert set(reasons) == {explain_reference(x)}


def explain_reference(x: np.ndarray) -> str:
    with aa.use_kernels("reference"):
        return explain(aa.scaled_dot_product_attention, x, x, x).choices[0].kernel


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_the_number_of_ranks_is_checked(size: Any) -> None:
    with pytest.raises(ValueError, match=r"`size` is .*, expected an integer >= 1: the number of ranks"):
        ThreadComm(size)
