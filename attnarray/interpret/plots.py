"""Pictures of attention, by matplotlib: each function returns a Figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnarray import checks
from attnarray.attention.weights import canonical_weights, innermost
from attnarray.backend import to_numpy
from attnarray.interpret.statistics import attention_statistics, num_keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS, BLUE, SPREAD = "Blues", "#1f5fbf", "tab10"
MAX_TOKENS = 1024  # of a heat map
MAX_LABELS = 64  # more tokens are not legible


def plot_weights(
    ctx: Any, tokens: Sequence[str] | None = None, keys: Sequence[str] | None = None, *, batch: int = 0,
    heads: Sequence[int] | None = None,
) -> Figure:  # fmt: skip
    """Draw the weights of some heads as heat maps, queries from top to bottom and keys from left to right.

    Parameters
    ----------
    ctx : context of an attention function
        See `attention_contexts` for those of a model.
    tokens, keys : sequence of str, optional
        Labels of queries, and of keys (by default those of the queries, in self-attention).
    batch : int
        Which sequence.
    heads : sequence of int, optional
        All by default.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, is_causal=True)
    >>> len(aa.interpret.plot_weights(ctx, ["the", "cat", "sat", "down"]).axes)
    3
    """
    weights = _weights(ctx, batch)  # (H, T, S)
    chosen = _heads(heads, weights.shape[0])
    columns = min(4, len(chosen))
    figure = _figure(3.2 * columns + 0.8, 3.0 * math.ceil(len(chosen) / columns) + 0.4)
    grid = figure.subplots(math.ceil(len(chosen) / columns), columns, squeeze=False)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    keys = tokens if keys is None and weights.shape[1] == weights.shape[2] else keys
    for axes, head in zip(grid.flat, chosen, strict=False):
        image = axes.imshow(weights[head], cmap=COLORS, vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
        axes.set_title(f"head {head}", fontsize=9)
        _label(axes.yaxis, tokens, weights.shape[1], "tokens")
        _label(axes.xaxis, keys, weights.shape[2], "keys")
    figure.colorbar(image, ax=grid.ravel().tolist(), label="weight", shrink=0.8)
    return figure


def plot_heads(contexts: Mapping[str, Any], *, batch: int = 0) -> Figure:
    """Draw entropy, mean distance and the weight of the first key of all heads, a row for each layer.

    Parameters
    ----------
    contexts : dict of contexts
        From `attention_contexts`.
    batch : int
        Which sequence.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> _, ctx = model.fwd(model.init(aa.Philox(0)), np.array([[3, 1, 4, 1, 5]]))
    >>> figure = aa.interpret.plot_heads(aa.interpret.attention_contexts(ctx))
    >>> [axes.get_title() for axes in figure.axes[:3]]
    ['entropy (nats)', 'mean distance (tokens)', 'weight of the first key']
    """
    found = [attention_statistics(ctx) for ctx in contexts.values()]
    rows = max(1, len(found))
    heads = max((_of_batch(each.entropy, batch).shape[0] for each in found), default=1)
    figure = _figure(min(14.0, 3.0 + 0.9 * heads), 1.2 + 0.38 * rows)
    titles = ("entropy (nats)", "mean distance (tokens)", "weight of the first key")
    for axes, title, field in zip(figure.subplots(1, 3, sharey=True), titles, found[0]._fields, strict=True):
        values = np.full((rows, heads), np.nan)
        for n, each in enumerate(found):
            means = _of_batch(getattr(each, field), batch).mean(axis=-1)
            values[n, : len(means)] = means
        image = axes.imshow(values, cmap="viridis", aspect="auto", vmin=0.0, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("head", fontsize=8)
        axes.set_xticks(range(heads))
        axes.set_yticks(range(rows), list(contexts), fontsize=7)
        axes.tick_params(labelsize=7)
        figure.colorbar(image, ax=axes, shrink=0.9).ax.tick_params(labelsize=7)
    return figure


def plot_arcs(
    ctx: Any, tokens: Sequence[str], keys: Sequence[str] | None = None, *, batch: int = 0, head: int = 0,
    threshold: float = 0.1,
) -> Figure:  # fmt: skip
    """Draw the weights of one head as lines from queries, on the left, to keys, on the right; wider is larger.

    Weights below `threshold` are left out. Other arguments are as in `plot_weights`.
    """
    weights = _weights(ctx, batch)
    (head,) = _heads([head], weights.shape[0])
    keys = tokens if keys is None else keys
    rows = max(weights.shape[1:])
    figure = _figure(4.5, 0.6 + 0.22 * rows)
    axes = figure.subplots()
    _check_labels("tokens", tokens, weights.shape[1])
    _check_labels("keys", keys, weights.shape[2])
    for i, j in zip(*np.nonzero(weights[head] >= threshold), strict=True):
        weight = float(weights[head, i, j])
        axes.plot([0, 1], [i, j], color=BLUE, linewidth=3.0 * weight, alpha=0.25 + 0.75 * min(1.0, weight))
    for x, labels, side in ((-0.03, tokens, "right"), (1.03, keys, "left")):
        for n, label in enumerate(labels):
            axes.text(x, n, label, ha=side, va="center", fontsize=8)
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_axis_off()
    axes.set_title(f"head {head}, weights of {threshold} or more", fontsize=9)
    return figure


def plot_patches(image: Any, weights: Any, *, grid: tuple[int, int] | None = None) -> Figure:
    """Draw weights of the patches of an image over the image.

    Parameters
    ----------
    image : (height, width) or (height, width, 3)
        Numbers from 0 to 1.
    weights : (patches,)
        One row of the weights, of the patches in reading order; without a class token.
    grid : (rows, columns), optional
        Of patches; by default a square.
    """
    image, weights = np.asarray(to_numpy(image)), np.asarray(to_numpy(weights), np.float64)
    if image.ndim not in (2, 3) or weights.ndim != 1:
        raise ValueError(
            f"`image` has shape {image.shape} and `weights` {weights.shape}, expected (height, width[, 3]) and "
            "(patches,)."
        )
    rows, columns = grid or (math.isqrt(weights.size), math.isqrt(weights.size))
    if rows * columns != weights.size:
        raise ValueError(
            f"`weights` has {weights.size} patches, expected {rows * columns} ({rows} x {columns}): give `grid`, and "
            "leave out the class token."
        )
    figure = _figure(4.0, 4.0)
    axes = figure.subplots()
    height, width = image.shape[:2]
    axes.imshow(image, cmap="gray", extent=(0, width, height, 0))
    shown = axes.imshow(weights.reshape(rows, columns), cmap="inferno", alpha=0.55, extent=(0, width, height, 0))
    axes.set_axis_off()
    figure.colorbar(shown, ax=axes, label="weight", shrink=0.8)
    return figure


def plot_alignment(spectrogram: Any, weights: Any, tokens: Sequence[str]) -> Figure:
    """Draw the weights of output tokens over the frames of a spectrogram, one above the other.

    Parameters
    ----------
    spectrogram : (frequencies, frames)
    weights : (tokens, frames) or (tokens, n)
        n divides the frames, such as after a convolution with a stride.
    tokens : sequence of str
    """
    spectrogram, weights = np.asarray(to_numpy(spectrogram)), np.asarray(to_numpy(weights))
    _check_labels("tokens", tokens, weights.shape[0])
    frames = spectrogram.shape[1]
    if frames % weights.shape[1]:
        raise ValueError(
            f"`weights` has {weights.shape[1]} frames, expected {frames} as in `spectrogram`, or a divisor of it."
        )
    figure = _figure(7.0, 2.4 + 0.18 * len(tokens))
    sound, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 0.4 + 0.12 * len(tokens)))
    sound.imshow(spectrogram, origin="lower", aspect="auto", cmap="magma", extent=(0, frames, 0, spectrogram.shape[0]))
    sound.set_ylabel("frequency", fontsize=8)
    below.imshow(
        weights, aspect="auto", cmap=COLORS, extent=(0, frames, len(tokens) - 0.5, -0.5), interpolation="nearest"
    )
    below.set_yticks(range(len(tokens)), list(tokens), fontsize=7)
    below.set_xlabel("frame", fontsize=8)
    return figure


def plot_edges(positions: Any, edges: Any, weights: Any, labels: Any = None) -> Figure:
    """Draw a graph whose edges are as wide as their weights.

    Parameters
    ----------
    positions : (N, 2)
        Where the nodes are drawn, such as from ``networkx.spring_layout``.
    edges : (sources (E,), targets (E,))
    weights : (E,)
        From `graph_attention_weights`, of one head.
    labels : (N,) integers, optional
        Classes of the nodes, drawn as colors.
    """
    positions, weights = np.asarray(to_numpy(positions)), np.asarray(to_numpy(weights))
    sources, targets = (np.asarray(to_numpy(each)) for each in edges)
    if not sources.shape == targets.shape == weights.shape or weights.ndim != 1:
        raise ValueError(
            f"`edges` has {sources.shape} sources and {targets.shape} targets for `weights` {weights.shape}, expected "
            "one of each for every edge (E,)."
        )
    figure = _figure(5.0, 5.0)
    axes = figure.subplots()
    for source, target, weight in zip(sources, targets, weights, strict=True):
        (x0, y0), (x1, y1) = positions[source], positions[target]
        axes.plot([x0, x1], [y0, y1], color="#555555", linewidth=2.5 * float(weight), alpha=0.6, zorder=1)
    colors = BLUE if labels is None else np.asarray(to_numpy(labels))
    axes.scatter(
        positions[:, 0],
        positions[:, 1],
        c=colors,
        cmap=None if labels is None else SPREAD,
        s=40,
        zorder=2,
        edgecolors="white",
    )
    axes.set_axis_off()
    axes.set_aspect("equal")
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'attnarray[interpret]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def _weights(ctx: Any, batch: int) -> np.ndarray:
    """The weights (H, T, S) of one sequence, as a NumPy array."""
    ctx = innermost(ctx)
    T, S = ctx.q.shape[2], num_keys(ctx)
    if max(T, S) > MAX_TOKENS:
        raise ValueError(
            f"There are {T} queries and {S} keys, expected at most {MAX_TOKENS} of each; interpret.html shows more."
        )
    weights = to_numpy(canonical_weights(ctx, slice(0, T)))
    return np.asarray(
        weights[checks.whole("batch", batch, 0, weights.shape[0] - 1, "an index of a sequence")], np.float64
    )


def _of_batch(values: Any, batch: int) -> np.ndarray:
    """Statistics (*batch, H, T) of one sequence: (H, T)."""
    array = np.asarray(to_numpy(values))
    array = array.reshape(-1, *array.shape[-2:]) if array.ndim > 2 else array[None]
    return array[checks.whole("batch", batch, 0, array.shape[0] - 1, "an index of a sequence")]


def _heads(heads: Sequence[int] | None, count: int) -> list[int]:
    if heads is None:
        return list(range(count))
    return [checks.whole("A head", head, 0, count - 1, "an index of a head") for head in heads]


def _check_labels(name: str, labels: Sequence[str], count: int) -> None:
    if len(labels) != count:
        raise ValueError(f"`{name}` has {len(labels)} labels, expected {count}: the attention has so many.")


def _label(axis: Any, labels: Sequence[str] | None, count: int, name: str) -> None:
    if labels is None:
        axis.set_tick_params(labelsize=7)
        return
    _check_labels(name, labels, count)
    step = math.ceil(count / MAX_LABELS)
    axis.set_ticks(range(0, count, step), list(labels)[::step], fontsize=7, rotation=90 if axis.axis_name == "x" else 0)
