"""The command that checks the kernels on a GPU reports if there is none, and keeps the results of each stage."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnarray.kernels.cuda import unavailable
from tests.support.paths import ROOT

HANGING = 600  # seconds; the limits of the command are those of a GPU machine where nothing else runs


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "benchmarks").exists():
        pytest.skip("this copy of the sources has no benchmarks")
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.skipif(not unavailable(), reason="there is a GPU")
def test_without_a_gpu_each_stage_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu_check

    for name in ("device", "rows"):
        monkeypatch.setitem(gpu_check.STAGES, name, gpu_check.STAGES[name]._replace(seconds=HANGING))
    target = tmp_path / "found.json"
    assert gpu_check.main(["--only", "device", "rows", "--output", str(target)]) == 2
    found = json.loads(target.read_text())
    assert list(found["stages"]) == ["device", "rows"]
    assert found["exit_code"] == 2
    for stage in found["stages"].values():
        assert stage["status"] == "no GPU"
        assert stage["reason"] in (unavailable(), stage["reason"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["device", "rows"]


def test_every_stage_exists() -> None:
    from benchmarks.gpu_check import STAGES

    for name, stage in STAGES.items():
        assert callable(getattr(importlib.import_module(f"benchmarks.{stage.module}"), name))
    assert sum(stage.seconds for stage in STAGES.values()) <= 600


def test_exit_codes() -> None:
    from benchmarks.gpu_check import FAILED, NO_GPU, NOT_RUN, PASSED, TIMED_OUT, exit_code

    assert exit_code([PASSED, NOT_RUN]) == 0
    assert exit_code([PASSED, NO_GPU]) == 2
    assert exit_code([NO_GPU, TIMED_OUT]) == exit_code([FAILED]) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no /bin/false")
def test_a_crash_or_a_hang_affects_its_stage_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_check

    monkeypatch.setitem(gpu_check.STAGES, "device", gpu_check.Stage("no_such_module", HANGING, ""))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = gpu_check.run_stage("device")
    assert found["status"] == "failed"
    assert found["reason"].startswith("the process ended with code 1")


@pytest.mark.slow
def test_the_suite_is_run_and_its_failures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_check_suite

    test = tmp_path / "test_some.py"
    test.write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'one is not two'\n"
        "def test_left_out(): pytest.skip('not here')\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    monkeypatch.setattr(gpu_check_suite, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check_suite, "SECONDS", HANGING)
    found = gpu_check_suite.suite()
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert len(found["wrong"]) == 1
    assert "test_bad: AssertionError: one is not two" in found["wrong"][0]
    test.write_text("")
    assert gpu_check_suite.suite()["wrong"] == "no test ran"
    test.write_text("import time\nimport pytest\n@pytest.mark.gpu\ndef test_long(): time.sleep(600)\n")
    monkeypatch.setattr(gpu_check_suite, "SECONDS", 2)
    assert gpu_check_suite.suite()["wrong"].startswith("not done after 2 seconds")


def test_examples_are_run_and_those_that_fail_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_check_suite
    from benchmarks.gpu_check_suite import examples

    pytest.importorskip("networkx")
    monkeypatch.setattr(gpu_check_suite, "EXAMPLE_SECONDS", HANGING)
    found = examples("numpy", ["karate", "no_such_program"])
    assert found["passed"] == ["karate"]
    assert len(found["wrong"]) == 1
    assert found["wrong"][0].startswith("no_such_program: code 2")
    assert examples("no_such_library", ["karate"])["wrong"][0].startswith("karate: code 1")


def test_examples_that_all_lack_a_package_have_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_check_suite
    from benchmarks.gpu_check import NotRunError

    seen: list[str] = []

    def lacking(backend: str, names: list[str], folder: str) -> list[subprocess.CompletedProcess[str]]:
        seen.extend(names)
        return [subprocess.CompletedProcess([], 1, "", "ModuleNotFoundError: No module named 'some'") for _ in names]

    monkeypatch.setattr(gpu_check_suite, "_run_examples", lacking)
    with pytest.raises(NotRunError, match="karate: ModuleNotFoundError"):
        gpu_check_suite.examples()
    assert {"digits", "karate", "language_model", "text_classification", "translation"} <= set(seen)
    assert "induction" not in seen  # which takes no backend
