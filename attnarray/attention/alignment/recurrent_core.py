"""Scores by an LSTM over the keys, on canonical arrays: one row of keys for each query, block by block of queries.

All rows of a block take their steps together. The gates of every step are computed again in the backward pass, so that
no more is ever held than those of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from attnarray.attention.core import join
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.ops.activations import tanh_forward
from attnarray.ops.lstm_cell import lstm_cell, lstm_cell_backward

# Numbers held at a time: gates and states of all steps of a block of queries.
HELD = 2**24


class Scorer(NamedTuple):
    """The parameters of the score, in the dtype of sums."""

    hidden_weight: Array  # W_hh (4 H, H)
    output_weight: Array  # W_r (A, H)
    score_vector: Array  # (A,)


class Rows(NamedTuple):
    """What the LSTM of each query starts from and sees, (B, T, ...)."""

    queries: Array  # (B, T, 4 H): what the query adds to every gate
    keys: Array  # (B, S, 4 H): what the key of a step adds
    h0: Array  # (B, T, H)
    c0: Array  # (B, T, H)
    steps: Array | None  # (B, T, S) bool: where there is a step; elsewhere the state stays as it is

    def block(self, start: int, stop: int) -> Rows:
        """The queries [start, stop)."""
        queries, h0, c0 = (x[:, start:stop, :] for x in (self.queries, self.h0, self.c0))
        return Rows(queries, self.keys, h0, c0, None if self.steps is None else self.steps[:, start:stop, :])


@accelerated
def recurrent_scores(queries: Array, keys: Array, h0: Array, c0: Array, steps: Array | None, scorer: Scorer) -> Array:
    r"""The scores of all pairs, (B, 1, T, S), for the fields of `Rows`.

    .. math::
        e_{ij} = v \cdot \tanh(W_r h_{ij}), \qquad
        (h_{ij}, c_{ij}) = \mathrm{cell}(q_i + k_j + W_{hh} h_{i,j-1}, c_{i,j-1})
    """
    rows, blocks = Rows(queries, keys, h0, c0, steps), []
    for start, stop in _blocks(rows):
        xp = namespace_of(rows.queries)
        block, scores = rows.block(start, stop), []
        h, c = block.h0, block.c0
        for j in range(rows.keys.shape[1]):
            _, h, c = _step(block, j, h, c, scorer)
            scores.append(xp.matmul(tanh_forward(xp.matmul(h, scorer.output_weight.mT)), scorer.score_vector))
        blocks.append(_stacked(scores, block)[:, None, :, :])
    return join(blocks)


@accelerated
def recurrent_scores_backward(dscores: Array, rows: Rows, scorer: Scorer) -> tuple[Rows, Scorer]:
    r"""The gradients of the scores, by backpropagation through the keys of every query.

    .. math::
        dh_{ij} \mathrel{+}= W_r^T \bigl(de_{ij}\, v \odot (1 - \tanh^2(W_r h_{ij}))\bigr), \qquad
        dq_i = \sum_j da_{ij}, \quad dk_j = \sum_i da_{ij}, \quad dh_{i,j-1} = W_{hh}^T da_{ij}

    with the gradients a of the sums in the gates, as `lstm_bwd` has them.
    """
    xp = namespace_of(dscores)
    parts = []
    dkeys = xp.zeros_like(rows.keys)
    dscorer = Scorer(*(xp.zeros_like(x) for x in scorer))
    for start, stop in _blocks(rows):
        part, dscorer_part = _block_backward(dscores[:, 0, start:stop, :], rows.block(start, stop), scorer)
        dkeys = dkeys + part.keys
        dscorer = Scorer(*(total + x for total, x in zip(dscorer, dscorer_part, strict=True)))
        parts.append(part)
    queries, h0, c0 = (xp.concat([getattr(part, name) for part in parts], axis=1) for name in ("queries", "h0", "c0"))
    return Rows(queries, dkeys, h0, c0, None), dscorer


def _block_backward(dscores: Array, rows: Rows, scorer: Scorer) -> tuple[Rows, Scorer]:
    xp = namespace_of(dscores)
    keys = rows.keys.shape[1]
    kept, h, c = [], rows.h0, rows.c0
    for j in range(keys):
        before = h, c
        gates, h, c = _step(rows, j, h, c, scorer)
        kept.append((gates, *before, h, c))
    dh, dc, dqueries = xp.zeros_like(rows.h0), xp.zeros_like(rows.c0), xp.zeros_like(rows.queries)
    dkeys = []
    dhidden, doutput, dvector = (xp.zeros_like(x) for x in scorer)
    for j in reversed(range(keys)):
        gates, h_before, c_before, h, c = kept.pop()
        read = tanh_forward(xp.matmul(h, scorer.output_weight.mT))  # (B, rows, A)
        ds = dscores[:, :, j, None]
        dread = ds * scorer.score_vector * (1.0 - read * read)
        dvector = dvector + xp.sum(ds * read, axis=(0, 1))
        doutput = doutput + _products(dread, h)
        dh = dh + xp.matmul(dread, scorer.output_weight)
        da, dc_before = lstm_cell_backward(dh, dc, gates, c_before, c)
        if rows.steps is not None:  # where there was no step, the state and its gradient pass by
            there = rows.steps[:, :, j, None]
            da, dc_before = xp.where(there, da, 0.0), xp.where(there, dc_before, dc)
            dh = xp.where(there, xp.matmul(da, scorer.hidden_weight), dh)
        else:
            dh = xp.matmul(da, scorer.hidden_weight)
        dc = dc_before
        dhidden = dhidden + _products(da, h_before)
        dqueries = dqueries + da
        dkeys.append(xp.sum(da, axis=1))  # (B, 4 H)
    dkeys = xp.stack(dkeys[::-1], axis=1) if dkeys else xp.zeros_like(rows.keys)
    return Rows(dqueries, dkeys, dh, dc, None), Scorer(dhidden, doutput, dvector)


def _step(rows: Rows, j: int, h: Array, c: Array, scorer: Scorer) -> tuple[Array, Array, Array]:
    """The gates of a step, and the state after it."""
    xp = namespace_of(h)
    sums = xp.matmul(h, scorer.hidden_weight.mT)  # (B, rows, 4 H)
    gates, h_new, c_new = lstm_cell(sums, rows.queries + rows.keys[:, j : j + 1, :], c)
    if rows.steps is None:
        return gates, h_new, c_new
    there = rows.steps[:, :, j, None]
    return gates, xp.where(there, h_new, h), xp.where(there, c_new, c)


def _products(x: Array, y: Array) -> Array:
    """sum over batches and rows of x y^T: (N, M)."""
    xp = namespace_of(x)
    x, y = (xp.reshape(z, (z.shape[0] * z.shape[1], z.shape[2])) for z in (x, y))
    return xp.matmul(x.mT, y)


def _stacked(scores: list[Array], rows: Rows) -> Array:
    """(B, rows) of each key -> (B, rows, S)."""
    xp = namespace_of(rows.queries)
    if scores:
        return xp.stack(scores, axis=-1)
    return xp.zeros((*rows.queries.shape[:2], 0), dtype=rows.queries.dtype, device=device_of(rows.queries))


def _blocks(rows: Rows) -> Iterator[tuple[int, int]]:
    batch, queries, gates = rows.queries.shape
    size = max(1, HELD // max(1, 2 * batch * rows.keys.shape[1] * gates))
    for start in range(0, max(queries, 1), size):
        yield start, min(start + size, queries)
