"""A classifier of handwritten digits, adapted by LoRA to digits that lie on their side.

    python docs/examples/fine_tune_digits.py [--quick] [--backend NAME]

`attnarray.models.PatchClassifier` first learns from a half of scikit-learn's digits, 1,797 images of 8 x 8 pixels. Then
it sees a few of the other half, turned by a quarter, and is tested on the rest of them, turned as well. Compared are
the model as it is, one that learns from these few alone, training of all weights, and LoRA (`attnarray.layers.LoRA`),
which trains matrices of low rank beside the weights of attention and feed-forward networks.

Needs: attnarray, scikit-learn.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import attnarray as aa
from attnarray import optim, tree
from attnarray.console import print_table, progress
from attnarray.layers import LoRA
from attnarray.models import PatchClassifier

MODEL = PatchClassifier(size=8, patch=2, classes=10, dim=64, num_layers=2, num_heads=4, hidden_dim=128, dropout=0.1)
LORA = LoRA(MODEL, ("encoder.blocks.*", "patches", "logits"), rank=4)
BATCH, STEPS, FINE_STEPS, SEEDS, RATE, SHOWN = 64, 500, 200, 3, 3e-3, 100
MOST_LIT = 16  # of a pixel


class Data:
    """Upright digits to learn from, and turned ones: a few to adapt to, the rest to test."""

    def __init__(self, seed: int) -> None:
        images, classes = load_digits(return_X_y=True)
        images = (images.reshape(-1, 8, 8) / MOST_LIT - 0.5).astype(np.float32)
        order = np.random.default_rng(seed).permutation(len(images))
        upright, shown, test = np.split(order, [len(images) // 2, len(images) // 2 + SHOWN])
        turned = np.rot90(images, axes=(1, 2)).copy()
        self.upright = images[upright], classes[upright]
        self.shown = turned[shown], classes[shown]
        self.test = turned[test], classes[test]


def train(
    params: Any, images: np.ndarray, classes: np.ndarray, steps: int, seed: int, bar: Any, base: Any = None
) -> Any:
    """AdamW on random batches; with a `base`, `params` are those of LoRA."""
    rng, seeds, state = np.random.default_rng(seed), aa.Philox(seed), optim.adamw_init(params)
    for step in range(1, steps + 1):
        rows = rng.integers(len(images), size=BATCH)
        weights = params if base is None else LORA.merge(params, base)
        logits, ctx = MODEL.fwd(weights, aa.asarray(images[rows]), rng=seeds.fold_in(step))
        loss, loss_ctx = aa.cross_entropy_fwd(logits, aa.asarray(classes[rows]))
        dlogits = aa.cross_entropy_bwd(aa.namespace_of(loss).ones_like(loss), loss_ctx).logits
        grads = MODEL.bwd(dlogits, ctx).params
        grads = grads if base is None else LORA.gradients(params, grads)
        grads, _ = optim.clip_by_global_norm(grads, 1.0)
        rate = optim.warmup_cosine(step, peak=RATE, warmup=steps // 10, total=steps)
        params, state = optim.adamw(params, grads, state, lr=rate)
        bar.advance(f"loss {float(aa.to_numpy(loss)):.3f}")
    return params


def accuracy(params: Any, images: np.ndarray, classes: np.ndarray) -> float:
    return float(np.mean(aa.to_numpy(MODEL(params, aa.asarray(images))).argmax(-1) == classes))


def compare(seed: int, steps: int, fine_steps: int, bar: Any) -> dict[str, float]:
    """The share of turned digits that each of the four models classifies."""
    data, fresh = Data(seed), MODEL.init(aa.Philox(seed))
    base = train(fresh, *data.upright, steps, seed, bar)
    adapters = train(LORA.init(aa.Philox(seed)), *data.shown, fine_steps, seed, bar, base)
    return {
        "as it is": accuracy(base, *data.test),
        "from the turned digits alone": accuracy(train(fresh, *data.shown, fine_steps, seed, bar), *data.test),
        "all weights trained": accuracy(train(base, *data.shown, fine_steps, seed, bar), *data.test),
        "LoRA": accuracy(LORA.merge(adapters, base), *data.test),
    }


def size(params: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for _, leaf in tree.flatten(params))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Compare on several seeds, print the table, and return the means."""
    parser = argparse.ArgumentParser(description="A classifier of digits, adapted by LoRA to turned digits.")
    parser.add_argument("--quick", action="store_true", help="one seed and few steps: seconds")
    parser.add_argument("--backend", default="numpy", help="the array library to compute with: numpy, torch, cupy ...")
    options = parser.parse_args(arguments)
    seeds, steps, fine_steps = (1, 60, 20) if options.quick else (SEEDS, STEPS, FINE_STEPS)
    with aa.use_backend(options.backend), progress("Training", seeds * (steps + 3 * fine_steps)) as bar:
        runs = [compare(seed, steps, fine_steps, bar) for seed in range(seeds)]
        trained = {"LoRA": size(LORA.init(aa.Philox(0))), "as it is": 0}
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    rows = [
        [name, f"{trained.get(name, size(MODEL.init(aa.Philox(0)))):,}", f"{mean:.1%}",
         f"{min(run[name] for run in runs):.1%} to {max(run[name] for run in runs):.1%}"]
        for name, mean in means.items()
    ]  # fmt: skip
    title = f"Digits turned by a quarter, {SHOWN} to learn from, {seeds} seed{'s' * (seeds > 1)}"
    print_table(title, ["", "numbers trained", "right", "over seeds"], rows, right=[1, 2])
    return means


if __name__ == "__main__":
    main()
