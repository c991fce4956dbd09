"""`attnarray bench` as a command: what it prints and writes, its exit codes, one line for every wrong argument."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnarray.bench import listing, machine, preflight, results, selection, session
from attnarray.bench.catalog import CASES, GROUPS, LONG, QUICK
from attnarray.bench.peers import PEERS
from attnarray.bench.results import SCHEMA, Row
from attnarray.bench.statistics import FEWEST_ROUNDS
from attnarray.ops import softmax as softmax_module
from tests.support.bench_runs import CEILINGS, SMALL, Capture, row, run
from tests.support.paths import ROOT


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings, load and the check are replaced: they have other tests."""
    monkeypatch.setattr(machine, "measure_ceilings", lambda *_: CEILINGS)
    monkeypatch.setattr(machine, "gemm_again", lambda *_: 1e11)
    monkeypatch.setattr(machine, "busy", lambda _: "")
    monkeypatch.setattr(preflight, "first_wrong", lambda *_: "")


@pytest.mark.usefixtures("known_machine")
def test_a_run_prints_and_writes_everything(tmp_path: Path, capsys: Capture) -> None:
    files = {name: str(tmp_path / f"run.{name}") for name in ("json", "markdown")}
    code, out, _ = run(capsys, *SMALL, "--json", files["json"], "--markdown", files["markdown"])
    assert code == 0
    for words in ("tiny-4-d8", "attnarray", "vs reference", "roofline", "Ceilings: float32 product 100 GFLOP/s"):
        assert words in out
    assert len(re.findall(r"^  (attnarray|reference|naive) +[\d.]+ (ns|µs|ms)", out, re.MULTILINE)) == 3
    saved = json.loads(Path(files["json"]).read_text())
    assert (saved["schema"], saved["complete"], saved["baseline"]) == (SCHEMA, True, "reference")
    assert [entry["peer"] for entry in saved["rows"]] == ["attnarray", "reference", "naive"]
    assert {len(entry["samples"]) for entry in saved["rows"]} == {FEWEST_ROUNDS}
    page = Path(files["markdown"]).read_text()
    assert "### tiny: " in page
    assert page.count("| tiny-4-d8<br>forward, float32<br>B1 H2 T4 S4 D8 |") == 1


@pytest.mark.usefixtures("known_machine")
def test_a_file_names_no_folder_user_or_host(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "run.json"
    assert run(capsys, *SMALL, "--json", str(path))[0] == 0
    saved = path.read_text()
    environment = json.loads(saved)["environment"]
    assert {"cpu", "cpus", "threads", "numpy", "attnarray", "python", "blas", "date", "load", "warm-up"} <= set(
        environment
    )
    hidden = {str(tmp_path), str(Path.home()), os.uname().nodename if hasattr(os, "uname") else "/nowhere"}
    assert not [name for name in hidden if len(name) > 3 and name in saved]
    assert environment["command"] == " ".join(SMALL).replace("bench", "attnarray bench --quick", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "prefil-384"], "unknown case 'prefil-384'; near names: prefill-384-d64"),
        (["--only", "tiny", "zzz"], "unknown case 'zzz'; attnarray bench --list shows all"),
        (["--group", "decoding"], "unknown group 'decoding'; near names: decode"),
        (["--group", "tiny", "--only", "prefill"], "no case is both in tiny and named prefill"),
        (["--peers", "pytorch"], "unknown peer 'pytorch'; near names: torch"),
        (["--peers", "naive", "--baseline", "reference"], "the baseline 'reference' is not among the peers naive"),
        (["--baseline", "torsch"], "unknown peer 'torsch'; near names: torch"),
        (["--backend", "cuda"], "unknown backend 'cuda'; "),
        (["--crossover", "merge_partials"], "case 'merge_partials' has one size"),
        (["--crossover", "causal"], "case 'causal' is not one: causal-512-d64, "),
        (["--crossover", "casual-512-d64"], "unknown case 'casual-512-d64'; near names: causal-512-d64"),
        (["--threads", "0"], "--threads 0: expected 1 to "),
        (["--threads", "100000"], "--threads 100000: expected 1 to "),
        (["--rounds", "3"], f"--rounds 3: expected at least {FEWEST_ROUNDS}"),
        (["--rounds", "many"], "invalid int value: 'many'"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at/all.json cannot be written: its folder does not exist"),
        (["--json", "/"], "--json / cannot be written: it is a folder"),
        (["--json", ""], "--json '' cannot be written: it is a folder"),
        (["--json", os.devnull], f"--json {os.devnull} cannot be written: it is a device or a pipe"),
        (["--plot", ""], "--plot '' cannot be written"),
        (["--show", ""], "cannot read "),
        (["--crossover", ""], "case '' is not one: "),
        (["--only", ""], "unknown case ''"),
        (["--markdown", "/nowhere/at/all.md"], "its folder does not exist"),
        (["--plot", "bars.pdf"], "--plot bars.pdf cannot be written: expected a name that ends with .png or .svg"),
        (["--show", "/nowhere/at/all.json"], "cannot read /nowhere/at/all.json: No such file"),
        (["--quick", "--full"], "not allowed with argument"),
        (["--list", "--crossover", "tiny-4-d8"], "not allowed with argument"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_one_line_and_nothing_is_measured(
    arguments: list[str], words: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "measure", lambda *_: pytest.fail("it measured"))
    code, out, err = run(capsys, "bench", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_folder_that_may_not_be_written(tmp_path: Path, capsys: Capture) -> None:
    tmp_path.chmod(0o500)
    code, _, err = run(capsys, "bench", "--json", str(tmp_path / "run.json"))
    tmp_path.chmod(0o700)
    assert code == 2
    assert "cannot be written: Permission denied" in err


def test_a_missing_peer_or_matplotlib(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hidden = ("torch", "matplotlib")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))
    code, _, err = run(capsys, "bench", "--peers", "torch")
    assert (code, err.count("\n")) == (2, 1)
    assert "peer 'torch' cannot be used here: torch not installed: pip install torch (its build" in err
    code, _, err = run(capsys, "bench", "--plot", "bars.png")
    assert (code, err.count("\n")) == (2, 1)
    assert "--plot needs matplotlib" in err
    chosen, absent = selection.select_peers([], "numpy")
    assert "torch" in absent
    assert selection.select_baseline(None, chosen) == "reference"


def test_no_figures_over_a_wrong_gradient(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(dout: Any, ctx: Any) -> Any:
        return softmax_module.SoftmaxGrads(ctx.out * dout)

    monkeypatch.setattr(softmax_module, "softmax_bwd", forgetful)
    monkeypatch.setattr(session, "measure", lambda *_: pytest.fail("it measured"))
    path = tmp_path / "run.json"
    code, out, err = run(capsys, "bench", "--only", "softmax", "--peers", "reference", "--json", str(path))
    assert (code, out) == (1, "")
    assert "no figures, because the check fails: the gradient of x in softmax[last axis] by array code is off" in err
    assert not path.exists()


@pytest.mark.slow
def test_the_check_passes_on_what_is_to_be_measured() -> None:
    assert preflight.first_wrong({case.function for case in CASES}, "numpy") == ""


@pytest.mark.usefixtures("known_machine")
def test_a_wrong_result_of_ours_is_the_exit_code(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = row(peer="attnarray", time=None, ratio=None, samples=(), problem="wrong: the output is off")
    monkeypatch.setattr(session, "measure", lambda *_: [wrong])
    code, out, _ = run(capsys, *SMALL)
    assert code == 1
    assert "wrong: the output is off" in out


@pytest.mark.usefixtures("known_machine")
def test_an_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def measure(case: Any, *_: Any) -> list[Row]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return [row(case.name)]

    monkeypatch.setattr(session, "measure", measure)
    path = tmp_path / "run.json"
    code, out, err = run(capsys, "bench", "--group", "tiny", "--peers", "attnarray", "--json", str(path))
    assert code == 130
    assert "Interrupted: 2 of 3 cases are measured." in err
    saved = results.load(path)
    assert list(saved.cases()) == ["tiny-4-d8", "tiny-64-d32"]
    assert not saved.complete
    assert "tiny-64-d32" in out
    assert str(path) in out


@pytest.mark.usefixtures("known_machine")
def test_the_full_set_leaves_out_what_is_too_long(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*arguments: str) -> set[str]:
        names: set[str] = set()
        monkeypatch.setattr(session, "measure", lambda case, *_: [names.add(case.name) or row(case.name)])
        assert run(capsys, "bench", "--peers", "attnarray", *arguments)[0] == 0
        return names

    every, long, quick = ({case.name for case in cases} for cases in (CASES, LONG, QUICK))
    assert long
    assert measured("--full") == every - long
    assert not measured("--full", "--group", "training") & long
    assert measured() == quick
    assert not quick & long
    for name in long:
        assert measured("--only", name) == measured("--full", "--only", name) == {name}
    assert measured("--only", "long") == long


@pytest.mark.usefixtures("known_machine")
def test_each_case_is_saved_at_once(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "run.json", []

    def measure(case: Any, *_: Any) -> list[Row]:
        seen.append(len(results.load(path).rows) if path.exists() else 0)
        return [row(case.name)]

    monkeypatch.setattr(session, "measure", measure)
    assert run(capsys, "bench", "--group", "tiny", "--peers", "attnarray", "--json", str(path))[0] == 0
    assert seen == [0, 1, 2]


@pytest.mark.usefixtures("known_machine")
def test_a_machine_that_changed_speed_is_reported(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "measure", lambda case, *_: [row(case.name)])
    monkeypatch.setattr(machine, "gemm_again", lambda *_: 0.7e11)
    monkeypatch.setattr(machine, "busy", lambda _: "Others compute here.")
    _, _, err = run(capsys, *SMALL)
    assert "Others compute here." in err
    assert "30 % slower at the end" in err


@pytest.mark.usefixtures("known_machine")
def test_the_crossover_leaves_out_slow_peers(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, list[str]]] = []

    def measure(case: Any, peers: Any, *_: Any) -> list[Row]:
        asked.append((case.size, [peer.name for peer in peers]))
        return [row(case.name, peer.name, 0.5 if peer.name == "naive" else 0.01, size=case.size) for peer in peers]

    monkeypatch.setattr("attnarray.bench.crossover.measure", measure)
    code, out, _ = run(capsys, "bench", "--crossover", "tiny-4-d8", "--peers", "reference", "naive")
    assert code == 0
    assert asked == [(16, ["reference", "naive"]), *((2**n, ["reference"]) for n in range(5, 11))]
    assert "16 to 1024: reference" in out


def test_the_list_names_every_case_group_and_peer(capsys: Capture) -> None:
    listing.show()
    out = capsys.readouterr().out
    assert not [name for name in (*(case.name for case in CASES), *GROUPS, *PEERS) if name not in out]


def test_adding_the_command_loads_nothing_that_takes_time() -> None:
    code = "import sys, attnarray.cli; attnarray.cli._parser(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout.split()  # fmt: skip
    assert [name for name in loaded if name.startswith("attnarray.bench")] == [
        "attnarray.bench", "attnarray.bench.command",
    ]  # fmt: skip
