"""Before a sample, the threads of the peer before get time to stop waiting for work."""

from __future__ import annotations

import pytest
from test_bench_instrument import CASE, SeededClock, peer, setting

from attnarray.bench import runner
from attnarray.bench.runner import COLD_START_MATTERS, measure


@pytest.mark.parametrize("share", [0.6, 1.2])
def test_calls_that_do_not_count_or_before_a_long_sample_a_rest(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rested = SeededClock(0), []
    monkeypatch.setattr(runner.time, "sleep", rested.append)
    measure(CASE, [peer("base", share * COLD_START_MATTERS)], setting(clock=clock, rounds=9, settle=0.001))
    calls = " ".join(clock.last.log).split("sample")[1:-1]  # the first sample says how long one takes
    assert rested == ([] if share < 1 else 9 * [0.001])
    assert [some.count("call") > 20 for some in calls] == 9 * [share < 1]
