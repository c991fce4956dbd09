"""The time of causal attention with gradients on many ranks, from flops, latency and bandwidth.

    python -m benchmarks.distributed_model                # the model beside what was measured on 1, 2 and 4 ranks
    python -m benchmarks.distributed_model --plot FILE    # its picture of 8 to 1,024 ranks

Bytes and messages are exact: tests compare them with what a communicator counts. Time is a bound from below: every rank
has its own processor and link, messages of different ranks do not meet, and no rank is late.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
RUN = "epyc-avx512-2threads-2026-11-30-distributed"
LONGER_RUN = "epyc-avx512-2threads-2026-12-01-distributed"  # T = 16,384, and workers of Dask
ROUNDS = {"forward": 3, "backward": 2}  # of small messages, in which ranks agree


class Shape(NamedTuple):
    """Causal self-attention of one sequence, equally divided; `width` is that of an element in bytes."""

    T: int
    heads: int
    kv_heads: int
    dim: int
    width: int = 4

    @property
    def pairs(self) -> float:
        """Pairs of query and key that are computed, over all heads."""
        return self.heads * self.T * (self.T + 1) / 2


class Machine(NamedTuple):
    """What one rank has: seconds for a pair of query and key in one head, and its link."""

    name: str
    forward: float
    backward: float
    latency: float  # seconds
    bandwidth: float  # bytes per second
    processors: float = math.inf  # of all ranks together, where they share some


class Counts(NamedTuple):
    """What one rank sends in a call."""

    messages: int
    bytes: float


def ring_counts(shape: Shape, ranks: int, order: str, rank: int, direction: str) -> Counts:
    """Keys and values go on to the next rank; in the backward their gradients, in the dtype of sums, go with them."""
    length = shape.T // ranks
    part = length * shape.kv_heads * 2 * shape.dim
    if order == "zigzag":
        keys, gradients = ranks - 1, ranks if ranks > 1 else 0
    else:  # a rank passes on its own part and those before it; the last one sends gradients home
        keys = rank + 1 if rank < ranks - 1 else 0
        gradients = keys or ranks - 1
    if direction == "forward":
        return Counts(2 * keys, keys * part * shape.width)
    return Counts(2 * (keys + gradients), keys * part * shape.width + gradients * part * max(shape.width, 4))


def all_to_all_counts(shape: Shape, ranks: int, direction: str) -> Counts:
    """Forward: queries, keys and values, then outputs and their lse; backward: dout, then three gradients."""
    length, others = shape.T // ranks, ranks - 1
    rows, keys = length * shape.heads * shape.dim, length * shape.kv_heads * shape.dim
    keys *= max(1.0, ranks / shape.kv_heads)  # ranks share key heads where there are fewer
    sent = 2 * rows + 2 * keys
    lse = length * shape.heads * 4 if direction == "forward" else 0
    return Counts((5 if lse else 4) * others, (sent * shape.width + lse) * others / ranks)


def ring_seconds(shape: Shape, ranks: int, order: str, machine: Machine) -> float:
    """Forward and backward: in each step the slower of computing and of passing on, and the last step's computing."""
    part = shape.T // ranks * shape.kv_heads * 2 * shape.dim
    share = max(1.0, ranks / machine.processors)
    # Under a causal mask half of the pairs of the own part; then contiguous parts compute all, on the last rank.
    square = shape.heads * (shape.T / ranks) ** 2 * share
    steps = [square / 2, *[square * (0.5 if order == "zigzag" else 1.0)] * (ranks - 1)]
    total = _agreement(ranks, machine)
    for cost, width in ((machine.forward, shape.width), (machine.backward, shape.width + max(shape.width, 4))):
        passing = 2 * machine.latency + part * width / machine.bandwidth
        total += sum(max(pairs * cost, passing) for pairs in steps[:-1]) + steps[-1] * cost
    if ranks > 1:  # gradients go home
        total += 2 * machine.latency + part * max(shape.width, 4) / machine.bandwidth
    return total


def all_to_all_seconds(shape: Shape, ranks: int, machine: Machine) -> float:
    """The exchange is not hidden behind computing."""
    share = max(1.0, ranks / machine.processors)
    total = _agreement(ranks, machine) + shape.pairs / ranks * share * (machine.forward + machine.backward)
    for direction in ("forward", "backward"):
        counts = all_to_all_counts(shape, ranks, direction)
        total += counts.messages * machine.latency + counts.bytes / machine.bandwidth
    return total


def grid_seconds(shape: Shape, ranks: int, head_ranks: int, machine: Machine) -> float:
    """Rows that exchange heads, and a zigzag ring of each rank's heads."""
    kv_heads = max(1, shape.kv_heads // head_ranks)
    own = shape._replace(heads=shape.heads // head_ranks, kv_heads=kv_heads)
    row = shape._replace(T=shape.T * head_ranks // ranks)
    exchange = all_to_all_seconds(row._replace(T=row.T), head_ranks, machine._replace(forward=0.0, backward=0.0))
    return exchange + ring_seconds(own, ranks // head_ranks, "zigzag", machine)


def _agreement(ranks: int, machine: Machine) -> float:
    return sum(ROUNDS.values()) * 2 * machine.latency * math.ceil(math.log2(ranks)) if ranks > 1 else 0.0


def measured() -> list[dict[str, Any]]:
    """The committed runs."""
    files = [f"{RUN}-ring-{n}.json" for n in (2, 4)] + [f"{LONGER_RUN}-ring-{n}.json" for n in (1, 2, 4)]
    return [case for name in files for case in json.loads((RESULTS / name).read_text())["ring"]]


def seconds_of(case: dict[str, Any]) -> float:
    """The best time of the slowest rank, forward and backward."""
    results = case["results"]
    repeats = range(case["repeats"])
    return min(max(r["forward_s"][n] + r["backward_s"][n] for r in results) for n in repeats)


def this_machine(T: int) -> Machine:
    """Seconds for a pair from the run of this length on one rank; latency and bandwidth between two ranks."""
    alone = next(case for case in measured() if case["ranks"] == 1 and case["T"] == T)
    pairs = shape_of(alone).pairs
    costs = (min(alone["results"][0][name]) / pairs for name in ("forward_s", "backward_s"))
    link = json.loads((RESULTS / f"{RUN}-link.json").read_text())["link"]
    return Machine("measured", *costs, link["latency_s"], link["bytes_per_s"], processors=2)


def shape_of(case: dict[str, Any]) -> Shape:
    return Shape(case["T"], case["heads"], case["heads"], case["dim"])


def predicted(case: dict[str, Any]) -> float:
    shape, ranks, machine = shape_of(case), case["ranks"], this_machine(case["T"])
    if case["function"] == "all_to_all":
        return all_to_all_seconds(shape, ranks, machine)
    return ring_seconds(shape, ranks, case["order"], machine)


# Assumptions, not measurements. A pair costs 4 D flops forward and 10 D backward (five products for two).
LONG = Shape(T=2**20, heads=32, kv_heads=8, dim=128, width=2)
MACHINES = (
    Machine("accelerators, 300 Tflop/s, links of 25 GB/s", 4 * 128 / 300e12, 10 * 128 / 300e12, 5e-6, 25e9),
    Machine("CPU nodes, 2 Tflop/s, links of 12 GB/s", 4 * 128 / 2e12, 10 * 128 / 2e12, 2e-6, 12e9),
)
RANKS = [8, 16, 32, 64, 128, 256, 512, 1024]
HEAD_RANKS = 8


def curves(machine: Machine) -> dict[str, list[tuple[int, float]]]:
    """Seconds of each way to divide, by the number of ranks."""
    return {
        "ring, contiguous": [(n, ring_seconds(LONG, n, "contiguous", machine)) for n in RANKS],
        "ring, zigzag": [(n, ring_seconds(LONG, n, "zigzag", machine)) for n in RANKS],
        "all to all (at most 32 ranks)": [(n, all_to_all_seconds(LONG, n, machine)) for n in RANKS if n <= LONG.heads],
        "grid, rows of 8": [(n, grid_seconds(LONG, n, HEAD_RANKS, machine)) for n in RANKS],
    }


def plot(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axis, machine in zip(axes, MACHINES, strict=True):
        ideal = {n: LONG.pairs * (machine.forward + machine.backward) / n for n in RANKS}
        for (name, points), marker in zip(curves(machine).items(), "osD^", strict=True):
            shares = [100 * ideal[n] / seconds for n, seconds in points]
            axis.plot([n for n, _ in points], shares, marker=marker, markersize=5, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(RANKS, [f"{n:,}" for n in RANKS])
        axis.set_ylim(0, 105)
        axis.set_xlabel("ranks")
        axis.set_ylabel("computing alone, in percent of the time")
        axis.set_title(machine.name, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, loc="lower left")
    figure.suptitle("Model: causal attention over 1,048,576 tokens, 32 heads of 128, 8 key heads, 16 bits", fontsize=11)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    print(f"{'':<24}{'T':>7}{'ranks':>6}{'measured s':>12}{'model s':>10}")
    for case in measured():
        name = f"{case['function']}, {case['order']}"
        print(f"{name:<24}{case['T']:>7}{case['ranks']:>6}{seconds_of(case):>12.3f}{predicted(case):>10.3f}")
    for machine in MACHINES:
        print(f"\n{machine.name}: seconds on {', '.join(map(str, RANKS))} ranks")
        for name, points in curves(machine).items():
            print(f"  {name:<32}" + "".join(f"{seconds:>9.4f}" for _, seconds in points))
    if arguments.plot:
        plot(arguments.plot)


if __name__ == "__main__":
    main()
