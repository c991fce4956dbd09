"""Sparse masks, packed sequences and latent attention: times against PyTorch with a dense mask, dense attention,
padding, and projected keys and values; memory.

Calls alternate, and each figure is the least of its samples. Eight heads of 64 numbers, float32.

    python -m benchmarks.masks --output NAME-masks    # writes results/NAME-masks.json
    python -m benchmarks.masks --quick                # a test that it runs
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import attnarray as aa
from attnarray import info
from attnarray.masks.geometry import Sizes
from attnarray.masks.tiles import tile_mask

RESULTS = Path(__file__).parent / "results"
HEADS, DIM = 8, 64
LONGFORMER = aa.Window(256, 256) | aa.Global(16)
SHORTEST, SEQUENCES = 64, 8
Calls = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="NAME", help="name of the file in benchmarks/results, without extension")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one round of short sequences")
    options = parser.parse_args()
    keys, longest, rounds = (512, 128, 1) if options.quick else (8192, 2048, options.rounds)
    calls = {**sparse_calls(keys), **ragged_calls(longest), **latent_calls(keys // 2)}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first, which compiles and reserves memory, does not count
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(1e3 * (time.perf_counter() - start))
    found: dict[str, Any] = {name: round(min(times[1:]), 2) for name, times in samples.items()}
    for name, value in found.items():
        print(f"{name:<44} {value:>9.2f} ms")
    memory = {f"longformer, {n} keys": peak_bytes(n) for n in (keys // 2, keys)}
    for name, value in memory.items():
        print(f"{name:<44} {value / 1e6:>9.2f} MB beyond its inputs")
    if options.output:
        facts = {name: value for name, value in info.collect()["here"].items() if name != "kernel cache"}
        report = {
            "processor": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "here": facts,
            "torch": _torch().__version__, "keys": keys, "lengths": lengths(longest).tolist(),
            "milliseconds": found, "samples": samples, "peak bytes beyond inputs": memory,
        }  # fmt: skip
        (RESULTS / f"{options.output}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def sparse_calls(keys: int) -> Calls:
    """Longformer's pattern, and a tenth of all blocks of 64."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, HEADS, keys, DIM), dtype=np.float32)
    blocks = aa.Blocks(np.random.default_rng(1).random((HEADS, keys // 64, keys // 64)) < 0.1, 64)
    torch = _torch()
    tensors, dense = [torch.from_numpy(x) for x in (q, k, v)], torch.from_numpy(LONGFORMER.to_dense(keys, keys))
    attend = aa.scaled_dot_product_attention
    bigbird = aa.Window(192, 192) | aa.Global(128) | aa.RandomBlocks(0)
    packed = aa.Documents(np.arange(keys) // 512, np.arange(keys) // 512) & aa.Causal()

    def make(mask: Any) -> Callable[[], Any]:
        return lambda: tile_mask(mask, Sizes((1,), HEADS, keys, keys), 0, None)

    return {
        "making longformer's mask": make(LONGFORMER),
        "making bigbird's mask": make(bigbird),
        "bigbird": lambda: attend(q, k, v, bigbird),
        "making the mask of a tenth of the blocks": make(blocks),
        "making the mask of causal documents": make(packed),
        "causal documents": lambda: attend(q, k, v, packed),
        "longformer": lambda: attend(q, k, v, LONGFORMER),
        "longformer, PyTorch with a dense mask": lambda: torch.nn.functional.scaled_dot_product_attention(
            *tensors, dense
        ),
        "longformer, forward and backward": lambda: both(q, k, v, LONGFORMER),
        "a tenth of the blocks": lambda: attend(q, k, v, blocks),
        "all blocks": lambda: attend(q, k, v),
        "a tenth of the blocks, forward and backward": lambda: both(q, k, v, blocks),
    }


def both(q: Any, k: Any, v: Any, mask: Any) -> None:
    out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, mask)
    aa.scaled_dot_product_attention_bwd(out, ctx)


def lengths(longest: int) -> np.ndarray:
    return np.round(np.geomspace(SHORTEST, longest, SEQUENCES)).astype(int)


def ragged_calls(longest: int) -> Calls:
    """Sequences of many lengths, packed, and padded to the longest."""
    counts = lengths(longest)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    packed = np.random.default_rng(2).standard_normal((3, bounds[-1], HEADS, DIM), dtype=np.float32)
    padded = np.zeros((3, SEQUENCES, longest, HEADS, DIM), np.float32)
    for n, count in enumerate(counts):
        padded[:, n, :count] = packed[:, bounds[n] : bounds[n + 1]]
    options = {"kv_lengths": counts, "layout": "BTHD"}

    def ragged_both(causal: bool) -> None:
        out, ctx = aa.ragged_attention_fwd(*packed, bounds, is_causal=causal)
        aa.ragged_attention_bwd(out, ctx)

    def padded_both(causal: bool) -> None:
        out, ctx = aa.scaled_dot_product_attention_fwd(*padded, is_causal=causal, **options)
        aa.scaled_dot_product_attention_bwd(out, ctx)

    return {
        "packed": lambda: aa.ragged_attention(*packed, bounds),
        "padded": lambda: aa.scaled_dot_product_attention(*padded, **options),
        "packed, causal": lambda: aa.ragged_attention(*packed, bounds, is_causal=True),
        "padded, causal": lambda: aa.scaled_dot_product_attention(*padded, is_causal=True, **options),
        "packed, forward and backward": lambda: ragged_both(causal=False),
        "padded, forward and backward": lambda: padded_both(causal=False),
    }


def latent_calls(keys: int) -> Calls:
    """A step of decoding with DeepSeek-V2's sizes for 8 heads: 512 latent and 64 rotated numbers of each position."""
    rng = np.random.default_rng(3)
    query, latent = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1, HEADS, 1, 192), (1, keys, 576)))
    up = rng.standard_normal((2, HEADS, 128, 512), dtype=np.float32)
    return {
        f"latent decoding, {name}": lambda absorb=absorb: aa.latent_attention(query, latent, *up, absorb=absorb)
        for name, absorb in (("absorbed", True), ("projected", False))
    }


def peak_bytes(keys: int) -> int:
    """The most memory that Longformer's attention takes beyond its inputs, output included, as NumPy reports it."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, HEADS, keys, DIM), dtype=np.float32)
    gc.collect()
    tracemalloc.start()
    aa.scaled_dot_product_attention(q, k, v, LONGFORMER)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _torch() -> Any:
    import torch

    return torch


if __name__ == "__main__":
    main()
