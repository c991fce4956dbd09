"""Node classification with graph attention on Zachary's karate club, trained with gradients derived by hand.

    python docs/examples/karate.py [--quick] [--output FOLDER] [--backend NAME]

It takes less than a minute on one core; with --quick, seconds.

In 1977 Zachary published the friendships in a karate club that broke into two. Here only the two leaders' sides are
known: Mr. Hi's (node 0) and the Officer's (node 33). A network of two layers of graph attention predicts the
side of each of the other 32 members, from the friendships alone; the features of a node are one-hot.

Simple rules do this well, so the result is compared with them: the side of most members, that of the nearer leader
(ties are half right), and label propagation.

Needs: attnarray, networkx, matplotlib.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

import attnarray as aa
from attnarray import optim, tree
from attnarray.console import print_table, progress

LEADERS = (0, 33)
SIDES = ("Mr. Hi", "Officer")
FULL_RUN = "some ten seconds on one core, and 95.3% are right"
COLORS = ("#d1480f", "#1f5fbf")
STEPS, RATE, DECAY, DROPOUT = 200, 1e-2, 5e-3, 0.4
FIRST = aa.layers.GraphAttention(in_dim=34, head_dim=8, num_heads=4)
LAST = aa.layers.GraphAttention(in_dim=32, head_dim=2, num_heads=4, concat=False)


class Club(NamedTuple):
    graph: nx.Graph
    x: Any  # (N, N): one-hot, on the backend
    edges: Any  # (2, E): friendships in both directions, and self-loops, on the backend
    sides: np.ndarray  # (N,)


def club() -> Club:
    graph = nx.karate_club_graph()
    pairs = np.array(graph.edges).T
    edges = aa.add_self_loops(aa.asarray(np.concatenate([pairs, pairs[::-1]], axis=1)), len(graph))
    sides = np.array([SIDES.index(data["club"]) for _, data in graph.nodes(data=True)])
    return Club(graph, aa.asarray(np.eye(len(graph), dtype=np.float32)), edges, sides)


def forward(params: dict[str, Any], data: Club, seed: int | None = None) -> tuple[Any, tuple[Any, ...]]:
    """Scores of both sides (N, 2); with a seed, friendships are dropped at random."""
    dropout = [{"dropout_p": DROPOUT, "rng": rng} for rng in aa.Philox(seed).split(2)] if seed is not None else [{}, {}]
    hidden, first_ctx = FIRST.fwd(params["first"], data.x, data.edges, **dropout[0])  # (N, 32)
    active, relu_ctx = aa.relu_fwd(hidden)
    scores, last_ctx = LAST.fwd(params["last"], active, data.edges, **dropout[1])  # (N, 2)
    return scores, (first_ctx, relu_ctx, last_ctx)


def backward(dscores: Any, ctx: tuple[Any, ...]) -> dict[str, Any]:
    """The gradients, by the backwards of the layers."""
    first_ctx, relu_ctx, last_ctx = ctx
    last = LAST.bwd(dscores, last_ctx)
    first = FIRST.bwd(aa.relu_bwd(last.x, relu_ctx).x, first_ctx)
    return {"first": first.params, "last": last.params}


def train(data: Club, seed: int, steps: int, advance: Any) -> dict[str, Any]:
    """Parameters after so many steps of AdamW on the loss of the two leaders; stops if the loss is not finite."""
    targets = np.full(len(data.sides), -100)  # which cross_entropy ignores
    targets[list(LEADERS)] = data.sides[list(LEADERS)]
    first, last = aa.Philox(seed).split(2)
    params = {"first": FIRST.init(first), "last": LAST.init(last)}
    state = optim.adamw_init(params)
    for step in range(steps):
        scores, ctx = forward(params, data, seed=1000 * seed + step)
        loss, loss_ctx = aa.cross_entropy_fwd(scores, aa.asarray(targets))
        if not math.isfinite(float(loss)):
            print(f"Step {step + 1}: the loss is {float(loss)}. Going on with the parameters before.")
            break
        dscores = aa.cross_entropy_bwd(aa.namespace_of(loss).ones_like(loss), loss_ctx).logits
        params, state = optim.adamw(params, backward(dscores, ctx), state, lr=RATE, weight_decay=DECAY)
        advance(f"loss {float(loss):.3f}")
    return params


def predict_sides(params: dict[str, Any], data: Club) -> np.ndarray:
    """The predicted side of each member (N,)."""
    return np.asarray(aa.to_numpy(forward(params, data)[0]).argmax(1))


def others(data: Club) -> np.ndarray:
    """All members whose side was not given."""
    return np.setdiff1d(np.arange(len(data.sides)), LEADERS)


def baselines(data: Club) -> dict[str, float]:
    """The accuracy of simple rules on the 32 members."""
    rest = others(data)
    sides = data.sides[rest]
    distances = [nx.single_source_shortest_path_length(data.graph, leader) for leader in LEADERS]
    nearer = np.array([np.sign(distances[0][node] - distances[1][node]) for node in rest])  # -1: nearer to Mr. Hi
    nearest = np.where(nearer == 0, 0.5, (nearer > 0) == (sides == 1))
    reached = np.full((len(data.sides), 2), 0.5)
    neighbors = nx.to_numpy_array(data.graph, weight=None)
    for _ in range(1000):
        reached[list(LEADERS)] = np.eye(2)[data.sides[list(LEADERS)]]
        reached = neighbors @ reached / neighbors.sum(1, keepdims=True)
    return {
        "the side of most members": max(np.mean(sides == 0), np.mean(sides == 1)),
        "the nearest leader": float(np.mean(nearest)),
        "label propagation": float(np.mean(reached[rest].argmax(1) == sides)),
    }


def draw(path: Path, data: Club, params: dict[str, Any], accuracy: float) -> None:
    """Plot the club: colors are predictions, the widths of lines attention weights of the first layer."""
    from matplotlib.figure import Figure

    _, (first_ctx, *_) = forward(params, data)
    found = predict_sides(params, data)
    found[list(LEADERS)] = data.sides[list(LEADERS)]
    weights = aa.to_numpy(aa.graph_attention_weights(first_ctx)).mean(-1)  # (E,), the mean of the heads
    layout = nx.spring_layout(data.graph, seed=4, k=0.32, iterations=200)
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.add_subplot()
    for (source, target), weight in zip(aa.to_numpy(data.edges).T, weights, strict=True):
        if source != target:
            arrow = {"arrowstyle": "-|>", "connectionstyle": "arc3,rad=0.12", "shrinkA": 9, "shrinkB": 9, "alpha": 0.55,
                     "linewidth": 5 * float(weight), "color": COLORS[found[source]], "mutation_scale": 8}  # fmt: skip
            axes.annotate("", layout[target], layout[source], arrowprops=arrow)
    for node, (x, y) in layout.items():
        right = found[node] == data.sides[node]
        size = 720 if node in LEADERS else 330
        axes.scatter(x, y, size, COLORS[found[node]], zorder=3, linewidths=0 if right else 3, edgecolors="#111111")
        axes.text(x, y, str(node), color="white", ha="center", va="center", zorder=4, fontsize=9, fontweight="bold")
    wrong = int(np.sum(found != data.sides))
    axes.set_title(
        f"Zachary's karate club: {accuracy:.0%} of 32 sides found, from the two leaders' alone\n"
        f"Width of a line: the attention of the member at its arrow to the one it comes from. Black: wrong ({wrong})",
        fontsize=11, loc="left",
    )  # fmt: skip
    for name, color in zip(SIDES, COLORS, strict=True):
        axes.scatter([], [], 120, color, label=f"{name}'s side")
    axes.legend(loc="lower left", frameon=False)
    axes.set_axis_off()
    figure.savefig(path, dpi=130)


def main(arguments: list[str] | None = None) -> float:
    """Train from several seeds, print the table, draw the club of the first seed; returns the mean accuracy."""
    parser = argparse.ArgumentParser(description="Graph attention on Zachary's karate club.")
    parser.add_argument("--quick", action="store_true", help="two seeds and fewer steps instead of ten")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="where the picture goes")
    parser.add_argument("--backend", default="numpy", help="the array library to compute with: numpy, torch, cupy ...")
    options = parser.parse_args(arguments)
    with aa.use_backend(options.backend):
        return run(options)


def run(options: argparse.Namespace) -> float:
    """`main` on the backend of the options."""
    seeds, steps = (2, STEPS // 4) if options.quick else (10, STEPS)
    data, found = club(), []
    rest = others(data)
    with progress("Training", seeds * steps) as bar:
        for seed in range(seeds):
            params = train(data, seed, steps, bar.advance)
            found.append((float(np.mean(predict_sides(params, data)[rest] == data.sides[rest])), params))
    shares = np.array([share for share, _ in found])
    rows = [[name, f"{share:.1%}"] for name, share in baselines(data).items()]
    spread = f"{shares.mean():.1%} ({shares.min():.1%} to {shares.max():.1%} over {seeds} seeds)"
    title = f"Sides of {len(rest)} members, from those of the two leaders"
    numbers = sum(math.prod(leaf.shape) for _, leaf in tree.flatten(found[0][1]))
    print_table(title, ["", "right"], [*rows, [f"graph attention, {numbers} parameters", spread]], right=[1])
    if options.quick:
        print(f"--quick: {seeds} seeds of 10, and {steps} steps of {STEPS}. The full run takes {FULL_RUN}.")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "karate.png"
    draw(path, data, found[0][1], found[0][0])
    print(f"Picture: {path}")
    return float(shares.mean())


if __name__ == "__main__":
    main()
