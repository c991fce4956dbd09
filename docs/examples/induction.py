"""Induction heads: a small GPT learns to continue repeated sequences, and interpret shows which heads do it.

    python docs/examples/induction.py [--quick]

Random tokens with a random period are repeated, so that a token can only be known from what followed its last
occurrence. A GPT of two layers learns it by heads of two kinds: one in the first layer that attends to the last
tokens, and some in the second that attend to the token after the last occurrence. It takes less than a minute on one
core; with --quick it takes a few steps, too few to learn anything, and draws nothing. The accuracy is compared with
chance, and with that of the same model without each head.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray import interpret, optim

VOCAB, T, HEADS = 32, 48, 4
PERIODS = (8, 20)
FULL_RUN = "half a minute on one core, and reaches 89.8% on repeated tokens"


class Found(NamedTuple):
    """Of a step: the loss, the accuracy on repeated tokens, and the scores (layers, heads)."""

    step: int
    loss: float
    accuracy: float
    previous: np.ndarray
    induction: np.ndarray


def batch(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (size, T), each with a period of its own, and whether the next token is known from the period."""
    tokens = np.empty((size, T), np.int64)
    known = np.zeros((size, T - 1), bool)
    for row in range(size):
        period = rng.integers(*PERIODS, endpoint=True)
        tokens[row] = np.resize(rng.permutation(VOCAB)[:period], T)
        known[row, period:] = True
    return tokens, known


def measure(model: aa.models.GPT, params: Any, step: int, loss: float) -> Found:
    """Accuracy and scores on sequences that are the same at every step."""
    tokens, known = batch(np.random.default_rng(1), 64)
    logits, ctx = model.fwd(params, tokens[:, :-1])
    right = (logits.argmax(axis=-1) == tokens[:, 1:])[known]
    layers = interpret.attention_contexts(ctx).values()
    previous = np.stack([interpret.previous_token_scores(each).mean(axis=0) for each in layers])
    induction = np.stack([interpret.induction_scores(each, tokens[:, :-1]).mean(axis=0) for each in layers])
    return Found(step, loss, float(right.mean()), previous, induction)


def train(steps: int, every: int, seed: int = 0) -> tuple[aa.models.GPT, Any, list[Found]]:
    """Train with AdamW on the loss of the known tokens."""
    model = aa.models.GPT(VOCAB, T, dim=64, num_layers=2, num_heads=HEADS, positions="alibi")
    params, rng = model.init(aa.Philox(seed)), np.random.default_rng(seed)
    state, found, loss = optim.adamw_init(params), [], float("nan")
    for step in range(steps + 1):
        if step % every == 0:
            found.append(measure(model, params, step, loss))
            print(f"step {step}: loss {loss:.2f}, accuracy {found[-1].accuracy:.1%}", flush=True)
        tokens, known = batch(rng, 32)
        logits, ctx = model.fwd(params, tokens[:, :-1])
        targets = np.where(known, tokens[:, 1:], -1)
        mean, loss_ctx = aa.cross_entropy_fwd(logits, targets, ignore_index=-1)
        loss = float(mean)
        grads = model.bwd(aa.cross_entropy_bwd(np.ones_like(mean), loss_ctx).logits, ctx).params
        params, state = optim.adamw(params, grads, state, lr=2e-3)
    return model, params, found


def ablations(model: aa.models.GPT, params: Any) -> dict[str, float]:
    """The accuracy without each head."""
    found = {}
    for layer in range(model.num_layers):
        for head in range(HEADS):
            path = f"blocks.{layer}.attention"
            without = interpret.without_heads(params, {path: [head]}, HEADS)
            found[f"layer {layer}, head {head}"] = measure(model, without, 0, 0.0).accuracy
    return found


def main(arguments: list[str] | None = None) -> list[Found]:
    """Train, print the scores and the accuracy without each head, and plot them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--every", type=int, default=50, help="steps between two measurements")
    parser.add_argument("--plot", default="induction.png", help="file of the plot; '' for none")
    parser.add_argument("--page", default="", help="file of a page with all heads; '' for none")
    parser.add_argument("--quick", action="store_true", help="ten steps, which learn nothing, and no plot")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.every, options.plot = 10, 10, ""
    model, params, found = train(options.steps, options.every)
    last = found[-1]
    print(f"chance {1 / VOCAB:.1%}; previous-token scores of layer 0: {shown(last.previous[0])}")
    print(f"induction scores of layer 1: {shown(last.induction[1])}")
    without = ablations(model, params)
    for head, accuracy in without.items():
        print(f"without {head}: {accuracy:.1%}")
    if options.quick:
        print(f"--quick: {options.steps} steps, too few to learn anything. The full run takes {FULL_RUN}.")
    if options.plot:
        plot(found, without, options.plot)
    if options.page:
        tokens, _ = batch(np.random.default_rng(2), 1)
        contexts = interpret.attention_contexts(model.fwd(params, tokens)[1])
        interpret.html(contexts, [str(token) for token in tokens[0]], title="Repeated tokens").save(options.page)
    return found


def shown(scores: np.ndarray) -> str:
    return ", ".join(f"{score:.2f}" for score in scores)


def plot(found: list[Found], without: dict[str, float], path: str) -> None:
    """Accuracy and the scores of every head by step, and the accuracy without each head."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = [each.step for each in found]
    left.plot(steps, [each.accuracy for each in found], color="black")
    left.axhline(1 / VOCAB, color="gray", linestyle=":", label="chance")
    left.set(xlabel="step", ylabel="accuracy on repeated tokens", ylim=(0, 1.05))
    left.legend()
    for head in range(HEADS):
        previous, induction = "previous token, layer 0", "induction, layer 1"
        label = {} if head else {"previous": previous, "induction": induction}
        middle.plot(steps, [each.previous[0, head] for each in found], color="#1f5fbf", label=label.get("previous"))
        middle.plot(steps, [each.induction[1, head] for each in found], color="#d1480f", label=label.get("induction"))
    middle.set(xlabel="step", ylabel="score of each head", ylim=(0, 1.05))
    middle.legend(fontsize=8)
    right.barh(list(without), list(without.values()), color="#777777")
    right.axvline(found[-1].accuracy, color="black", label="all heads")
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=7)
    right.set(xlabel="accuracy without a head", xlim=(0, 1.05))
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    print(f"plotted: {path}")


if __name__ == "__main__":
    main()
