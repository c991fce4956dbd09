"""Tables fit the available width: names are wrapped, rows become a few lines, and every figure stays whole."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from attnarray import check, check_report, cli
from attnarray.bench import results
from attnarray.demo import comparison
from attnarray.tables import Cell, flow, fold, layout, paragraphs
from tests.support.bench_runs import made_run, row

NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?:e[+-]?\d+)?(?![\w.,])")
WIDTHS = (40, 60, 80, 120)
Capture = pytest.CaptureFixture[str]


def cells(*rows: tuple[str, ...]) -> list[list[Cell]]:
    return [[Cell(text) for text in row] for row in rows]


def texts(columns: list[str], rows: list[list[Cell]], width: int, **options: list[int]) -> list[str]:
    return ["".join(cell.text for cell in line) for line in layout(columns, rows, width, **options)]


TABLE = ["name", "large figure", "bar"], cells(("a_long_name_of_words", "1.25e-08", "#####"), ("b", "3", "##"))
OPTIONS = {"right": [1], "spare": [2]}


def test_a_table_that_fits() -> None:
    assert texts(*TABLE, 80, **OPTIONS) == [
        "name                  large figure  bar",
        "--------------------  ------------  -----",
        "a_long_name_of_words      1.25e-08  #####",
        "b                                3  ##",
    ]


def test_titles_are_folded_first_then_spare_columns_go_then_names_are_folded() -> None:
    assert texts(*TABLE, 40, **OPTIONS) == [
        "name                     large  bar",
        "                        figure",
        "--------------------  --------  -----",
        "a_long_name_of_words  1.25e-08  #####",
        "b                            3  ##",
    ]
    assert texts(*TABLE, 30, **OPTIONS)[-2:] == ["a_long_name_of_words  1.25e-08", "b                            3"]
    assert texts(*TABLE, 24, **OPTIONS)[-3:] == ["a_long_name_    1.25e-08", "of_words", "b                      3"]


def test_at_last_each_row_is_a_few_lines() -> None:
    assert texts(*TABLE, 20, **OPTIONS) == [
        "a_long_name_of_words",
        "  large figure",
        "  1.25e-08",
        "b",
        "  large figure 3",
    ]


def test_names_are_folded_between_words_and_numbers_never() -> None:
    assert fold("scaled_dot_product_attention", 12) == ["scaled_dot_", "product_", "attention"]
    assert fold("ops.softmax:forward", 12) == ["ops.softmax:", "forward"]
    assert fold("scipy-openblas 0.3.31.188", 14) == ["scipy-openblas", "0.3.31.188"]
    assert fold("one 1.25e-08", 11) == ["one", "1.25e-08"]
    assert fold("abcdefgh", 3) == ["abc", "def", "gh"]
    assert fold("", 5) == [""]


def test_entries_flow() -> None:
    entries = [[Cell("a "), Cell("1")], [Cell("b "), Cell("22")], [Cell("ok")]]
    assert ["".join(cell.text for cell in line) for line in flow(entries, 12, indent="  ")] == ["  a 1  b 22", "  ok"]


@pytest.mark.parametrize("width", range(24, 130))
def test_no_figure_is_ever_cut(width: int) -> None:
    columns = ["function", "input", "cases", "array code", "digits", ""]
    rows = cells(
        ("scaled_dot_product_attention", "query", "17", "3.1e-12", "#####", "ok"),
        ("", "position_weight", "1", "-4.25e+100", "#", "WRONG"),
    )
    lines = texts(columns, rows, width, right=[2, 3], spare=[4])
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert {"17", "3.1e-12", "1", "-4.25e+100", "ok", "WRONG"} <= set(words)


def numbers(printed: str) -> Counter[str]:
    return Counter(NUMBER.findall(printed))


def at_widths(monkeypatch: pytest.MonkeyPatch, capsys: Capture, show: object) -> list[str]:
    """The output without a limit, and at each width, where no line may be longer."""
    monkeypatch.delenv("COLUMNS", raising=False)
    show()  # type: ignore[operator]
    printed = [capsys.readouterr().out]
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        show()  # type: ignore[operator]
        printed.append(capsys.readouterr().out)
        assert max(map(len, printed[-1].splitlines())) <= width
    return printed


def test_check_shows_all_figures_at_any_width(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    found = check.run(check.select(("merge_partials", "log_softmax")), ["numpy"], "all", lambda _: None)
    wide, *narrow = at_widths(monkeypatch, capsys, lambda: check_report.show(found, ["numpy"]))
    assert len(re.findall(r"\de-\d", wide)) >= 3
    for printed in narrow:
        assert numbers(printed) == numbers(wide)


@pytest.mark.parametrize("arguments", [["info"], ["bench", "--list"]], ids=" ".join)
def test_commands_show_all_figures_at_any_width(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    wide, *narrow = at_widths(monkeypatch, capsys, lambda: cli.main(arguments))
    assert len(numbers(wide)) > 5
    for printed in narrow:
        assert numbers(printed) == numbers(wide)


@pytest.mark.parametrize("crossover", ["", "case"])
def test_bench_shows_all_figures_at_any_width(
    crossover: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    peers = ("attnarray", "torch", "onnxruntime", "torch-eager", "reference")
    rows = [row(case, peer, 0.01 * n, size=size) for case, size in (("a-long-name-of-a-case", 16), ("b", 1024))
            for n, peer in enumerate(peers, start=1)]  # fmt: skip
    rows.append(row("b", "jax", time=None, ratio=None, samples=(), problem="no gradients, and many words on why"))
    monkeypatch.chdir(tmp_path)  # the path is printed, and a longer one has numbers of its own
    path = Path("run.json")
    results.save(made_run(*rows, crossover=crossover), path)
    wide, *narrow = at_widths(monkeypatch, capsys, lambda: cli.main(["bench", "--show", str(path)]))
    for printed in narrow:
        assert numbers(printed) == numbers(wide)
    wide, *narrow = at_widths(monkeypatch, capsys, lambda: cli.main(["bench", "--compare", str(path), str(path)]))
    for printed in narrow:
        assert numbers(printed) == numbers(wide)


def test_the_table_of_all_mechanisms_at_any_width(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    counts = itertools.count(10_000, 1_234)
    outcomes = {
        name: comparison.Outcome(next(counts), 6_000, 0.987, 12.3, 4_500_000, "", np.zeros((10, 4)))
        for name in ("multi-head", "luong-concat", "convolutional")
    }
    wide, *narrow = at_widths(monkeypatch, capsys, lambda: comparison._show(outcomes, 3, 2_000))
    assert "11,234" in wide
    for printed in narrow:
        assert numbers(printed) == numbers(wide)


def test_a_path_longer_than_a_line_stays_whole() -> None:
    path = "/a/folder/whose/name/is/longer/than/the/line/run-1.json"
    assert paragraphs(f"The run is in {path} now.", 24) == ["The run is in", path, "now."]
