"""Handwritten digits by a Transformer over patches of 2 x 2 pixels, trained with gradients derived by hand.

    python docs/examples/digits.py [--quick] [--output FOLDER] [--backend NAME]

It takes a minute on one core; with --quick, seconds.

scikit-learn's digits are 1,797 images of 8 x 8 pixels. A third is held out; on the rest, with
new noise in each step, `attnarray.models.PatchClassifier` learns from several seeds. It is compared with two
classical models on the same split: logistic regression, and nearest neighbors, which are strong on small images.

Needs: attnarray, scikit-learn, matplotlib.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loss_curve import draw_loss
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import attnarray as aa
from attnarray import optim, tree
from attnarray.console import print_table, progress
from attnarray.models import PatchClassifier

MODEL = PatchClassifier(size=8, patch=2, classes=10, dim=64, num_layers=2, num_heads=4, hidden_dim=128, dropout=0.1)
BATCH, EPOCHS, SEEDS, PEAK_RATE, DECAY, LARGEST_NORM = 64, 40, 3, 3e-3, 0.3, 1.0
NOISE = 0.15  # its deviation, where pixels go from 0 to 1
MOST_LIT = 16  # of a pixel
COLORS = ("#1f5fbf", "#d1480f", "#0b7a4b")  # one for each seed
FULL_RUN = "about a minute on one core, and 98.6% are right"
DRAWN = 10  # images in the picture, besides misclassified ones


class Digits(NamedTuple):
    """Images (N, 8, 8) around 0, and their digits (N,)."""

    train: np.ndarray
    train_classes: np.ndarray
    test: np.ndarray
    test_classes: np.ndarray


class Trained(NamedTuple):
    params: dict[str, Any]
    losses: list[float]


def digits() -> Digits:
    images, classes = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / MOST_LIT - 0.5).astype(np.float32)
    train, test, train_classes, test_classes = train_test_split(
        images, classes, test_size=1 / 3, random_state=0, stratify=classes
    )
    return Digits(train, train_classes, test, test_classes)


def train(data: Digits, seed: int, epochs: int, advance: Callable[[str], None], model: Any = MODEL) -> Trained:
    """AdamW with a warm-up and the gradients of `model.bwd`; stops if the loss is not finite."""
    rng, seeds = np.random.default_rng(seed), aa.Philox(seed)
    params, losses = model.init(seeds), []
    state, total, step = optim.adamw_init(params), epochs * -(-len(data.train) // BATCH), 0
    for _ in range(epochs):
        order = rng.permutation(len(data.train))
        for start in range(0, len(order), BATCH):
            step += 1
            rows = order[start : start + BATCH]
            noise = NOISE * rng.standard_normal((len(rows), 8, 8), dtype=np.float32)
            images, classes = aa.asarray(data.train[rows] + noise), aa.asarray(data.train_classes[rows])
            logits, ctx = model.fwd(params, images, rng=seeds.fold_in(step))
            loss, loss_ctx = aa.cross_entropy_fwd(logits, classes)
            dlogits = aa.cross_entropy_bwd(aa.namespace_of(loss).ones_like(loss), loss_ctx).logits
            grads, norm = optim.clip_by_global_norm(model.bwd(dlogits, ctx).params, LARGEST_NORM)
            found = float(aa.to_numpy(loss))
            if not np.isfinite(found + float(aa.to_numpy(norm))):
                print(f"Step {step}: the loss is {found}, its gradient's norm {norm}. Going on with what was before.")
                return Trained(params, losses)
            rate = optim.warmup_cosine(step, peak=PEAK_RATE, warmup=total // 10, total=total)
            params, state = optim.adamw(params, grads, state, lr=rate, betas=(0.9, 0.98), weight_decay=DECAY)
            losses.append(found)
            advance(f"loss {found:.3f}")
    return Trained(params, losses)


def classified(params: dict[str, Any], images: np.ndarray) -> np.ndarray:
    return np.asarray(aa.to_numpy(MODEL(params, aa.asarray(images)))).argmax(-1)


def baselines(data: Digits) -> dict[str, float]:
    """The accuracy of classical models on the held-out digits."""
    models = {
        "the most frequent digit": None,
        "logistic regression": LogisticRegression(max_iter=2000),
        "3 nearest neighbors": KNeighborsClassifier(3),
    }
    x, y = data.train.reshape(len(data.train), 64), data.train_classes
    shares = {}
    for name, model in models.items():
        found = np.bincount(y).argmax() if model is None else model.fit(x, y).predict(data.test.reshape(-1, 64))
        shares[name] = float(np.mean(found == data.test_classes))
    return shares


def draw(path: Path, data: Digits, trained: Trained) -> None:
    """Some digits, misclassified ones first, with the attention of the class token in each head over them."""
    from matplotlib.figure import Figure

    found = classified(trained.params, data.test)
    wrong = np.flatnonzero(found != data.test_classes)
    rows = np.concatenate([wrong[: DRAWN // 2], np.flatnonzero(found == data.test_classes)])[:DRAWN]
    _, ctx = dataclasses.replace(MODEL, dropout=0.0).fwd(trained.params, aa.asarray(data.test[rows]))
    heads = {}
    for layer, block in enumerate(ctx.encoder.blocks, start=1):
        weights = aa.to_numpy(aa.attention_weights(block.attention.branch, slice(0, 1)))  # (N, H, 1, 17)
        looks = weights[:, :, 0, 1:].reshape(*weights.shape[:2], *MODEL.grid)
        heads |= {f"block {layer}, head {head}": looks[:, head] for head in range(MODEL.num_heads)}
    figure = Figure(figsize=(1.35 * DRAWN, 1.4 * (1 + len(heads))), layout="constrained")
    grid = figure.subplots(1 + len(heads), DRAWN, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for n, row in enumerate(rows):
        right = found[row] == data.test_classes[row]
        title = f"{found[row]}" if right else f"{found[row]}, but it is {data.test_classes[row]}"
        grid[0, n].imshow(data.test[row], cmap="gray_r")
        grid[0, n].set_title(title, fontsize=10, color="#111111" if right else "#c00000")
    for panels, (name, looks) in zip(grid[1:], heads.items(), strict=True):
        for axes, row, look in zip(panels, rows, looks, strict=True):
            axes.imshow(data.test[row], cmap="gray_r", alpha=0.35, extent=(0, 8, 8, 0))
            axes.imshow(look, cmap="Oranges", alpha=0.65, extent=(0, 8, 8, 0), vmin=0)
        panels[0].set_ylabel(name, fontsize=10)
    figure.suptitle(
        "Below each digit: how much the class token attends to each patch (darkest: the most of that panel)"
    )
    figure.savefig(path, dpi=120)


def draw_losses(path: Path, runs: list[Trained]) -> None:
    """The loss of each step, from every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for seed, trained in enumerate(runs):
        draw_loss(axes, trained.losses, COLORS[seed], f"seed {seed}")
    axes.set(xlabel="step", ylabel="cross-entropy", yscale="log")
    axes.set_title("Handwritten digits, with new noise in each step", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main(arguments: list[str] | None = None) -> float:
    """Train from several seeds, print the table, draw losses and the attention of one; returns the mean accuracy."""
    parser = argparse.ArgumentParser(description="Handwritten digits by a Transformer over patches.")
    parser.add_argument("--quick", action="store_true", help="one seed and few steps: seconds")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--backend", default="numpy", help="the array library to compute with: numpy, torch, cupy ...")
    options = parser.parse_args(arguments)
    with aa.use_backend(options.backend):
        return run(options)


def run(options: argparse.Namespace) -> float:
    """`main` on the backend of the options."""
    seeds, epochs = (1, 4) if options.quick else (SEEDS, EPOCHS)
    data = digits()
    with progress("Training", seeds * epochs * -(-len(data.train) // BATCH)) as bar:
        runs = [train(data, seed, epochs, bar.advance) for seed in range(seeds)]
        bar.note("evaluating")
        shares = np.array([np.mean(classified(trained.params, data.test) == data.test_classes) for trained in runs])
        simple = baselines(data)
    numbers = sum(int(np.prod(leaf.shape)) for _, leaf in tree.flatten(runs[0].params))
    rows = [[name, f"{share:.1%}"] for name, share in simple.items()]
    spread = f"{shares.mean():.1%} ({shares.min():.1%} to {shares.max():.1%} over {seeds} seeds)"
    title = f"{len(data.test)} digits held out, {len(data.train)} to learn from"
    print_table(title, ["", "right"], [*rows, [f"patches, {numbers:,} parameters", spread]], right=[1])
    if options.quick:
        print(f"--quick: {epochs} epochs of {EPOCHS}, too few to learn this. The full run takes {FULL_RUN}.")
    options.output.mkdir(parents=True, exist_ok=True)
    draw(options.output / "digits.png", data, runs[0])
    draw_losses(options.output / "digits-loss.png", runs)
    print(f"Pictures: {options.output / 'digits.png'}, {options.output / 'digits-loss.png'}")
    return float(shares.mean())


if __name__ == "__main__":
    main()
