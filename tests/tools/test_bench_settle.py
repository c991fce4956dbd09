"""Before a sample, the threads of the peer before get time to stop waiting for work, and progress may be shown."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from attnarray.bench.runner import COLD_START_MATTERS, measure
from tests.tools.test_bench_instrument import CASE, SeededClock, peer, setting


@pytest.mark.parametrize(("share", "calls", "rests"), [(0.6, 4, 0), (1.2, 0, 9)])
def test_calls_that_do_not_count_or_before_a_long_sample_a_rest(share: float, calls: int, rests: int) -> None:
    clock, rested, ticks = SeededClock(0), [], itertools.count()
    # One reading at the start of a rest and one after each call, each a second after the one before.
    waiting = {"settle": 3.5, "now": lambda: float(next(ticks)), "sleep": rested.append}
    measure(CASE, [peer("base", share * COLD_START_MATTERS)], setting(clock=clock, rounds=9, **waiting))
    log = " ".join(clock.last.log).split("sample")[1:-1]  # the first sample says how long one takes
    assert [some.count("call") for some in log] == 9 * [calls]
    assert rested == rests * [3.5]


def test_between_samples_somebody_may_say_where_the_run_is() -> None:
    calls: list[str] = []

    class Listening(SeededClock):
        def sample(self, run: Callable[[], Any], repeats: int) -> float:
            calls.append("sample")
            return super().sample(run, repeats)

    between = {"between": lambda: calls.append("between")}
    measure(CASE, [peer("base"), peer("other")], setting(clock=Listening(0), rounds=8, **between))
    assert calls[-32:] == 16 * ["between", "sample"]
