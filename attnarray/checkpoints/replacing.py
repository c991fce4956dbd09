"""New files in place of earlier ones: at any moment, even when the process is killed, each is the one or the other."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = "attnarray-*.partial"  # short, so that any name that a file may have can be replaced


class Replacement:
    """A file that is written beside `path`, where `commit` moves it."""

    def __init__(self, path: Path) -> None:
        self.path, self.target = path, _target(path)
        with _naming(path):
            mode = stat.S_IMODE(self.target.stat().st_mode) & 0o666 if self.target.exists() else None
            _remove_leftovers(self.target.parent)
            self.descriptor, self.partial = _new_partial(self.target.parent, mode)

    def write(self, chunks: Iterable[Any]) -> Path:
        """Write objects of bytes one after the other and bring them to the disk; returns where they are until then."""
        with _naming(self.path):
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(self.descriptor, rest) :]
            os.fsync(self.descriptor)
            if sys.platform == "win32":  # which moves no open file
                self._close()
        return self.partial

    def commit(self) -> None:
        """Move the file to its path, and let that outlive a loss of power."""
        with _naming(self.path):
            os.replace(self.partial, self.target)
        sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove what was not moved."""
        self._close()  # first, as Windows deletes no open file
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _close(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Replacement]:
    """A new file for `path`, which is as before unless the block commits it.

    Where the process is killed within the block, a file "attnarray-*.partial" stays, which may be deleted; the next
    file that is written to the folder deletes it.
    """
    new = Replacement(path)
    try:
        yield new
    finally:
        new.discard()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the operating system name the file that was to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error} (this file is as it was before)", str(path)) from error


def _target(path: Path) -> Path:
    """The path itself or, where it is a link, what that points to; checked for what cannot be replaced by a file."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(f"`{path}` is a link that leads to itself. Give another path, or remove the link.")
    if target.is_dir():
        raise IsADirectoryError(f"`{path}` is a folder, expected the path of a file. Give one within it.")
    if target.exists() and not target.is_file():
        raise OSError(f"`{path}` is a device or a pipe, which a file cannot replace. Give another path.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder `{target.parent}` to write `{target.name}` to. Make it first.")
    return target


def _new_partial(folder: Path, mode: int | None) -> tuple[int, Path]:
    """A new file that is open and locked, as long as it is open; by default of the mode of any new file."""
    while True:
        partial = folder / PARTIAL.replace("*", secrets.token_hex(4))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(partial, flags, 0o666 if mode is None else mode)
        _lock(descriptor, wait=True)
        if sys.platform == "win32":
            return descriptor, partial
        if os.fstat(descriptor).st_nlink:  # else another process took it for a leftover before it was locked
            if mode is not None:
                os.fchmod(descriptor, mode)  # what the umask has taken away
            return descriptor, partial
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Delete what killed processes have left; what living ones write is locked, and stays."""
    for partial in folder.glob(PARTIAL):
        with contextlib.suppress(OSError):
            descriptor = os.open(partial, os.O_RDWR)
            try:
                if _lock(descriptor, wait=False):
                    partial.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file until it is closed; whether that was possible."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # in use, or a file system without locks
        return False
    return True


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they outlive a loss of power."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can: the files themselves are there already."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
