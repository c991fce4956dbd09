"""A small GPT learns to write like Python's manual, byte by byte, with gradients derived by hand.

    python docs/examples/language_model.py [--quick] [--resume] [--output FOLDER] [--backend NAME]

It takes five minutes on one core; with --quick, seconds.

The text is that of `help()`: the topics of `pydoc_data`, which are part of every Python (so figures differ a little
between versions of Python). Every 8th topic is held out; a paragraph of several topics is used only once. The figure is
bits per byte of the held-out topics, each byte predicted from those before it. It is compared with compressors that
have seen the training text, and with n-gram models with Kneser-Ney smoothing, which are strong on so little text.

The model has the architecture of LLaMA: rotary positions learn faster than learned ones, which would need half of
these few minutes.

Needs: attnarray, matplotlib, safetensors.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import importlib
import lzma
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ngram
import numpy as np
from loss_curve import draw_loss

import attnarray as aa
from attnarray import optim, tree
from attnarray.checkpoints import load_state, save_state
from attnarray.console import print_table, progress
from attnarray.models import GPT, generate

MODEL = GPT(
    vocab_size=256, max_seq_len=256, dim=128, num_layers=4, num_heads=4, hidden_dim=344, dropout=0.05,
    positions="rotary", norm="rms", activation="silu", gated=True, bias=False, init_std=0.09,
)  # fmt: skip
SMALL = GPT(vocab_size=256, max_seq_len=64, dim=32, num_layers=2, num_heads=2, init_std=0.09)
BATCH, STEPS, PEAK_RATE, DECAY, LARGEST_NORM = 4, 2400, 3e-3, 0.1, 1.0
FULL_RUN = "five minutes on one core, and reaches 1.765 bits per byte"
EVERY = 8  # of so many topics one is held out
SAVED_EVERY = 200  # steps
PROMPT = 'The "while" statement'


class Texts(NamedTuple):
    train: bytes
    held_out: bytes


class Trained(NamedTuple):
    """The parameters, and the loss of each step in bits per byte."""

    params: dict[str, Any]
    losses: list[float]


def texts() -> Texts:
    """The topics, without repeated paragraphs."""
    topics = importlib.import_module("pydoc_data.topics").topics
    seen: set[str] = set()
    parts: list[list[str]] = [[], []]
    for n, name in enumerate(sorted(topics)):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                parts[n % EVERY == EVERY // 2].append(paragraph)
            seen.add(words)
    return Texts(*("\n\n".join(part).encode() for part in parts))


def draw_batch(text: np.ndarray, size: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """Pieces of a text (size, T + 1) from anywhere in it."""
    starts = rng.integers(len(text) - T, size=(size, 1))
    return text[starts + np.arange(T + 1)].astype(np.int64)


def train(model: GPT, text: bytes, steps: int, advance: Callable[[str], None], saved: Path | None = None) -> Trained:
    """AdamW with a warm-up, and the gradients of `GPT.bwd`; stops if the loss is not finite.

    With a path it resumes from the state `saved` there, and saves its state there regularly, and if it has to stop.
    """
    data, seeds = np.frombuffer(text, np.uint8), aa.Philox(1)
    params = model.init(aa.Philox(0))
    state = {"params": params, "optimizer": optim.adamw_init(params), "losses": []}
    if saved and saved.exists():
        state = load_state(saved)
        print(f"Going on after step {len(state['losses'])} of {saved}.")
    for step in range(len(state["losses"]) + 1, steps + 1):
        pieces = aa.asarray(draw_batch(data, BATCH, model.max_seq_len, np.random.default_rng(step)))
        logits, ctx = model.fwd(state["params"], pieces[:, :-1], rng=seeds.fold_in(step))
        loss, loss_ctx = aa.cross_entropy_fwd(logits, pieces[:, 1:])
        dlogits = aa.cross_entropy_bwd(aa.namespace_of(loss).ones_like(loss), loss_ctx).logits
        grads, norm = optim.clip_by_global_norm(model.bwd(dlogits, ctx).params, LARGEST_NORM)
        found, length = float(loss), float(norm)
        if not math.isfinite(found + length):
            print(f"Step {step}: the loss is {found}, its gradient's norm {length}. Stopped with what was before it.")
            if saved:
                save_state(saved, state)
            break
        rate = optim.warmup_cosine(step, peak=PEAK_RATE, warmup=steps // 20, total=steps)
        params, optimizer = optim.adamw(
            state["params"], grads, state["optimizer"], lr=rate, betas=(0.9, 0.98), weight_decay=DECAY
        )
        state = {"params": params, "optimizer": optimizer, "losses": [*state["losses"], found / math.log(2)]}
        if saved and step % SAVED_EVERY == 0:
            save_state(saved, state)
        advance(f"{state['losses'][-1]:.2f} bits per byte")
    return Trained(state["params"], state["losses"])


def bits_per_byte(model: GPT, params: dict[str, Any], before: bytes, text: bytes) -> float:
    """Bits per byte of a text: windows that overlap by half, each for its second half."""
    T, half = model.max_seq_len, model.max_seq_len // 2
    data = np.frombuffer(before[-half:] + text, np.uint8).astype(np.int64)
    bits = 0.0
    for start in range(0, len(data) - half, half):
        window = aa.asarray(data[start : start + T])
        logits = model(params, window[None, :-1])[0, half - 1 :, :]
        bits += float(aa.cross_entropy(logits, window[half:], reduction="sum")) / math.log(2)
    return bits / len(text)


def compressed(by: Callable[[bytes], bytes], data: Texts) -> float:
    """Bits per byte that the held-out text adds to the training text."""
    added = len(by(data.train + data.held_out)) - len(by(data.train))
    return 8 * added / len(data.held_out)


def baselines(data: Texts) -> dict[str, float]:
    def with_lzma(text: bytes) -> bytes:
        return lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)

    return {
        "gzip, after the training text": compressed(gzip.compress, data),
        "lzma, after the training text": compressed(with_lzma, data),
        **{
            f"{n}-grams, Kneser-Ney": ngram.bits_per_byte(ngram.kneser_ney(data.train, n), data.train, data.held_out)
            for n in (5, 8)
        },
    }


def draw(path: Path, trained: Trained, rows: dict[str, float]) -> None:
    """The loss of each step, smoothed, with the figures of the baselines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    draw_loss(axes, trained.losses, "#1f5fbf", "GPT in training")
    for (name, bits), color in zip(rows.items(), ("#999999", "#666666", "#d1480f", "#8f2d05", "#0b2e66"), strict=True):
        axes.axhline(bits, color=color, linewidth=1.2, linestyle="--", label=f"{name}, held out: {bits:.2f}")
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(1, 5), xlim=(0, len(trained.losses)))
    axes.set_title("Python's manual, byte by byte", loc="left")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def draw_heads(path: Path, model: GPT, params: dict[str, Any], text: bytes) -> None:
    """The attention of each head of each block, byte by byte."""
    from matplotlib.figure import Figure

    tokens = np.frombuffer(text, np.uint8).astype(np.int64)
    _, ctx = dataclasses.replace(model, dropout=0.0).fwd(params, aa.asarray(tokens[None]))
    figure = Figure(figsize=(3.4 * model.num_heads, 3.5 * model.num_layers), layout="constrained")
    grid = figure.subplots(model.num_layers, model.num_heads, squeeze=False)
    letters = [repr(chr(byte))[1:-1] for byte in tokens]
    for n, block in enumerate(ctx.body.blocks):
        weights = aa.to_numpy(aa.attention_weights(block.attention.branch))[0]  # (H, T, T)
        for head, axes in enumerate(grid[n]):
            axes.imshow(weights[head] ** 0.5, cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"block {n}, head {head}", fontsize=10, loc="left")
            axes.set_xticks(range(len(letters)), letters, fontsize=5, family="monospace")
            axes.set_yticks(range(len(letters)), letters, fontsize=5, family="monospace")
            axes.tick_params(length=0)
    figure.suptitle("Square roots of attention: each byte (row) attends to itself and those before it", fontsize=12)
    figure.savefig(path, dpi=110)


def sample(model: GPT, params: dict[str, Any], count: int) -> str:
    """The text that the model generates after a headline."""
    prompt = aa.asarray(np.frombuffer(PROMPT.encode(), np.uint8).astype(np.int64)[None])
    written = generate(model, params, prompt, count, method="sample", temperature=0.7, top_p=0.95, rng=aa.Philox(7))
    return PROMPT + bytes(aa.to_numpy(written)[0].astype(np.uint8)).decode(errors="replace")


def main(arguments: list[str] | None = None) -> float:
    """Train, print the table and a sample, draw the loss and the heads; returns the bits per byte held out."""
    parser = argparse.ArgumentParser(description="A GPT on Python's manual, byte by byte.")
    parser.add_argument("--quick", action="store_true", help="a tiny model and 60 steps: seconds instead of minutes")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--resume", action="store_true", help="go on with a run of this folder that was stopped")
    parser.add_argument("--backend", default="numpy", help="the array library to compute with: numpy, torch, cupy ...")
    options = parser.parse_args(arguments)
    with aa.use_backend(options.backend):
        return run(options)


def run(options: argparse.Namespace) -> float:
    """`main` on the backend of the options."""
    options.output.mkdir(parents=True, exist_ok=True)
    saved = options.output / "language-model.safetensors"
    if not options.resume:
        saved.unlink(missing_ok=True)
    model, steps, data = MODEL, STEPS, texts()
    if options.quick:
        model, steps, data = SMALL, 60, Texts(data.train[:60_000], data.held_out[:3_000])
    with progress("Compressing and counting"):
        rows = baselines(data)
    with progress("Training", steps) as bar:
        trained = train(model, data.train, steps, bar.advance, saved)
        bar.note("evaluating")
        found = bits_per_byte(model, trained.params, data.train, data.held_out)
        written = sample(model, trained.params, model.max_seq_len - len(PROMPT))
    numbers = sum(math.prod(leaf.shape) for _, leaf in tree.flatten(trained.params))
    rows[f"GPT, {numbers / 1e6:.2f} million parameters"] = found
    sizes = f"{len(data.train):,} bytes to learn from, {len(data.held_out):,} held out"
    print_table(
        f"Python's manual: {sizes}", ["", "bits per byte"], [[n, f"{b:.3f}"] for n, b in rows.items()], right=[1]
    )
    print(f"\n{written}\n")
    if options.quick:
        print(
            f"--quick: a tiny model, {steps} steps of {STEPS:,}: too few to learn this. The full run takes {FULL_RUN}."
        )
    for name, picture in {
        "language-model.png": lambda path: draw(path, trained, rows),
        "language-model-heads.png": lambda path: draw_heads(path, model, trained.params, data.held_out[:44]),
    }.items():
        picture(options.output / name)
        print(f"Picture: {options.output / name}")
    return found


if __name__ == "__main__":
    main()
