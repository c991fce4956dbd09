"""Atomic replacement of files: at any moment, even if the process is killed, a file is the old one or the new one."""

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

PARTIAL = "attnarray-*.partial"  # short, so that files with names of any length can be replaced


class Replacement:
    """A new file in the folder of `path`; `commit` renames it to `path`."""

    def __init__(self, path: Path) -> None:
        self.path, self.target = path, _target(path)
        with _naming(path):
            mode = stat.S_IMODE(self.target.stat().st_mode) & 0o666 if self.target.exists() else None
            _remove_leftovers(self.target.parent)
            self.descriptor, self.partial = _new_partial(self.target.parent, mode)

    def write(self, chunks: Iterable[Any]) -> Path:
        """Write and sync bytes-like objects; return the temporary path."""
        with _naming(self.path):
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(self.descriptor, rest) :]
            os.fsync(self.descriptor)
            if sys.platform == "win32":  # Windows cannot rename an open file
                self._close()
        return self.partial

    def commit(self) -> None:
        """Rename the file to its path, durably."""
        with _naming(self.path):
            os.replace(self.partial, self.target)
        sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove the file unless it was committed."""
        self._close()  # first, as Windows cannot delete an open file
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _close(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Replacement]:
    """A replacement for `path`, which is unchanged unless the block commits it.

    A killed process leaves a file "attnarray-*.partial", which may be deleted; the next replacement in the folder
    deletes it.
    """
    new = Replacement(path)
    try:
        yield new
    finally:
        new.discard()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors of the operating system name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error} (the file is unchanged)", str(path)) from error


def _target(path: Path) -> Path:
    """The path with links resolved, checked to be a file or absent."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(f"`{path}` is a link to itself. Give another path, or remove the link.")
    if target.is_dir():
        raise IsADirectoryError(f"`{path}` is a folder, expected the path of a file.")
    if target.exists() and not target.is_file():
        raise OSError(f"`{path}` is a device or a pipe, which a file cannot replace. Give another path.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder `{target.parent}` for `{target.name}`. Create it first.")
    return target


def _new_partial(folder: Path, mode: int | None) -> tuple[int, Path]:
    """Create a new file, open and locked; with the default mode unless given."""
    while True:
        partial = folder / PARTIAL.replace("*", secrets.token_hex(4))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(partial, flags, 0o666 if mode is None else mode)
        _lock(descriptor, wait=True)
        if sys.platform == "win32":
            return descriptor, partial
        if os.fstat(descriptor).st_nlink:  # else another process removed it before it was locked
            if mode is not None:
                os.fchmod(descriptor, mode)  # regardless of the umask
            return descriptor, partial
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Delete the files of killed processes; those of running ones are locked, and kept."""
    for partial in folder.glob(PARTIAL):
        with contextlib.suppress(OSError):
            descriptor = os.open(partial, os.O_RDWR)
            try:
                if _lock(descriptor, wait=False):
                    partial.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file until it is closed; return whether that succeeded."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # in use, or a file system without locks
        return False
    return True


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, where the system supports it."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
