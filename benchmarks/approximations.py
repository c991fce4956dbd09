"""Errors of approximations of softmax attention against exact attention, by the scores that they compute for a query.

Two kinds of sequences of 1,024 positions, 4 heads of 64 numbers: positions in random order around 64 centers, so that a
query attends to the few near its own, and smooth ones, where neighbors are alike. The error is the norm of the
difference over the norm of the exact output. Nothing is trained: Linformer's projections are random, as in its theorem.

    python -m benchmarks.approximations --output 2026-12-01-approximations    # writes results/*.json and the picture
    python -m benchmarks.approximations --quick                               # a test that it runs
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import attnarray as aa

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "approximations.png"
HEADS, DIM, CENTERS, CHUNK, BUCKETS = 4, 64, 64, 32, 64
Errors = dict[str, dict[str, list[tuple[int, float]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="NAME", help="name of the file in benchmarks/results, without extension")
    parser.add_argument("--quick", action="store_true", help="short sequences")
    options = parser.parse_args()
    length = 128 if options.quick else 1024
    found: Errors = {name: errors(*make(length), length) for name, make in SEQUENCES.items()}
    for name, methods in found.items():
        for method, points in methods.items():
            print(f"{name:<10} {method:<10}", "  ".join(f"{scores}: {error:.3f}" for scores, error in points))
    if options.output:
        report = {"length": length, "heads": HEADS, "dim": DIM, "numpy": np.__version__, "relative errors": found}
        (RESULTS / f"{options.output}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        draw(found, length)


def clustered(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries, which are the keys, and values, around centers that they share."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((2, HEADS, CENTERS, DIM))
    members = rng.integers(CENTERS, size=length)
    query, value = (x[:, members] + 0.3 * rng.standard_normal((HEADS, length, DIM)) for x in centers)
    return 2.0 * query[None], value[None]


def smooth(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Random walks around 0."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((2, HEADS, length, DIM))
    walk = np.zeros_like(noise)
    for t in range(length):
        walk[:, :, t] = 0.98 * walk[:, :, t - 1] + 0.2 * noise[:, :, t]
    return walk[0][None], walk[1][None]


SEQUENCES = {"clustered": clustered, "smooth": smooth}


def errors(query: np.ndarray, value: np.ndarray, length: int) -> dict[str, list[tuple[int, float]]]:
    """For each method the scores of a query and the error."""
    rng = np.random.default_rng(2)
    exact = aa.scaled_dot_product_attention(query, query, value)
    few = [n for n in (16, 32, 64, 128, 256, 512) if n < length]
    linformer, nystrom, lsh = [], [], []
    for n in few:
        projection = rng.standard_normal((n, length)) / np.sqrt(n)
        linformer.append((n, error(aa.linformer_attention(query, query, value, projection), exact)))
        nystrom.append((n, error(aa.nystrom_attention(query, query, value, num_landmarks=n), exact)))
    keys = query / np.linalg.norm(query, axis=-1, keepdims=True)
    scale = float(np.linalg.norm(query, axis=-1).mean()) / np.sqrt(DIM)  # as sharp as the others
    exact = aa.scaled_dot_product_attention(query, keys, value, ~np.eye(length, dtype=bool), scale=scale)
    rotations = rng.standard_normal((8, DIM, BUCKETS // 2))
    for rounds in (1, 2, 4, 8):
        out = aa.lsh_attention(query, value, rotations[:rounds], chunk_size=CHUNK, scale=scale)
        lsh.append((2 * CHUNK * rounds, error(out, exact)))
    return {"Linformer": linformer, "Nyström": nystrom, "LSH": lsh}


def error(found: Any, exact: Any) -> float:
    return round(float(np.linalg.norm(found - exact) / np.linalg.norm(exact)), 4)


def draw(found: Errors, length: int) -> None:
    """The picture in docs/images."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (name, methods) in zip(axes, found.items(), strict=True):
        for (method, points), marker in zip(methods.items(), "os^", strict=True):
            axis.plot(*zip(*points, strict=True), marker=marker, label=method)
        axis.set(title=f"{name} sequences of {length}", xlabel="scores for each query", xscale="log", yscale="log")
        axis.set_xticks([16, 32, 64, 128, 256, 512], labels=["16", "32", "64", "128", "256", "512"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative error")
    axes[0].legend()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
