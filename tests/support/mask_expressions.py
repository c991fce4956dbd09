"""Random expressions of the algebra of masks, each with its definition for a single pair in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import attnarray as aa

BATCH, HEADS, QUERIES, KEYS = 2, 3, 13, 17
Allowed = Callable[[int, int, int, int, int], bool]  # of b, h, i, j and the position of query i


class Expression(NamedTuple):
    mask: aa.Mask
    allowed: Allowed


def dense(expression: Expression, q_offset: int = 0) -> np.ndarray:
    """The mask (B, H, T, S), pair by pair."""
    found = np.empty((BATCH, HEADS, QUERIES, KEYS), bool)
    for b, h, i, j in np.ndindex(found.shape):
        found[b, h, i, j] = expression.allowed(b, h, i, j, i + q_offset)
    return found


def expressions() -> st.SearchStrategy[Expression]:
    return st.recursive(leaves(), _combined, max_leaves=5)


def _combined(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    both = st.tuples(parts, parts)
    return (
        both.map(lambda ab: Expression(ab[0].mask & ab[1].mask, lambda *p: ab[0].allowed(*p) and ab[1].allowed(*p)))
        | both.map(lambda ab: Expression(ab[0].mask | ab[1].mask, lambda *p: ab[0].allowed(*p) or ab[1].allowed(*p)))
        | parts.map(lambda a: Expression(~a.mask, lambda *p: not a.allowed(*p)))
    )


@st.composite
def leaves(draw: st.DrawFn) -> Expression:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Expression(*draw(st.sampled_from(LEAVES))(rng))


def _causal(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    offset = int(rng.integers(-6, 7))
    return aa.Causal(offset), lambda b, h, i, j, q: j <= q + offset


def _window(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    left, right = (None if rng.random() < 0.2 else int(rng.integers(0, 8)) for _ in range(2))
    return aa.Window(
        left, right
    ), lambda b, h, i, j, q: (left is None or j >= q - left) and (right is None or j <= q + right)


def _padding(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    lengths = rng.integers(0, KEYS + 1, BATCH)
    return aa.Padding(lengths), lambda b, h, i, j, q: bool(j < lengths[b])


def _documents(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    ids_q, ids_k = (np.sort(rng.integers(0, 4, (BATCH, n)), axis=1) for n in (QUERIES, KEYS))
    return aa.Documents(ids_q, ids_k), lambda b, h, i, j, q: bool(ids_q[b, i] == ids_k[b, j])


def _dense(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    array = rng.random((BATCH, HEADS, QUERIES, KEYS)) < 0.5
    array = array[:, :1] if rng.random() < 0.5 else array
    return aa.Dense(array), lambda b, h, i, j, q: bool(array[b, h % array.shape[1], i, j])


def _prefix(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    lengths = rng.integers(0, KEYS + 3, BATCH)
    return aa.Prefix(lengths), lambda b, h, i, j, q: bool(j < lengths[b])


def _global(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    count = int(rng.integers(0, 6))
    if rng.random() < 0.5:
        return aa.Global(count), lambda b, h, i, j, q: q < count or j < count
    tokens = rng.integers(0, KEYS, count)
    return aa.Global(tokens), lambda b, h, i, j, q: q in tokens or j in tokens


def _strided(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    stride = int(rng.integers(1, 7))
    return aa.Strided(stride), lambda b, h, i, j, q: (q - j) % stride == 0


def _blocks(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    size = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    table = rng.random((HEADS, 32 // size[0] + 1, KEYS // size[1] + 1)) < 0.4
    return aa.Blocks(table, size), lambda b, h, i, j, q: bool(table[h, q // size[0], j // size[1]])


def _tree(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    start, parents = int(rng.integers(0, 8)), np.array([rng.integers(-1, n) for n in range(6)])

    def allowed(b: int, h: int, i: int, j: int, q: int) -> bool:
        if j < start:
            return q >= start or j <= q
        node = q - start
        while 0 <= node < len(parents) and node > j - start:
            node = int(parents[node])
        return node == j - start < len(parents)

    return aa.Tree(parents, start), allowed


def _predicate(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    a, c = (int(n) for n in rng.integers(1, 5, 2))
    if rng.random() < 0.5:
        return aa.Predicate(lambda b, h, q, k: (a * q + k) % 5 < c), lambda b, h, i, j, q: (a * q + j) % 5 < c
    return (
        aa.Predicate(lambda b, h, q, k: (b + h + a * q + k) % 5 < c),
        lambda b, h, i, j, q: (b + h + a * q + j) % 5 < c,
    )


def _random_blocks(rng: np.random.Generator) -> tuple[aa.Mask, Allowed]:
    mask = aa.RandomBlocks(int(rng.integers(99)), int(rng.integers(1, 4)), int(rng.integers(1, 6)), per_head=True)
    found: Any = mask.to_dense(32, KEYS, heads=HEADS)
    return mask, lambda b, h, i, j, q: bool(found[h, q, j])


LEAVES = (
    _causal, _window, _padding, _documents, _dense, _prefix, _global, _strided, _blocks, _tree, _predicate,
    _random_blocks,
)  # fmt: skip
