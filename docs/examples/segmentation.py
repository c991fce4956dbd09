"""Segmentation of digits on a canvas by neighborhood attention, trained with gradients derived by hand.

    python docs/examples/segmentation.py [--quick] [--window 1] [--output FOLDER] [--backend NAME]

Canvases of 24 x 24 pixels hold one to four of scikit-learn's handwritten digits, which may touch, and noise. Each pixel
is to be given its class: background, or the digit that it is ink of. A network reads patches of 2 x 2 pixels, each with
the pixels around it, and in each block a patch attends to the 5 x 5 patches around it (neighborhood attention: Hassani
et al., 2022). It learns from new canvases in every step; digits of the test are of other images than those of training.

It is compared with two methods for single pixels, by mean IoU: the mean over classes of the pixels that are of the
class in both, relative to those in either. A threshold gives all ink the most frequent digit, and a logistic regression
reads the 9 x 9 pixels around each pixel. `--window 1` trains the same network without attention: each patch then
attends to itself alone, and knows only the 8 x 8 pixels that it reads.

Settings of the network were chosen in part by results on the canvases of the test, so its mean IoU may be too high.

Needs: attnarray, matplotlib, scikit-learn.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loss_curve import draw_loss
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import attnarray as aa
from attnarray import optim, tree
from attnarray.console import print_table, progress

SIZE, PATCH, OVERLAP, CLASSES, MOST_DIGITS, NOISE = 24, 2, 3, 11, 4, 0.1
INK = 0.3  # a pixel is of a digit from this value on, where values go from 0 to 1
DIM, BLOCK_COUNT, BATCH, STEPS, SEEDS, TESTED = 48, 3, 32, 500, 3, 300
PEAK_RATE, DECAY, LARGEST_NORM = 4e-3, 0.1, 1.0
AROUND = 4  # pixels on each side that the logistic regression reads
WINDOW = 5  # patches along each side of a neighborhood
COLORS = ("#1f5fbf", "#d1480f", "#0b7a4b")  # one for each seed
EMBED, NORM = aa.layers.Linear((PATCH + 2 * OVERLAP) ** 2, DIM), aa.layers.LayerNorm(DIM)
OUT = aa.layers.Linear(DIM, PATCH * PATCH * CLASSES)


class Canvases(NamedTuple):
    """Pixels (N, SIZE, SIZE) and their classes: 0 is background, 1 to 10 are the digits."""

    pixels: np.ndarray
    classes: np.ndarray


class Trained(NamedTuple):
    params: dict[str, Any]
    losses: list[float]
    window: int


@functools.cache
def block(window: int) -> aa.layers.WindowBlock:
    """Neighborhood attention to window x window patches, and a feed-forward network."""
    return aa.layers.WindowBlock(DIM, num_heads=4, window_size=window, kind="neighborhood", hidden_dim=2 * DIM)


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images (N, 8, 8) from 0 to 1 and their digits: those of training, and those of the test."""
    images, names = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    train, test, train_names, test_names = train_test_split(
        images, names, test_size=1 / 3, random_state=0, stratify=names
    )
    return (train, train_names), (test, test_names)


def compose(rng: np.random.Generator, images: np.ndarray, names: np.ndarray, count: int) -> Canvases:
    """Canvases with digits at random positions; where two overlap, the darker pixel is seen."""
    pixels = np.zeros((count, SIZE, SIZE), np.float32)
    classes = np.zeros((count, SIZE, SIZE), np.int64)
    for canvas, labels in zip(pixels, classes, strict=True):
        taken: list[tuple[int, int]] = []
        for _ in range(rng.integers(1, MOST_DIGITS + 1)):
            row, column = (int(n) for n in rng.integers(0, SIZE - 8 + 1, 2))
            if any(abs(row - r) < 7 and abs(column - c) < 7 for r, c in taken):
                continue
            taken.append((row, column))
            n, at = rng.integers(len(images)), (slice(row, row + 8), slice(column, column + 8))
            darker = images[n] > canvas[at]
            canvas[at] = np.where(darker, images[n], canvas[at])
            labels[at] = np.where(darker, names[n] + 1, labels[at])
        labels[canvas < INK] = 0
    return Canvases(pixels + NOISE * rng.standard_normal(pixels.shape, dtype=np.float32), classes)


def init(rng: aa.Philox, window: int = WINDOW) -> dict[str, Any]:
    embed, out, *blocks = rng.split(2 + BLOCK_COUNT)
    return {
        "embed": EMBED.init(embed),
        "blocks": [block(window).init(own) for own in blocks],
        "norm": NORM.init(out),
        "out": OUT.init(out),
    }


def overlapping(canvases: np.ndarray) -> np.ndarray:
    """The 8 x 8 pixels around each patch of 2 x 2: (N, SIZE / PATCH, SIZE / PATCH, 64)."""
    width = PATCH + 2 * OVERLAP
    padded = np.pad(canvases, ((0, 0), (OVERLAP, OVERLAP), (OVERLAP, OVERLAP)))
    found = np.lib.stride_tricks.sliding_window_view(padded, (width, width), axis=(1, 2))[:, ::PATCH, ::PATCH]
    return found.reshape(*found.shape[:3], width * width)


def patches(x: Any) -> Any:
    """(N, SIZE, SIZE, F) or (N, SIZE, SIZE) as patches (N, SIZE / PATCH, SIZE / PATCH, PATCH PATCH F)."""
    xp, side = aa.namespace_of(x), SIZE // PATCH
    x = xp.permute_dims(xp.reshape(x, (x.shape[0], side, PATCH, side, PATCH, -1)), (0, 1, 3, 2, 4, 5))
    return xp.reshape(x, (x.shape[0], side, side, -1))


def pixels(x: Any) -> Any:
    """What `patches` makes, as (N, SIZE, SIZE, F)."""
    xp, side = aa.namespace_of(x), SIZE // PATCH
    x = xp.permute_dims(xp.reshape(x, (x.shape[0], side, side, PATCH, PATCH, -1)), (0, 1, 3, 2, 4, 5))
    return xp.reshape(x, (x.shape[0], SIZE, SIZE, -1))


def forward(params: dict[str, Any], canvases: Any, window: int = WINDOW) -> tuple[Any, tuple[Any, ...]]:
    """Logits (N, SIZE, SIZE, CLASSES) of canvases in `overlapping` patches."""
    x, embed = EMBED.fwd(params["embed"], canvases)
    contexts = []
    for own in params["blocks"]:
        x, ctx = block(window).fwd(own, x)
        contexts.append(ctx)
    x, norm = NORM.fwd(params["norm"], x)
    x, out = OUT.fwd(params["out"], x)
    return pixels(x), (window, embed, contexts, norm, out)


def backward(dlogits: Any, ctx: tuple[Any, ...]) -> dict[str, Any]:
    """The gradients of the parameters, by the backwards of the layers."""
    window, embed, contexts, norm, out = ctx
    last = OUT.bwd(patches(dlogits), out)
    normed = NORM.bwd(last.x, norm)
    dx, blocks = normed.x, []
    for own in reversed(contexts):
        dx, grads = block(window).bwd(dx, own)
        blocks.append(grads)
    first = EMBED.bwd(dx, embed)
    return {"embed": first.params, "blocks": blocks[::-1], "norm": normed.params, "out": last.params}


def train(
    images: np.ndarray, names: np.ndarray, seed: int, steps: int, advance: Callable[[str], None], window: int = WINDOW
) -> Trained:
    """AdamW with a warm-up on new canvases in every step; stops if the loss is not finite."""
    rng, params = np.random.default_rng(seed), init(aa.Philox(seed), window)
    state, losses = optim.adamw_init(params), []
    for step in range(1, steps + 1):
        batch = compose(rng, images, names, BATCH)
        logits, ctx = forward(params, aa.asarray(overlapping(batch.pixels)), window)
        loss, loss_ctx = aa.cross_entropy_fwd(logits, aa.asarray(batch.classes))
        dlogits = aa.cross_entropy_bwd(aa.namespace_of(loss).ones_like(loss), loss_ctx).logits
        grads, norm = optim.clip_by_global_norm(backward(dlogits, ctx), LARGEST_NORM)
        found = float(aa.to_numpy(loss))
        if not np.isfinite(found + float(aa.to_numpy(norm))):
            print(f"Step {step}: the loss is {found}. Going on with the parameters before.")
            break
        rate = optim.warmup_cosine(step, peak=PEAK_RATE, warmup=steps // 10, total=steps)
        params, state = optim.adamw(params, grads, state, lr=rate, betas=(0.9, 0.98), weight_decay=DECAY)
        losses.append(found)
        advance(f"loss {found:.3f}")
    return Trained(params, losses, window)


def segment(trained: Trained, canvases: np.ndarray) -> np.ndarray:
    """The class of each pixel (N, SIZE, SIZE)."""
    parts = np.array_split(canvases, len(canvases) // 100 + 1)
    logits = [forward(trained.params, aa.asarray(overlapping(part)), trained.window)[0] for part in parts]
    return np.concatenate([aa.to_numpy(part).argmax(-1) for part in logits])


def mean_iou(found: np.ndarray, classes: np.ndarray) -> float:
    """Intersection over union, the mean of the classes."""
    shares = [np.sum((found == n) & (classes == n)) / np.sum((found == n) | (classes == n)) for n in range(CLASSES)]
    return float(np.mean(shares))


def baselines(known: Canvases, test: Canvases, count: int) -> dict[str, float]:
    """The mean IoU of methods for single pixels, of which the regression learns from `count`."""
    most = np.bincount(known.classes[known.classes > 0]).argmax()
    rows = np.random.default_rng(0).permutation(known.classes.size)[:count]
    regression = LogisticRegression(max_iter=200)
    regression.fit(surroundings(known.pixels)[rows], known.classes.reshape(-1)[rows])
    found = regression.predict(surroundings(test.pixels)).reshape(test.classes.shape)
    return {
        "ink is the most frequent digit": mean_iou(np.where(test.pixels > INK, most, 0), test.classes),
        "logistic regression on 9 x 9 pixels": mean_iou(found, test.classes),
    }


def surroundings(canvases: np.ndarray) -> np.ndarray:
    """The pixels around each pixel (N SIZE SIZE, 81)."""
    width = 2 * AROUND + 1
    padded = np.pad(canvases, ((0, 0), (AROUND, AROUND), (AROUND, AROUND)))
    return np.lib.stride_tricks.sliding_window_view(padded, (width, width), axis=(1, 2)).reshape(-1, width * width)


def draw(path: Path, test: Canvases, trained: Trained) -> None:
    """Canvases, their classes, those found, and where one patch of a digit attends to in each block."""
    from matplotlib.figure import Figure

    shown = 5
    found = segment(trained, test.pixels[:shown])
    _, (_, _, contexts, *_) = forward(trained.params, aa.asarray(overlapping(test.pixels[:shown])), trained.window)
    figure = Figure(figsize=(2.1 * shown, 2.2 * (3 + BLOCK_COUNT)), layout="constrained")
    grid = figure.subplots(3 + BLOCK_COUNT, shown)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    side = SIZE // PATCH
    for n in range(shown):
        grid[0, n].imshow(test.pixels[n], cmap="gray_r")
        for axes, classes in ((grid[1, n], test.classes[n]), (grid[2, n], found[n])):
            axes.imshow(np.where(classes == 0, np.nan, classes - 1), cmap="tab10", vmin=0, vmax=9, interpolation="none")
        ink = np.argwhere(patches(test.classes[n : n + 1]).max(-1)[0] > 0)
        patch = ink[len(ink) // 2]
        for axes, own in zip(grid[3:, n], contexts, strict=True):
            weights = aa.to_numpy(aa.attention_weights(own.attention.branch.attention))[n].mean(0)
            look = weights.reshape(side, side, side, side)[patch[0], patch[1]]
            axes.imshow(test.pixels[n], cmap="gray_r", alpha=0.4, extent=(0, side, side, 0))
            axes.imshow(look, cmap="Oranges", alpha=0.65, extent=(0, side, side, 0), vmin=0)
            axes.plot(patch[1] + 0.5, patch[0] + 0.5, "x", color="#1f5fbf")
    names = ["canvas", "digits", "found", *(f"attention, block {n + 1}" for n in range(BLOCK_COUNT))]
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name)
    figure.suptitle("A color for each digit. Below: how much the patch at the cross attends to each patch around it")
    figure.savefig(path, dpi=90)


def draw_losses(path: Path, runs: list[Trained]) -> None:
    """The loss of each step, from every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for seed, trained in enumerate(runs):
        draw_loss(axes, trained.losses, COLORS[seed], f"seed {seed}")
    axes.set(xlabel="step", ylabel="cross-entropy", yscale="log")
    axes.set_title("Digits on canvases, new ones in each step", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train from several seeds, print the table, draw one; returns the mean IoU of each method, for ours by seed."""
    parser = argparse.ArgumentParser(description="Segmentation of digits by neighborhood attention.")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps and canvases: seconds")
    parser.add_argument("--window", type=int, choices=(1, WINDOW), default=WINDOW, help="1: without attention")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--backend", default="numpy", help="the array library to compute with: numpy, torch, cupy ...")
    options = parser.parse_args(arguments)
    with aa.use_backend(options.backend):
        return run(options)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """`main` on the backend of the options."""
    seeds, steps, tested = (1, 12, 40) if options.quick else (SEEDS, STEPS, TESTED)
    known, new = digits()
    test = compose(np.random.default_rng(1000), *new, tested)
    with progress("Training", seeds * steps) as bar:
        runs = [train(*known, seed, steps, bar.advance, options.window) for seed in range(seeds)]
        bar.note("evaluating")
        shares = [mean_iou(segment(trained, test.pixels), test.classes) for trained in runs]
        canvases = compose(np.random.default_rng(1001), *known, tested)
        found: dict[str, Any] = baselines(canvases, test, 2000 if options.quick else 30_000)
    numbers = sum(int(np.prod(leaf.shape)) for _, leaf in tree.flatten(runs[0].params))
    rows = [[name, f"{share:.1%}"] for name, share in found.items()]
    spread = f"{np.mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%} over {seeds} seeds)"
    name = "neighborhood attention" if options.window > 1 else "the same network without attention"
    rows.append([f"{name}, {numbers:,} parameters", spread])
    print_table(f"Classes of the pixels of {tested} canvases", ["", "mean IoU"], rows, right=[1])
    options.output.mkdir(parents=True, exist_ok=True)
    draw(options.output / "segmentation.png", test, runs[0])
    draw_losses(options.output / "segmentation-loss.png", runs)
    found[name] = shares
    command = "python docs/examples/segmentation.py" + ("" if options.window > 1 else " --window 1")
    figures = json.dumps({"command": command, "measure": "mean IoU", "canvases": tested, "methods": found}, indent=1)
    (options.output / "segmentation.json").write_text(figures + "\n")
    print(f"Pictures: {options.output / 'segmentation.png'}, {options.output / 'segmentation-loss.png'}")
    return found


if __name__ == "__main__":
    main()
