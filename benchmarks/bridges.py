"""What the bridges cost, and what they bring: PyTorch's own attention and transformers' "sdpa" beside ours.

    python -m benchmarks.bridges [--rounds N] [--only TEXT] [--output NAME]

The floor of a tiny call is what autograd takes for a function that does nothing. PyTorch's OpenMP lets its threads spin
after each operation, on processors that ours need then: GOMP_SPINCOUNT=0 before Python starts forbids it. Interleaved
rounds in one process; a ratio is the median of the peer's time over ours, with its range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import attnarray as aa
from attnarray.bench.machine import describe
from attnarray.bridges import torch as bridge
from attnarray.bridges import transformers as bridge_of_transformers

Case = tuple[Callable[[], Any], Callable[[], Any], int]  # ours, the peer, calls in one sample


class Nothing(torch.autograd.Function):
    """The least that a function of autograd written in Python does."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        return query.detach()

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        return dout, dout, dout


def attention(shape: tuple[int, ...], calls: int, peer: str) -> Case:
    """Forward and backward through autograd, against PyTorch's, or against our functions on arrays."""
    tensors = [torch.randn(shape).requires_grad_() for _ in range(3)]
    dout = torch.randn(shape)
    query, key, value, darray = (x.detach().numpy() for x in (*tensors, dout))

    def bridged(function: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function(*tensors), tensors, dout)

    def direct() -> Any:
        _, ctx = aa.scaled_dot_product_attention_fwd(query, key, value)
        return aa.scaled_dot_product_attention_bwd(darray, ctx)

    ours = bridged(bridge.scaled_dot_product_attention)
    theirs = {
        "PyTorch": bridged(torch.nn.functional.scaled_dot_product_attention),
        "direct": direct,
        "nothing": bridged(Nothing.apply),
        "multiplication by 1": lambda: torch.autograd.grad(tensors[0] * 1.0, tensors[0], dout),
    }[peer]
    if peer in ("PyTorch", "direct"):
        for one, other in zip(ours(), theirs(), strict=False):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-4)
    return ours, theirs, calls


def model(kind: str, tokens: int, training: bool) -> Case:
    """A model of transformers with both implementations: logits, or a step of training without the optimizer."""
    name, head = {"GPT-2": ("GPT2", "GPT2LMHeadModel"), "BERT": ("Bert", "BertForMaskedLM")}[kind]
    made = []
    for implementation in (bridge_of_transformers.NAME, "sdpa"):
        config = getattr(transformers, f"{name}Config")(attn_implementation=implementation)
        config.num_hidden_layers = 4
        torch.manual_seed(0)
        made.append(getattr(transformers, head)(config).eval())
    ids = torch.randint(1000, (1, tokens))

    def step(model: Any) -> Callable[[], Any]:
        def run() -> Any:
            if not training:
                with torch.no_grad():
                    return model(ids).logits
            model.zero_grad()
            loss = model(ids, labels=ids).loss
            loss.backward()
            return loss.detach()

        return run

    ours, theirs = map(step, made)
    torch.testing.assert_close(ours(), theirs(), atol=1e-3, rtol=1e-3)
    return ours, theirs, 1


CASES: dict[str, Callable[[], Case]] = {
    "tiny (1, 2, 4, 8), forward and backward: PyTorch": lambda: attention((1, 2, 4, 8), 200, "PyTorch"),
    "tiny (1, 2, 4, 8), forward and backward: direct": lambda: attention((1, 2, 4, 8), 200, "direct"),
    "tiny (1, 2, 4, 8), forward and backward: nothing": lambda: attention((1, 2, 4, 8), 200, "nothing"),
    "tiny (1, 2, 4, 8), forward and backward: multiplication by 1": lambda: attention(
        (1, 2, 4, 8), 200, "multiplication by 1"
    ),
    "(1, 8, 512, 64), forward and backward: PyTorch": lambda: attention((1, 8, 512, 64), 2, "PyTorch"),
    "(1, 8, 2048, 64), forward and backward: PyTorch": lambda: attention((1, 8, 2048, 64), 1, "PyTorch"),
    "GPT-2, 4 layers, 512 tokens: sdpa": lambda: model("GPT-2", 512, training=False),
    "GPT-2, 4 layers, 512 tokens, gradients: sdpa": lambda: model("GPT-2", 512, training=True),
    "BERT, 4 layers, 512 tokens: sdpa": lambda: model("BERT", 512, training=False),
    "BERT, 4 layers, 512 tokens, gradients: sdpa": lambda: model("BERT", 512, training=True),
}


def seconds(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def measured(case: Case, rounds: int) -> dict[str, Any]:
    ours, theirs, calls = case
    pairs = [(seconds(ours, calls), seconds(theirs, calls)) for _ in range(rounds)]
    ratios = [peer / own for own, peer in pairs]
    own, peer = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"ours": own, "peer": peer, "ratio": statistics.median(ratios), "from": min(ratios), "to": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of the bridges.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this in their name")
    parser.add_argument("--output", metavar="NAME", help="write NAME.json into benchmarks/results")
    options = parser.parse_args()
    only = f" --only '{options.only}'" if options.only else ""
    command = f"python -m benchmarks.bridges --rounds {options.rounds}{only}"
    spin = os.environ.get("GOMP_SPINCOUNT")
    about = describe("numpy", torch.get_num_threads(), command if spin is None else f"GOMP_SPINCOUNT={spin} {command}")
    found = {}
    for name, make in CASES.items():
        if options.only not in name:
            continue
        found[name] = row = measured(make(), options.rounds)
        print(
            f"{name:60s} {1e6 * row['ours']:10.1f} us {1e6 * row['peer']:10.1f} us  ratio {row['ratio']:.2f}",
            flush=True,
        )
    if options.output:
        path = Path(__file__).parent / "results" / f"{options.output}.json"
        path.write_text(json.dumps({"environment": about, "cases": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
