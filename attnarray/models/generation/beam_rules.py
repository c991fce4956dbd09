"""Which ended continuations a beam search compares, and when it stops: by this library, and by transformers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

EarlyStopping = bool | Literal["never"]


class Live(NamedTuple):
    """W unfinished continuations of each prompt: log-probabilities (B, W), best first, and tokens (B, W, n)."""

    scores: np.ndarray
    tokens: np.ndarray


class Ended(NamedTuple):
    """The best finished continuation: its score (B,), tokens (B, count)."""

    scores: np.ndarray
    tokens: np.ndarray


class BestOfAll:
    """The search that compares all finished continuations."""

    def __init__(self, batch: int, count: int, beams: int, penalty: float, end: int | None) -> None:
        self.count, self.beams, self.penalty, self.end = count, beams, penalty, end
        self.live = Live(np.zeros((batch, 1)), np.zeros((batch, 1, 0), np.int64))
        self.ended = Ended(np.full(batch, -np.inf), np.full((batch, count), 0 if end is None else end, np.int64))

    def going(self) -> np.ndarray:
        """Which continuations (B, W) may still win: log-probabilities only decrease, and the length grows."""
        scores: np.ndarray = self.live.scores / max(self.count, 1) ** self.penalty > self.ended.scores[:, None]
        return scores

    def advance(self, steps: np.ndarray, n: int) -> np.ndarray:
        """Extend by the log-probabilities (B, W, V) of token number n; return which continuation each one extends."""
        total = self.live.scores[:, :, None] + steps
        width, V = total.shape[1:]
        if self.end is not None:
            self._compare(Live(total[:, :, self.end], self.live.tokens), n)
            total[:, :, self.end] = -np.inf
        self.live, parents = likeliest(self.live, total, min(self.beams, width * (V - (self.end is not None))))
        if n == self.count:
            self._compare(self.live, n)
        return parents

    def best(self) -> Ended:
        """The best continuations."""
        return self.ended if self.count else self.ended._replace(scores=np.zeros(len(self.ended.scores)))

    def _compare(self, live: Live, length: int) -> None:
        """Update the best finished ones by those of `live`, if they end now, at this length."""
        if not live.scores.shape[1]:
            return
        first = np.argmax(live.scores, axis=1)
        rows = np.arange(len(first))
        scores = live.scores[rows, first] / length**self.penalty
        wins = scores > self.ended.scores
        tokens, written = self.ended.tokens, live.tokens.shape[2]
        tokens[wins, :written] = live.tokens[rows, first][wins]
        if self.end is not None:
            tokens[wins, written:] = self.end
        self.ended = Ended(np.where(wins, scores, self.ended.scores), tokens)


class BestOfCandidates:
    """The search of Hugging Face transformers 5.24: only those that end among the likeliest candidates are compared."""

    NEVER = -1e9  # the score of no continuation, as in transformers, for the same result if tokens run out

    def __init__(
        self, batch: int, count: int, beams: int, penalty: float, end: int | None, early_stopping: EarlyStopping
    ) -> None:
        self.count, self.beams, self.penalty, self.end, self.early = count, beams, penalty, end, early_stopping
        scores = np.where(np.arange(beams) == 0, 0.0, self.NEVER)  # at first all continuations are the same
        self.live = Live(np.tile(scores, (batch, 1)), np.zeros((batch, beams, 0), np.int64))
        filled = np.full((batch, beams, count), 0 if end is None else end, np.int64)
        self.ended = Live(np.full((batch, beams), self.NEVER), filled)
        self.has_ended = np.zeros((batch, beams), bool)
        self.open = np.ones((batch, 1), bool)

    def going(self) -> np.ndarray:
        """Which continuations (B, W) may still win."""
        going = self.open & ~(self.early is True and bool(np.all(self.has_ended)))
        return np.broadcast_to(going, self.live.scores.shape)

    def advance(self, steps: np.ndarray, n: int) -> np.ndarray:
        """See `BestOfAll`; at first, `steps` are (B, 1, V)."""
        total = self.live.scores[:, :, None] + steps  # (B, W, V)
        found, parents = likeliest(self.live, total, min(2 * self.beams, total.shape[1] * total.shape[2]))
        ends = np.full(found.scores.shape, n == self.count)
        if self.end is not None:
            ends = ends | (found.tokens[:, :, -1] == self.end)
        going = Live(found.scores + self.NEVER * ends, found.tokens)
        self.live, order = best_first(going, self.beams)
        self._keep(found, ends, n)
        length = self.count if self.early == "never" and self.penalty > 0 else n
        possible = self.live.scores[:, :1] / length**self.penalty
        worst = np.where(self.has_ended, np.min(self.ended.scores, axis=1, keepdims=True), self.NEVER)
        self.open = self.open & np.any(possible > worst, axis=1, keepdims=True)
        return np.take_along_axis(parents, order, 1)

    def best(self) -> Ended:
        """The best continuations."""
        return Ended(self.ended.scores[:, 0] if self.count else self.live.scores[:, 0], self.ended.tokens[:, 0, :])

    def _keep(self, found: Live, ends: np.ndarray, n: int) -> None:
        """Keep the best `beams` of those that had ended, and of those that end now."""
        counts = ends & (np.arange(ends.shape[1]) < self.beams)
        full = np.all(self.has_ended, axis=1, keepdims=True) & (self.early is True)
        scores = found.scores / n**self.penalty + self.NEVER * full + self.NEVER * ~self.open + self.NEVER * ~counts
        tokens = np.full((*ends.shape, self.count), 0 if self.end is None else self.end, np.int64)
        tokens[:, :, :n] = found.tokens
        merged = [np.concatenate(pair, axis=1) for pair in zip(self.ended, (scores, tokens), strict=True)]
        has_ended = np.concatenate([self.has_ended, counts], axis=1)
        self.ended, order = best_first(Live(*merged), self.beams)
        self.has_ended = np.take_along_axis(has_ended, order, 1)


def best_first(live: Live, width: int) -> tuple[Live, np.ndarray]:
    """The `width` with the best scores, best first, and which they are (B, width)."""
    order = np.argsort(-live.scores, axis=1, kind="stable")[:, :width]
    tokens = np.take_along_axis(live.tokens, order[:, :, None], 1)
    return Live(np.take_along_axis(live.scores, order, 1), tokens), order


def likeliest(live: Live, total: np.ndarray, width: int) -> tuple[Live, np.ndarray]:
    """The `width` likeliest continuations by one token, and which one each extends (B, width)."""
    B, W, V = total.shape
    flat = total.reshape(B, W * V)
    chosen = np.argpartition(-flat, max(width - 1, 0), axis=1)[:, :width] if flat.size else np.zeros((B, 0), np.int64)
    chosen = np.sort(chosen, axis=1)  # so that ties keep their order
    chosen = np.take_along_axis(chosen, np.argsort(-np.take_along_axis(flat, chosen, 1), axis=1, kind="stable"), 1)
    parents, words = chosen // V, chosen % V
    tokens = np.concatenate([np.take_along_axis(live.tokens, parents[:, :, None], 1), words[:, :, None]], axis=2)
    return Live(np.take_along_axis(flat, chosen, 1), tokens), parents
