"""Beam search over the continuations of prompts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of, to_numpy
from attnarray.layers.initial import Params
from attnarray.models.generation.beam_rules import BestOfAll, BestOfCandidates, EarlyStopping
from attnarray.models.generation.prompts import AnyGenerator, prefill, with_params
from attnarray.models.generation.sampling import finite_or_certain
from attnarray.ops.softmax import log_softmax


class BeamResult(NamedTuple):
    """The best continuation (B, N) of each prompt, padded with `end`, and its score (B,), in the library of the
    model.
    """

    tokens: Any
    scores: Any


def beam_search(
    model: AnyGenerator, params: Params | None, tokens: Array, count: int, *, beams: int = 4,
    length_penalty: float = 1.0, end: int | None = None, lengths: Any = None,
    early_stopping: EarlyStopping | None = None, starts: Any = None, page_size: int | None = None,
) -> BeamResult:  # fmt: skip
    r"""Return the continuation with the best score that keeping the `beams` most likely of each length finds.

    .. math:: \mathrm{score}(y) = \frac{1}{|y|^\alpha} \sum_{n \le |y|} \log p(y_n \mid x, y_1 \dots y_{n-1})

    A continuation ends after `count` tokens, or with `end`, which counts as one of them. All that end are compared; the
    search stops when no unfinished one can have a better score. With as many beams as there are continuations it finds
    the best of all.

    Parameters
    ----------
    model, params
        As in `generate`.
    tokens : (B, T) integer
        Prompts.
    count : int
        Largest number of new tokens.
    beams : int
        Number of continuations that are kept at each length.
    length_penalty : float
        alpha, 0 or above: 0 compares log-probabilities, which favors short ones, 1 their means. With `early_stopping`
        it may be negative too.
    end : int, optional
        The end-of-sequence token.
    lengths, starts : (B,) integers, optional
        Lengths of right-padded prompts, or of the left padding of left-padded ones.
    early_stopping : {None, False, True, "never"}
        None is the search described above. Other values select the search of Hugging Face transformers with this value
        of its option of the same name, whose default is False, with the same tokens; see the notes.
    page_size : int, optional
        As in `generate`.

    Raises
    ------
    ValueError
        If an option is out of range, the sequence would exceed the model's `max_seq_len`, or the logits of an
        unfinished continuation hold NaN, or -inf for every token.

    Notes
    -----
    Without `end` both searches are the same. With it, transformers takes the 2 `beams` most likely continuations of
    each step, of which those with `end` count only if they are among the first `beams`; here every one with `end`
    counts. It keeps the best `beams` that have ended, and stops once there are as many (True), once the most likely
    unfinished one, at its present length, is no better than the worst of them (False), or could not become better with
    `count` tokens ("never", for a positive penalty). So tokens may differ. Both searches keep the same unfinished
    continuations, and the score that None finds is never worse.

    Log-probabilities are computed in float64 where the library has it, whatever the dtype of the logits.

    References
    ----------
    Sutskever, Vinyals and Le, 2014, arXiv:1409.3215. Length penalty: Wu et al., 2016, arXiv:1609.08144.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> model = aa.models.GPT(vocab_size=9, max_seq_len=8, dim=8, num_layers=1, num_heads=2)
    >>> found = aa.models.beam_search(model, model.init(aa.Philox(0)), np.array([[1, 2], [3, 4]]), 3, beams=5)
    >>> found.tokens.shape, found.scores.shape
    ((2, 3), (2,))
    """
    beams = checks.whole("beams", beams, 1, 2**31, "the number of continuations to keep at each length")
    checks.choice("early_stopping", early_stopping, (None, False, True, "never"))
    if early_stopping is not None and early_stopping != "never":
        early_stopping = checks.flag("early_stopping", early_stopping)
    _check_penalty(length_penalty, count, early_stopping is not None)
    model, params = with_params(model, params)
    logits, cache = prefill(model, params, tokens, count, lengths, starts, page_size)
    B, V = logits.shape
    end = None if end is None else checks.whole("end", end, 0, V - 1, "a token of the model")
    search: BestOfAll | BestOfCandidates
    if early_stopping is None:
        search = BestOfAll(B, count, beams, length_penalty, end)
    else:
        search = BestOfCandidates(B, count, beams, length_penalty, end, early_stopping)
    for n in range(1, count + 1 if B else 1):
        width = logits.shape[0] // B
        going = search.going()[:, :width].reshape(-1)
        certain = finite_or_certain(logits, None if np.all(going) else _array_like(going, tokens))
        steps = to_numpy(log_softmax(certain)).astype(np.float64).reshape(B, width, V)
        parents = search.advance(steps, n)
        if n == count or not np.any(search.going()):
            break
        rows = np.arange(B)[:, None] * width + np.minimum(parents, width - 1)  # (B, W)
        before, cache = cache, cache.rows(_array_like(rows.reshape(-1), tokens))
        if page_size is not None:
            before.free()
        logits, cache = model.step(
            params, _array_like(search.live.tokens[:, :, -1].reshape(-1, 1), tokens), cache, last=True
        )
        logits = logits[:, -1, :]  # (B W, V)
    best = search.best()
    length = int(max((_length(row, end) for row in best.tokens), default=0))
    return BeamResult(_array_like(best.tokens[:, :length], tokens), _array_like(best.scores, tokens))


def _check_penalty(penalty: float, count: int, any_sign: bool) -> None:
    number = checks.real(penalty) if any_sign else checks.not_negative("length_penalty", penalty)
    try:
        finite = 0 < float(max(count, 1)) ** number < math.inf
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(
            f"`length_penalty` is {checks.shown(penalty)}, expected a number such as 1.0: {count} tokens to its power "
            "divide the scores."
        )


def _length(row: np.ndarray, end: int | None) -> int:
    """The number of tokens up to and including the first `end`."""
    ends = np.flatnonzero(row == end) if end is not None else np.zeros(0)
    return int(ends[0]) + 1 if len(ends) else len(row)


def _array_like(host: np.ndarray, like: Array) -> Array:
    return namespace_of(like).asarray(host, device=device_of(like))
