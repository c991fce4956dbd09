"""The output of a benchmark run: its file, pictures, and comparisons with another run."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest

from attnarray.bench import crossover, results
from attnarray.bench.report import NO_INTERVAL
from attnarray.bench.statistics import Ratio
from tests.support.bench_runs import Capture, made_run, row, run


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


@pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")
def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "run.json", tmp_path / "link.json"
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to(target)
    results.write_whole(link, "now")
    assert (link.is_symlink(), target.read_text(), target.stat().st_mode & 0o777) == (True, "now", 0o600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "run.json"]


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
    if suffix == ".svg":  # letters are drawn as shapes, with their text as comments
        assert "no gradients" not in picture.read_text()
    first = picture.read_bytes()
    run(capsys, "bench", "--show", str(path), "--plot", str(picture))
    assert picture.read_bytes() == first


def test_a_roofline_without_operations_says_so(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.json"
    results.save(made_run(row(flops=0.0)), path)
    assert run(capsys, "bench", "--show", str(path), "--plot", str(tmp_path / "bars.png"))[0] == 0


def test_the_crossover_names_the_winners(tmp_path: Path, capsys: Capture) -> None:
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


DOUBTS = ("others compute here", "slower at the end than at the start")


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("varied", ["", "case"])
def test_warnings_are_shown_wherever_the_figures_are(quiet: bool, varied: str, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    found = made_run(row("a"), row("a", "naive", 0.03), crossover=varied)
    if not quiet:
        found.environment["load"] = 1.9
        found.ceilings["gemm at the end"] = 0.5e11
    path, page, picture = (tmp_path / f"run.{suffix}" for suffix in ("json", "md", "svg"))
    results.save(found, path)
    code, out, _ = run(capsys, "bench", "--show", str(path), "--markdown", str(page), "--plot", str(picture))
    assert code == 0
    pictures = [drawn.read_text(encoding="utf-8") for drawn in tmp_path.glob("*.svg")]
    assert len(pictures) == (1 if varied else 2)
    for words in DOUBTS:
        for shown in (out, page.read_text(encoding="utf-8"), *pictures):
            assert (words in shown) == (not quiet)


@pytest.mark.parametrize("few", [True, False])
def test_ratios_without_an_interval_are_marked_and_hatched(few: bool, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    ratio = Ratio(3.0, None, None) if few else Ratio(3.0, 2.9, 3.1)
    rows = row("a", "torch", ratio=Ratio(1.0, None, None) if few else Ratio(1.0, 1.0, 1.0)), row("a", "naive", 0.03)
    path, page, picture = (tmp_path / f"run.{suffix}" for suffix in ("json", "md", "svg"))
    results.save(made_run(rows[0], dataclasses.replace(rows[1], ratio=ratio)), path)
    _, out, _ = run(capsys, "bench", "--show", str(path), "--markdown", str(page), "--plot", str(picture))
    line = next(line for line in out.splitlines() if line.startswith("  naive"))
    assert ("3.00*" in line) == few
    assert "1.00*" not in out  # the baseline needs none
    assert (NO_INTERVAL in out) == few
    assert out.splitlines()[-3 if few else -2] == "(n/m): n of m cases"
    assert re.search(r"^all +3\.00\*$" if few else r"^all +3\.00$", out, re.MULTILINE)
    assert (r"3.00\*" in page.read_text()) == few
    assert (r"\*: fewer than 7 rounds" in page.read_text()) == few
    assert ("<pattern" in picture.read_text()) == few
    assert ("hatched" in picture.read_text()) == few


def test_peers_with_few_rounds_differ_if_no_samples_overlap() -> None:
    def winners_of(*samples: tuple[float, ...]) -> str:
        rows = [row("a", f"peer{n}", min(each), samples=each) for n, each in enumerate(samples)]
        return crossover.winners(made_run(*rows, crossover="a"))[0].names

    assert winners_of((1.0, 1.1, 1.2), (1.3, 1.4, 1.5)) == "peer0"
    assert winners_of((1.0, 1.1, 1.2), (1.15, 1.4, 1.5)) == "peer0 ≈ peer1"
