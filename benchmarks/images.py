"""Attention on images: times against PyTorch, with a dense mask, by unfolding, and by sampling grids.

Calls alternate, and each figure is the least of its samples. An image of 56 x 56 with 4 heads of 32 numbers, and 1,024
queries with 8 heads of 32 numbers that sample 4 points of 4 levels; float32. Results are compared before all that.

    python -m benchmarks.images --output NAME-images    # writes results/NAME-images.json
    python -m benchmarks.images --quick                 # a test that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import attnarray as aa
from attnarray import info
from attnarray.bench.peers.torch_images import deformable, neighborhood, neighborhood_by_unfolding, shifted_windows
from attnarray.triples import find_triple

RESULTS = Path(__file__).parent / "results"
HEADS, DIM = 4, 32
LEVELS = ((64, 64), (32, 32), (16, 16), (8, 8))
Calls = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="NAME", help="name of the file in benchmarks/results, without extension")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round on a small image")
    options = parser.parse_args()
    size, rounds = (14, 1) if options.quick else (56, options.rounds)
    calls = {**neighborhood_calls(size), **window_calls(size), **deformable_calls()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first, which compiles and reserves memory, does not count
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(1e3 * (time.perf_counter() - start))
    found = {name: round(min(times[1:]), 2) for name, times in samples.items()}
    for name, value in found.items():
        print(f"{name:<60} {value:>9.2f} ms")
    if options.output:
        facts = {name: value for name, value in info.collect()["here"].items() if name != "kernel cache"}
        report = {
            "processor": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "here": facts,
            "torch": _torch().__version__, "size": size, "milliseconds": found, "samples": samples,
        }  # fmt: skip
        (RESULTS / f"{options.output}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def neighborhood_calls(size: int) -> Calls:
    """Windows of 7 x 7."""
    arrays = _normal(0, 3, 1, size, size, HEADS, DIM)
    bias = _normal(1, HEADS, 13, 13)
    given = dict(zip(("query", "key", "value"), arrays, strict=True))
    return {
        **_pair("neighborhood", "neighborhood_attention", given, {"kernel_size": 7}, neighborhood, "dense mask"),
        **_pair("neighborhood", "neighborhood_attention", given, {"kernel_size": 7}, neighborhood_by_unfolding,
                "unfold", ours=False),
        **_pair("neighborhood with bias", "neighborhood_attention", {**given, "relative_bias": bias},
                {"kernel_size": 7}, neighborhood, "dense mask"),
    }  # fmt: skip


def window_calls(size: int) -> Calls:
    """Swin's windows of 7 x 7, shifted by 3."""
    arrays = _normal(2, 3, 1, size, size, HEADS, DIM)
    given = {**dict(zip(("query", "key", "value"), arrays, strict=True)), "relative_bias": _normal(3, HEADS, 13, 13)}
    options = {"window_size": 7, "shift": 3}
    return _pair("shifted windows", "shifted_window_attention", given, options, shifted_windows, "roll and mask")


def deformable_calls() -> Calls:
    rng, of = np.random.default_rng(4), (1, 1024, 8, len(LEVELS), 4)
    pixels = sum(H * W for H, W in LEVELS)
    given = {
        "value": _normal(5, 1, pixels, 8, DIM),
        "sampling_locations": rng.random((*of, 2), dtype=np.float32),
        "attention_weights": rng.random(of, dtype=np.float32) / 16,
    }
    return _pair("deformable", "deformable_attention", given, {"spatial_shapes": LEVELS}, deformable, "grid_sample")


def _pair(
    name: str, function: str, given: dict[str, Any], options: dict[str, Any], peer: Callable[..., Any], how: str,
    ours: bool = True,
) -> Calls:  # fmt: skip
    """Our call and PyTorch's, forward, and forward and backward."""
    torch, triple = _torch(), find_triple(getattr(aa, function))
    tensors = {key: torch.from_numpy(x) for key, x in given.items()}
    leaves = {key: x.clone().requires_grad_() for key, x in tensors.items()}
    out = triple.f(**given, **options)
    dout = _normal(6, *out.shape)
    tensor_dout = torch.from_numpy(dout)
    theirs = peer(**leaves, **options)
    theirs_grads = torch.autograd.grad(theirs, list(leaves.values()), tensor_dout)
    grads = triple.bwd(dout, triple.fwd(**given, **options)[1])
    for mine, other in (
        (out, theirs),
        *((getattr(grads, key), x) for key, x in zip(leaves, theirs_grads, strict=True)),
    ):
        exact = other.detach().numpy()
        assert np.max(np.abs(mine - exact)) <= 1e-4 * np.max(np.abs(exact)), (name, how)

    def both() -> None:
        triple.bwd(dout, triple.fwd(**given, **options)[1])

    def their_forward() -> None:
        with torch.inference_mode():
            peer(**tensors, **options)

    def their_both() -> None:
        torch.autograd.grad(peer(**leaves, **options), list(leaves.values()), tensor_dout)

    own: Calls = {f"{name}, forward": lambda: triple.f(**given, **options), f"{name}, forward and backward": both}
    return {
        **(own if ours else {}),
        f"{name}, forward, PyTorch, {how}": their_forward,
        f"{name}, forward and backward, PyTorch, {how}": their_both,
    }


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _torch() -> Any:
    import torch

    return torch


if __name__ == "__main__":
    main()
