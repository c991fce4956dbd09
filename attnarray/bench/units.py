"""Numbers as people read them: times, bytes, rates, ratios."""

from __future__ import annotations

from attnarray.bench.statistics import Ratio, Spread

NONE = "–"


def seconds(value: float | None) -> str:
    """Three digits and the unit that fits: 845 µs, 2.31 ms, 12.3 s."""
    if value is None:
        return NONE
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{_three_digits(value * 1e9)} ns"


def bytes_(value: float | None) -> str:
    if value is None:
        return NONE
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{value:.0f} B"


def rate(value: float, unit: str) -> str:
    """A rate with its prefix, e.g. 231 GFLOP/s."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{_three_digits(value / scale)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}"


def ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def interval(found: Ratio | None) -> str:
    """The interval alone: 0.90–0.95; a dash where there is none."""
    if found is None or found.low is None or found.high is None:
        return NONE
    return f"{ratio(found.low)}–{ratio(found.high)}"


def variation(spread: Spread) -> str:
    """Half the interquartile range, relative to the median: ± 1.2 %."""
    share = 50 * (spread.high - spread.low) / spread.median
    return f"± {share:.1f} %" if share < 9.95 else f"± {share:.0f} %"


def percent(share: float | None) -> str:
    """A share: 12 %, 0.4 %, or < 0.1 %."""
    if share is None:
        return NONE
    return f"{100 * share:.0f} %" if share >= 0.0095 else f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
