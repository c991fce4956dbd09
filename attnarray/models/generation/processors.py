"""Functions of the logits before a token is selected, and sequences of tokens that end a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from attnarray import checks
from attnarray.backend import Array, device_of, namespace_of, to_numpy

Processor = Callable[[Array, Array], Array]  # all tokens (B, N) so far, and logits (B, V) -> logits


def penalize_repetition(penalty: float) -> Processor:
    r"""Return a function of tokens (B, N) and logits (B, V) that makes tokens that occurred less likely.

    .. math:: z_v \leftarrow z_v / p \;\text{ if } z_v > 0, \text{ else } p z_v

    Parameters
    ----------
    penalty : float
        p: above 1 for fewer repetitions, below for more.

    Raises
    ------
    ValueError
        If the penalty is not positive.

    References
    ----------
    Keskar et al., "CTRL", 2019, arXiv:1909.05858, section 4.1.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> aa.models.penalize_repetition(2.0)(np.array([[0, 2]]), np.array([[3.0, 3.0, -1.0]])).tolist()
    [[1.5, 3.0, -2.0]]
    """
    penalty = checks.positive("penalty", penalty)

    def penalize(tokens: Array, logits: Array) -> Array:
        xp, host = namespace_of(logits), np.zeros(tuple(logits.shape), bool)
        np.put_along_axis(host, to_numpy(tokens), True, axis=1)
        seen = xp.asarray(host, device=device_of(logits))
        return xp.where(seen, xp.where(logits > 0, logits / penalty, logits * penalty), logits)

    return penalize


def apply_processors(processors: Sequence[Processor], tokens: Array, logits: Array) -> Array:
    """Return the logits after all functions, each checked to keep their shape."""
    for processor in processors:
        new: Any = processor(tokens, logits)
        if not checks.is_array(new) or new.shape != logits.shape:
            raise ValueError(
                f"A function of `processors` returned {checks.shown(new)}, expected logits {tuple(logits.shape)}."
            )
        logits = new
    return logits


def check_stop(stop: Any, end: int | None) -> list[list[int]]:
    """Return the sequences of tokens that end a row."""
    if stop is None:
        return []
    found = [list(map(int, sequence)) for sequence in stop] if all(map(np.iterable, stop)) else [[]]
    if not all(found):
        raise ValueError(f"`stop` is {checks.shown(stop)}, expected sequences of tokens, such as [[13, 13], [50256]].")
    if end is None:
        raise ValueError("`stop` is given without `end`, the token that fills a row after its last one: give it too.")
    return found


def ends_with(tokens: list[Array], stop: list[list[int]]) -> Any:
    """Whether each row (B,) of the new tokens, a list of (B,), ends with one of the sequences."""
    xp, found = namespace_of(tokens[-1]), None
    for sequence in stop:
        if len(sequence) > len(tokens):
            continue
        same = xp.ones(tokens[-1].shape, dtype=xp.bool, device=device_of(tokens[-1]))
        for own, wanted in zip(tokens[-len(sequence) :], sequence, strict=True):
            same = same & (own == wanted)
        found = same if found is None else found | same
    return found
