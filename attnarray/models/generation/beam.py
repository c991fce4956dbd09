"""Beam search: the likeliest continuations that are found by keeping a few at each length."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of, to_numpy
from attnarray.layers.initial import Params
from attnarray.models.generation.prompts import Generator, begin
from attnarray.ops.softmax import log_softmax


class BeamResult(NamedTuple):
    """The best continuation (B, N) of each prompt, filled up with `end`, and its score (B,), both as the model's."""

    tokens: Array
    scores: Array


class Live(NamedTuple):
    """W continuations of each prompt that may go on: log-probabilities (B, W), best first, and tokens (B, W, n)."""

    scores: np.ndarray
    tokens: np.ndarray


class Ended(NamedTuple):
    """The best continuation that has come to an end: its score (B,), tokens (B, count)."""

    scores: np.ndarray
    tokens: np.ndarray


def beam_search(
    model: Generator, params: Params, tokens: Array, count: int, *, beams: int = 4, length_penalty: float = 1.0,
    end: int | None = None, lengths: Any = None,
) -> BeamResult:  # fmt: skip
    r"""The continuation with the best score that is found when only the likeliest `beams` of each length go on.

    .. math:: \mathrm{score}(y) = \frac{1}{|y|^\alpha} \sum_{n \le |y|} \log p(y_n \mid x, y_1 \dots y_{n-1})

    A continuation is over after `count` tokens, or with `end`, which counts as one of them. Whatever ends is compared,
    also where others go on; the search stops where these can no longer win. With as many beams as there are
    continuations it finds the best of all.

    Parameters
    ----------
    model : Gpt, or another model with `cache` and `step`
    params : dict
    tokens : (B, T) integer
        Prompts.
    count : int
        At most so many tokens follow.
    beams : int
        How many continuations of one length go on.
    length_penalty : float
        alpha, 0 or above: 0 compares log-probabilities, which favours short ones, 1 their means.
    end : int, optional
        The token that ends a text.
    lengths : (B,) integers, optional
        Of prompts that are padded behind them.

    Raises
    ------
    ValueError
        If an option is out of its range, or the model has no place for so many tokens.

    References
    ----------
    Sutskever, Vinyals and Le, 2014, arXiv:1409.3215. Length penalty: Wu et al., 2016, arXiv:1609.08144.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.Gpt(vocabulary=9, longest=8, dim=8, layers=1, heads=2)
    >>> found = aa.models.beam_search(model, model.init(aa.Philox(0)), np.array([[1, 2], [3, 4]]), 3, beams=5)
    >>> found.tokens.shape, found.scores.shape
    ((2, 3), (2,))
    """
    checks.whole("beams", beams, 1, 2**31, "how many continuations go on at each length")
    checks.not_negative("length_penalty", length_penalty)
    logits, cache = begin(model, params, tokens, count, lengths)
    B, V = logits.shape
    if end is not None:
        checks.whole("end", end, 0, V - 1, "a token of the model")
    live = Live(np.zeros((B, 1)), np.zeros((B, 1, 0), np.int64))
    best = Ended(np.full(B, -np.inf), np.full((B, count), 0 if end is None else end, np.int64))
    for n in range(1, count + 1):
        width = live.scores.shape[1]
        steps = to_numpy(log_softmax(logits)).astype(np.float64).reshape(B, width, V)
        total = live.scores[:, :, None] + steps  # (B, W, V)
        if end is not None:
            best = _better(best, Live(total[:, :, end], live.tokens), n, length_penalty, end)
            total[:, :, end] = -np.inf
        live, parents = _likeliest(live, total, min(beams, width * (V - (end is not None))))
        if n == count or np.all(_reachable(live, count, length_penalty) <= best.scores):
            break
        rows = np.arange(B)[:, None] * width + parents  # (B, W)
        cache = cache.rows(_beside(rows.reshape(-1), tokens))
        logits, cache = model.step(params, _beside(live.tokens[:, :, -1].reshape(-1, 1), tokens), cache, last=True)
        logits = logits[:, -1, :]  # (B W, V)
    if live.tokens.shape[2] == count:
        best = _better(best, live, count, length_penalty, None)
    longest = int(max((_length(row, end) for row in best.tokens), default=0))
    return BeamResult(_beside(best.tokens[:, :longest], tokens), _beside(best.scores, tokens, False))


def _likeliest(live: Live, total: np.ndarray, width: int) -> tuple[Live, np.ndarray]:
    """The `width` likeliest continuations by one token, and which each one continues (B, width)."""
    B, W, V = total.shape
    flat = total.reshape(B, W * V)
    chosen = np.argpartition(-flat, max(width - 1, 0), axis=1)[:, :width] if flat.size else np.zeros((B, 0), np.int64)
    chosen = np.sort(chosen, axis=1)  # so that the first of equals comes first
    chosen = np.take_along_axis(chosen, np.argsort(-np.take_along_axis(flat, chosen, 1), axis=1, kind="stable"), 1)
    parents, words = chosen // V, chosen % V
    tokens = np.concatenate([np.take_along_axis(live.tokens, parents[:, :, None], 1), words[:, :, None]], axis=2)
    return Live(np.take_along_axis(flat, chosen, 1), tokens), parents


def _better(best: Ended, live: Live, length: int, penalty: float, end: int | None) -> Ended:
    """The best that has ended, if those of `live` end now, at this length."""
    if not live.scores.shape[1]:
        return best
    first = np.argmax(live.scores, axis=1)
    rows = np.arange(len(first))
    scores = live.scores[rows, first] / max(length, 1) ** penalty
    wins = scores > best.scores
    tokens = best.tokens.copy()
    written = live.tokens.shape[2]
    tokens[wins, :written] = live.tokens[rows, first][wins]
    if end is not None:
        tokens[wins, written:] = end
    return Ended(np.where(wins, scores, best.scores), tokens)


def _reachable(live: Live, count: int, penalty: float) -> np.ndarray:
    """A score (B,) that no continuation of what is live exceeds: log-probabilities only fall, the length grows."""
    return np.asarray(np.max(live.scores, axis=1, initial=-np.inf) / max(count, 1) ** penalty)


def _length(row: np.ndarray, end: int | None) -> int:
    """Tokens up to the first `end`, with it."""
    ends = np.flatnonzero(row == end) if end is not None else np.zeros(0)
    return int(ends[0]) + 1 if len(ends) else len(row)


def _beside(host: np.ndarray, like: Array, integer: bool = True) -> Array:
    xp = namespace_of(like)
    return xp.asarray(host, dtype=like.dtype if integer else None, device=device_of(like))
