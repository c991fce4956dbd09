"""What a run of the benchmark leaves: its file, pictures of it, and comparisons with another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bench_runs import Capture, made_run, row, run

from attnarray.bench import results


def test_a_saved_run_comes_back(tmp_path: Path) -> None:
    found = made_run(row(), row(peer="jax", ratio=None, time=None, samples=(), problem="no gradients"))
    path = tmp_path / "run.json"
    results.save(found, path)
    assert results.load(path) == found
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.save(made_run(row(error=float("nan"))), path)
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": 7}', "has schema 7, but this version reads schema 1"),
        ('{"rows": []}', "has no schema, but this version reads schema 1"),
        ("[]", "has no schema"),
        ("not json", "is not JSON"),
        ('{"schema": 1}', "does not follow it"),
        ('{"schema": 1, "environment": {}, "ceilings": {}, "baseline": "", "rows": [{}], "crossover": "", '
         '"complete": true}', "does not follow it"),
        (None, "cannot read"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("option", ["--show", "--compare"])
def test_files_that_are_not_ours(text: Any, words: str, option: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    code, out, err = run(capsys, "bench", option, *[str(path)] * (2 if option == "--compare" else 1))
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_two_runs_are_compared(tmp_path: Path, capsys: Capture) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    results.save(made_run(row("a"), row("b"), row("c"), row("gone")), before)
    changed = made_run(row("a", seconds=0.005), row("b"), row("c", seconds=0.03), row("new"))
    changed.environment["cpu"] = "Another CPU"
    results.save(changed, after)
    code, out, _ = run(capsys, "bench", "--compare", str(before), str(after))
    assert code == 0
    for case, ratio, verdict in (("a", "0.50", "faster"), ("b", "1.00", "the same"), ("c", "3.00", "slower")):
        assert re.search(rf"^ *{case} +torch +[\d.]+ ms +[\d.]+ ms +{ratio} +\S+ +{verdict}", out, re.MULTILINE), out
    assert "gone" not in out
    assert "new" not in out
    assert "The runs differ in more than time: cpu A CPU and Another CPU." in out


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_of_a_run(suffix: str, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "run.json", tmp_path / f"bars{suffix}"
    wrong = row("b", "jax", time=None, ratio=None, samples=(), problem="wrong: the output is off by 1e-02")
    refused = row("b", "keras", time=None, ratio=None, samples=(), problem="no gradients")
    results.save(made_run(row("a"), row("a", "naive", 0.03), row("b", "naive", 0.001), wrong, refused), path)
    code, out, _ = run(capsys, "bench", "--show", str(path), "--plot", str(picture))
    assert code == 0
    start = {".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]
    for written in (picture, tmp_path / f"bars-roofline{suffix}"):
        assert written.read_bytes().startswith(start)
        assert str(written) in out
    if suffix == ".svg":  # letters are drawn as shapes, but their text stands beside them
        assert "no gradients" not in picture.read_text()
    first = picture.read_bytes()
    run(capsys, "bench", "--show", str(path), "--plot", str(picture))
    assert picture.read_bytes() == first


def test_a_roofline_without_operations_says_so(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.json"
    results.save(made_run(row(flops=0.0)), path)
    assert run(capsys, "bench", "--show", str(path), "--plot", str(tmp_path / "bars.png"))[0] == 0


def test_the_crossover_names_who_wins_where(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        row(f"case-{size}", peer, seconds, size=size, kernels="numba" if peer == "attnarray" else "")
        for size in (16, 32, 64, 128)
        for peer, seconds in (("attnarray", 0.01 + 1e-5 * size), ("naive", 4e-4 * size), ("torch", 1.0))
    ]
    path, picture = tmp_path / "run.json", tmp_path / "crossover.png"
    results.save(made_run(*rows, crossover="case"), path)
    code, out, _ = run(capsys, "bench", "--show", str(path), "--plot", str(picture))
    assert code == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "16: naive" in out
    assert "32 to 128: attnarray" in out
    assert "attnarray, 16 to 128: numba" in out
