"""The progress of a learner: found from anywhere, written atomically, and never lost in silence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from attnarray.console import UsageError
from attnarray.learn.course import NAMES
from attnarray.learn.progress import FILE, FOLDER, Progress, Record, folder, read, update, write

Capture = pytest.CaptureFixture[str]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read(tmp_path) == Progress({})
    update(tmp_path, "softmax", checks=2)
    update(tmp_path, "softmax_bwd", passed=True, hints=1)
    progress = update(tmp_path, "softmax", solution=True)
    assert read(tmp_path) == progress
    assert progress.of("softmax") == Record(checks=2, solution=True)
    assert progress.current == "softmax"
    assert progress.of("attention_bwd") == Record()
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]


def test_what_to_do_next() -> None:
    done = Record(passed=True)
    assert Progress({}).to_do() == NAMES[0]
    assert Progress({"softmax": done}).to_do() == "softmax_bwd"
    assert Progress({"softmax": done}, "gelu_bwd").to_do() == "gelu_bwd"
    assert Progress({"softmax": done}, "softmax").to_do() == "softmax_bwd"
    assert Progress({"attention": done}, "attention").to_do() == "weighted_sum_bwd"
    assert Progress({NAMES[-1]: done}, NAMES[-1]).to_do() == NAMES[0]
    assert Progress(dict.fromkeys(NAMES, done), NAMES[-1]).to_do() is None
    assert Progress({"softmax_bwd": done, "softmax": done}).passed() == ["softmax", "softmax_bwd"]


BROKEN = {
    "empty": b"",
    "half": b'{"format": 1, "current": null, "exer',
    "bytes": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"3",
    "no exercises": b'{"format": 1, "current": null}',
    "another format": b'{"format": "x", "current": null, "exercises": {}}',
    "an exercise of text": b'{"format": 1, "current": null, "exercises": {"softmax": "done"}}',
    "a wrong field": (
        b'{"format": 1, "current": null, "exercises": {"softmax": '
        b'{"passed": "yes", "checks": 1, "hints": 0, "solution": false}}}'
    ),
    "deep": b"[" * 10**5,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_reported_and_kept(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / FILE).write_bytes(BROKEN[name])
    assert read(tmp_path) == Progress({})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"is kept as {FILE}.broken; progress starts again" in said
    assert (tmp_path / f"{FILE}.broken").read_bytes() == BROKEN[name]
    assert read(tmp_path) == Progress({})
    assert capsys.readouterr().err == "", "reported once"
    (tmp_path / FILE).write_bytes(b"again")
    read(tmp_path)
    assert (tmp_path / f"{FILE}.broken").read_bytes() == BROKEN[name]
    assert (tmp_path / f"{FILE}.broken2").read_bytes() == b"again"


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    text = json.dumps({"format": 2, "more": {}})
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError, match="newer attnarray"):
        read(tmp_path)
    assert (tmp_path / FILE).read_text() == text


def test_records_of_unknown_exercises_are_kept(tmp_path: Path) -> None:
    write(tmp_path, Progress({"of_another_version": Record(passed=True)}, "of_another_version"))
    assert update(tmp_path, "softmax", checks=1).of("of_another_version").passed
    assert read(tmp_path).passed() == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = update(tmp_path, "softmax", passed=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        update(tmp_path, "softmax", passed=False)
    monkeypatch.undo()
    assert read(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_folder_is_found_from_inside_and_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder() == tmp_path / FOLDER
    update(tmp_path / FOLDER, "softmax", checks=1)
    inside, beside = tmp_path / FOLDER / "notes", tmp_path / "other" / "deep"
    for place in (inside, beside):
        place.mkdir(parents=True)
    for here in (tmp_path, tmp_path / FOLDER, inside, beside):
        monkeypatch.chdir(here)
        assert folder() == tmp_path / FOLDER
