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

FORMAT = "1"  # counts up when entries are written in another way
SOURCES = Path(__file__).parent / "sources"
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.M)


def source_of(name: str) -> str:
    """The text of a file in sources/."""
    return (SOURCES / name).read_text(encoding="utf-8")


@functools.cache
def headers_of(name: str) -> Mapping[str, str]:
    """All that a source includes, directly or not, of the files beside it: name -> text."""
    found: dict[str, str] = {}
    waiting = INCLUDE.findall(source_of(name))
    while waiting:
        header = waiting.pop()
        if header not in found and (SOURCES / header).exists():  # the others are for emulation
            found[header] = source_of(header)
            waiting += INCLUDE.findall(found[header])
    return dict(sorted(found.items()))


def key(source: str, headers: Mapping[str, str], options: Sequence[str], architecture: str, version: object) -> str:
    """The name of an entry: equal only where everything that decides the machine code is."""
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
def _of_this_process() -> Path:
    """Where entries go if no folder can be written: one that goes with the process."""
    path = Path(tempfile.mkdtemp(prefix="attnarray-cuda-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def entry(name: str, make: Callable[[], bytes]) -> Path:
    """The file of an entry, made if there is none or if it is not what was written."""
    file = f"{name}.cubin"
    kept = _folder_or_none()
    if kept is not None and _is_whole(kept / file):
        return kept / file
    image = make()
    if kept is not None:
        with contextlib.suppress(OSError):
            write(kept / file, image)
            return kept / file
    write(_of_this_process() / file, image)
    return _of_this_process() / file


def forget(path: Path) -> None:
    """Drop an entry that cannot be loaded."""
    for file in (path, _digest_of(path)):
        with contextlib.suppress(OSError):
            file.unlink()


def write(path: Path, image: bytes) -> None:
    """Write an entry so that no other process ever sees a part of it: the digest last, each file by renaming."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, content in ((path, image), (_digest_of(path), hashlib.sha256(image).hexdigest().encode())):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, place)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _is_whole(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _digest_of(path).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _folder_or_none() -> Path | None:
    try:
        return folder()
    except RuntimeError:  # there is no home folder
        return None
