"""A new file replaces an earlier one atomically, and so do the two files of a model."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnarray.checkpoints import load_state, save_state
from attnarray.checkpoints.replacing import replacing
from tests.support.paths import TESTS
from tests.support.published import fails, same
from tests.support.tiers import first

SCENARIOS = ["parts", "killed before", "state", "nothing", "foreign", "links", "edited", "same shapes", "together"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked and killed")
@pytest.mark.parametrize("scenario", first(3, SCENARIOS))
def test_killed_before_any_call_of_the_system(scenario: str, tmp_path: Path) -> None:
    program = [
        sys.executable,
        "-W",
        "error",
        str(TESTS / "support" / "checkpoint_kills.py"),
        scenario,
        str(tmp_path),
    ]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) >= {"together": 0, "state": 10}.get(scenario, 40)


SAVING = """
import sys, numpy as np
from attnarray.checkpoints import save_state
save_state(sys.argv[1], {"step": 0, "w": np.zeros(300_000)})
print("saved", flush=True)
step = 0
while True:
    step += 1
    save_state(sys.argv[1], {"step": step, "w": np.full(300_000, float(step))})
"""


@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals")
@pytest.mark.parametrize("wait", [0.0, 0.013, 0.05])
def test_a_killed_process_leaves_a_whole_state(wait: float, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with subprocess.Popen([sys.executable, "-c", SAVING, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(wait)
        process.send_signal(signal.SIGKILL)
    state = load_state(path)
    assert np.all(state["w"] == state["step"])
    left = [other for other in tmp_path.iterdir() if other != path]
    assert len(left) <= 1
    assert all(other.name.startswith("attnarray-") and other.suffix == ".partial" for other in left)


KILLED_WITHIN = """
import os, signal, sys, numpy as np
from attnarray.checkpoints import save_state
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], killed)
save_state(sys.argv[1], {"step": 2})
"""


@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_in_the_middle_of_a_save(moment: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_state(path, {"step": 1})
    done = subprocess.run([sys.executable, "-c", KILLED_WITHIN, str(path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert load_state(path) == {"step": 1}
    (partial,) = (other for other in tmp_path.iterdir() if other != path)
    partial.write_bytes(partial.read_bytes()[:20])
    fails(ValueError, f"`{partial}` is not a valid safetensors", lambda: load_state(partial))
    save_state(path, {"step": 3})
    assert load_state(path) == {"step": 3}


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_full_disk_names_the_file_and_leaves_the_last_state(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    save_state(path, {"step": 1})

    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match=r"No space left on device \(the file is unchanged\)") as caught:
            save_state(path, {"step": 2})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert load_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_system_that_writes_less_than_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, chunk: write(descriptor, chunk[:7]))
    save_state(tmp_path / "run", {"w": np.arange(100.0)})
    same(load_state(tmp_path / "run"), {"w": np.arange(100.0)})


SAVING_MUCH = """
import resource, sys, numpy as np
from attnarray.checkpoints import save_state
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try: save_state(sys.argv[1], np.ones(100_000))
except OSError as error: print(error.filename)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_file_that_grows_too_large_names_the_path(tmp_path: Path) -> None:
    path = tmp_path / "run"
    save_state(path, {"step": 1})
    done = subprocess.run([sys.executable, "-c", SAVING_MUCH, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}\n"
    assert load_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_names_as_long_as_any(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 250), tmp_path / ("ä" * 127)):
        save_state(path, {"step": 1})
        save_state(path, {"step": 2})
        assert load_state(path) == {"step": 2}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="pipes, links and locks of POSIX")
def test_what_a_file_cannot_replace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    fails(
        OSError, "pipe` is a device or a pipe, which a file cannot replace.", lambda: save_state(tmp_path / "pipe", 1)
    )
    fails(OSError, "loop` is a link to itself.", lambda: save_state(tmp_path / "loop", 1))
    fails(IsADirectoryError, f"`{tmp_path}` is a folder, expected the path of a file.", lambda: save_state(tmp_path, 1))
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "link").symlink_to(tmp_path / "new")
    save_state(tmp_path / "link", 1)
    assert load_state(tmp_path / "new") == 1


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_leftovers_are_deleted_unless_they_are_being_written(tmp_path: Path) -> None:
    (tmp_path / "attnarray-00000000.partial").write_bytes(b"of a killed process")
    (tmp_path / "another.partial").write_bytes(b"")
    with replacing(tmp_path / "run") as new:
        partial = new.write([b"first ", b"", b"second"])
        save_state(tmp_path / "run", 1)
        assert {path.name for path in tmp_path.iterdir()} == {"run", "another.partial", partial.name}
        new.commit()
    assert (tmp_path / "run").read_bytes() == b"first second"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "another.partial"}


def test_a_description_that_safetensors_would_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    save_state(path, {"step": 1})
    monkeypatch.setattr("attnarray.checkpoints.files.LARGEST_HEADER", 4000)
    expected = "bytes, but safetensors reads 4000 at most. Give long lists of numbers as arrays."
    fails(ValueError, expected, lambda: save_state(path, list(range(1000))))
    assert load_state(path) == {"step": 1}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    save_state(tmp_path / "first", {"step": 1})
    (tmp_path / "last").symlink_to(tmp_path / "first")
    save_state(tmp_path / "last", {"step": 2})
    assert (tmp_path / "last").is_symlink()
    assert load_state(tmp_path / "first") == {"step": 2}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_those_of_any_file(tmp_path: Path) -> None:
    path, plain = tmp_path / "run", tmp_path / "plain"
    plain.write_text("")
    save_state(path, {})
    assert path.stat().st_mode == plain.stat().st_mode
    for mode in (0o640, 0o600, 0o666):
        path.chmod(mode)
        with replacing(path) as new:
            assert new.partial.stat().st_mode & 0o777 == mode  # from the first byte on
        save_state(path, {"step": 1})
        assert path.stat().st_mode & 0o777 == mode
