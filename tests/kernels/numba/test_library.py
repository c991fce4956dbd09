"""Precompiled kernels: the same bits as Numba's, without Numba; and what is no library for this CPU is not loaded."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.cases import CASES
from attnarray.dispatch import KernelUnavailableError
from attnarray.kernels.numba import unavailable
from attnarray.kernels.numba.runtime import library, team_code
from tests.support.paths import ROOT
from tests.support.processes import python

COMPILER = os.environ.get("CC", "cc").split()[0]
needs_a_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C compiler")
needs_numba = pytest.mark.skipif(bool(unavailable("numba")), reason=unavailable("numba"))
LEVELS = library.LEVELS.get(platform.machine().lower(), ())
pytestmark = pytest.mark.skipif(not LEVELS, reason=f"there are no precompiled kernels for {platform.machine()}")


@pytest.fixture(autouse=True)
def no_library_remembered() -> Iterator[None]:
    cached = (library.load, unavailable, aa.dispatch._find, aa.dispatch._choose)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a library for this machine, which the next run of the tests finds again."""
    kept = getattr(request.config, "cache", None)
    parent = tmp_path_factory.mktemp("library") if kept is None else kept.mkdir("precompiled")
    folder = parent / library.source_digest()[:16]
    if not folder.exists():
        aside = Path(tempfile.mkdtemp(dir=parent))
        command = [sys.executable, "-m", "attnarray_build", "native", "--folder", str(aside)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        with contextlib.suppress(OSError):  # another process of these tests was first
            aside.rename(folder)
    return folder


WITHOUT_NUMBA = """
import sys
from pathlib import Path
sys.modules["numba"] = sys.modules["llvmlite"] = None
from attnarray.kernels.numba.runtime import library
library.FOLDER = Path({folder!r})
import numpy as np, attnarray as aa
"""


@pytest.mark.slow
@needs_a_compiler
@needs_numba
def test_the_bits_are_those_of_numba(built: Path) -> None:
    from attnarray_build.levels import environment

    (level,) = (path.stem for path in built.glob("*.json"))
    found = {}
    for allowed in (level, "none"):
        code = f"from tests.support.same_bits import say; say({str(built)!r})"
        variables = {"NUMBA_CACHE_DIR": str(built.parent / level), library.ALLOWED: allowed}
        said = json.loads(python(code, ROOT, **variables, **environment(level)))
        found[said["mode"]] = said["digests"]
    assert found.keys() == {"compiled", "numba"}
    assert len(found["numba"]) > 2 * len(CASES)
    assert [name for name, digest in found["numba"].items() if found["compiled"][name] != digest] == []


@pytest.mark.slow
@needs_a_compiler
@needs_numba
def test_nothing_of_numba_is_needed(built: Path) -> None:
    code = """
q = np.random.default_rng(0).standard_normal((1, 2, 300, 16)).astype("float32")
out, ctx = aa.scaled_dot_product_attention_fwd(q, q, q, is_causal=True)
grads = aa.scaled_dot_product_attention_bwd(out, ctx)
with aa.use_kernels("reference"):
    expected = aa.scaled_dot_product_attention(q, q, q, is_causal=True)
np.testing.assert_allclose(out, expected, atol=1e-6)  # some roundings of numbers around 1
assert not any(name.partition(".")[0] in ("numba", "llvmlite") and module for name, module in sys.modules.items())
with aa.use_kernels("compiled"):
    print(aa.explain(aa.softmax, q))
aa.warmup(("float32", "float64"))
"""
    said = python(WITHOUT_NUMBA.format(folder=str(built)) + code, ATTNARRAY_NUM_THREADS="3")
    assert said == "ops.softmax:_softmax  compiled\n"


@pytest.mark.slow
@needs_a_compiler
@needs_numba
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to ask the system each time")
def test_missing_scratch_memory_is_an_error(built: Path) -> None:
    code = """
import resource
from attnarray.kernels.numba.attention import tiled
calls, kernel = [], tiled.backward
tiled.backward = lambda *args: calls.append(args) or kernel(*args)
rng = np.random.default_rng(0)
q, k = (rng.standard_normal((1, 1, n, 64), dtype="float32") for n in (64, 4096))
out, ctx = aa.scaled_dot_product_attention_fwd(q, k, k)
expected, written_to = (aa.scaled_dot_product_attention_bwd(out, ctx) for _ in range(2))
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (0, before[1]))
try:
    kernel(*calls[1])
except MemoryError as error:
    said = str(error)
resource.setrlimit(resource.RLIMIT_AS, before)
found = aa.scaled_dot_product_attention_bwd(out, ctx)
assert all(a.tobytes() == b.tobytes() for a, b in zip(found, expected) if a is not None)
print(said)
"""
    variables = {"ATTNARRAY_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1024"}
    said = python(WITHOUT_NUMBA.format(folder=str(built)) + code, **variables)
    assert said == "A kernel could not allocate its scratch memory.\n"


# What a library exports, without kernels.
MINIMAL = """
int attnarray_runs_here(void) {{ return {runs}; }}
void attnarray_use_python(void *const *addresses) {{ (void)addresses; }}
"""


@pytest.fixture
def minimal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes libraries without kernels, and looks for libraries where they are."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.delenv(library.ALLOWED, raising=False)

    def make(level: str, runs: int = 1, **changed: Any) -> Path:
        source, path = tmp_path / "minimal.c", tmp_path / f"{level}{library.SUFFIX}"
        source.write_text(MINIMAL.format(runs=runs))
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
        tiles = {"32": [8, 6], "64": [4, 6]}
        contents = {"sources": library.source_digest(), "tiles": tiles, "python": [], "kernels": {}, **changed}
        contents["digest"] = library.library_digest(path, contents)
        path.with_suffix(".json").write_text(json.dumps(contents))
        return path

    return make


@needs_a_compiler
def test_the_best_level_that_runs_here(minimal: Callable[..., Path]) -> None:
    minimal(LEVELS[-1])
    loaded, reason = library.load()
    assert (loaded and loaded.level, reason) == (LEVELS[-1], "")
    library.load.cache_clear()
    if len(LEVELS) > 1:
        minimal(LEVELS[0], runs=0)
        loaded, reason = library.load()
        assert loaded is not None
        assert loaded.level == LEVELS[-1]
        assert reason == f"{LEVELS[0]}: this CPU lacks some of its instructions"


@needs_a_compiler
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged: install attnarray again"),
        (lambda path: path.write_bytes(b""), "is damaged: install attnarray again"),
        (lambda path: path.unlink(), "is missing, and only the list beside it is there"),
        (lambda path: path.with_suffix(".json").write_text("{"), "Expecting property name"),
        (lambda path: path.with_suffix(".json").write_text("{}"), "'sources'"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "list indices must be integers"),
        (lambda path: path.with_suffix(".json").write_text("[" * 200_000), "RecursionError"),
        (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\xff"), "is damaged (UnicodeDecodeError"),
        (lambda path: replace_by(path, Path.mkdir), "Is a directory"),
        (lambda path: replace_by(path, lambda new: new.symlink_to(new)), "symbolic links"),
    ],
    ids=[
        "truncated",
        "empty",
        "missing",
        "no list",
        "an empty list",
        "another list",
        "a deep list",
        "no text",
        "a folder",
        "a link to itself",
    ],
)
def test_a_damaged_library_is_not_loaded(
    minimal: Callable[..., Path], damage: Callable[[Path], Any], said: str
) -> None:
    damage(minimal(LEVELS[0]))
    loaded, reason = library.load()
    assert loaded is None
    assert said in reason


def replace_by(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


@needs_a_compiler
@pytest.mark.parametrize(
    "change", ["a kernel's arguments", "a function of Python", "a field that is missing", "a tile"]
)
def test_a_list_that_was_changed_is_not_loaded(minimal: Callable[..., Path], change: str) -> None:
    path = minimal(LEVELS[0], kernels={"m:f": {"kinds": "iiIR"}}, python=["Py_DecRef"]).with_suffix(".json")
    contents = json.loads(path.read_text())
    if change == "a kernel's arguments":
        contents["kernels"]["m:f"]["kinds"] = "iiIi"
    elif change == "a function of Python":
        contents["python"] = ["Py_IncRef"]
    elif change == "a tile":
        contents["tiles"]["32"] = [16, 6]
    else:
        del contents["tiles"]
    path.write_text(json.dumps(contents))
    loaded, reason = library.load()
    assert loaded is None
    assert "or the list beside it is damaged: install attnarray again" in reason


@needs_a_compiler
def test_a_library_of_other_sources_is_not_loaded(minimal: Callable[..., Path]) -> None:
    minimal(LEVELS[0], sources="0" * 64)
    loaded, reason = library.load()
    assert loaded is None
    assert "was compiled from other sources: run python -m attnarray_build" in reason


@needs_a_compiler
def test_what_is_no_library_is_not_loaded(minimal: Callable[..., Path]) -> None:
    path = minimal(LEVELS[0])
    path.write_bytes(b"no library of any system")
    contents = json.loads(path.with_suffix(".json").read_text())
    contents["digest"] = library.library_digest(path, contents)
    path.with_suffix(".json").write_text(json.dumps(contents))
    loaded, reason = library.load()
    assert loaded is None
    assert reason.startswith(f"{LEVELS[0]}: ")


def test_a_machine_without_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.platform, "machine", lambda: "riscv64")
    assert library.load() == (None, "there are no precompiled kernels for riscv64")


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("none", f"{library.ALLOWED} is none"),
        ("x86-64-v9", f"{library.ALLOWED} is 'x86-64-v9', expected none or one of "),
    ],
)
def test_the_level_that_is_allowed(level: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ALLOWED, level)
    loaded, reason = library.load()
    assert loaded is None
    assert reason.startswith(said)


def test_precompiled_kernels_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ALLOWED, "none")
    with aa.use_kernels("compiled"), pytest.raises(KernelUnavailableError, match="ATTNARRAY_CPU_LEVEL is none"):
        aa.softmax(np.ones(3))


def test_sources_have_one_digest_whatever_ends_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for end in (b"\n", b"\r\n"):
        (tmp_path / "kernel.py").write_bytes(b"x = 1" + end)
        monkeypatch.setattr(library, "KERNELS", tmp_path)
        digests.append(library.source_digest.__wrapped__())
    (tmp_path / "kernel.py").write_bytes(b"x = 2\n")
    digests.append(library.source_digest.__wrapped__())
    assert digests[0] == digests[1] != digests[2]


def build(*arguments: str, **variables: str) -> str:
    """What `attnarray_build` says that it cannot do, before anything is compiled."""
    pytest.importorskip("llvmlite")
    command = [sys.executable, "-m", "attnarray_build", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


@needs_a_compiler
def test_a_build_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "'x86-64-v9' is no level of this machine" in build("x86-64-v9")
    assert "nothing can be written to" in build("--folder", str(tmp_path / "file"))
    folder = ("--folder", str(tmp_path / "folder"))
    assert "no C compiler 'no-compiler' was found" in build(*folder, CC="no-compiler -O2")
    assert """CC is "cc '": No closing quotation""" in build(*folder, CC="cc '")
    assert "no C compiler 'no compiler' was found" in build(*folder, CC="'no compiler' -O2")


def test_functions_of_python_have_the_signatures_of_its_headers() -> None:
    """One letter for the result and one for each argument: a letter too few would leave a register unset."""
    counts = {x.name: len(x.signature) - 1 for x in vars(team_code).values() if isinstance(x, team_code.PythonFunction)}
    assert counts == {
        "PyMem_RawCalloc": 2, "PyErr_NoMemory": 0, "PyThread_allocate_lock": 0, "PyThread_acquire_lock": 2,
        "PyThread_release_lock": 1, "PyTuple_GetItem": 2, "PyTuple_Size": 1, "PyObject_Call": 3, "Py_DecRef": 1,
        "PyEval_SaveThread": 0, "PyEval_RestoreThread": 1, "PyErr_Fetch": 3, "PyErr_Restore": 3, "PyErr_Clear": 0,
        "PyErr_ExceptionMatches": 1,
    }  # fmt: skip
