"""Tokens per second of a GPT alone and with a draft of a quarter of its blocks, and whether the tokens are the same.

The weights are random: the draft has the embeddings and the first blocks of the model, whose later blocks add little,
so that most of its tokens are right, as those of a trained draft are. One prompt, greedy; calls alternate, and each
figure is that of the fastest.

    python -m benchmarks.drafts --output NAME-drafts    # writes results/NAME-drafts.json
    python -m benchmarks.drafts --quick                 # a test that it runs
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import attnarray as aa
from attnarray import info

RESULTS = Path(__file__).parent / "results"
SMALLER = 0.05  # the factor of what the later blocks add


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="NAME", help="name of the file in benchmarks/results, without extension")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one round with a small model")
    options = parser.parse_args()
    dim, layers, count, rounds = (32, 4, 8, 1) if options.quick else (768, 12, 64, options.rounds)
    kind: dict[str, Any] = {"vocab_size": 5000, "max_seq_len": 256, "dim": dim, "num_heads": max(dim // 64, 2)}
    model, small = (aa.models.GPT(num_layers=n, **kind) for n in (layers, layers // 4))
    params = model.init(aa.Philox(0))
    blocks = [block if n < layers // 4 else less(block) for n, block in enumerate(params["blocks"])]
    params = {**params, "blocks": blocks}
    draft = small, {**params, "blocks": blocks[: layers // 4]}
    prompt = np.random.default_rng(0).integers(0, 5000, (1, 16))
    found: dict[str, Any] = {}
    tokens: dict[str, Any] = {}
    calls: dict[str, dict[str, Any]] = {"alone": {}}
    calls |= {f"draft of {n}": {"draft": draft, "draft_tokens": n} for n in (2, 4)}
    for _ in range(rounds + 1):  # the first does not count
        for name, given in calls.items():
            start = time.perf_counter()
            tokens[name] = aa.models.generate(model, params, prompt, count, **given)
            found.setdefault(name, []).append(count / (time.perf_counter() - start))
    rates = {name: round(max(some[1:]), 1) for name, some in found.items()}
    for name, rate in rates.items():
        same = bool(np.array_equal(tokens[name], tokens["alone"]))
        print(f"{name:<12} {rate:>8.1f} tokens per second, {'the same tokens' if same else 'OTHER TOKENS'}")
        assert same
    if options.output:
        facts = {name: value for name, value in info.collect()["here"].items() if name != "kernel cache"}
        report = {"here": facts, "dim": dim, "layers": layers, "count": count, "tokens per second": rates}
        (RESULTS / f"{options.output}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def less(block: Any) -> Any:
    """The block with smaller weights where it adds to the states."""
    for path, leaf in aa.tree.flatten(block):
        if path[1:] == ("out", "weight"):
            block = aa.tree.replace(block, path, leaf * np.float32(SMALLER))
    return block


if __name__ == "__main__":
    main()
