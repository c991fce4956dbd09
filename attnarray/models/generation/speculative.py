"""Speculative decoding: a small model drafts some tokens, and one step of the large model verifies all of them.

Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding", 2022, arXiv:2211.17192.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of, to_numpy
from attnarray.dispatch import ignoring_fp_errors
from attnarray.layers.initial import Params
from attnarray.models.generation.prompts import Generator, Prefill, with_params
from attnarray.models.generation.sampling import draw, finite_or_certain
from attnarray.ops.softmax import softmax
from attnarray.random import Philox


class Writer(NamedTuple):
    """A model with its parameters, and its cache of what is written so far."""

    model: Generator
    params: Params
    cache: Any

    def step(self, tokens: np.ndarray, like: Array, last: bool) -> tuple[Any, Writer]:
        """The logits (B, T, V) of the next tokens (B, T)."""
        given = namespace_of(like).asarray(tokens, dtype=like.dtype, device=device_of(like))
        logits, cache = self.model.step(self.params, given, self.cache, last=last)
        return logits, self._replace(cache=cache)

    def up_to(self, length: int) -> Writer:
        """The writer without the positions from `length` on."""
        return self._replace(cache=self.cache.up_to(length))


class Draft(NamedTuple):
    """What the small model proposes: tokens (B, K), and the probabilities (B, V) that each was drawn from."""

    tokens: np.ndarray
    probabilities: list[np.ndarray]


def speculate(
    target: Writer, small: Writer, prefilled: Prefill, tokens: Array, count: int, sampler: Any, end: int | None,
    width: int,
) -> Iterator[Any]:  # fmt: skip
    """Yield the next tokens (B,), distributed as without a draft; `width` are drafted at a time.

    .. math:: P(\\mathrm{accept}\\; x) = \\min\\Bigl(1, \\frac{p(x)}{q(x)}\\Bigr), \\qquad
        x' \\sim \\frac{\\max(p - q, 0)}{\\sum \\max(p - q, 0)} \\;\\text{where x is refused}

    with the probabilities p of the large and q of the small model. Rows go on together: by as many tokens as every row
    has accepted, and one.
    """
    ended, rng = np.zeros(tokens.shape[0], bool), sampler.rng
    p = _probabilities(sampler, prefilled.logits, ended, end)
    found = [_drawn(p, rng, 0, 0)]
    pending, written = found[-1][:, None], 0
    for n in range(1, count + 1):
        for token in found:
            token = np.where(ended, 0 if end is None else end, token)
            ended = ended | (token == end)
            yield namespace_of(tokens).asarray(token, dtype=tokens.dtype, device=device_of(tokens))
            written += 1
            if written == count or (end is not None and bool(ended.all())):
                return
        draft, small = _drafted(small, pending, min(width, count - written - 1), sampler, ended, end, n, tokens)
        last, base = pending[:, -1:], target.cache.length
        logits, target = target.step(np.concatenate([last, draft.tokens], axis=1), tokens, last=False)
        ps = [_probabilities(sampler, logits[:, s, :], ended, end) for s in range(draft.tokens.shape[1] + 1)]
        found = _verified(draft, ps, rng, ended, n)
        kept = base + len(found)
        target, small = target.up_to(kept), small.up_to(min(small.cache.length, kept))
        pending = np.stack(found, axis=1)[:, small.cache.length - base - 1 :]


def _drafted(
    small: Writer,
    pending: np.ndarray,
    width: int,
    sampler: Any,
    ended: np.ndarray,
    end: int | None,
    n: int,
    like: Array,
) -> tuple[Draft, Writer]:
    tokens, probabilities = pending[:, :0], []
    for s in range(width):
        logits, small = small.step(pending, like, last=True)
        q = _probabilities(sampler, logits[:, -1, :], ended, end)
        pending = _drawn(q, sampler.rng, n, 2 * s)[:, None]
        probabilities.append(q)
        tokens = np.concatenate([tokens, pending], axis=1)
    return Draft(tokens, probabilities), small


@ignoring_fp_errors
def _verified(draft: Draft, ps: list[np.ndarray], rng: Philox | None, ended: np.ndarray, n: int) -> list[np.ndarray]:
    """The tokens that all rows have accepted, and the next one of each."""
    rows, width = np.arange(len(draft.tokens)), draft.tokens.shape[1]
    going = np.ones((len(rows), width), bool)
    for s in range(width):
        token, p, q = draft.tokens[:, s], ps[s], draft.probabilities[s]
        level = (
            0.0 if rng is None else to_numpy(rng.fold_in(n).fold_in(2 * s + 1).uniform((len(rows),), dtype="float64"))
        )
        going[:, s] = (level * q[rows, token] < p[rows, token]) | ended
    accepted = np.minimum.accumulate(going, axis=1).sum(axis=1)
    common = int(accepted.min(initial=width))
    found = [draft.tokens[:, s] for s in range(common)]
    p = ps[common]
    if common == width:
        return [*found, _drawn(p, rng, n, 2 * width)]
    rest = np.maximum(p - draft.probabilities[common], 0.0)
    rest = np.where(rest.sum(axis=1, keepdims=True) > 0, rest, p)  # where it was accepted, it is not used
    other = _drawn(rest, rng, n, 2 * width)
    return [*found, np.where(accepted > common, draft.tokens[:, common], other)]


def _probabilities(sampler: Any, logits: Array, ended: np.ndarray, end: int | None) -> np.ndarray:
    """The distribution (B, V) that tokens are drawn from: certain of one token where the most likely one is taken."""
    xp = namespace_of(logits)
    going = None if end is None else xp.asarray(~ended, device=device_of(logits))
    known = to_numpy(finite_or_certain(logits, going))
    if sampler.rng is None:
        return np.asarray(np.argmax(known, axis=-1)[:, None] == np.arange(known.shape[1]), np.float64)
    return np.asarray(softmax(sampler.filtered(known)), np.float64)


@ignoring_fp_errors
def _drawn(probabilities: np.ndarray, rng: Philox | None, n: int, use: int) -> np.ndarray:
    """A token (B,) of each row; those of a round n and a use are independent of all others."""
    if rng is None:
        return np.argmax(probabilities, axis=-1)
    return np.asarray(draw(np.log(probabilities), rng.fold_in(n).fold_in(use)))


def check_draft(draft: Any) -> tuple[Any, Any]:
    """Check for a model with its parameters."""
    if not isinstance(draft, tuple | list) or len(draft) != 2 or not hasattr(draft[0], "step"):
        raise TypeError(f"`draft` is {checks.shown(draft)}, expected (model, params) of a smaller model.")
    return with_params(*draft)


def check_pair(prefilled: Prefill, small: Prefill) -> None:
    """Check that both models have the same tokens, and caches that can forget."""
    own, other = prefilled.logits.shape[1], small.logits.shape[1]
    if own != other:
        raise ValueError(f"`draft` has {other} tokens, but `model` has {own}; they must be the same tokens.")
    for name, cache in (("model", prefilled.cache), ("draft", small.cache)):
        if not hasattr(cache, "up_to"):
            raise TypeError(f"The cache of `{name}`, a {type(cache).__name__}, cannot forget positions: use GPT.")
        if getattr(cache, "has_states", False):
            raise ValueError(
                f"`{name}` has linear mixers, whose states cannot forget drafted tokens that are refused: generate "
                "without `draft`."
            )
