"""The command: its output, its exit codes, and one line for every wrong argument."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import attnarray
from attnarray import backend, cli, console
from attnarray.backend import BackendStatus
from attnarray.ops import softmax as softmax_module

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command, run in this process.

    The line about compiled kernels is left out, as it depends on previous tests.
    """
    code = cli.main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err.replace(f"{console.COMPILING}\n", "").replace(f"{console.NOT_KEPT}\n", "")


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "rich" else find(name, *rest))
    monkeypatch.setitem(sys.modules, "rich", None)


@pytest.fixture
def wrong_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """A softmax whose backward omits the sum."""

    def forgetful(dout: Any, ctx: Any) -> Any:
        return softmax_module.SoftmaxGrads(ctx.out * dout)

    monkeypatch.setattr(softmax_module, "softmax_bwd", forgetful)


def test_check_of_right_gradients(capsys: Capture) -> None:
    code, out, err = run(capsys, "check", "--only", "softmax", "--kernels", "reference")
    assert (code, err) == (0, "")
    assert "log_softmax" in out
    assert "WRONG" not in out
    assert "gradient entries in 8 cases of 3 functions; 0 results are wrong." in out


def test_check_as_json(capsys: Capture) -> None:
    code, out, err = run(capsys, "check", "--only", "softmax", "--kernels", "reference", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["ok"] is True
    assert {row["function"] for row in report["gradients"]} == {"softmax", "log_softmax", "segment_softmax"}
    assert {row["backend"] for row in report["gradients"]} == {"numpy"}
    assert {row["kernels"] for row in report["gradients"]} == {"reference"}
    assert all(row["ok"] and row["input"] == "x" and row["error"] < 1e-8 for row in report["gradients"])
    assert report["kernels"] == []


def test_check_compares_kernels_with_the_reference(capsys: Capture) -> None:
    code, out, _ = run(capsys, "check", "--only", "merge", "--only", "attention_part", "--json")
    report = json.loads(out)
    assert code == 0
    assert {row["function"] for row in report["gradients"]} == {"attention_partial", "merge_partials"}
    if any(row["kernels"] == "numba" for row in report["gradients"]):
        results = {(row["dtype"], row["result"]) for row in report["kernels"]}
        assert {("float32", "out.out"), ("float64", "query"), ("float32", "value")} <= results


CASES_FILE = """
from typing import NamedTuple
from attnarray.cases import Case

class Halved(NamedTuple):
    factor: float

    def apply(self, scores, b, h, q_idx, kv_idx):
        return scores / 2

    def backward(self, dscores, scores, b, h, q_idx, kv_idx):
        return dscores * self.factor, self

def case(factor):
    draw = lambda rng: dict(zip(("query", "key", "value"), rng.standard_normal((3, 1, 2, 4, 3))))
    return Case("attend", f"halved {factor}", draw, {"modifiers": (Halved(factor),)})

CASES = [case(0.5), case(FACTOR)]
"""


def test_check_of_the_cases_of_a_file(tmp_path: Path, capsys: Capture) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(CASES_FILE.replace("FACTOR", "0.5"))
    wrong.write_text(CASES_FILE.replace("FACTOR", "0.6"))
    code, out, err = run(capsys, "check", "--cases", str(right), "--kernels", "reference")
    assert (code, err) == (0, "")
    assert "in 1 cases of 1 functions; 0 results are wrong." in out
    code, out, _ = run(capsys, "check", "--cases", str(wrong), "--kernels", "reference", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    found = [(result["input"], result["case"], result["ok"]) for result in report["gradients"]]
    assert found == [
        ("query", "halved 0.5", True), ("key", "halved 0.5", True), ("value", "halved 0.5", True),
        ("query", "halved 0.6", False), ("key", "halved 0.6", False), ("value", "halved 0.6", True),
    ]  # fmt: skip


def test_check_names_the_case_in_which_a_part_raises(tmp_path: Path) -> None:
    path = tmp_path / "raises.py"
    path.write_text(CASES_FILE.replace("FACTOR", "0.5").replace("return scores / 2", "raise KeyError('mine')"))
    with pytest.raises(KeyError, match="mine") as caught:
        cli.main(["check", "--cases", str(path), "--kernels", "reference"])
    assert caught.value.__notes__ == [
        "Raised by modifiers[0], a Halved.",
        "This is the case attend[halved 0.5] on numpy.",
    ]


WRONG_FILES = {
    "syntax": ("CASES = [", "cannot be run (SyntaxError: '[' was never closed"),
    "name": ("CASES = [Case]", "cannot be run (NameError: name 'Case' is not defined), expected a Python file that"),
    "nothing": ("", "has CASES = None, expected a Python file that lists attnarray.cases.Case values as CASES."),
    "no case": ("CASES = []", "has CASES = [], expected"),
    "other": ("CASES = [1]", "has CASES = [1], expected"),
    "function": (
        "from attnarray.cases import Case\nCASES = [Case('mine', 'x', dict)]",
        "has a case of 'mine', expected a differentiable function of attnarray, such as 'attend'",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG_FILES.values(), ids=list(WRONG_FILES))
def test_check_of_a_wrong_file(text: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "cases.py"
    path.write_text(text)
    code, out, err = run(capsys, "check", "--cases", str(path))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"attnarray check: {str(path)!r} ")
    assert message in err


def test_check_on_another_backend(capsys: Capture) -> None:
    code, out, _ = run(capsys, "check", "--only", "relu", "--backend", "array_api_strict", "--json")
    assert code == 0
    assert {row["backend"] for row in json.loads(out)["gradients"]} == {"array_api_strict"}


@pytest.mark.usefixtures("wrong_softmax")
def test_check_finds_a_wrong_gradient(capsys: Capture) -> None:
    code, out, _ = run(capsys, "check", "--only", "softmax", "--kernels", "reference", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["ok"] is False
    assert {row["function"]: row["ok"] for row in report["gradients"]} == {
        "softmax": False, "log_softmax": True, "segment_softmax": True,
    }  # fmt: skip
    code, out, _ = run(capsys, "check", "--only", "softmax")
    assert code == 1
    assert "WRONG" in next(line for line in out.splitlines() if line.split()[:1] == ["softmax"])
    assert "6 results are wrong" in out  # of three cases, without kernels and with them


@pytest.mark.usefixtures("without_rich")
def test_without_rich_the_tables_are_plain_text(capsys: Capture) -> None:
    assert not console.has_rich()
    code, out, err = run(capsys, "check", "--only", "relu")
    assert (code, err) == (0, "")
    header, rule, row = out.splitlines()[2:5]
    assert header.split()[:4] == ["function", "input", "cases", "entries"]
    assert set(rule) == {"-", " "}
    assert row.split()[:4] == ["relu", "x", "1", "60"]
    assert row.endswith("ok")
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "numpy" in out


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_the_progress_bar_goes_to_the_terminal_alone(
    rich: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        request.getfixturevalue("without_rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    code, out, err = run(capsys, "check", "--only", "relu", "--json")
    assert code == 0
    assert json.loads(out)["ok"]
    assert "checking" in err
    assert "1/1" in err


HELP = {
    (): ["info", "check", "demo", "examples:", "attnarray check --only attention"],
    ("info",): ["array libraries", "--json", "examples:", "attnarray info --json"],
    ("check",): [
        "central differences",
        "Exit code 1",
        "--kernels",
        "--only TEXT",
        "examples:",
        "attnarray check --json",
    ],
    ("demo",): ["ISO 8601", "--attention NAME", "--all", "--picture FILE", "examples:", "attnarray demo --all"],
}


@pytest.mark.parametrize(("command", "words"), HELP.items(), ids=[" ".join(command) or "attnarray" for command in HELP])
def test_help_is_worth_reading(command: tuple[str, ...], words: list[str], capsys: Capture) -> None:
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, flag])
        printed = capsys.readouterr()
        assert ended.value.code == 0
        assert printed.err == ""
        assert printed.out.startswith(f"usage: {' '.join(['attnarray', *command])}")
        for word in words:
            assert word in " ".join(printed.out.split())
        assert len(printed.out.splitlines()) >= 7
        assert all(len(line) <= 110 for line in printed.out.splitlines())


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"attnarray {attnarray.__version__}\n"


WRONG = {
    "no command": ([], "attnarray: the following arguments are required: COMMAND. See attnarray --help."),
    "command": (["frobnicate"], "invalid choice: 'frobnicate' (choose from"),
    "option": (["info", "--verbose"], "unrecognized arguments: --verbose"),
    "backend": (
        ["check", "--backend", "nope"],
        "nknown backend 'nope'",
    ),
    "backend of the demo": (["demo", "--backend", "nope"], "nknown backend 'nope'"),
    "kernels": (["check", "--kernels", "fast"], "attnarray check: argument --kernels: invalid choice: 'fast'"),
    "kernels of the demo": (
        ["demo", "--kernels", "fast"],
        "attnarray demo: argument --kernels: invalid choice: 'fast'",
    ),
    "only": (
        ["check", "--only", "nothing"],
        "No function matches nothing. Known functions: scaled_dot_product_attention,",
    ),
    "no file": (["check", "--cases", "none.py"], "attnarray check: 'none.py' cannot be run (FileNotFoundError: "),
    "only what": (["check", "--only"], "argument --only: expected one argument. See attnarray check --help."),
    "no epochs": (["demo", "--epochs", "0"], "argument --epochs: '0' is not a whole number above 0"),
    "no text": (["check", "--only", ""], "No function matches ''. Known functions: scaled_dot_product_attention,"),
    "no name": (["check", "--backend", ""], "nknown backend ''"),
    "a power of epochs": (["demo", "--epochs", "\N{SUPERSCRIPT TWO}"], "is not a whole number above 0"),
    "digits of another script": (["demo", "--seed", "\N{THAI DIGIT TWO}"], "is not a whole number from 0 to 2^64 - 1"),
    "too many digits": (["demo", "--dates", "1" * 5000], "is not a whole number above 0"),
    "half an epoch": (["demo", "--epochs", "0.5"], "argument --epochs: '0.5' is not a whole number above 0"),
    "negative dates": (["demo", "--dates", "-3"], "argument --dates: '-3' is not a whole number above 0"),
    "seed": (["demo", "--seed", "x"], "argument --seed: 'x' is not a whole number from 0 to 2^64 - 1"),
    "negative seed": (["demo", "--seed", "-1"], "argument --seed: '-1' is not a whole number"),
    "long seed": (["demo", "--seed", str(2**64)], f"'{2**64}' is not a whole number from 0 to 2^64 - 1"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_wrong_arguments_get_one_line_and_code_2(arguments: list[str], message: str, capsys: Capture) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("attnarray")
    assert message in err


@pytest.mark.parametrize("command", ["check", "demo"])
def test_a_missing_backend_gets_one_line(command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    status = backend._status
    missing = BackendStatus("cupy", False, "", "", "no device")
    monkeypatch.setattr(backend, "_status", lambda name: missing if name == "cupy" else status(name))
    code, out, err = run(capsys, command, "--backend", "cupy")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "ackend 'cupy' cannot be used here: no device" in err


def test_output_that_cannot_be_written_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "run.json")

    monkeypatch.setattr("attnarray.check.check_gradients", full)
    code, _, err = run(capsys, "check", "--only", "relu")
    assert code == 1
    assert err.splitlines()[-1] == "attnarray: [Errno 28] No space left on device: 'run.json'"


@pytest.mark.parametrize("columns", ["\N{SUPERSCRIPT TWO}", "x", "-5", "", "0", "\N{THAI DIGIT TWO}"])
def test_columns_that_are_no_number(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert console.width() == console.UNLIMITED
    monkeypatch.setenv("COLUMNS", "1" * 5000)
    assert console.width() == 111_111_111


def test_ctrl_c_shows_no_traceback(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("attnarray.check.check_gradients", interrupted)
    code, _, err = run(capsys, "check", "--only", "relu")
    assert code == 130
    assert err.splitlines()[-1] == "attnarray: interrupted"
