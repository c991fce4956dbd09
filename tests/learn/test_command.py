"""`attnarray learn`: the way of a learner through it, its JSON, and one line for every wrong argument."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from attnarray import cli
from attnarray.learn import actions
from attnarray.learn.course import NAMES, load
from attnarray.learn.progress import FILE, FOLDER, read

Capture = pytest.CaptureFixture[str]
WRONG = "import numpy as np\n\n\ndef softmax(x):\n    e = np.exp(x)\n    return e / e.sum(axis=-1, keepdims=True)\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def learn(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["learn", *arguments])
    printed = capsys.readouterr()
    assert all(len(line) <= 100 for line in printed.out.splitlines() if "attnarray learn check" not in line)
    return code, printed.out, printed.err


def write(name: str, text: str) -> Path:
    path = Path(FOLDER, f"{name}.py")
    path.write_text(text, encoding="utf-8")
    return path


def test_the_way_of_a_learner(capsys: Capture) -> None:
    code, out, err = learn(capsys)
    assert (code, err) == (0, "")
    assert f"0 of {len(NAMES)} done" in out
    assert all(name in out for name in NAMES)
    assert "Next:  attnarray learn start\n" in out
    assert not Path(FOLDER).exists(), "listing writes nothing"

    code, out, _ = learn(capsys, "start")
    assert code == 0
    assert f"Edit   {FOLDER}/softmax.py".replace("/", "/") in out.replace("\\", "/")
    assert "p_ij = exp(x_ij)" in out
    assert Path(FOLDER, "softmax.py").read_text(encoding="utf-8") == load("softmax").starting_file()
    assert "attnarray learn check" in learn(capsys)[1]

    code, out, _ = learn(capsys, "check")
    assert code == 1
    assert "not written yet" in out

    write("softmax", WRONG)
    code, out, _ = learn(capsys, "check")
    assert code == 1
    assert "p  WRONG  [" in out
    assert "the largest score of the row is not subtracted" in " ".join(out.split())

    for step in (1, 2, 3, 3):
        out = learn(capsys, "hint")[1]
        assert out.count(" of 3 for softmax") == step
    assert "That was the last one." in out

    write("softmax", load("softmax").solution_file())
    code, out, _ = learn(capsys, "check")
    assert code == 0
    assert "softmax: passed" in out
    assert f"1 of {len(NAMES)} done. Next:  attnarray learn start softmax_bwd" in out
    assert "done  softmax " in learn(capsys)[1]
    assert "softmax_bwd, exercise 2 of" in learn(capsys, "start")[1]
    record = read(Path(FOLDER)).of("softmax")
    assert (record.passed, record.checks, record.hints, record.solution) == (True, 3, 3, False)


def test_the_list_fits_a_small_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = learn(capsys)[1]
    assert all(len(line) <= 80 for line in out.splitlines())
    assert all(load(name).title in out for name in NAMES)


def test_start_never_overwrites(capsys: Capture) -> None:
    learn(capsys, "start", "gelu_bwd")
    path = write("gelu_bwd", "mine")
    code, out, _ = learn(capsys, "start", "gelu_bwd")
    assert code == 0
    assert "It was there already, and is unchanged" in out
    assert path.read_text() == "mine"
    for n in (1, 2):
        _, out, _ = learn(capsys, "start", "gelu_bwd", "--reset")
        assert f"gelu_bwd.py.{n}" in out
    assert Path(FOLDER, "gelu_bwd.py.1").read_text() == "mine"
    assert path.read_text(encoding="utf-8") == load("gelu_bwd").starting_file()


def test_solutions_are_shown_after_asking(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = plain(capsys, "solution", "softmax")
    assert code == 2
    assert "Give --yes." in err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer, shown in (("n\n", False), ("\n", False), ("", False), ("y\n", True), ("Yes\n", True)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        code, out, _ = plain(capsys, "softmax", "--solution")
        assert code == 0
        assert "Show the solution of softmax? 3 of 3 hints are left. [y/N]" in out
        assert ("weights / np.sum" in out) == shown
    learn(capsys, "start")
    assert "weights / np.sum" in plain(capsys, "solution", "--yes")[1]
    assert read(Path(FOLDER)).of("softmax").solution


def plain(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["learn", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_text_of_an_exercise(capsys: Capture) -> None:
    code, out, _ = learn(capsys, "attention_bwd")
    assert code == 0
    assert "dscores = p * (dp - delta)" in out
    assert "def attention_bwd(" in out
    assert "attnarray learn start attention_bwd" in out
    assert not Path(FOLDER).exists()


def test_json_for_autograders(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "homework.py"
    path.write_text(WRONG)
    code, out, err = plain(capsys, "check", "homework.py", "--exercise", "softmax", "--json", "--seed", "3")
    fields = json.loads(out)
    assert (code, err) == (1, "")
    assert (fields["format"], fields["passed"], fields["score"]) == (1, False, 0.0)
    (report,) = fields["exercises"]
    assert report["exercise"] == "softmax"
    assert [mistake["name"] for mistake in report["mistakes"]] == ["no-shift"]
    assert report["results"][0]["entry"] is not None
    assert not Path(FOLDER).exists(), "an autograder keeps no progress"
    path.write_text(load("softmax").solution_file())
    code, out, _ = learn(capsys, "check", "homework.py", "--exercise", "softmax")
    assert (code, out) == (0, "softmax: passed\n\n  p  ok     error 0e+00\n")


def test_json_of_the_list(capsys: Capture) -> None:
    rows = json.loads(plain(capsys, "--json")[1])["exercises"]
    assert [row["name"] for row in rows] == list(NAMES)
    assert {row["lecture"] for row in rows} == {1, 2, 3, 4, 5, 6}
    assert not any(row["passed"] for row in rows)


def test_all_files_at_once(capsys: Capture) -> None:
    learn(capsys, "start", "softmax")
    learn(capsys, "start", "causal_mask")
    write("causal_mask", load("causal_mask").solution_file())
    code, out, _ = learn(capsys, "check", "--all")
    assert code == 1
    assert "1 of 2 passed" in out
    fields = json.loads(plain(capsys, "check", "--all", "--json")[1])
    assert [report["status"] for report in fields["exercises"]] == ["unfinished", "passed"]
    assert fields["score"] == 0.5


def test_watching_grades_what_is_saved(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(capsys, "start")
    saved = iter([WRONG, load("softmax").solution_file(), ""])

    def pause() -> None:
        text = next(saved, None)
        if text is None:
            raise KeyboardInterrupt
        if text:
            write("softmax", text)

    monkeypatch.setattr(actions, "_pause", pause)
    code, out, _ = learn(capsys, "watch")
    assert code == 0
    assert out.count("softmax.py was saved") == 2
    assert out.index("softmax: p is wrong") < out.index("softmax: passed")
    assert read(Path(FOLDER)).of("softmax").passed
    assert Path(FOLDER, "softmax_bwd.py").read_text(encoding="utf-8") == load("softmax_bwd").starting_file()
    assert "softmax_bwd.py was saved" not in out, "the learner did not save it"


def test_a_broken_progress_file_is_reported(capsys: Capture) -> None:
    learn(capsys, "start")
    Path(FOLDER, FILE).write_text("{")
    code, out, err = learn(capsys)
    assert code == 0
    assert f"kept as {FILE}.broken" in err
    assert "0 of" in out


ERRORS: dict[str, tuple[list[str], str]] = {
    "unknown": (["sofmax"], "there is no exercise 'sofmax'. Did you mean softmax"),
    "far off": (["start", "xyz"], "there is no exercise 'xyz'. See attnarray learn for all of them."),
    "two": (["start", "softmax", "attention"], "expected one exercise, 2 were given."),
    "not started": (["check"], "softmax.py is not there. Write it by:  attnarray learn start softmax"),
    "no file": (["check", "other/softmax.py"], "is not there"),
    "a file of no exercise": (["check", "homework.py"], "there is no exercise 'homework.py'"),
    "nothing to watch": (["watch"], "there is no exercise yet"),
    "no files": (["check", "--all"], "has no exercise file"),
    "an option of another": (["hint", "--seed", "1"], "--seed is an option of `attnarray learn check`."),
    "solution of a command": (["check", "--solution"], "--solution is an option of `attnarray learn NAME`."),
    "exercise without a file": (["check", "--exercise", "softmax"], "--exercise NAME needs one file"),
    "seed": (["check", "--seed", "x"], "'x' is not a whole number"),
    "time": (["check", "--time-limit", "0"], "'0' is not a number of seconds"),
    "time of text": (["check", "--time-limit", "long"], "'long' is not a number of seconds"),
    "too many words": (["list", "all"], "unexpected argument 'all'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_arguments(name: str, capsys: Capture) -> None:
    arguments, words = ERRORS[name]
    code, out, err = plain(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_the_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["learn", "--help"])
    out: Any = capsys.readouterr().out
    assert out.startswith("usage: attnarray learn")
    for words in ("attnarray learn start [NAME]", "attnarray learn watch", "--json", "--time-limit", "Exit codes"):
        assert words in out
