"""From samples to figures: median, spread, and the ratio of two peers with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Bootstrap intervals of a median are too narrow for few rounds. At this level and with at least FEWEST_ROUNDS, the
# interval holds the true ratio in 95 of 100 runs or more: see tests/tools/test_bench_instrument.py.
LEVEL = 0.99
FEWEST_ROUNDS = 7
RESAMPLES = 2000


class Spread(NamedTuple):
    """The median of the samples and the quartiles around it, all in seconds."""

    median: float
    low: float
    high: float


class Ratio(NamedTuple):
    """Time of a peer over time of the baseline, with its interval; no interval from too few rounds."""

    value: float
    low: float | None
    high: float | None


def spread(samples: Sequence[float]) -> Spread:
    low, median, high = np.quantile(np.asarray(samples), [0.25, 0.5, 0.75])
    return Spread(float(median), float(low), float(high))


def paired_ratio(samples: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Ratio:
    """The median ratio of samples that were taken in the same rounds, so that slow changes of the machine cancel."""
    rounds = min(len(samples), len(baseline))
    logs = np.log(np.asarray(samples[:rounds])) - np.log(np.asarray(baseline[:rounds]))
    value = float(np.exp(np.median(logs)))
    if rounds < FEWEST_ROUNDS:
        return Ratio(value, None, None)
    return Ratio(value, *_interval(_resampled_medians(logs, np.random.default_rng(seed))))


def unpaired_ratio(samples: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio of the medians of samples from two runs."""
    ours, theirs = np.log(np.asarray(samples)), np.log(np.asarray(baseline))
    value = float(np.exp(np.median(ours) - np.median(theirs)))
    if min(len(ours), len(theirs)) < FEWEST_ROUNDS:
        return Ratio(value, None, None)
    rng = np.random.default_rng(seed)
    return Ratio(value, *_interval(_resampled_medians(ours, rng) - _resampled_medians(theirs, rng)))


def geometric_mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(np.asarray(ratios)))))


def _resampled_medians(logs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    chosen = rng.integers(0, len(logs), (RESAMPLES, len(logs)))
    medians: np.ndarray = np.median(logs[chosen], axis=1)
    return medians


def _interval(logs: np.ndarray) -> tuple[float, float]:
    low, high = np.exp(np.quantile(logs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return float(low), float(high)
