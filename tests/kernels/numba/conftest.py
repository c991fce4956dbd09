"""Fixtures of the tests of CPU kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attnarray.kernels.numba.attention import tiled
from attnarray.kernels.numba.runtime import team_code as code
from attnarray.kernels.numba.runtime import threads
from tests.support.thread_calls import THREADS, teams, word


@pytest.fixture
def always_parallel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Even the smallest call is split over threads, also where an earlier one was planned for one thread."""
    tiled._plan.cache_clear()
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    return monkeypatch


@pytest.fixture
def few_threads(always_parallel: pytest.MonkeyPatch) -> Iterator[None]:
    """Every call is split over THREADS threads, and none of them is still at work in the end."""
    always_parallel.setenv("ATTNARRAY_NUM_THREADS", str(THREADS))
    yield
    assert not any(word(team, code.BUSY) for team in teams())
