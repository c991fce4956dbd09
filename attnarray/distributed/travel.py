"""Parts of keys and values that travel around the ring while ranks compute, and gradients that travel with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attnarray.backend import Array
from attnarray.distributed.communicator import Communicator, Incoming, Outgoing, Request, wait
from attnarray.distributed.sequence import Route

KEYS, GRADIENTS, HOME = 7101, 7102, 7103  # tags of messages


class Travel:
    """The journey of arrays (B, H, S, N) of each part; keys are sent on before they are computed with.

    One part is received ahead. A rank waits for what it sent to its neighbor before it sends the next part there, so
    that it holds three parts at most. That cannot lock: the neighbor receives a part one step of the ring after this
    rank has it, so that each waits for an earlier step only.
    """

    def __init__(self, comm: Communicator, route: Route) -> None:
        self._comm, self._route, self._rank = comm, route, comm.Get_rank()
        self._neighbor = (self._rank + 1) % comm.Get_size()
        self._sending: dict[int, list[Request]] = {}  # by tag: what must have arrived before the next is sent
        self._open: list[Request] = []
        self._home: Incoming | None = None

    def parts(self, arrays: list[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Yield the number and the arrays of each part that this rank sees, its own first."""
        parts, current = self._route.parts(self._rank), arrays
        incoming: Incoming | None = None
        for n, part in enumerate(parts):
            if incoming is not None:
                current = incoming.wait()
            target = self._route.next(self._rank, part)
            if target is not None:
                self._send(current, target, KEYS, bounded=target == self._neighbor)
            if n + 1 < len(parts):
                incoming = self._receive(parts[n + 1], self._route.previous(self._rank, parts[n + 1]), arrays, KEYS)
            yield part, current

    def poll(self) -> None:
        """Let messages make progress between two tiles: MPI may move data only while it is called."""
        self._open = [request for request in self._open if not request.Test()]

    def receive_gradients(self, part: int, like: list[Array]) -> Incoming | None:
        """Begin to receive the sum of the gradients that other ranks found before; None if this rank is the first."""
        if part != self._rank:
            return self._receive(part, self._route.previous(self._rank, part), like, GRADIENTS)
        last = self._route.last(part)
        if last is not None:
            self._home = self._receive(part, last, like, HOME)
        return None

    def send_gradients(self, part: int, total: list[Array]) -> None:
        """Send the gradients of a part on, after the last rank home."""
        target = self._route.next(self._rank, part)
        if target is not None:
            self._send(total, target, GRADIENTS, bounded=target == self._neighbor)
        elif part != self._rank:
            self._send(total, part, HOME, bounded=True)

    def gradients_at_home(self, own: list[Array]) -> list[Any]:
        """The gradients of this rank's own part when they have been everywhere; `own` if they went nowhere."""
        return own if self._home is None else self._home.wait()

    def finish(self) -> None:
        """Wait until everything that this rank sent has arrived."""
        for requests in self._sending.values():
            wait(requests)
        wait(self._open)

    def _receive(self, part: int, source: int, like: list[Array], tag: int) -> Incoming:
        length = sum(segment.length for segment in self._route.keys[part])
        shapes = [(*x.shape[:2], length, x.shape[3]) for x in like]
        incoming = Incoming(self._comm, like, shapes, source, tag)
        self._open.extend(incoming.requests)
        return incoming

    def _send(self, arrays: list[Array], target: int, tag: int, bounded: bool) -> None:
        wait(self._sending.get(tag, []))
        outgoing = Outgoing(self._comm, arrays, target, tag)
        self._open.extend(outgoing.requests)
        self._sending[tag] = list(outgoing.requests) if bounded else []
