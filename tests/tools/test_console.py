"""Progress of commands: a bar on a terminal, else plain lines every few seconds, by a fake clock."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnarray import console, kernels
from attnarray.tables import Cell
from tests.support.paths import ROOT

Capture = pytest.CaptureFixture[str]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of progress; no thread reads it on its own."""
    made = Clock()
    monkeypatch.setattr(console, "monotonic", made)
    monkeypatch.setattr(console, "BEAT", 1e6)
    return made


def test_a_pipe_gets_a_line_every_five_seconds(clock: Clock, capsys: Capture) -> None:
    with console.progress("training", 12) as bar:
        for n in range(12):
            clock.now += 2.0
            bar.advance(f"loss {n / 4}")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "training 3/12, loss 0.5, 6 s",
        "training 6/12, loss 1.25, 12 s",
        "training 9/12, loss 2.0, 18 s",
        "training 12/12, loss 2.75, 24 s",
    ]


def test_a_command_that_is_quick_says_nothing(clock: Clock, capsys: Capture) -> None:
    with console.progress("checking", 2) as bar:
        clock.now += 2.0
        bar.advance("a")
        clock.now += 2.0
        bar.advance("b")
    assert capsys.readouterr() == ("", "")


def test_a_line_of_the_output_counts(clock: Clock, capsys: Capture) -> None:
    with console.progress("training", 3) as bar:
        clock.now += 4.0
        bar.say([Cell("epoch 1", "bold"), Cell(": 90 %")])
        clock.now += 4.0
        bar.advance("loss 1")  # four seconds after the last line
        clock.now += 1.0
        bar.tick()
    printed = capsys.readouterr()
    assert printed.out == "epoch 1: 90 %\n"
    assert printed.err == "training 1/3, loss 1, 9 s\n"


def test_without_a_number_of_steps(clock: Clock, capsys: Capture) -> None:
    with console.progress("preparing") as bar:
        bar.note("kernels")
        clock.now += 5.0
        bar.tick()
    assert capsys.readouterr().err == "preparing, kernels, 5 s\n"


def test_a_long_step_is_reported_by_a_thread(clock: Clock, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "BEAT", 0.001)
    told = console.threading.Event()
    remark = console.Lines.remark
    monkeypatch.setattr(console.Lines, "remark", lambda self, line: (remark(self, line), told.set()))
    with console.progress("compiling", 2) as bar:
        bar.advance("the first kernel")
        clock.now += 6.0
        assert told.wait(600)  # a guard against hanging
    assert capsys.readouterr().err == "compiling 1/2, the first kernel, 6 s\n"


def progress_threads() -> list[object]:
    return [each for each in console.threading.enumerate() if each.name == "attnarray progress"]


def test_what_is_measured_is_not_disturbed_by_a_thread(clock: Clock) -> None:
    with console.progress("measuring", 2, still=True):
        assert not progress_threads()


def test_a_thread_ends_with_its_block(clock: Clock) -> None:
    def failing() -> None:
        with console.progress("training", 2):
            assert progress_threads()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert not progress_threads()


@pytest.mark.parametrize(("kept", "line"), [(True, console.COMPILING), (False, console.NOT_KEPT)])
def test_kernels_that_are_compiled_are_named_and_the_first_is_explained(
    kept: bool, line: str, clock: Clock, capsys: Capture
) -> None:
    with console.progress("checking", 2) as bar:
        bar.advance("softmax")
        kernels.compiling("row_softmax.forward", kept)
        clock.now += 5.0
        kernels.compiling("row_softmax.backward", kept)
    kernels.compiling("another", kept)  # the reader has closed the pipe
    assert capsys.readouterr().err.splitlines() == [line, "checking 1/2, compiling row_softmax.backward, 5 s"]


COMPILED = """
import numpy as np, attnarray as aa
from attnarray.dispatch import compilations
heard = []
with compilations(lambda kernel, kept: heard.append((kernel, kept))):
    aa.relu(np.ones((2, 3), np.float32))
    count = len(heard)
    aa.relu(np.ones((2, 3), np.float32))
assert len(heard) == count
print(heard[0] if heard else "loaded")
"""


def test_compiled_kernels_are_reported_and_loaded_ones_are_not(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", COMPILED], capture_output=True, check=True, text=True, env=environment, timeout=600
        ).stdout.strip()
        for _ in range(2)
    ]
    assert said[0].startswith("('rows.activations.")
    assert said[0].endswith(", True)")
    assert said[1] == "loaded"


@pytest.mark.parametrize("columns", ["", "0", "many", "-5"])
def test_the_width_of_a_pipe_has_no_limit(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert console.width() == console.UNLIMITED


def test_the_width_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert console.width() == 60
    monkeypatch.setenv("COLUMNS", "3")
    assert console.width() == console.NARROWEST


class Terminal(io.StringIO):
    """Takes colors."""

    def isatty(self) -> bool:
        return True


def test_no_colors_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")

    def shown() -> str:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        console.print_line([Cell("ok", console.GOOD)])
        return terminal.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown() == "\x1b[32mok\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown() == "ok\n"
    monkeypatch.setenv("TERM", "dumb")
    assert shown() == "ok\n"


def test_a_terminal_cuts_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "dumb")
    console.print_line([Cell("a figure far to the right"), Cell(" 1.25e-08", console.FAINT)])
    assert terminal.getvalue() == "a figure far to the right 1.25e-08\n"
