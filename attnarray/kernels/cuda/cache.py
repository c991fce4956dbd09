"""Compiled kernels on disk: one file for each source, its options, its architecture and its compiler."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FORMAT = "1"  # increased when the format of entries changes
SOURCES = Path(__file__).parent / "sources"
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.M)


def source_text(name: str) -> str:
    """The text of a file in sources/."""
    return (SOURCES / name).read_text(encoding="utf-8")


@functools.cache
def included_headers(name: str) -> Mapping[str, str]:
    """All files of sources/ that a source includes, directly or not: name -> text."""
    found: dict[str, str] = {}
    waiting = INCLUDE.findall(source_text(name))
    while waiting:
        header = waiting.pop()
        if header not in found and (SOURCES / header).exists():  # the others are for emulation
            found[header] = source_text(header)
            waiting += INCLUDE.findall(found[header])
    return dict(sorted(found.items()))


def key(source: str, headers: Mapping[str, str], options: Sequence[str], architecture: str, version: object) -> str:
    """The name of an entry: equal only if everything that the machine code depends on is."""
    parts = [FORMAT, source, *(text for pair in headers.items() for text in pair), *options, architecture, str(version)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:40]


def folder() -> Path:
    """Where entries are kept: ATTNARRAY_CUDA_CACHE, or attnarray/cuda in the user's cache folder."""
    given = os.environ.get("ATTNARRAY_CUDA_CACHE")
    if given:
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "attnarray" / "cuda"


@functools.cache
def _process_folder() -> Path:
    """The folder of entries if the cache cannot be written: a temporary one, removed at exit."""
    path = Path(tempfile.mkdtemp(prefix="attnarray-cuda-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def entry(name: str, make: Callable[[], bytes]) -> Path:
    """The file of an entry, made if there is none or if it is damaged."""
    file = f"{name}.cubin"
    kept = _folder_or_none()
    if kept is not None and _is_whole(kept / file):
        return kept / file
    image = make()
    if kept is not None:
        with contextlib.suppress(OSError):
            write(kept / file, image)
            return kept / file
    write(_process_folder() / file, image)
    return _process_folder() / file


def forget(path: Path) -> None:
    """Drop an entry that cannot be loaded."""
    for file in (path, _digest_path(path)):
        with contextlib.suppress(OSError):
            file.unlink()


def write(path: Path, image: bytes) -> None:
    """Write an entry so that no other process ever reads a part of it: the digest last, each file by renaming."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in ((path, image), (_digest_path(path), hashlib.sha256(image).hexdigest().encode())):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _is_whole(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _digest_path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _folder_or_none() -> Path | None:
    try:
        return folder()
    except RuntimeError:  # there is no home folder
        return None
