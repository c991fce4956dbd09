"""A communicator of threads in one process, for tests and teaching."""

from __future__ import annotations

import contextvars
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.distributed.communicator import RankError

MOST_RANKS = 4096


class ThreadComm:
    """Run one function on several threads, each with a communicator that has the methods of mpi4py's.

    A sent array is copied when it is received, as between processes. No rank waits for ever: when one raises or returns
    while others wait for it, those raise, too, and so do all if all wait.

    Parameters
    ----------
    size : int
        The number of ranks.

    Examples
    --------
    >>> from attnarray.distributed import ThreadComm
    >>> ThreadComm(3).run(lambda comm: sum(comm.allgather(comm.rank)))
    [3, 3, 3]
    """

    def __init__(self, size: int) -> None:
        self.size = checks.whole("size", size, 1, MOST_RANKS, "the number of ranks")

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `function(comm, *args)` once for each rank and return the results in their order.

        Raises
        ------
        Exception
            The first error that a rank raised of its own.
        """
        group = _Group(self.size)
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(group.run, rank, function, args), name=f"rank {rank}"
            )
            for rank in range(self.size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in sorted(group.errors, key=lambda error: isinstance(error, RankError)):
            raise error
        return group.results


class _Mailbox(NamedTuple):
    sent: deque[_Message]
    received: deque[_Message]

    @staticmethod
    def empty() -> _Mailbox:
        return _Mailbox(deque(), deque())


class _Group:
    """What the ranks of one communicator share, under one lock."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.mail: defaultdict[tuple[int, int, int], _Mailbox] = defaultdict(_Mailbox.empty)
        self.rounds: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self.ended: dict[int, str] = {}  # rank -> why it sends nothing any more
        self.children: dict[tuple[int, Any], _Group] = {}
        self.parent: _Group = self
        self.waiting: dict[int, Callable[[], Any]] = {}  # by thread: what each rank waits for
        self.stuck = False
        self.results: list[Any] = [None] * size
        self.errors: list[BaseException] = []

    def run(self, rank: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            self.results[rank] = function(RankComm(self, rank, tuple(range(self.size))), *args)
            reason = "has returned"
        except BaseException as error:
            reason = f"raised {type(error).__name__}: {error}"
            self.errors.append(error)
        with self.changed:
            self.ended[rank] = reason
            self.changed.notify_all()

    def post(self, address: tuple[int, int, int], side: int, message: _Message) -> None:
        """Put a message into the box of (source, rank, tag); in a box, the first sent goes to the first receiver."""
        with self.changed:
            box = self.mail[address]
            box[side].append(message)
            while all(box):
                sent, received = (queue.popleft() for queue in box)
                if sent.buffer.nbytes != received.buffer.nbytes:
                    raise RankError(
                        f"{sent.buffer.nbytes} bytes were sent where {received.buffer.nbytes} are expected."
                    )
                received.buffer[...] = sent.buffer
                sent.done = received.done = True
            self.changed.notify_all()

    def wait_for(self, ready: Callable[[], Any], ranks: Callable[[], tuple[int, ...]]) -> None:
        """Wait, with the lock held, until `ready`; raise when one of `ranks()` has ended before, or all ranks wait."""
        whole, thread = self.parent, threading.get_ident()
        while not ready():
            for rank in ranks():
                if rank in whole.ended:
                    raise RankError(f"Rank {rank} {whole.ended[rank]}, but another rank waits for it.")
            whole.waiting[thread] = ready
            if len(whole.waiting) + len(whole.ended) == whole.size and not any(one() for one in whole.waiting.values()):
                whole.stuck = True
                self.changed.notify_all()
            if not whole.stuck:
                self.changed.wait()
            del whole.waiting[thread]
            if whole.stuck:
                raise RankError("Every rank waits for another one. Make the same calls on every rank, in one order.")


class _Message:
    """A buffer that is sent or received, until it meets its counterpart."""

    def __init__(self, group: _Group, buffer: np.ndarray, partner: int) -> None:
        self._group, self.buffer, self._partner, self.done = group, buffer, partner, False

    def Test(self) -> bool:
        return self.done

    def Wait(self) -> bool:
        with self._group.changed:
            self._group.wait_for(self.Test, lambda: (self._partner,))
        return True


class RankComm:
    """The communicator of one thread; `ranks` are those of its members in the outermost group."""

    def __init__(self, group: _Group, rank: int, ranks: tuple[int, ...]) -> None:
        self._group, self.rank, self._ranks, self._round = group, rank, ranks, 0
        self.size = group.size

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def allgather(self, sendobj: Any, /) -> list[Any]:
        """The objects of all ranks."""
        group, number = self._group, self._round
        self._round += 1
        with group.changed:
            gathered = group.rounds[number]
            gathered[self.rank] = sendobj
            group.changed.notify_all()
            group.wait_for(
                lambda: len(gathered) == self.size,
                lambda: tuple(self._ranks[rank] for rank in range(self.size) if rank not in gathered),
            )
            group.rounds.pop(number - 1, None)  # every rank has read it
        return [gathered[rank] for rank in range(self.size)]

    def Isend(self, buf: np.ndarray, dest: int, tag: int = 0) -> _Message:
        """Begin to send an array, which must not change until it is received."""
        message = _Message(self._group, buf, self._ranks[dest])
        self._group.post((self.rank, dest, tag), 0, message)
        return message

    def Irecv(self, buf: np.ndarray, source: int, tag: int = 0) -> _Message:
        """Begin to receive into an array."""
        message = _Message(self._group, buf, self._ranks[source])
        self._group.post((source, self.rank, tag), 1, message)
        return message

    def Split(self, color: int = 0, key: int = 0) -> RankComm:
        """The communicator of the ranks that give the same `color`, ordered by `key`."""
        number = self._round
        members = [(k, rank) for rank, (c, k) in enumerate(self.allgather((color, key))) if c == color]
        ranks = tuple(rank for _, rank in sorted(members))
        with self._group.changed:
            child = self._group.children.setdefault((number, color), _Group(len(ranks)))
            child.changed, child.parent = self._group.changed, self._group.parent
        return RankComm(child, ranks.index(self.rank), tuple(self._ranks[rank] for rank in ranks))
