"""Whole models against PyTorch eager: a step of training a GPT, and reading and writing with one of GPT-2's size.

    python benchmarks/models.py [--quick] [--rounds N] [--threads N] [--json PATH]

Both sides have the same weights, do the same work in float32 and are checked against each other before anything is
timed. They take turns; a ratio is the median over the rounds of PyTorch's time over ours, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from attnarray.bench.threads import environment

BETAS, RATE, DECAY = (0.9, 0.95), 3e-4, 0.1
AGREEMENT = 1e-3  # relative: float32 through 12 blocks, in another order of sums


class Case(NamedTuple):
    """What is timed, `tokens` of it in each call."""

    name: str
    tokens: int
    ours: Callable[[], Any]
    torch: Callable[[], Any]


def training_step(quick: bool) -> Case:
    """Forward, loss, backward and AdamW."""
    import numpy as np
    import torch
    from torch_gpt import TorchGpt

    import attnarray as aa
    from attnarray import optim
    from attnarray.models import Gpt

    T, B = (32, 2) if quick else (256, 8)
    model = Gpt(vocabulary=256, longest=T, dim=256, layers=1 if quick else 6, heads=8)
    params = random_params(model)
    tokens = np.random.default_rng(1).integers(256, size=(B, T + 1))
    theirs, given = TorchGpt(model, params), torch.from_numpy(tokens)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    state = optim.adamw_init(params)

    def gradients() -> Any:
        logits, ctx = model.fwd(params, tokens[:, :-1])
        loss, of_loss = aa.cross_entropy_fwd(logits, tokens[:, 1:])
        return model.bwd(aa.cross_entropy_bwd(np.ones_like(loss), of_loss).logits, ctx).params

    def backward() -> None:
        optimizer.zero_grad()
        logits = theirs(given[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), given[:, 1:].flatten()).backward()

    def our_step() -> None:
        nonlocal params, state
        params, state = optim.adamw(params, gradients(), state, lr=RATE, betas=BETAS, weight_decay=DECAY)

    def their_step() -> None:
        backward()
        optimizer.step()

    grads = gradients()
    backward()
    agree("gradient of the embeddings", grads["token"]["weight"], theirs.token.grad)
    agree("gradient of the positions", grads["position"]["weight"], theirs.position.grad)
    return Case(f"training step, {model.layers} layers of {model.dim}, batch {B} x {T}", B * T, our_step, their_step)


def generation(quick: bool) -> list[Case]:
    """Reading a prompt, and writing after it token by token, by what the caches hold."""
    import numpy as np
    import torch
    from torch_gpt import TorchGpt

    from attnarray.models import Gpt

    model = Gpt(vocabulary=300, longest=64, dim=64, layers=2, heads=4) if quick else Gpt.small()
    prompt, count = (16, 4) if quick else (512, 32)
    params = random_params(model)
    theirs = TorchGpt(model, params)
    tokens = np.random.default_rng(1).integers(model.vocabulary, size=(1, prompt))
    longest = prompt + count
    our_room, their_room = model.cache(1, longest), theirs.cache(1, longest)

    def we_read() -> Any:
        return model.step(params, tokens, our_room, last=True)

    @torch.inference_mode()
    def they_read() -> torch.Tensor:
        return theirs(torch.from_numpy(tokens), their_room, last=True)

    def we_write() -> Any:
        told, cache = tokens[:, -1:], read
        for _ in range(count):
            logits, cache = model.step(params, told, cache, last=True)
            told = logits.argmax(-1)
        return logits

    @torch.inference_mode()
    def they_write() -> torch.Tensor:
        told = torch.from_numpy(tokens[:, -1:])
        for start in range(prompt, longest):
            logits = theirs(told, their_room, start, last=True)
            told = logits.argmax(-1)
        return logits

    logits, read = we_read()
    agree("logits after the prompt", logits, they_read())
    agree("logits after the last token", we_write(), they_write())
    name = f"{model.layers} layers of {model.dim}"
    return [
        Case(f"reading a prompt of {prompt}, {name}", prompt, we_read, they_read),
        Case(f"writing {count} tokens after {prompt}, {name}", count, we_write, they_write),
    ]


def random_params(model: Any) -> Any:
    """Normal numbers of deviation 0.02, and norms that do not move anything."""
    import numpy as np

    rng = np.random.default_rng(0)

    def made(shapes: Any, name: str) -> Any:
        if isinstance(shapes, dict):
            return {key: made(value, f"{name}.{key}") for key, value in shapes.items()}
        numbers = rng.standard_normal(shapes, np.float32) * np.float32(0.02)
        return numbers + np.float32(name.endswith("norm.weight"))

    return made(model.shapes(), "")


def agree(what: str, ours: Any, theirs: Any) -> None:
    """Stop where both sides do not compute the same."""
    import numpy as np

    theirs = theirs.detach().numpy()
    difference = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    if not difference < AGREEMENT:
        sys.exit(f"The {what} differs from PyTorch's by {difference:.1e}: nothing is timed.")


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds per call of both, in turns, and their ratio."""
    from attnarray.bench.clock import HostClock
    from attnarray.bench.statistics import paired_ratio, spread

    clock, sides = HostClock(), {"attnarray": case.ours, "PyTorch eager": case.torch}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for n in range(rounds):
        for name, run in list(sides.items())[:: 1 if n % 2 else -1]:
            samples[name].append(clock.sample(run, 1))
    ratio = paired_ratio(samples["PyTorch eager"], samples["attnarray"])
    rates = {name: case.tokens / spread(times).median for name, times in samples.items()}
    return {"samples": samples, "tokens": case.tokens, "tokens per second": rates, "ratio": ratio._asdict()}


def shown(name: str, found: dict[str, Any]) -> list[str]:
    """One row of the table."""
    ratio = found["ratio"]
    between = "" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return [name, *(f"{rate:,.1f}" for rate in found["tokens per second"].values()), f"{ratio['value']:.2f}{between}"]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Time all cases, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Whole models against PyTorch eager.")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="how often each side runs")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="of each side; all CPUs by default")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where every sample goes")
    options = parser.parse_args(arguments)

    from attnarray.bench.machine import available_cpus, describe
    from attnarray.console import print_table, progress

    threads = options.threads or available_cpus()
    wanted = environment(threads)
    if arguments is None and any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)  # which libraries read when they are loaded
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    import torch

    torch.set_num_threads(threads)
    found = {}
    with progress("Measuring", 3, still=True) as bar:
        for make in (lambda quick: [training_step(quick)], generation):
            for case in make(options.quick):
                found[case.name] = measured(case, options.rounds)
                bar.advance(case.name)
    columns = ["", "attnarray, tokens/s", "PyTorch eager, tokens/s", "ratio"]
    print_table(
        f"Models in float32 on {threads} threads", columns, [shown(*row) for row in found.items()], right=[1, 2, 3]
    )
    result = {**describe("numpy", threads, "python benchmarks/models.py"), "cases": found}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
