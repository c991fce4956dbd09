"""`attnarray info`: the machine first, then available backends, and each reason for a missing one once."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

import attnarray
from attnarray import info, info_report
from attnarray.backend import BackendStatus
from tests.support.bench_runs import Capture, run


def test_info_leads_with_the_machine(capsys: Capture) -> None:
    code, out, err = run(capsys, "info")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1] == "Machine"
    named = [line.split("  ")[0] for line in lines[2:]]
    for name in ("CPU", "cores", "memory", "attnarray", "Python", "system", "NumPy", "BLAS", "Numba"):
        assert name in named[:12]
    for word in (attnarray.__version__, np.__version__, info.cpu_model()):
        assert word in out
    titles = [out.index(f"\n{title}") for title in ("Machine", "Backends", "Kernels")]
    assert titles == sorted(titles)


def made_facts(*kernels: tuple[str, str, str], gpu: bool = False) -> dict[str, Any]:
    facts = info.collect()
    statuses = [{"function": name, "backend": backend, "reason": reason} for name, backend, reason in kernels]
    tiles = [{"kernel": "forward", "calls": "plain", "bytes": 2, "dim": 64, "rows": "128 rows by 96"}] if gpu else []
    return {**facts, "kernels": statuses, "tensor core tiles": tiles}


def test_info_says_once_why_a_backend_is_missing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    facts = made_facts(
        ("a", "numba", ""), ("a", "cuda", "no CUDA device"), ("b", "cuda", "no CUDA device"), ("c", "numba", "too old")
    )
    info_report.show(facts)
    out = capsys.readouterr().out
    assert out.count("no CUDA device") == 1
    assert "None of the 2 cuda kernels can be used: no CUDA device." in out
    table = out[out.index("\nKernels") :].splitlines()[2:]
    assert [line.split("  ", 1)[0] for line in table if line] == ["function", "-" * 8, "a", "c", table[-1]]
    assert "too old" in out
    assert "tensor cores" not in out


def test_info_tells_the_quota_of_a_container(capsys: Capture) -> None:
    facts = made_facts(("a", "numba", ""))
    facts["machine"] |= {"cores": 64, "usable cores": 2, "quota of cores": 1.5}
    info_report.show(facts)
    assert re.search(
        r"^cores +2 usable of 64 \(the container's quota is 1\.5\)$", capsys.readouterr().out, re.MULTILINE
    )


@pytest.mark.parametrize(("precompiled", "title"), [("x86-64-v3", "compiled"), ("none: not in this wheel", "numba")])
def test_info_calls_kernels_as_use_kernels_does(precompiled: str, title: str, capsys: Capture) -> None:
    facts = made_facts(("a", "numba", ""))
    facts["here"] |= {"precompiled kernels": precompiled}
    info_report.show(facts)
    out = capsys.readouterr().out
    assert out[out.index("\nKernels") :].splitlines()[2].split() == ["function", title]


def test_info_where_everything_is_there(capsys: Capture) -> None:
    info_report.show(made_facts(("a", "numba", ""), ("a", "cuda", ""), ("b", "cuda", ""), gpu=True))
    out = capsys.readouterr().out
    assert "None of" not in out
    rows = {line[:1]: line.split()[1:] for line in out.splitlines() if re.match("[ab] .*ready", line)}
    assert rows["a"] == ["ready", "ready"]
    assert rows["b"] == ["none", "ready"]
    assert "128 rows by 96" in out


def test_info_says_why_a_backend_is_missing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = [BackendStatus("numpy", True, "2.0", "CPU", ""), BackendStatus("cupy", False, "", "", "no CUDA device")]
    monkeypatch.setattr("attnarray.info.available_backends", lambda: statuses)
    code, out, _ = run(capsys, "info")
    row = next(line for line in out.splitlines() if line.startswith("cupy"))
    assert code == 0
    assert "no CUDA device" in row


@pytest.mark.parametrize("gpu", [False, True])
def test_info_as_json(gpu: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = BackendStatus("cupy", gpu, "14.2", "H200" if gpu else "", "" if gpu else "no GPU")
    statuses = [BackendStatus("numpy", True, "2.0", "CPU", ""), cupy]
    monkeypatch.setattr("attnarray.info.available_backends", lambda: statuses)
    code, out, err = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert list(facts) == ["machine", "here", "backends", "kernels", "tensor core tiles"]
    assert facts["machine"]["gpus"] == (["H200"] if gpu else [])
    assert facts["machine"]["cpu"]
    assert facts["machine"]["usable cores"] >= 1
    assert facts["backends"][0]["name"] == "numpy"
    assert [row["kernel"] for row in facts["tensor core tiles"][:1]] == (["forward"] if gpu else [])
    assert facts["here"]["attnarray"] == attnarray.__version__
    assert facts["here"]["numpy"] == np.__version__
    for row in (*facts["backends"], *facts["kernels"]):
        assert isinstance(row["reason"], str)
