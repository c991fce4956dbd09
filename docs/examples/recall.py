"""Recall of pairs by linear attention: the delta rule replaces what a key held, the linear rule can only add to it.

    python docs/examples/recall.py [--quick]

A sequence writes a value under a key at every step, keys come again with new values, and then some keys are asked for:
the answer is the value that was written last. One layer with a state of 16 x 16 numbers learns it from the answers.
It takes less than a minute on one core, prints the shares of right answers and plots recall.png; with --quick, seconds,
for one number of pairs, at which the rules already differ.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray import optim

KEYS, VALUES, ASKED, DIM = 12, 8, 4, 16
RULES = ("linear", "delta")


class Batch(NamedTuple):
    """One-hot keys and values (B, T, ...), where no value is given at the last steps, which ask; and the answers."""

    keys: np.ndarray
    values: np.ndarray
    answers: np.ndarray


def batch(rng: np.random.Generator, size: int, written: int) -> Batch:
    """`written` pairs, of which keys repeat, then `ASKED` questions for keys that were written."""
    keys = rng.integers(KEYS, size=(size, written))
    values = rng.integers(VALUES, size=(size, written))
    asked = np.take_along_axis(keys, rng.integers(written, size=(size, ASKED)), axis=1)
    last = np.argmax((asked[:, :, None] == keys[:, None, ::-1]), axis=2)  # from the end
    answers = np.take_along_axis(values, written - 1 - last, axis=1)
    one_hot = np.eye(VALUES, dtype=np.float32)[values]
    nothing = np.zeros((size, ASKED, VALUES), np.float32)
    return Batch(
        np.eye(KEYS, dtype=np.float32)[np.concatenate([keys, asked], axis=1)],
        np.concatenate([one_hot, nothing], axis=1),
        answers,
    )


def init(rng: aa.Philox) -> dict[str, Any]:
    """A map of keys to key vectors, of values to value vectors, and of outputs to answers."""
    key, value, out = rng.split(3)
    return {
        "key": key.normal((DIM, KEYS), std=0.5),
        "value": value.normal((DIM, VALUES), std=0.5),
        "out": out.normal((VALUES, DIM), std=0.5),
    }


def loss(params: dict[str, Any], given: Batch, rule: str) -> tuple[float, float, dict[str, Any]]:
    """The loss, the share of right answers, and the gradients."""
    mapped, key_ctx = aa.linear_fwd(given.keys, params["key"])
    key, norm_ctx = aa.rms_norm_fwd(mapped)  # of length sqrt(DIM)
    key = key / DIM**0.5
    value, value_ctx = aa.linear_fwd(given.values, params["value"])
    writes = np.ones(key.shape[:2], key.dtype)
    writes[:, -ASKED:] = 0.0
    options: dict[str, Any] = {"rule": rule, "scale": 1.0, "beta": writes if rule == "delta" else None}
    result, ctx = aa.linear_attention_fwd(key, key, value, **options)
    logits, out_ctx = aa.linear_fwd(result.out[:, -ASKED:], params["out"])
    total, loss_ctx = aa.cross_entropy_fwd(logits, given.answers)
    right = float(np.mean(np.argmax(logits, axis=-1) == given.answers))
    out = aa.linear_bwd(aa.cross_entropy_bwd(np.ones_like(total), loss_ctx).logits, out_ctx)
    dout = np.zeros_like(result.out)
    dout[:, -ASKED:] = out.x
    grads = aa.linear_attention_bwd(dout, ctx)
    dkey = aa.rms_norm_bwd((grads.query + grads.key) / DIM**0.5, norm_ctx).x
    own = {
        "key": aa.linear_bwd(dkey, key_ctx).weight,
        "value": aa.linear_bwd(grads.value, value_ctx).weight,
        "out": out.weight,
    }
    return float(total), right, own


def train(rule: str, written: int, steps: int, seed: int = 0) -> float:
    """The share of right answers on new sequences after training."""
    rng = np.random.default_rng(seed)
    params = init(aa.Philox(seed))
    state = optim.adamw_init(params)
    for _ in range(steps):
        _, _, grads = loss(params, batch(rng, 64, written), rule)
        params, state = optim.adamw(params, grads, state, lr=0.01, weight_decay=0.0)
    return loss(params, batch(rng, 1000, written), rule)[1]


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Train both rules on more and more pairs, print the shares of right answers, and plot them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of training, for each rule and number of pairs")
    parser.add_argument("--pairs", type=int, nargs="+", default=[6, 12, 24, 48])
    parser.add_argument("--plot", default="recall.png", help="file of the plot; '' for none")
    parser.add_argument(
        "--quick", action="store_true", help="80 steps, 24 pairs, no plot: enough to tell the rules apart"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.pairs, options.plot = 80, [24], ""
    shares = {rule: [train(rule, n, options.steps) for n in options.pairs] for rule in RULES}
    for place, n in enumerate(options.pairs):
        found = ", ".join(f"{rule} {shares[rule][place]:.1%}" for rule in RULES)
        print(f"{n} pairs of {KEYS} keys, chance {1 / VALUES:.1%}: {found}")
    if options.plot:
        plot(options.pairs, shares, options.plot)
    return shares


def plot(pairs: list[int], shares: dict[str, list[float]], path: str) -> None:
    """A line for each rule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for rule, found in shares.items():
        axes.plot(pairs, found, marker="o", label=rule)
    axes.axhline(1 / VALUES, color="gray", linestyle=":", label="chance")
    axes.set(xlabel=f"pairs written ({KEYS} keys)", ylabel="right answers", ylim=(0, 1.05))
    axes.legend()
    figure.savefig(path, dpi=150)
    print(f"plotted: {path}")


if __name__ == "__main__":
    main()
