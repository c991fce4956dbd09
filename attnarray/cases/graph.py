"""Cases of graph attention and of the softmax of segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attnarray.cases.case import Arrays, Case, also, bits, normal

# B 2, N 7, M 6, H 3, F 4, Fv 5, E 11; node 3 has no edge, edge 0 is given twice, 0 -> 0 and 2 -> 2 are self-loops.
EDGES = np.array([[0, 5, 0, 4, 2, 3, 0, 1, 5, 2, 4], [1, 1, 1, 0, 2, 5, 0, 4, 6, 4, 1]])
KINK = 0.125  # distance of the arguments of LeakyReLU from 0, so that differences do not cross it


def _arrays(width: int, parts: int = 1, edge_features: bool = False, batch: tuple[int, ...] = (2,)) -> Any:
    """Nodes and edges with features that are multiples of 2 KINK, queries off by KINK."""

    def grid(*shape: int) -> Callable[[np.random.Generator], np.ndarray]:
        return lambda rng: np.round(rng.standard_normal(shape) / (2 * KINK)) * (2 * KINK)

    def draw(rng: np.random.Generator) -> Arrays:
        return {
            "query": grid(*batch, 7, 3, width)(rng) + KINK,
            "key": grid(*batch, 6, 3, width)(rng),
            "value": rng.standard_normal((*batch, 6, 3, 5)),
            "score_vector": rng.standard_normal((3, parts * width)),
            "edges": EDGES,
            **({"edge_features": grid(*batch, 11, 3, width)(rng)} if edge_features else {}),
        }

    return draw


def _graph(score: str, label: str, make: Any, **options: Any) -> Case:
    return Case("graph_attention", f"{score}: {label}", make, {"score": score, **options})


def _segments(*numbers: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: np.array(numbers)


GRAPH_CASES: tuple[Case, ...] = (
    _graph("gatv2", "plain", _arrays(4)),
    _graph("gatv2", "no batch, edge features", _arrays(4, 1, True, ())),
    _graph("gatv2", "two batch axes, edge mask", also(_arrays(2, 1, True, (4, 8)), edge_mask=bits(8, 11))),
    _graph("gat", "plain, steeper", _arrays(4, 2), negative_slope=0.5),
    _graph("gat", "no batch, edge features", _arrays(4, 3, True, ())),
    _graph(
        "gat",
        "edge mask, dropout",
        also(_arrays(4, 3, True), edge_mask=bits(11), dropout_mask=bits(2, 11, 3)),
        dropout_p=0.4,
    ),
    _graph(
        "gatv2",
        "everything",
        also(_arrays(4, 1, True), edge_mask=bits(2, 11), dropout_mask=bits(11, 3)),
        dropout_p=0.3,
        negative_slope=-0.1,
    ),
    Case("segment_softmax", "unsorted", also(normal(x=(7, 3)), segments=_segments(4, 0, 4, 1, 0, 4, 4)), {"count": 5}),
    Case("segment_softmax", "sorted", also(normal(x=(2, 5, 3)), segments=_segments(0, 2, 2, 2, 3)), {"count": 6}),
    Case(
        "segment_softmax",
        "mask, two batch axes",
        also(normal(x=(4, 2, 7, 3)), segments=_segments(1, 0, 1, 1, 2, 2, 0), mask=bits(2, 7, 1)),
        {"count": 3},
    ),
)
