"""Scores by an LSTM over the keys, and their gradients: each thread holds the gates of at most one panel of queries.

Reference: attention/alignment/recurrent.py, `recurrent_scores` and `recurrent_scores_backward`. Parallel over
panels of W queries, counted over all batches. Scratch per thread: one step forward; backward the gates of a panel,
about `HELD` numbers at a time, and the rest of recurrent/backward.py.

Scores and the gradients of queries and states have the same bits for any number of threads. The gradients that queries
share are sums of each thread, which are added in the order of the threads.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from attnarray.kernels.numba.recurrent import backward as recurrent_backward
from attnarray.kernels.numba.recurrent import forward as recurrent_forward
from attnarray.kernels.numba.recurrent.step import Problem
from attnarray.kernels.numba.runtime import arrays as ra
from attnarray.kernels.numba.runtime.call import empty_call, pack
from attnarray.kernels.numba.runtime.threads import run_parts, threads_for
from attnarray.kernels.numba.vector.lanes import tile_size

HELD = 2**22  # numbers of gates and states of one panel
FORWARD, BACKWARD = (0.02, 0.6), (0.06, 1.2)  # nanoseconds of a step for each weight, and for each activation


GIVEN = (
    "rows", "queries", "keys", "size", "features", "query", "key", "h0", "c0", "steps", "bounds", "hidden", "output",
    "vector",
)  # fmt: skip


class Given(NamedTuple):
    """The arrays of a call, contiguous, and its sizes."""

    real: Any  # dtype
    rows: int  # B T
    queries: int  # T
    keys: int  # S
    size: int  # H
    features: int  # A
    bounds: Any  # (panels, 2): the keys [low, past) that a panel reads
    arrays: tuple[Any, ...]  # in the order of `Problem`

    def call(self, **others: Any) -> Problem:
        """A call, with the other arguments of forward or backward."""
        sizes = self.rows, self.queries, self.keys, self.size, self.features
        problem: Problem = empty_call(Problem)
        return problem._replace(**dict(zip(GIVEN, (*sizes, *self.arrays), strict=True)), **others)

    def packed(self, parts: list[tuple[int, int]], calls: list[Problem]) -> list[tuple[Any, ...]]:
        """The arguments of the kernels."""
        return [(*part, *pack(call, self.real)) for part, call in zip(parts, calls, strict=True)]

    def parts(self, each_weight: float, each_number: float) -> list[tuple[int, int]]:
        """Ranges of panels, one for each thread, of about the same number of steps."""
        steps = np.cumsum(self.bounds[:, 1] - self.bounds[:, 0])
        weights, numbers = (4 * self.size + self.features) * self.size, 5 * self.size + self.features
        each = (weights * each_weight + numbers * each_number) * tile_size(self.real.itemsize * 8)[0]
        total = int(steps[-1]) if len(steps) else 0
        threads = threads_for(ra.nanoseconds(total, each, self.real), len(steps))
        cuts = [0, *(int(np.searchsorted(steps, total * n / threads)) for n in range(1, threads)), len(steps)]
        return [part for part in itertools.pairwise(cuts) if part[0] < part[1]] or [(0, 0)]


class Sums(NamedTuple):
    """The gradients that queries share, as one thread sums them in float64; rows and columns padded to M and W."""

    batch: int  # the first one in `dkeys`
    dkeys: Any  # (batches, S, 4 H)
    dhidden: Any  # (4 H, H)
    doutput: Any  # (A, H)
    dvector: Any  # (A,)


def recurrent_scores(queries: Any, keys: Any, h0: Any, c0: Any, steps: Any, params: Any) -> Any:
    """See the reference."""
    real = ra.compute_dtype(queries)
    given = _given((queries, keys, h0, c0, steps), params, real)
    out = np.empty((queries.shape[0], 1, queries.shape[1], keys.shape[1]), real)
    size = recurrent_forward.scratch_size(given.size, given.features, *tile_size(real.itemsize * 8))
    parts = given.parts(*FORWARD)
    calls = [given.call(scores=out, memory=np.zeros(size, real)) for _ in parts]
    run_parts(recurrent_forward.score_panels, given.packed(parts, calls))
    return out


def recurrent_scores_backward(dscores: Any, rows: Any, params: Any) -> tuple[Any, Any]:
    """See the reference."""
    real = ra.compute_dtype(dscores)
    given = _given(rows, params, real)
    hidden, output, _ = params
    results = {f"d{name}": np.empty(getattr(rows, name).shape, real) for name in ("queries", "h0", "c0")}
    others = {"hidden_transposed": _packed(hidden.T, real), "output_transposed": _packed(output.T, real), **results}
    held, parts = _held(given), given.parts(*BACKWARD)
    segments = max(-(-given.keys // held), 1)
    size = recurrent_backward.scratch_size(given.size, given.features, held, segments, *tile_size(real.itemsize * 8))
    sums, dscores = [_zero_sums(*part, given) for part in parts], _dense(dscores, real)
    calls = [
        given.call(held=held, dscores=dscores, memory=np.zeros(size, real), **others, **some._asdict()) for some in sums
    ]
    run_parts(recurrent_backward.backward_panels, given.packed(parts, calls))
    dqueries, dh0, dc0 = results.values()
    dkeys, *dparams = _merged_sums(sums, rows.keys.shape, params, real)
    return type(rows)(dqueries, dkeys, dh0, dc0, None), type(params)(*dparams)


def warmup(dtype: str) -> None:
    """Compile both kernels for one dtype."""
    recurrent_forward.score_panels(0, 0, *pack(empty_call(Problem), dtype))
    recurrent_backward.backward_panels(0, 0, *pack(empty_call(Problem), dtype))


def _given(inputs: tuple[Any, ...], params: Any, real: Any) -> Given:
    queries, keys, h0, c0, steps = inputs
    hidden, output, vector = params
    rows, count = queries.shape[0] * queries.shape[1], keys.shape[1]
    arrays = [_dense(x, real) for x in (queries, keys, h0, c0)]
    seen = None if steps is None else np.ascontiguousarray(steps).view(np.uint8)
    bounds = _bounds(seen, rows, count, tile_size(real.itemsize * 8)[0])
    weights = _packed(hidden, real), _packed(output, real), _dense(vector, real)
    every = (*arrays, seen, bounds, *weights)
    return Given(real, rows, queries.shape[1], count, hidden.shape[1], output.shape[0], bounds, every)


def _bounds(steps: Any, rows: int, keys: int, width: int) -> Any:
    """For each panel the keys [low, past) that it reads: outside them its states stay as they are.

    The key before the first step is read, too: its state is the initial one.
    """
    bounds = np.zeros((-(-rows // width), 2), np.int64)
    bounds[:, 1] = keys
    if steps is not None and steps.size:
        seen = np.bitwise_or.reduceat(steps.reshape(rows, keys), np.arange(0, rows, width), axis=0) != 0  # (panels, S)
        some = np.any(seen, axis=1)
        bounds[:, 0] = np.maximum(np.argmax(seen, axis=1) - 1, 0)
        bounds[:, 1] = np.where(some, keys - np.argmax(seen[:, ::-1], axis=1), 1)
    return bounds


def _held(given: Given) -> int:
    """How many keys of a panel have their gates held at a time."""
    width = tile_size(given.real.itemsize * 8)[0]
    return int(min(max(HELD // (width * (6 * given.size + 2)), 1), max(given.keys, 1)))


def _zero_sums(first: int, past: int, given: Given) -> Sums:
    """Zeros to which the panels [first, past) add."""
    width, tile = tile_size(given.real.itemsize * 8)
    gates, reads = (-(-n // tile) * tile for n in (4 * given.size, given.features))
    columns = -(-given.size // width) * width
    low = first * width // max(given.queries, 1)
    high = -(-min(past * width, given.rows) // max(given.queries, 1))
    shapes = (high - low, given.keys, 4 * given.size), (gates, columns), (reads, columns), (given.features,)
    return Sums(low, *map(np.zeros, shapes))


def _merged_sums(sums: list[Sums], keys: tuple[int, ...], params: Any, real: Any) -> list[Any]:
    """The sums of all threads, in their order."""
    dkeys = np.zeros(keys)
    for some in sums:
        dkeys[some.batch : some.batch + len(some.dkeys)] += some.dkeys
    totals = [sum(parts[1:], start=parts[0]) for parts in zip(*(some[2:] for some in sums), strict=True)]
    cut = [total[tuple(slice(n) for n in like.shape)] for total, like in zip(totals, params, strict=True)]
    return [np.ascontiguousarray(array, real) for array in (dkeys, *cut)]


def _packed(weights: Any, real: Any) -> Any:
    """(N, K) in groups of M rows: (N / M, K, M), padded with 0."""
    (count, depth), tile = weights.shape, tile_size(real.itemsize * 8)[1]
    groups = np.zeros((-(-count // tile), tile, depth), real)
    groups.reshape(len(groups) * tile, depth)[:count] = weights
    return np.ascontiguousarray(groups.swapaxes(1, 2))


def _dense(x: Any, real: Any) -> Any:
    return np.ascontiguousarray(ra.aligned(x, real))
