"""Measures peers interleaved: each is checked first, then all are timed in rounds of shuffled order."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnarray.bench.cases import BenchCase
from attnarray.bench.clock import Clock, HostClock
from attnarray.bench.machine import Ceilings
from attnarray.bench.memory import peak_extra_bytes
from attnarray.bench.peers import Call, Peer, Unsupported
from attnarray.bench.problems import Named, Reference, compute_reference, judge
from attnarray.bench.results import Row
from attnarray.bench.statistics import paired_ratio, spread
from attnarray.dispatch import explain

SHORTEST_SAMPLE = 2e-3  # seconds; so that the clock's resolution and the loop around a call do not count
MOST_REPEATS = 100_000
MOST_ROUNDS, ROUNDS_OF_THE_SLOWEST = 25, 3
UNBOUNDED = Ceilings({}, 0.0, {})


@dataclass(frozen=True)
class Setting:
    """How to measure. A peer gets `rounds` rounds, or as many as take `seconds`, from 3 to 25."""

    baseline: str
    backend: str = "numpy"
    threads: int = 1
    seconds: float = 0.3
    rounds: int | None = None
    seed: int = 0
    clock: Clock = field(default_factory=HostClock)
    ceilings: Ceilings = UNBOUNDED
    settle: float = 0.0  # seconds before a sample, see `_settle`; tests replace the next two
    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    memory: Callable[[Callable[[], Any], str], int | None] = peak_extra_bytes
    between: Callable[[], None] = lambda: None  # called between samples


# Idle cores take up to two milliseconds to wake, unless a library keeps its threads spinning. A sample shorter than
# so many seconds is taken right after calls that are not timed.
COLD_START_MATTERS = 0.05


@dataclass
class Entrant:
    """A peer with a correct result, and its timing."""

    peer: str
    call: Call
    row: Row
    repeats: int = 1
    seconds: float = 0.0  # estimate for a sample
    rounds: int = 0
    samples: list[float] = field(default_factory=list)


def measure(case: BenchCase, peers: Sequence[Peer], setting: Setting) -> list[Row]:
    """One row for each peer, in their order, with figures or with the reason why there are none."""
    blank = _blank(case)
    try:
        reference = compute_reference(case, setting.backend, setting.threads, setting.seed)
    except Exception as error:
        problem = f"no result to compare with: {_raised(error)}"
        return [dataclasses.replace(blank, peer=peer.name, problem=problem) for peer in peers]
    moved = float(reference.bytes_moved)
    blank = dataclasses.replace(blank, bytes=moved, roofline=setting.ceilings.seconds(case.cost, moved, case.dtype))
    rows: dict[str, Row] = {}
    entrants: list[Entrant] = []
    for peer in peers:
        row = dataclasses.replace(blank, peer=peer.name)
        try:
            entrants.append(_enter(peer, row, reference, setting))
        except Unsupported as reason:
            rows[peer.name] = dataclasses.replace(row, problem=str(reason))
        except Exception as error:  # any error of a peer becomes a row, and the others continue
            rows[peer.name] = dataclasses.replace(row, problem=_raised(error))
    for entrant, problem in _time(entrants, setting):
        rows[entrant.peer] = dataclasses.replace(entrant.row, problem=problem)
    measured = {entrant.peer: entrant for entrant in entrants if entrant.peer not in rows}
    baseline = measured.get(setting.baseline)
    rows.update({name: _figures(entrant, baseline) for name, entrant in measured.items()})
    return [rows[peer.name] for peer in peers]


def _blank(case: BenchCase) -> Row:
    """A row with the fields of the case only."""
    return Row(
        case.name, case.group, case.text, case.function, case.direction, case.dtype, case.size, "",
        flops=case.cost.flops, exps=case.cost.exps,
    )  # fmt: skip


class WrongResult(Unsupported):
    """The result of a peer differs from the reference."""


def _enter(peer: Peer, row: Row, reference: Reference, setting: Setting) -> Entrant:
    """Prepare, call once, check the result, and find the number of calls for a sample."""
    call = peer.prepare(reference.problem)
    found: Named = {}

    def first() -> None:
        found.update(call.named(call.run()))

    with call.scope():
        setting.clock.synchronize()
        first_call = setting.clock.sample(first, 1)
        kernels = _kernels(call, peer)
    error = _judged(peer, found, reference, setting)
    with call.scope():
        call.forget()
        peak = setting.memory(call.run, setting.backend)
        repeats, seconds = _calibrated(call, setting.clock)
    row = dataclasses.replace(
        row, kernels=kernels, first_call=first_call, error=error, peak_bytes=peak, repeats=repeats
    )
    rounds = setting.rounds or min(MOST_ROUNDS, max(ROUNDS_OF_THE_SLOWEST, int(setting.seconds / seconds)))
    return Entrant(peer.name, call, row, repeats, seconds, rounds)


def _judged(peer: Peer, found: Named, reference: Reference, setting: Setting) -> float:
    """The peer's error. One that draws its own dropout is judged on the same case without dropout."""
    plain = None if peer.ours else reference.problem.case.without_dropout()
    if plain is not None:
        reference = compute_reference(plain, setting.backend, setting.threads, setting.seed)
        call = peer.prepare(reference.problem)
        with call.scope():
            found = call.named(call.run())
    verdict = judge(found, reference.results, reference.problem.case.dtype)
    if verdict.wrong:
        raise WrongResult(f"wrong: {verdict.wrong}")
    return verdict.error


def _kernels(call: Call, peer: Peer) -> str:
    """Which of our kernels ran; empty for other libraries."""
    if not peer.ours:
        return ""
    chosen = {choice.kernel for choice in explain(call.run).choices} or {"reference"}
    names = sorted(chosen - {"reference"})
    return " + ".join([*names, *(["array code"] if "reference" in chosen else [])])


def _calibrated(call: Call, clock: Clock) -> tuple[int, float]:
    """The repeats for a sample that is long enough, and the estimated seconds of that."""
    repeats = 1
    while True:
        seconds = clock.sample(call.run, repeats) * repeats
        if seconds >= SHORTEST_SAMPLE or repeats >= MOST_REPEATS:
            return repeats, seconds
        wanted = SHORTEST_SAMPLE / max(seconds / repeats, 1e-9)
        repeats = min(MOST_REPEATS, max(repeats + 1, min(10 * repeats, int(1.2 * wanted))))


def _time(entrants: Sequence[Entrant], setting: Setting) -> list[tuple[Entrant, str]]:
    """Take the samples, round by round, each in a new order; return the peers that failed, and why."""
    order = random.Random(setting.seed)
    active, failed = list(entrants), []
    for n in range(max((entrant.rounds for entrant in entrants), default=0)):
        order.shuffle(active)
        for entrant in list(active):
            if n >= entrant.rounds:
                continue
            setting.between()
            try:
                with entrant.call.scope():
                    _settle(entrant, setting)
                    entrant.samples.append(setting.clock.sample(entrant.call.run, entrant.repeats))
            except Exception as error:
                active.remove(entrant)
                failed.append((entrant, _raised(error)))
    return failed


def _settle(entrant: Entrant, setting: Setting) -> None:
    """Let the threads of the previous peer stop spinning, by at least one call that is not timed.

    The calls keep the cores awake, too. Before a long sample, where that matters little, sleep instead.
    """
    if entrant.seconds >= COLD_START_MATTERS:
        setting.sleep(setting.settle)
        return
    start = setting.now()
    entrant.call.run()
    while setting.now() - start < setting.settle:
        entrant.call.run()


def _figures(entrant: Entrant, baseline: Entrant | None) -> Row:
    ratio = None if baseline is None else paired_ratio(entrant.samples, baseline.samples)
    samples = tuple(entrant.samples)
    return dataclasses.replace(entrant.row, samples=samples, time=spread(samples), ratio=ratio)


def _raised(error: Exception) -> str:
    """The first line of the error, shortened."""
    lines = str(error).strip().splitlines()
    words = " ".join(lines[0].split()) if lines else ""
    short = words if len(words) <= 120 else f"{words[:120]}..."
    return f"{type(error).__name__}{f': {short}' if short else ''}"
