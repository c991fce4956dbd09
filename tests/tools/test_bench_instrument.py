"""Tests of the measurement: real differences are found, no others are, and wrong results are refused."""

from __future__ import annotations

import gc
import itertools
import mmap
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnarray.bench import memory
from attnarray.bench.cases import sdpa, triple
from attnarray.bench.clock import CudaClock, HostClock
from attnarray.bench.machine import Ceilings
from attnarray.bench.peers import PEERS, Call, Peer, Problem, Unsupported
from attnarray.bench.peers.naive import prepare as prepare_naive
from attnarray.bench.results import Row
from attnarray.bench.runner import COLD_START_MATTERS, MOST_REPEATS, SHORTEST_SAMPLE, Setting, measure
from attnarray.bench.statistics import FEWEST_ROUNDS, paired_ratio, unpaired_ratio

CASE = sdpa("small", "tiny", H=2, T=5, S=7, D=4)
NOISE = 0.02  # the spread of one sample, as on a quiet machine
RUNS = 20


class Work:
    """A call of known duration with the right result."""

    def __init__(self, call: Call, seconds: float) -> None:
        self.call, self.seconds, self.log = call, seconds, []

    def __call__(self) -> Any:
        self.log.append("call")
        return self.call.run()


class SeededClock:
    """A clock that adds the known durations of calls, noise that is never negative, and a slowdown of the machine."""

    def __init__(self, seed: int, noise: float = NOISE, drift: float = 1e-3) -> None:
        self.rng, self.noise, self.drift, self.samples = random.Random(seed), noise, drift, 0

    def sample(self, run: Callable[[], Any], repeats: int) -> float:
        if not isinstance(run, Work):  # the very first call, which is checked and not compared
            run()
            return 1.0
        self.samples, self.last = self.samples + 1, run
        run.log.append("sample")
        disturbance = abs(self.rng.gauss(0, self.noise)) + (0.5 if self.rng.random() < 0.02 else 0.0)
        return run.seconds * (1 + self.drift * self.samples) * (1 + disturbance)

    def synchronize(self) -> None:
        pass


def peer(name: str, seconds: float = 0.01, change: Callable[[Any], Any] = lambda result: result) -> Peer:
    """A peer that computes like the naive one, with this duration on a `SeededClock`, and changes its result."""

    def prepare(problem: Problem) -> Call:
        call = prepare_naive(problem)
        return Call(Work(call, seconds), lambda result: change(call.named(result)))

    return Peer(name, "made for a test", prepare)


def setting(seed: int = 0, **changes: Any) -> Setting:
    given: dict[str, Any] = {"seed": seed, "clock": SeededClock(seed), "memory": lambda run, backend: None, **changes}
    return Setting("base", **given)


def compared(length: float, seed: int, **changes: Any) -> Row:
    """The row of a peer of that duration, with a baseline of 10 ms."""
    return measure(CASE, [peer("base"), peer("other", length)], setting(seed, **changes))[1]


@pytest.mark.parametrize("rounds", [FEWEST_ROUNDS, 15, 25])
def test_identical_functions_do_not_differ(rounds: int) -> None:
    ratios = [compared(0.01, seed, rounds=rounds).ratio for seed in range(RUNS)]
    holding = sum(ratio.low <= 1 <= ratio.high for ratio in ratios)
    assert holding >= RUNS - 1, f"the interval holds 1 in {holding} of {RUNS} runs"


@pytest.mark.parametrize("length", [0.011, 0.009])
def test_a_change_of_ten_percent_is_detected(length: float) -> None:
    for seed in range(RUNS):
        ratio = compared(length, seed, rounds=15).ratio
        assert (ratio.low > 1) == (length > 0.01)
        assert (ratio.high < 1) == (length < 0.01)
        assert ratio.value == pytest.approx(length / 0.01, abs=2 * NOISE)


@pytest.mark.parametrize("rounds", [FEWEST_ROUNDS, 10, 11, 15, 25])
@pytest.mark.parametrize("ratio_of", [paired_ratio, unpaired_ratio])
def test_the_interval_holds_the_true_ratio_in_95_of_100_runs(ratio_of: Any, rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    holding = 0
    for seed in range(400):
        # Heavy tails on one side: a sample can be disturbed, but it cannot be faster than the machine.
        ours, theirs = 1 + 0.03 * np.abs(rng.standard_t(3, (2, rounds)))
        found = ratio_of(list(1.2 * ours), list(theirs), seed)
        holding += found.low <= 1.2 <= found.high
    assert holding >= 380


def test_drift_of_the_machine_cancels() -> None:
    slowing = SeededClock(3, drift=0.02)  # 2 % of the first sample more with each
    row = compared(0.011, 3, rounds=25, clock=slowing)
    assert row.samples[-1] > 1.25 * row.samples[0]
    assert row.ratio.low > 1.05
    assert row.ratio.high < 1.15


def test_few_rounds_give_a_ratio_without_interval() -> None:
    row = compared(0.2, 0, seconds=0.001)
    assert len(row.samples) == 3
    assert row.ratio.value > 10
    assert row.ratio.low is None
    assert row.ratio.high is None


def test_every_round_holds_every_peer_once_in_changing_order() -> None:
    order: list[str] = []

    class Listening(SeededClock):
        def sample(self, run: Callable[[], Any], repeats: int) -> float:
            if isinstance(run, Work):
                order.append(names[id(run)])
            return super().sample(run, repeats)

    names: dict[int, str] = {}

    def named(name: str) -> Peer:
        def prepare(problem: Problem) -> Call:
            call = peer(name).prepare(problem)
            names[id(call.run)] = name
            return call

        return Peer(name, "", prepare)

    measure(CASE, [named("base"), named("b"), named("c")], setting(clock=Listening(0), rounds=10))
    rounds = [tuple(order[n : n + 3]) for n in range(len(order) - 30, len(order), 3)]
    assert all(sorted(each) == ["b", "base", "c"] for each in rounds)
    assert len(set(rounds)) > 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: {"out": 1.01 * found["out"]}, "wrong: the output is off by 1e-02"),
        (lambda found: {"out": found["out"].swapaxes(1, 2)}, "wrong: the output has shape (1, 5, 2, 4)"),
        (lambda found: {"out": np.where(found["out"] == found["out"].max(), np.nan, found["out"])}, "off by inf"),
        (lambda found: {}, "the output is missing"),
    ],
)
def test_a_wrong_output_is_shown_and_not_timed(change: Any, words: str) -> None:
    right, wrong = measure(CASE, [peer("base"), peer("wrong", change=change)], setting())
    assert words in wrong.problem
    assert wrong.time is None
    assert not wrong.samples
    assert right.time is not None


@pytest.mark.parametrize("direction", ["backward", "both"])
@pytest.mark.parametrize("gradient", ["query", "key", "value"])
def test_a_wrong_gradient_is_refused(direction: str, gradient: str) -> None:
    case = sdpa("small", "tiny", H=2, T=5, S=7, D=4, direction=direction)
    change = lambda found: {**found, gradient: -found[gradient]}  # noqa: E731
    rows = measure(case, [peer("base"), peer("wrong", change=change)], setting())
    assert rows[0].time is not None
    assert rows[1].problem.startswith(f"wrong: the gradient of {gradient} is off by 2")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate  64 GiB\nand advice"), "MemoryError: Unable to allocate 64 GiB"),
        (RuntimeError(""), "RuntimeError"),
        (Unsupported("no gradients"), "no gradients"),
    ],
)
@pytest.mark.parametrize("when", ["prepare", "first", "later"])
def test_a_peer_that_raises_is_a_row(error: Exception, words: str, when: str) -> None:
    def prepare(problem: Problem) -> Call:
        if when == "prepare":
            raise error
        call, calls = prepare_naive(problem), iter(range(100))

        def run() -> Any:
            if next(calls) >= (0 if when == "first" else 8):
                raise error
            return call.run()

        return Call(run, call.named)

    class Calling(SeededClock):
        def sample(self, run: Callable[[], Any], repeats: int) -> float:
            run()
            return super().sample(run, repeats)

    broken = Peer("broken", "", prepare)
    rows = measure(CASE, [broken, peer("base")], setting(clock=Calling(0), rounds=15))
    assert rows[0].problem.endswith(words)
    assert rows[0].time is None
    assert len(rows[1].samples) == 15


def test_no_figures_without_a_reference() -> None:
    impossible = triple("softmax", x=(2**40, 2**20))
    rows = measure(impossible, [PEERS["attnarray"], PEERS["reference"]], setting())
    assert all(row.problem.startswith("no result to compare with: ") for row in rows)


def test_dropout_is_judged_without_it_where_the_bits_are_the_peers_own() -> None:
    case = sdpa("dropout", "special", H=2, T=6, D=4, dropout_p=0.5, rng=1)
    rows = measure(case, [PEERS["attnarray"], PEERS["naive"]], setting())
    assert [row.problem for row in rows] == ["", ""]


def test_the_real_clock_gives_whole_rows() -> None:
    peers = [PEERS["reference"], PEERS["naive"], PEERS["attnarray"]]
    ceilings = Ceilings({"float32": 1e11, "float64": 5e10}, 1e10, {"float32": 1e9, "float64": 5e8})
    for row in measure(CASE, peers, Setting("reference", rounds=FEWEST_ROUNDS, ceilings=ceilings)):
        assert row.problem == ""
        assert len(row.samples) == FEWEST_ROUNDS
        assert min(row.samples) > 0
        assert 1 <= row.repeats <= MOST_REPEATS
        assert row.time.low <= row.time.median <= row.time.high
        assert row.ratio.low <= row.ratio.value <= row.ratio.high
        assert row.first_call > 0
        assert row.error < 1e-5
        assert row.kernels == ("" if row.peer == "naive" else row.kernels or "missing")
        assert row.roofline == pytest.approx(max(row.flops / 1e11, row.bytes / 1e10, row.exps / 1e9))
        assert (row.peak_bytes is None) == (not memory.CLEAR.exists())


@pytest.mark.parametrize(("share", "each"), [(0.6, ["call", "sample"]), (1.2, ["sample"])])
def test_a_short_sample_is_taken_right_after_a_call_that_does_not_count(share: float, each: list[str]) -> None:
    clock = SeededClock(0)
    measure(CASE, [peer("base", share * COLD_START_MATTERS)], setting(clock=clock, rounds=9))
    assert clock.last.log == ["call", "sample", *9 * each]  # one call is checked, one sample calibrates


def test_repeats_make_samples_long_enough() -> None:
    rows = measure(CASE, [peer("base", 1e-5), peer("other", 1.0)], setting())
    assert rows[0].repeats * 1e-5 >= SHORTEST_SAMPLE / 1.2
    assert rows[1].repeats == 1


def test_the_host_clock_reads_before_and_after_and_lets_no_collection_between() -> None:
    times = iter([10.0, 16.0])
    collecting: list[bool] = []
    assert HostClock(lambda: next(times)).sample(lambda: collecting.append(gc.isenabled()), 3) == 2.0
    assert collecting == [False, False, False]
    assert gc.isenabled()


class FakeCupy:
    """The part of CuPy that the clock needs; records its calls."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.cuda = self
        self.events = 0

    def Device(self) -> Any:
        log = self.log
        return type("", (), {"attributes": {"L2CacheSize": 100}, "synchronize": lambda self: log.append("wait")})()

    def Event(self) -> Any:
        self.events += 1
        log, number = self.log, self.events
        return type("", (), {"record": lambda self: log.append(number), "number": number})()

    def empty(self, size: int, dtype: str) -> Any:
        self.log.append(size)
        log = self.log
        return type("", (), {"fill": lambda self, value: log.append("flush")})()

    def get_elapsed_time(self, start: Any, stop: Any) -> float:
        assert "wait" in self.log, "read before the GPU was done"
        return 3.0 if start.number == 1 else 5.0  # milliseconds


def test_the_cuda_clock_flushes_the_cache_before_each_call_and_times_the_call_alone() -> None:
    cupy = FakeCupy()
    clock = CudaClock(cupy)
    assert clock.sample(lambda: cupy.log.append("call"), 2) == pytest.approx(0.004)
    assert cupy.log == [200, "flush", 1, "call", 2, "flush", 3, "call", 4, "wait"]


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="the peak of memory is Linux's to tell")
def test_the_peak_of_memory_is_that_of_the_call() -> None:
    megabyte = 2**20

    def run() -> None:
        # New pages, not those of NumPy's allocator, which may have kept as many from earlier tests.
        np.frombuffer(mmap.mmap(-1, 32 * megabyte), dtype=np.uint8)[:] = 1

    found = memory.peak_extra_bytes(run, "numpy")
    assert found is not None
    # Pages of 4 KiB, or of 2 MiB where the system chooses; and other memory of this process.
    assert 31 * megabyte < found < 40 * megabyte
    assert memory.peak_extra_bytes(lambda: None, "numpy") < megabyte


def test_memory_is_not_measured_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CLEAR", Path("/nowhere/at/all"))
    assert memory.peak_extra_bytes(lambda: None, "numpy") is None


def test_a_case_is_not_changed_by_measuring_it() -> None:
    before = CASE.arrays()
    measure(CASE, [PEERS["attnarray"], PEERS["naive"]], setting())
    for name, array in CASE.arrays().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(("share", "calls", "rests"), [(0.6, 4, 0), (1.2, 0, 9)])
def test_calls_that_do_not_count_or_before_a_long_sample_a_rest(share: float, calls: int, rests: int) -> None:
    clock, rested, ticks = SeededClock(0), [], itertools.count()
    # One reading at the start of a rest and one after each call, each a second after the one before.
    waiting = {"settle": 3.5, "now": lambda: float(next(ticks)), "sleep": rested.append}
    measure(CASE, [peer("base", share * COLD_START_MATTERS)], setting(clock=clock, rounds=9, **waiting))
    log = " ".join(clock.last.log).split("sample")[1:-1]  # the first sample calibrates
    assert [some.count("call") for some in log] == 9 * [calls]
    assert rested == rests * [3.5]


def test_progress_is_reported_between_samples() -> None:
    calls: list[str] = []

    class Listening(SeededClock):
        def sample(self, run: Callable[[], Any], repeats: int) -> float:
            calls.append("sample")
            return super().sample(run, repeats)

    between = {"between": lambda: calls.append("between")}
    measure(CASE, [peer("base"), peer("other")], setting(clock=Listening(0), rounds=8, **between))
    assert calls[-32:] == 16 * ["between", "sample"]
