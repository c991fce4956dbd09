"""Fast kernels, imported by nothing but `attnarray.dispatch`, by the names in `table.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

MODE: ContextVar[str] = ContextVar("attnarray_kernels", default="auto")  # of `use_kernels`
_NOTES: ContextVar[list[str] | None] = ContextVar("attnarray_notes", default=None)

UNBOUNDED = 2**40  # farther than any position

Listener = Callable[[str, bool], None]
_LISTENERS: list[Listener] = []


class Declined(Exception):
    """Raised by a kernel, before it has written anything, when it does not serve these arguments; says why."""


def note(what: str) -> None:
    """Called by a kernel that runs, but not in its fastest way: says why, for `explain`."""
    notes = _NOTES.get()
    if notes is not None and what not in notes:
        notes.append(what)


@contextlib.contextmanager
def noting() -> Iterator[list[str]]:
    """Within the block, what kernels note is in the list."""
    notes: list[str] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def compiling(kernel: str, kept: bool) -> bool:
    """Called before a kernel is compiled; `kept` says whether a cache will keep it. Whether anybody listens."""
    listeners = tuple(_LISTENERS)
    for listener in listeners:
        listener(kernel, kept)
    return bool(listeners)


@contextlib.contextmanager
def compilations(listener: Listener) -> Iterator[None]:
    """Within the block, `listener(kernel, kept)` is called for each kernel that is compiled, in whichever thread."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)
