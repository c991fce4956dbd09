"""Score modifiers of a caller, compiled: times against the built-in softcap and bias, and PyTorch's FlexAttention.

Softcap and ALiBi on 8 heads of 64 numbers, float32, causal. Calls alternate, and each figure is the least of its
samples. FlexAttention, compiled, has no backward on a CPU.

    python -m benchmarks.modifiers --output NAME-modifiers    # writes results/NAME-modifiers.json
    python -m benchmarks.modifiers --quick                    # a test that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray import info

RESULTS = Path(__file__).parent / "results"
HEADS, DIM, CAP = 8, 64, 30.0
Calls = dict[str, Callable[[], Any]]


@aa.compiled_modifier
class CappedALiBi(NamedTuple):
    """c tanh(s / c) less the slope of the head times the distance."""

    slope: np.ndarray  # (H,)

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return CAP * np.tanh(score / CAP) - self.slope[h] * (q_idx - kv_idx)

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        tanh = np.tanh(score / CAP)
        return dscore * (1.0 - tanh * tanh), CappedALiBi((h, -dscore * (q_idx - kv_idx)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="NAME", help="name of the file in benchmarks/results, without extension")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-torch", action="store_true", help="leave out PyTorch, which compiles for half a minute")
    parser.add_argument("--quick", action="store_true", help="one round of short sequences, without PyTorch")
    options = parser.parse_args()
    keys, rounds = (128, 1) if options.quick else (2048, options.rounds)
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, HEADS, keys, DIM), dtype=np.float32)
    start = time.perf_counter()
    calls = our_calls(q, k, v)
    calls["compiled modifier, forward"]()
    seconds = {"compiled modifier, first forward": time.perf_counter() - start}
    samples = timed(calls, rounds)  # the threads of others wait busily after their calls, so these come later
    if not (options.quick or options.no_torch):
        flex, seconds["FlexAttention, first forward"] = flex_call(q, k, v)
        samples |= timed({"FlexAttention, forward": flex}, rounds)
    samples |= timed({"modifier as array code, forward": lambda: in_array_code(q, k, v)}, 1)
    found = {name: round(min(times), 2) for name, times in samples.items()}
    for name, value in found.items():
        print(f"{name:<44} {value:>9.2f} ms")
    for name, value in seconds.items():
        print(f"{name:<44} {value:>9.2f} s")
    if options.output:
        facts = {name: value for name, value in info.collect()["here"].items() if name != "kernel cache"}
        report = {
            "processor": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "here": facts,
            "keys": keys, "milliseconds": found, "seconds": seconds, "samples": samples,
        }  # fmt: skip
        (RESULTS / f"{options.output}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def timed(calls: Calls, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of alternating calls; the first of each does not count."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: times[1:] for name, times in samples.items()}


def our_calls(q: Any, k: Any, v: Any) -> Calls:
    """The compiled modifier, and the same of built-in parts."""
    slopes = aa.to_numpy(aa.alibi_slopes(HEADS)).astype(np.float32)
    distance = np.arange(q.shape[2])[:, None] - np.arange(q.shape[2])[None, :]
    bias = (-slopes[:, None, None] * distance).astype(np.float32)
    modified: dict[str, Any] = {"modifiers": [CappedALiBi(slopes)]}
    built_in: dict[str, Any] = {"softcap": CAP, "bias": bias}

    def both(options: dict[str, Any]) -> None:
        out, ctx = aa.attend_fwd(q, k, v, is_causal=True, **options)
        aa.attend_bwd(out, ctx)

    return {
        "compiled modifier, forward": lambda: aa.attend(q, k, v, is_causal=True, **modified),
        "softcap and bias, forward": lambda: aa.attend(q, k, v, is_causal=True, **built_in),
        "compiled modifier, forward and backward": lambda: both(modified),
        "softcap and bias, forward and backward": lambda: both(built_in),
        "without modifiers, forward": lambda: aa.attend(q, k, v, is_causal=True),
    }


def in_array_code(q: Any, k: Any, v: Any) -> None:
    slopes = aa.to_numpy(aa.alibi_slopes(HEADS)).astype(np.float32)
    with aa.use_kernels("reference"):
        aa.attend(q, k, v, is_causal=True, modifiers=[CappedALiBi(slopes)])


def flex_call(q: Any, k: Any, v: Any) -> tuple[Callable[[], Any], float]:
    """FlexAttention, compiled, with the same modifier and a causal block mask, and the seconds of its first call."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    slopes = torch.from_numpy(aa.to_numpy(aa.alibi_slopes(HEADS)).astype(np.float32))
    tensors = [torch.from_numpy(x) for x in (q, k, v)]

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return CAP * torch.tanh(score / CAP) - slopes[h] * (q_idx - kv_idx)

    keys = q.shape[2]
    mask = create_block_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, None, None, keys, keys, device="cpu")
    compiled = torch.compile(flex_attention)

    def call() -> Any:
        with torch.no_grad():
            return compiled(*tensors, score_mod=score_mod, block_mask=mask)

    start = time.perf_counter()
    found = call().numpy()
    seconds = time.perf_counter() - start
    ours = aa.attend(q, k, v, is_causal=True, modifiers=[CappedALiBi(slopes.numpy())])
    assert np.max(np.abs(found - ours)) < 1e-4, "FlexAttention computes something else"
    return call, seconds


if __name__ == "__main__":
    main()
