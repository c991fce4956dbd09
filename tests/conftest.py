"""Fixtures shared by all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from attnarray import console
from attnarray.kernels.cuda import nvrtc
from tests.cuda_emulation import building
from tests.support import mpi
from tests.support.libraries import LIBRARIES, Library, marks_of

# pytest imports readline, which sets the terminal width for child processes: for workers of pytest-xdist
# and for the commands that tests start. What they print is captured, and so has no limit unless a test sets one.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
    os.unsetenv(_name)  # readline sets it behind os.environ

# The same examples in every run, so that failures are reproducible; no deadlines, as machines differ.
settings.register_profile(
    "attnarray",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("attnarray")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a compiler that is not installed, and name it. Slow tests come first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    missing = {
        "emulation": building.UNAVAILABLE,
        "nvrtc": nvrtc.MISSING if nvrtc.find() is None else "",
        "distributed": mpi.missing(),
    }
    for item in items:
        for name, reason in missing.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _no_time_passes_for_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is printed every few seconds, so more often on a busy machine. Tests of it have their own clock."""
    monkeypatch.setattr(console, "monotonic", lambda: 0.0)


@pytest.fixture(params=[pytest.param(entry, marks=marks_of(entry), id=entry.name) for entry in LIBRARIES])
def library(request: pytest.FixtureRequest) -> Library:
    """Each available array library."""
    return request.param
