"""Artificial benchmark results, for tests of reports."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from attnarray import cli
from attnarray.bench import machine
from attnarray.bench.results import Results, Row
from attnarray.bench.statistics import FEWEST_ROUNDS, Ratio, Spread

Capture = pytest.CaptureFixture[str]
SMALL = ("bench", "--only", "tiny-4-d8", "--peers", "attnarray", "reference", "naive", "--rounds", str(FEWEST_ROUNDS))
CEILINGS = machine.Ceilings({"float32": 1e11, "float64": 5e10}, 1e10, {"float32": 1e9, "float64": 5e8})


def run(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def row(case: str = "a", peer: str = "torch", seconds: float = 0.01, **changes: Any) -> Row:
    made = Row(
        case, "tiny", "B1 H2", "scaled_dot_product_attention", "forward", "float32", 16, peer,
        samples=tuple(seconds * (1 + 0.01 * (n % 3)) for n in range(9)), repeats=3, first_call=0.5, peak_bytes=4096,
        error=1e-7, time=Spread(seconds, 0.99 * seconds, 1.02 * seconds), ratio=Ratio(seconds / 0.01, 0.5, 2.5),
        roofline=0.001, flops=1e6, bytes=1e5, exps=1e4,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def made_run(*rows: Row, crossover: str = "") -> Results:
    environment = {
        "date": "2026-01-02T03:04:05+00:00", "command": "attnarray bench", "backend": "numpy", "device": "",
        "cpu": "A CPU", "cpus": 2, "threads": 2, "attnarray": "0.1.0", "load": 0.0,
    }  # fmt: skip
    return Results(environment, CEILINGS._asdict(), "torch", list(rows), crossover, True)
