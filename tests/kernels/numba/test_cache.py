"""Compiled code on disk: what is damaged is compiled anew, once, with a warning that names the file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba.core import config

from attnarray.kernels.numba.runtime import cache, jit
from tests.support.paths import ROOT


def twice(x: Any) -> Any:
    return 2 * x


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Any, int]]:
    """Calls a new kernel, as a new process would; its result and how often it compiled."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))

    def call() -> tuple[Any, int]:
        kernel = jit.jit(twice)
        return kernel(4), sum(kernel.real.stats.cache_misses.values())

    assert call() == (8, 1)
    assert call() == (8, 0)
    return call


def the_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.nbc")
    return file


def check_once(call: Callable[[], tuple[Any, int]], file: Path, reason: str) -> None:
    """It is compiled anew with a warning, and then no more."""
    with pytest.warns(RuntimeWarning, match=f"Compiling anew, since .*{file.name} cannot be used: {reason}"):
        assert call() == (8, 1)
    assert call() == (8, 0)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 65, 1000, -1])
def test_a_file_cut_off(size: int, compiled: Callable[[], tuple[Any, int]], tmp_path: Path) -> None:
    file = the_file(tmp_path)
    file.write_bytes(file.read_bytes()[:size])
    check_once(compiled, file, "it is damaged")


@pytest.mark.parametrize("part", range(20))
def test_a_flipped_byte(part: int, compiled: Callable[[], tuple[Any, int]], tmp_path: Path) -> None:
    """In the digests, in what Python reads, and in the machine code."""
    file = the_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[part * (len(content) - 1) // 19] ^= 1 << part % 8
    file.write_bytes(content)
    check_once(compiled, file, "it is damaged")


@pytest.mark.parametrize("content", [b"nonsense" * 100, bytes(5000)], ids=["text", "zeros"])
def test_other_content(content: bytes, compiled: Callable[[], tuple[Any, int]], tmp_path: Path) -> None:
    file = the_file(tmp_path)
    file.write_bytes(content)
    check_once(compiled, file, "it is damaged")


@pytest.mark.parametrize("part", ["numba", "llvmlite", "sources"])
def test_code_of_another_version_is_recompiled_silently(
    part: str, compiled: Callable[[], tuple[Any, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "sources":
        monkeypatch.setattr(cache, "sources", lambda: ())
    else:
        monkeypatch.setattr(getattr(cache, part), "__version__", "0.0")
    assert compiled() == (8, 1)
    assert compiled() == (8, 0)


def test_code_of_another_archive_is_recompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "attnarray.zip"
    archive.write_bytes(b"some modules")
    monkeypatch.setattr(cache, "__file__", str(archive / "attnarray/kernels/numba/runtime/cache.py"))
    before = cache.sources.__wrapped__()
    archive.write_bytes(b"other modules")
    assert before
    assert cache.sources.__wrapped__() != before


def test_the_code_of_another_signature(compiled: Callable[[], tuple[Any, int]], tmp_path: Path) -> None:
    """As two processes leave it that number their files alike: never loaded for this signature."""
    file = the_file(tmp_path)
    jit.jit(twice)(0.5)
    (other,) = set(tmp_path.rglob("*.nbc")) - {file}
    file.write_bytes(other.read_bytes())
    assert compiled() == (8, 1)
    assert compiled() == (8, 0)


def test_what_cannot_be_rebuilt(
    compiled: Callable[[], tuple[Any, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(cache, "dumps", lambda _: b"not a pickle")
        patched.setattr(cache, "sources", lambda: ())
        compiled()
        with pytest.warns(RuntimeWarning, match="cannot be used: "):
            assert compiled() == (8, 1)
    assert compiled() == (8, 1)
    assert compiled() == (8, 0)


def test_a_folder_in_the_place_of_the_file(compiled: Callable[[], tuple[Any, int]], tmp_path: Path) -> None:
    file = the_file(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.warns(RuntimeWarning) as warned:
        assert compiled() == (8, 1)
    assert [str(w.message).split(":")[0] for w in warned] == [
        f"Compiling anew, since {file} cannot be used",
        f"Compiled kernels cannot be kept in {file.parent}",
    ]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("where", ["read", "written", "renamed"])
def test_an_error_of_the_file_system(
    where: str, compiled: Callable[[], tuple[Any, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, kept = the_file(tmp_path), True
    with monkeypatch.context() as patched:

        def fail(*_: Any) -> Any:
            raise OSError(28, "No space left on device")

        if where == "read":
            patched.setattr(Path, "read_bytes", fail)
        else:
            file.unlink()
            kept = False
            patched.setattr(*{"written": (Path, "write_bytes"), "renamed": (os, "replace")}[where], fail)
        with pytest.warns(RuntimeWarning, match="No space left on device"):
            assert compiled() == (8, 1)
    assert [path.name for path in file.parent.iterdir()] == [file.name] * kept
    assert compiled() == (8, 0 if kept else 1)


def test_flush_removes_the_code(compiled: Callable[[], tuple[Any, int]], tmp_path: Path) -> None:
    kernel = jit.jit(twice)
    kernel(4)
    kernel.real._cache.flush()
    assert not list(tmp_path.rglob("*.nbc"))
    assert compiled() == (8, 1)


def test_c_functions_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    assert jit.CFunction(twice).real.cache_hits == 0
    function = jit.CFunction(twice).real
    assert (function.cache_hits, function.ctypes(21)) == (1, 42)


SOFTMAX = "import numpy as np, attnarray as aa; print(aa.softmax(np.ones((4, 8), np.float32)).sum())"


def softmax(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", SOFTMAX],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_side_by_side_and_all_files_damaged(tmp_path: Path) -> None:
    """Two processes compile at once; then all that they wrote is damaged, and two others compile it anew."""
    for damaged in (False, True):
        warnings = ""
        for process in [softmax(tmp_path) for _ in range(2)]:
            said, warned = process.communicate()
            assert (process.returncode, said) == (0, "4.0\n")
            warnings += warned
        assert ("Compiling anew" in warnings) == damaged  # who comes later may find it repaired
        process = softmax(tmp_path)
        assert process.communicate() == ("4.0\n", "")
        files = list(tmp_path.rglob("*.nb*"))
        assert files
        assert not list(tmp_path.rglob("*.nbi*"))
        for file in files:
            os.truncate(file, 20)
