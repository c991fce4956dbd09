"""Masks: what each allows, how they combine, and that attention with them equals attention with dense masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import (
    Blocks,
    Causal,
    Dense,
    Documents,
    Global,
    Mask,
    Padding,
    Predicate,
    Prefix,
    RandomBlocks,
    Strided,
    Tree,
    Window,
    to_numpy,
)  # fmt: skip
from attnarray.masks import Complement, Constraints, Intersection, Union, to_constraints
from tests.support.attention_calls import assert_equal_results, run
from tests.support.libraries import Library, assert_close

QUERIES, KEYS = 5, 7
IDS_Q = np.array([[0, 0, 1, 1, 2], [3, 3, 3, 3, 3]])
IDS_K = np.array([[0, 0, 0, 1, 1, 2, 2], [3, 3, 3, 3, 0, 0, 3]])
TABLE = np.array([[True, False, True], [False, True, True]])
PARENTS = np.array([-1, 0, 0, 2])
SOME = np.random.default_rng(0).random((2, 1, QUERIES, KEYS)) < 0.6

# Each mask and its definition: is key j allowed for query position i in batch b?
DEFINITIONS: dict[str, tuple[Callable[[], Mask], Callable[[int, int, int], bool]]] = {
    "causal": (Causal, lambda b, i, j: j <= i),
    "causal, offset": (lambda: Causal(2), lambda b, i, j: j <= i + 2),
    "causal, negative offset": (lambda: Causal(-1), lambda b, i, j: j <= i - 1),
    "window": (lambda: Window(1, 2), lambda b, i, j: i - 1 <= j <= i + 2),
    "window, no left": (lambda: Window(None, 0), lambda b, i, j: j <= i),
    "window, no right": (lambda: Window(2, None), lambda b, i, j: i - 2 <= j),
    "window, unbounded": (lambda: Window(None, None), lambda b, i, j: True),
    "padding": (lambda: Padding(np.array([3, 0])), lambda b, i, j: j < (3, 0)[b]),
    "padding, one length": (lambda: Padding(4), lambda b, i, j: j < 4),
    "dense": (lambda: Dense(SOME), lambda b, i, j: bool(SOME[b, 0, i, j])),
    "documents": (lambda: Documents(IDS_Q, IDS_K), lambda b, i, j: bool(IDS_Q[b, i] == IDS_K[b, j])),
    "two": (lambda: Causal(1) & Window(1, None), lambda b, i, j: i - 1 <= j <= i + 1),
    "three": (
        lambda: Window(3, 3) & (Padding(np.array([6, 5])) & Causal()),
        lambda b, i, j: i - 3 <= j <= i and j < (6, 5)[b],
    ),
    "four": (
        lambda: Documents(IDS_Q, IDS_K) & Dense(SOME) & Padding(6) & Causal(1),
        lambda b, i, j: bool(IDS_Q[b, i] == IDS_K[b, j] and SOME[b, 0, i, j] and j <= i + 1 and j < 6),
    ),
    "prefix": (lambda: Causal() | Prefix(np.array([3, 0])), lambda b, i, j: j <= i or j < (3, 0)[b]),
    "prefix, one length": (lambda: Prefix(2), lambda b, i, j: j < 2),
    "global": (lambda: Window(1, 0) | Global(2), lambda b, i, j: i - 1 <= j <= i or i < 2 or j < 2),
    "global, some": (lambda: Global(np.array([4, 1, 4])), lambda b, i, j: i in (1, 4) or j in (1, 4)),
    "strided": (lambda: Strided(3), lambda b, i, j: (i - j) % 3 == 0),
    "blocks": (lambda: Blocks(TABLE, (4, 3)), lambda b, i, j: bool(TABLE[i // 4, j // 3])),
    "tree": (
        lambda: Tree(PARENTS, 2),
        lambda b, i, j: j <= i if i < 2 else j < 2 or (i < 6 and j < 6 and (i - 2, j - 2) in LINEAGE),
    ),
    "predicate": (lambda: Predicate(lambda b, h, q, k: (q + k) % 3 == 0), lambda b, i, j: (i + j) % 3 == 0),
    "not": (lambda: ~Causal(1), lambda b, i, j: j > i + 1),
    "not and or": (
        lambda: ~(Window(1, 1) | Padding(np.array([2, 3]))) & Causal(3) | ~~Window(0, 0),
        lambda b, i, j: (not (i - 1 <= j <= i + 1 or j < (2, 3)[b]) and j <= i + 3) or i == j,
    ),
}
LINEAGE = {(0, 0), (1, 0), (1, 1), (2, 0), (2, 2), (3, 0), (3, 2), (3, 3)}  # node and ancestor of PARENTS
each_mask = pytest.mark.parametrize("name", DEFINITIONS)


def moved(mask: Mask, library: Library) -> Mask:
    """The mask with its arrays in another library."""
    if isinstance(mask, Padding) and isinstance(mask.lengths, np.ndarray):
        return Padding(library.array(mask.lengths))
    if isinstance(mask, Documents):
        return Documents(library.array(mask.ids_q), library.array(mask.ids_k))
    if isinstance(mask, Dense):
        return Dense(library.array(mask.array))
    if isinstance(mask, Prefix) and isinstance(mask.length, np.ndarray):
        return Prefix(library.array(mask.length))
    if isinstance(mask, Blocks):
        return Blocks(library.array(mask.table), mask.size)
    if isinstance(mask, Complement):
        return ~moved(mask.mask, library)
    if isinstance(mask, Intersection | Union):
        return type(mask)(tuple(moved(part, library) for part in mask.masks))
    return mask


@each_mask
def test_to_dense_is_the_definition(name: str, library: Library) -> None:
    make, allowed = DEFINITIONS[name]
    positional = (
        "dense" not in name and "documents" not in name and name != "four"
    )  # the others do not depend on positions
    for offset in (0, 3) if positional else (0,):
        found = to_numpy(moved(make(), library).to_dense(QUERIES, KEYS, q_offset=offset))
        expected = [[[[allowed(b, i + offset, j) for j in range(KEYS)] for i in range(QUERIES)]] for b in range(2)]
        np.testing.assert_array_equal(np.broadcast_to(found, (2, 1, QUERIES, KEYS)), expected)


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@each_mask
def test_attention_takes_a_mask_as_the_dense_mask(name: str, kernels: str) -> None:
    mask = DEFINITIONS[name][0]()
    rng = np.random.default_rng(1)
    call = {n: rng.standard_normal((2, 3, size, 4)) for n, size in (("query", QUERIES), ("key", KEYS), ("value", KEYS))}
    expected = run({**call, "attn_mask": mask.to_dense(QUERIES, KEYS)}, kernels=kernels)
    assert_equal_results(run({**call, "attn_mask": mask}, kernels=kernels), expected)
    both = run({**call, "attn_mask": mask, "is_causal": True, "window": (2, 3), "kv_lengths": 5}, kernels=kernels)
    joined = (mask & Causal() & Window(2, 3) & Padding(5)).to_dense(QUERIES, KEYS)
    assert_equal_results(both, run({**call, "attn_mask": joined}, kernels=kernels))


def test_masks_of_positions_count_in_the_whole_of_the_keys() -> None:
    mask = Causal(2) & Window(4, None) & Padding(np.array([6, 4]))
    rng = np.random.default_rng(1)
    query, key, value = (rng.standard_normal((2, 3, size, 4)) for size in (QUERIES, KEYS, KEYS))
    whole = aa.attention_partial(query, key, value, mask)
    halves = ((0, 3), (3, KEYS))
    parts = [aa.attention_partial(query, key[:, :, a:b], value[:, :, a:b], mask, kv_offset=a) for a, b in halves]
    assert_equal_results(aa.merge_partials(parts)._asdict(), whole._asdict())


@each_mask
def test_attention_takes_a_mask_without_heads(name: str, library: Library) -> None:
    mask = DEFINITIONS[name][0]()
    rng = np.random.default_rng(1)
    sizes = {"query": QUERIES, "key": KEYS, "value": KEYS}
    with_heads = {n: rng.standard_normal((2, 1, size, 4)) for n, size in sizes.items()}
    expected = aa.scaled_dot_product_attention(**with_heads, attn_mask=mask)
    if "dense" in name or name == "four":  # a dense mask is broadcast as it is given: it has a head axis here
        return
    without = {n: library.array(array[:, 0]) for n, array in with_heads.items()}
    found = aa.scaled_dot_product_attention(**without, attn_mask=moved(mask, library))
    assert_close(found, expected[:, 0], 1e-14)


def test_combined_masks_are_flat() -> None:
    joined = (Causal() & Window(1, 1)) & (Padding(3) & Causal(2))
    assert [type(part) for part in joined.masks] == [Causal, Window, Padding, Causal]


def test_constraints_are_the_tightest() -> None:
    assert to_constraints(Causal(3)) == Constraints(right=3)
    assert to_constraints(Causal(3) & Window(4, 1) & Window(2, None)) == Constraints(left=2, right=1)
    assert to_constraints(Causal(), Window(None, 5)) == Constraints(right=0)
    assert to_constraints(Padding(3) & Padding(2)).lengths == (3, 2)
    dense = np.ones((2, 3), bool)
    assert to_constraints(Dense(dense)).dense[0] is dense


def test_unions_are_flat_and_a_complement_cancels() -> None:
    joined = (Causal() | Window(1, 1)) | (Padding(3) | Causal(2))
    assert [type(part) for part in joined.masks] == [Causal, Window, Padding, Causal]
    mask = Causal(2)
    assert ~~mask is mask


def test_random_blocks_choose_so_many_different_blocks() -> None:
    dense = RandomBlocks(5, count=2, size=4).to_dense(16, 40)
    blocks = dense.reshape(4, 4, 10, 4)
    assert (blocks == blocks[:, :1, :, :1]).all()
    chosen = blocks[:, 0, :, 0]
    assert (chosen.sum(axis=1) == 2).all()
    assert len(np.unique(chosen, axis=0)) > 1
    assert RandomBlocks(5, count=99, size=4).to_dense(16, 40).all()
    heads = RandomBlocks(5, count=2, size=4, per_head=True).to_dense(16, 40, heads=3)
    assert heads.shape == (3, 16, 40)
    np.testing.assert_array_equal(heads[0], dense)
    assert (heads[1] != dense).any()
    np.testing.assert_array_equal(RandomBlocks(5, 2, 4).to_dense(4, 40, q_offset=8), dense[8:12])
    assert (RandomBlocks(6, 2, 4).to_dense(16, 40) != dense).any()


def test_a_mask_of_ones_own_needs_one_method() -> None:
    class Diagonals(Mask):
        def allows(self, pairs: Any) -> Any:
            return (pairs.q - pairs.k) % 4 < 2

    rng = np.random.default_rng(2)
    call = {n: rng.standard_normal((2, 3, size, 4)) for n, size in (("query", QUERIES), ("key", KEYS), ("value", KEYS))}
    i, j = np.arange(QUERIES)[:, None], np.arange(KEYS)
    expected = run({**call, "attn_mask": ((i - j) % 4 < 2) & (j <= i + 3)}, kernels="reference")
    assert_equal_results(run({**call, "attn_mask": Diagonals() & Causal(3)}, kernels="reference"), expected)


def test_a_mask_of_your_own_may_depend_on_batch_and_head() -> None:
    class Alternating(Mask):
        def allows(self, pairs: Any) -> Any:
            return (pairs.b + pairs.h + pairs.k) % 2 == 0

    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 5, 4))
    b, h, j = np.arange(2)[:, None, None, None], np.arange(3)[:, None, None], np.arange(5)
    dense = np.broadcast_to((b + h + j) % 2 == 0, (2, 3, 5, 5))
    for mask, expected in ((Alternating(), dense), (Alternating() & aa.Causal(), dense & np.tri(5, dtype=bool))):
        found = aa.scaled_dot_product_attention(q, k, v, mask)
        np.testing.assert_allclose(found, aa.scaled_dot_product_attention(q, k, v, expected), rtol=0, atol=1e-13)
