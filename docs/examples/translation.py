"""Translation of dates of 28 languages to ISO 8601, by a Transformer and by a recurrent encoder-decoder.

    python docs/examples/translation.py [--quick] [--output FOLDER] [--backend NAME]

It takes two minutes on one core; with --quick, seconds.

"miércoles, 14 de junio de 1972" is read character by character, and "1972-06-14" written so. Both models learn by
gradients derived by hand: `attnarray.models.Transformer`, and `attnarray.models.Seq2Seq` with the attention of
Bahdanau, Cho and Bengio. The figure is the share of dates, none of which was seen in any language, that come out
exactly right.

It is compared with a strong rule without learning: the pattern of a date, that is the date with # for its numbers,
determines which number is which and the month; for a new pattern the most similar one is used. (The most similar date
of the training set is never right: no date occurs twice.)

Needs: attnarray, Babel, matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from date_rules import by_pattern
from loss_curve import draw_loss

import attnarray as aa
from attnarray import optim, tree
from attnarray.console import print_table, progress
from attnarray.demo import dates
from attnarray.models import Seq2Seq, Transformer

DATES, TEST_DATES, EPOCHS, BATCH = 8_000, 1_000, 8, 64
PEAK_RATE, LARGEST_NORM = 4e-3, 1.0
START, COUNT = len(dates.TARGET_CHARACTERS), dates.TARGET_LENGTH  # the token before the first, the letters of an answer
SHOWN = "es"  # the language of the date in the pictures of attention
FULL_RUN = "two minutes on one core, and 97.7% (Transformer) and 100.0% (recurrent) are right"
COLORS = {"Transformer": "#1f5fbf", "recurrent, Bahdanau's attention": "#d1480f"}


class Texts(NamedTuple):
    """Dates as tokens (N, S), of which `lengths` (N,) exist, and their answers (N, 10)."""

    pairs: list[dates.Pair]
    tokens: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray

    def batch(self, rows: np.ndarray) -> tuple[Any, Any, Any]:
        """Some rows, cut to the longest of them, on the chosen backend."""
        longest = int(self.lengths[rows].max())
        return tuple(aa.asarray(x) for x in (self.tokens[rows, :longest], self.lengths[rows], self.targets[rows]))


class Trained(NamedTuple):
    params: dict[str, Any]
    losses: list[float]


def models(vocab_size: int) -> dict[str, Any]:
    """Both models, small."""
    attention = aa.layers.BahdanauAttention(query_dim=96, key_dim=96, hidden_dim=64)
    transformer = Transformer(
        vocab_size, START + 1, max_seq_len=64, dim=64, num_layers=2, num_heads=4, hidden_dim=128, dropout=0.0
    )
    recurrent = Seq2Seq(vocab_size, START + 1, dim=48, hidden_dim=96, attention=attention)
    return dict(zip(COLORS, (transformer, recurrent), strict=True))


def texts(pairs: list[dates.Pair], vocabulary: dates.Vocabulary) -> Texts:
    tokens, lengths = vocabulary.encode([pair.source for pair in pairs])
    return Texts(pairs, tokens, lengths, dates.encode_targets([pair.target for pair in pairs]))


def shift_right(targets: Any) -> Any:
    """The inputs of the decoder: the targets, shifted right by one."""
    xp = aa.namespace_of(targets)
    return xp.concat([xp.full_like(targets[:, :1], START), targets[:, :-1]], axis=1)


def batches(data: Texts, epochs: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        yield from dates.batches_of_similar_length(data.lengths, BATCH, rng)


def train(model: Any, data: Texts, epochs: int, advance: Callable[[str], None]) -> Trained:
    """AdamW with a warm-up and the gradients of `model.bwd`; stops if the loss is not finite."""
    params, losses = model.init(aa.Philox(0)), []
    state, total = optim.adamw_init(params), epochs * -(-len(data.lengths) // BATCH)
    for step, rows in enumerate(batches(data, epochs, seed=0), start=1):
        tokens, lengths, targets = data.batch(rows)
        logits, ctx = model.fwd(params, tokens, shift_right(targets), source_lengths=lengths)
        loss, loss_ctx = aa.cross_entropy_fwd(logits, targets)
        dlogits = aa.cross_entropy_bwd(aa.namespace_of(loss).ones_like(loss), loss_ctx).logits
        grads, norm = optim.clip_by_global_norm(model.bwd(dlogits, ctx).params, LARGEST_NORM)
        found = float(aa.to_numpy(loss))
        if not np.isfinite(found + float(aa.to_numpy(norm))):
            print(f"Step {step}: the loss is {found}, its gradient's norm {norm}. Going on with the parameters before.")
            break
        rate = optim.warmup_cosine(step, peak=PEAK_RATE, warmup=total // 10, total=total)
        params, state = optim.adamw(params, grads, state, lr=rate, betas=(0.9, 0.98))
        losses.append(found)
        advance(f"loss {found:.3f}")
    return Trained(params, losses)


def translate(model: Any, params: dict[str, Any], data: Texts, size: int = 250) -> list[str]:
    """The answers, by greedy decoding."""
    found = np.zeros((len(data.pairs), COUNT), np.int64)
    order = np.argsort(data.lengths, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        tokens, lengths, _ = data.batch(rows)
        # Of an untrained model the most likely letter may be the start, which no date has.
        written = aa.to_numpy(model.greedy(params, tokens, START, COUNT, source_lengths=lengths))
        found[rows] = np.minimum(written, START - 1)
    return dates.decode_targets(found)


def looks(model: Any, params: dict[str, Any], data: Texts, row: int) -> dict[str, np.ndarray]:
    """The attention of each character of an answer to the date, (10, S) for each head."""
    tokens, lengths, targets = data.batch(np.array([row]))
    _, ctx = model.fwd(params, tokens, shift_right(targets), source_lengths=lengths)
    if isinstance(model, Seq2Seq):
        return {"the one attention": aa.to_numpy(model.alignments(ctx))[0]}
    blocks = [aa.to_numpy(aa.attention_weights(block.cross.branch))[0] for block in ctx.decoder.blocks]  # (H, 10, S)
    return {f"block {n}, head {h}": head for n, heads in enumerate(blocks) for h, head in enumerate(heads)}


def draw_losses(path: Path, losses: dict[str, list[float]], shares: dict[str, float]) -> None:
    """The loss of each step, smoothed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, each in losses.items():
        draw_loss(axes, each, COLORS[name], f"{name}: {shares[name]:.1%} of unseen dates right")
    axes.set(xlabel="step", ylabel="cross-entropy of a letter", yscale="log")
    axes.set_title("Dates of 28 languages to ISO 8601", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def draw_looks(path: Path, pair: dates.Pair, panels: dict[str, np.ndarray]) -> None:
    """Attention of each head of both models for one date."""
    from matplotlib.figure import Figure

    across = 3
    down = -(-len(panels) // across)
    figure = Figure(figsize=(0.19 * len(pair.source) * across + 1.5, 2.6 * down + 0.6), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, (name, weights) in zip(grid, panels.items(), strict=False):
        axes.set_axis_on()
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks(range(len(pair.source)), pair.source, fontsize=9, family="DejaVu Sans Mono")
        axes.set_yticks(range(COUNT), pair.target, fontsize=9, family="DejaVu Sans Mono")
        axes.tick_params(length=0)
    figure.suptitle("Each letter of the answer (row) attends to the date (column)", fontsize=12)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train both, print the table, draw losses and attention; returns the accuracy of each."""
    parser = argparse.ArgumentParser(description="Dates of many languages to ISO 8601, by two models with attention.")
    parser.add_argument(
        "--quick", action="store_true", help="few dates: seconds instead of minutes, and little learned"
    )
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--backend", default="numpy", help="the array library to compute with: numpy, torch, cupy ...")
    options = parser.parse_args(arguments)
    with aa.use_backend(options.backend):
        return run(options)


def run(options: argparse.Namespace) -> dict[str, float]:
    """`main` on the backend of the options."""
    count, unseen, epochs = (640, 100, 3) if options.quick else (DATES, TEST_DATES, EPOCHS)
    train_pairs, test_pairs = dates.make_pairs(count, unseen)
    vocabulary = dates.Vocabulary(pair.source for pair in train_pairs)
    data, test = texts(train_pairs, vocabulary), texts(test_pairs, vocabulary)
    with progress("Comparing patterns"):
        answers = {"the rule of the most similar pattern": by_pattern(train_pairs, test_pairs)}
    row = next(n for n, pair in enumerate(test_pairs) if pair.language == SHOWN)
    losses, panels, sizes = {}, {}, {}
    chosen = models(len(vocabulary))
    with progress("Training", len(chosen) * epochs * -(-count // BATCH)) as bar:
        for name, model in chosen.items():
            trained = train(model, data, epochs, bar.advance)
            bar.note(f"{name}: translating")
            losses[name], answers[name] = trained.losses, translate(model, trained.params, test)
            panels |= {f"{name}: {head}": w for head, w in looks(model, trained.params, test, row).items()}
            sizes[name] = sum(int(np.prod(leaf.shape)) for _, leaf in tree.flatten(trained.params))
    right = {n: float(np.mean([a == p.target for a, p in zip(each, test_pairs, strict=True)]))
             for n, each in answers.items()}  # fmt: skip
    rows = [[name, f"{sizes[name]:,}" if name in sizes else "", f"{share:.1%}"] for name, share in right.items()]
    print_table(f"{unseen} unseen dates, after {count:,}", ["", "parameters", "exactly right"], rows, right=[1, 2])
    if options.quick:
        steps = f"{epochs * -(-count // BATCH)} steps of {EPOCHS * -(-DATES // BATCH):,}"
        print(f"--quick: {steps}, too few to learn this. The full run takes {FULL_RUN}.")
    options.output.mkdir(parents=True, exist_ok=True)
    draw_losses(options.output / "translation.png", losses, right)
    draw_looks(options.output / "translation-heads.png", test_pairs[row], panels)
    print(f"Pictures: {options.output / 'translation.png'}, {options.output / 'translation-heads.png'}")
    return right


if __name__ == "__main__":
    main()
