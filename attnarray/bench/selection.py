"""The cases and peers that the arguments name, with suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from attnarray.backend import available_backends
from attnarray.bench.cases import BenchCase
from attnarray.bench.catalog import CASES, GROUPS, LONG, QUICK
from attnarray.bench.peers import PEERS, Peer
from attnarray.bench.statistics import FEWEST_ROUNDS
from attnarray.console import UsageError
from attnarray.dispatch import cpu_count

BACKENDS = ("numpy", "cupy")
BASELINES = ("torch", "reference")  # the first one available
NEAR = 0.4  # similarity from which names are suggested, from 0 to 1


def select_cases(only: Sequence[str], groups: Sequence[str], full: bool) -> list[BenchCase]:
    """The cases of the quick or full set; a text in `only` that no quick case holds is looked up in the full set."""
    for group in groups:
        require_known("group", group, GROUPS)
    searched = [case for case in CASES if case not in LONG] if full else QUICK
    named = {case.name for case in searched} if not only else set()
    for text in only:
        found = [case.name for case in searched if text in case.name] or [
            case.name for case in CASES if text in case.name
        ]
        if not text or not found:
            raise _unknown("case", text, [case.name for case in CASES])
        named.update(found)
    chosen = [case for case in CASES if case.name in named and (not groups or case.group in groups)]
    if not chosen:
        raise UsageError(f"attnarray bench: no case is both in {' or '.join(groups)} and named {' or '.join(only)}")
    return chosen


def select_case(name: str) -> BenchCase:
    """The case of exactly this name, or the only one that contains it."""
    named = [case for case in CASES if case.name == name] or [case for case in CASES if name in case.name]
    if len(named) == 1 and named[0].resized is None:
        raise UsageError(f"attnarray bench: case {named[0].name!r} has one size, so there is no crossover to look for")
    if len(named) == 1:
        return named[0]
    if named:
        raise UsageError(f"attnarray bench: case {name!r} is not one: {', '.join(case.name for case in named)}")
    raise _unknown("case", name, [case.name for case in CASES])


def select_peers(names: Sequence[str], backend: str) -> tuple[list[Peer], dict[str, str]]:
    """The peers that are named, or all that can be used here; and the reasons of the others."""
    for name in names:
        require_known("peer", name, PEERS)
    reasons = {name: peer.missing(backend) for name, peer in PEERS.items()}
    for name in names:
        if reasons[name]:
            raise UsageError(f"attnarray bench: peer {name!r} cannot be used here: {reasons[name]}")
    chosen = [peer for name, peer in PEERS.items() if (name in names if names else not reasons[name])]
    return chosen, {name: reason for name, reason in reasons.items() if reason and not names}


def select_baseline(name: str | None, peers: Sequence[Peer]) -> str:
    """The peer that all others are compared with; it must be among them."""
    present = [peer.name for peer in peers]
    if name is None:
        return next((baseline for baseline in BASELINES if baseline in present), present[0])
    require_known("peer", name, PEERS)
    if name not in present:
        raise UsageError(
            f"attnarray bench: the baseline {name!r} is not among the peers {', '.join(present)}: "
            f"{PEERS[name].missing() or 'add it to --peers'}"
        )
    return name


def select_backend(name: str) -> str:
    """The array library, if it can be used here."""
    require_known("backend", name, BACKENDS)
    reason = next(status.reason for status in available_backends() if status.name == name)
    if reason:
        raise UsageError(f"attnarray bench: backend {name!r} cannot be used here: {reason}")
    return name


def select_threads(threads: int | None) -> int:
    """The number of threads, at most the CPUs that this process may use."""
    cpus = cpu_count()
    if threads is None:
        return cpus
    if not 1 <= threads <= cpus:
        raise UsageError(f"attnarray bench: --threads {threads}: expected 1 to {cpus}, the CPUs that may be used")
    return threads


def require_rounds(rounds: int | None) -> None:
    if rounds is not None and rounds < FEWEST_ROUNDS:
        raise UsageError(
            f"attnarray bench: --rounds {rounds}: expected at least {FEWEST_ROUNDS}; fewer give no interval"
        )


def require_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise a `UsageError` that lists similar names if `name` is not known."""
    if name not in set(known):
        raise _unknown(kind, name, list(known))


def _unknown(kind: str, name: str, known: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=4, cutoff=NEAR)
    listed = f"near names: {', '.join(near)}" if near else f"known: {', '.join(known)}"
    if len(listed) > 200:
        listed = "attnarray bench --list shows all"
    return UsageError(f"attnarray bench: unknown {kind} {name!r}; {listed}")
