"""Masks that are asked about pairs: every rank and every chunk asks about its own positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.distributed import (
    RankError,
    ThreadComm,
    all_to_all_attention_bwd,
    all_to_all_attention_fwd,
    join_sequence,
    ring_attention,
    ring_attention_bwd,
    ring_attention_fwd,
    split_sequence,
)
from attnarray.distributed.masks import split_mask
from attnarray.masks import Mask
from attnarray.masks.geometry import Pairs
from tests.support.libraries import Library

B, H, HKV, D, RANKS = 4, 4, 2, 3, 3
LENGTHS = [24, 200]  # tiles of 200 are looked up, those of 24 are arrays
Rows = Callable[[np.ndarray, int], np.ndarray]  # of an array and its axis of queries: those that are here


class ByIndex(Mask):
    """A caller's mask that looks into an array of the queries."""

    def __init__(self, marks: np.ndarray) -> None:
        self.marks = marks

    def allows(self, pairs: Pairs) -> Any:
        return self.marks[pairs.i] | (pairs.j % 3 == 0)


def _documents(T: int) -> np.ndarray:
    return np.sort(np.random.default_rng(1).integers(0, 5, (B, T)), axis=1)


def _dense(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).random(shape) < 0.5


MASKS: dict[str, Callable[[int, Rows], Mask]] = {
    "or": lambda T, rows: aa.Causal() | aa.Padding(np.array([4, 7, 1, 9])),
    "not": lambda T, rows: ~aa.Causal(),
    "prefix": lambda T, rows: aa.Causal() | aa.Prefix(np.array([3, 9, 0, 5])),
    "strided": lambda T, rows: aa.Strided(3) & aa.Causal(),
    "global": lambda T, rows: aa.Window(5, 0) | aa.Global(2),
    "tree": lambda T, rows: aa.Tree(np.array([-1, 0, 0, 1]), 9),
    "random blocks": lambda T, rows: aa.RandomBlocks(3, 2, 8, per_head=True) & aa.Causal(),
    "predicate": lambda T, rows: aa.Predicate(lambda b, h, q, k: (q + k + h + b) % 3 == 0),
    "blocks": lambda T, rows: aa.Blocks(_dense(H, -(-T // 8), -(-T // 8)), 8) & aa.Padding(T - 2),
    "documents": lambda T, rows: aa.Documents(rows(_documents(T), -1), _documents(T)) & aa.Causal(),
    "documents or": lambda T, rows: aa.Documents(rows(_documents(T), -1), _documents(T)) | aa.Window(2, 2),
    "dense or": lambda T, rows: aa.Dense(rows(_dense(B, 1, T, T), -2)) | aa.Causal(),
    "dense and": lambda T, rows: aa.Dense(rows(_dense(H, T, T), -2)) & aa.Strided(2),
    "by index": lambda T, rows: ByIndex(rows(_dense(T), -1)),
}
WHOLE: Rows = lambda array, axis: array  # noqa: E731


def arrays(T: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((B, heads, T, D)) for heads in (H, HKV, HKV, H)]


def whole_results(x: list[np.ndarray], mask: Mask, q_offset: Any) -> list[np.ndarray]:
    out, ctx = aa.scaled_dot_product_attention_fwd(*x[:3], mask, q_offset=q_offset)
    return [out, *aa.scaled_dot_product_attention_bwd(x[3], ctx)[:3]]


@pytest.mark.parametrize("function", ["ring", "all to all"])
@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("name", MASKS)
def test_ranks_equal_one_process(name: str, T: int, order: Any, function: str) -> None:
    ring = function == "ring"
    forward, backward = (
        (ring_attention_fwd, ring_attention_bwd) if ring else (all_to_all_attention_fwd, all_to_all_attention_bwd)
    )
    q_offset = np.array([0, 1, -2, 3]) if name == "or" else 0
    x = arrays(T)
    parts = [split_sequence(array, RANKS, order=order) for array in x]

    def on_rank(comm: Any) -> list[Any]:
        q, k, v, dout = (part[comm.rank] for part in parts)
        mask = MASKS[name](T, lambda array, axis: split_sequence(array, RANKS, order=order, axis=axis)[comm.rank])
        out, ctx = forward(comm, q, k, v, mask, order=order, q_offset=q_offset)
        return [out, *backward(dout, ctx)[:3]]

    expected = whole_results(x, MASKS[name](T, WHOLE), q_offset)
    for found, value in zip(zip(*ThreadComm(RANKS).run(on_rank), strict=True), expected, strict=True):
        np.testing.assert_allclose(join_sequence(list(found), order=order), value, rtol=0, atol=1e-12)


@pytest.mark.distributed
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("name", [name for name in MASKS if not name.startswith("dense")])
def test_chunks_equal_the_whole(name: str, T: int) -> None:
    import dask
    import dask.array as da

    from attnarray.distributed import dask as blocked

    q_offset = np.array([0, 1, -2, 3]) if name == "or" else 0
    x = arrays(T)
    chunks = [(2, 2, 13 if T < 100 else 130, -1), *[(2, 1, -(-T // 2), -1)] * 2, 5]
    q, k, v, dout = (da.from_array(array, chunks=c) for array, c in zip(x, chunks, strict=True))
    mask = MASKS[name](T, WHOLE)
    out, ctx = blocked.scaled_dot_product_attention_fwd(q, k, v, mask, q_offset=q_offset)
    grads = blocked.scaled_dot_product_attention_bwd(dout, ctx)
    with dask.config.set(scheduler="threads", num_workers=2):
        results = dask.compute(out, *grads[:3])
    for found, value in zip(results, whole_results(x, mask, q_offset), strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-12)


def test_every_array_library(library: Library) -> None:
    x = arrays(24)
    parts = [[library.array(part, "float64") for part in split_sequence(array, 2)] for array in x[:3]]
    mask = aa.Causal() | aa.Prefix(4)
    outs = ThreadComm(2).run(lambda comm: ring_attention(comm, *(part[comm.rank] for part in parts), mask))
    found = join_sequence([aa.to_numpy(out) for out in outs])
    np.testing.assert_allclose(found, aa.scaled_dot_product_attention(*x[:3], mask), rtol=0, atol=1e-12)


def test_wrong_masks() -> None:
    x = np.ones((1, 2, 5, 4))

    def on_rank(comm: Any) -> None:
        rank = comm.Get_rank()
        ids = np.zeros((1, 5), int)
        with pytest.raises(ValueError if rank == 1 else RankError, match=r"`Documents.ids_k` has shape"):
            ring_attention(comm, x, x, x, aa.Documents(ids, ids if rank == 1 else np.zeros((1, 10), int)))
        with pytest.raises(ValueError, match="`attn_mask` differs between ranks: 'Strided' on rank 0; None on rank 1"):
            ring_attention(comm, x, x, x, aa.Strided(2) if rank == 0 else None)

    ThreadComm(2).run(on_rank)


def test_a_mask_is_split_into_bands_and_what_is_asked_about_pairs() -> None:
    assert split_mask(None) == (None, None)
    causal, window, strided = aa.Causal(), aa.Window(1, 2), aa.Strided(2)
    simple, asked = split_mask(causal & strided & window)
    assert getattr(simple, "masks", None) == (causal, window)
    assert asked is strided
    assert split_mask(causal | window)[0] is None
