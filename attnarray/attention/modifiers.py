"""Score modifiers: what turns the scores of a scorer into those that the normalizer sees.

scores -> scale -> softcap -> + bias -> modifiers of the caller -> mask
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

from attnarray.attention.parts import check_result, several
from attnarray.attention.products import hiding_product
from attnarray.backend import Array, accumulator_dtype, device_of, index_dtype, namespace_of
from attnarray.masks import band, within
from attnarray.masks.tiles import TileMask
from attnarray.numpy_arrays import read_only
from attnarray.random import attention_keep_mask


class Dropout(NamedTuple):
    """Dropout of attention weights: by an explicit keep-mask, else by the seed and the positions of query and key.

    Key j has the position j + first_key and query i has i + q_offset + first_key: `q_offset` counts from the first key
    given.
    """

    p: float
    seed: int
    keep: Array | None  # (B|1, H|1, T|1, S|1) bool
    first_key: int = 0


class ScoreModifiers(NamedTuple):
    """All that changes scores and weights, in canonical layout; fused kernels take this one value.

    `bias` and `mask` have four axes, each of full size or 1. `tiles` is one more mask. Query i has the position i +
    q_offset. Dropout and the sinks of a softmax are applied after the scores.
    """

    scale: float
    softcap: float | None = None
    bias: Array | None = None  # (B|1, H|1, T|1, S|1)
    mask: Array | None = None  # (B|1, H|1, T|1, S|1) bool
    left: int | None = None
    right: int | None = None
    q_offset: int | Array = 0  # an int or (B,)
    kv_lengths: Array | None = None  # (B,)
    sinks: Array | None = None  # (H,)
    dropout: Dropout | None = None
    custom: tuple[Any, ...] = ()  # the caller's own, in order
    tiles: TileMask | None = None

    def rows(self, start: int, stop: int) -> ScoreModifiers:
        """The modifiers of the queries [start, stop), without tiles."""

        def cut(array: Array | None) -> Array | None:
            return array if array is None or array.shape[2] == 1 else array[:, :, start:stop, :]

        dropout = self.dropout
        if dropout is not None:
            dropout = dropout._replace(keep=cut(dropout.keep))
        mask = cut(self.mask)
        if self.tiles is not None:
            mine = self.tiles.dense(start, stop)
            mask = mine if mask is None else mine & mask
        rows = self._replace(bias=cut(self.bias), mask=mask, q_offset=self.q_offset + start, dropout=dropout)
        return rows if self.tiles is None else rows._replace(tiles=None)

    def without_tiles(self, queries: int) -> ScoreModifiers:
        """The same for all queries, with a boolean array in place of the tiles."""
        return self if self.tiles is None else self.rows(0, queries)

    @property
    def broadcast_q_offset(self) -> int | Array:
        """`q_offset`, broadcastable to (B, H, T, S)."""
        return self.q_offset if isinstance(self.q_offset, int) else self.q_offset[:, None, None, None]

    def hides(self) -> bool:
        """Whether some weight may be zero by rule, so that what it multiplies must not matter."""
        given = (self.bias, self.mask, self.tiles, self.left, self.right, self.kv_lengths, self.dropout)
        return bool(self.custom) or any(part is not None for part in given)


def modified_scores(scores: Array, modifiers: ScoreModifiers) -> Array:
    """All modifiers applied to scores (B, H, T, S): -inf where masked."""
    return modifier_stages(scores, modifiers)[-1]


def modifier_stages(scores: Array, modifiers: ScoreModifiers) -> list[Array]:
    """The scores with scale and softcap, then with bias, then after each of the caller's modifiers, then masked."""
    xp = namespace_of(scores)
    scores = scores * modifiers.scale
    if modifiers.softcap is not None:
        scores = modifiers.softcap * xp.tanh(scores / modifiers.softcap)
    stages, hidden = [scores], None
    if modifiers.bias is not None:
        bias = xp.astype(modifiers.bias, scores.dtype)
        hidden = bias == -math.inf  # also where the score is NaN
        scores = xp.where(hidden, -math.inf, scores + bias)
    stages.append(scores)
    indices = _indices(scores, modifiers) if modifiers.custom else ()
    for n, modifier in enumerate(modifiers.custom):
        with _naming(n, modifier):
            stages.append(modifier.apply(read_only(stages[-1]), *indices))
        check_result(modifier, "apply", stages[-1], scores.shape, like=scores)
    mask, last = allowed(modifiers, scores.shape[2], scores.shape[3], scores), stages[-1]
    if modifiers.custom and hidden is not None:
        mask = ~hidden if mask is None else mask & ~hidden
    return [*stages, last if mask is None else xp.where(mask, last, -math.inf)]


def modified_scores_backward(
    dmodified: Array, stages: list[Array], modifiers: ScoreModifiers
) -> tuple[Array, Array, tuple[Any, ...]]:
    r"""The gradients of `modified_scores` from its stages; those of hidden scores are 0.

    .. math:: db_{ij} = d\tilde s_{ij}, \qquad
        ds_{ij} = \mathrm{scale}\; d\tilde s_{ij} \bigl(1 - \tanh^2(\mathrm{scale}\; s_{ij} / c)\bigr)

    Returns
    -------
    dscores, dbias : (B, H, T, S)
        dbias before it is summed over the axes that the bias lacks.
    dcustom : tuple
        The gradients of the caller's modifiers, in order.
    """
    xp = namespace_of(dmodified)
    hidden = stages[-1] == -math.inf if modifiers.hides() else None
    dmodified = dmodified if hidden is None else xp.where(hidden, 0.0, dmodified)
    dcustom: list[Any] = []
    indices = _indices(dmodified, modifiers) if modifiers.custom else ()
    for n, (modifier, before) in reversed(list(enumerate(zip(modifiers.custom, stages[1:-2], strict=True)))):
        with _naming(n, modifier):
            results = modifier.backward(read_only(dmodified), xp.where(hidden, 0.0, before), *indices)
        dmodified, own = several(modifier, "backward", results, 2)
        check_result(modifier, "backward", dmodified, before.shape, like=before)
        dcustom.insert(0, own)
    return scaled_and_capped_backward(dmodified, stages[0], modifiers), dmodified, tuple(dcustom)


@contextlib.contextmanager
def _naming(n: int, modifier: Any) -> Iterator[None]:
    """Say in an exception which modifier raised it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"Raised by modifiers[{n}], a {type(modifier).__name__}.")
        raise


def scaled_and_capped_backward(dscores: Array, capped: Array, modifiers: ScoreModifiers) -> Array:
    """The gradient of scale and softcap, whose result is `capped`; 0 where `dscores` is."""
    dscores = dscores * modifiers.scale
    if modifiers.softcap is None:
        return dscores
    return hiding_product(dscores, 1.0 - (capped / modifiers.softcap) ** 2)


def plus_bias(modifiers: ScoreModifiers, bias: Array) -> ScoreModifiers:
    """The modifiers with one more bias (B, H, T, S)."""
    if modifiers.bias is not None:
        xp = namespace_of(bias)
        given = xp.astype(modifiers.bias, bias.dtype, copy=False)
        bias = xp.where(given == -math.inf, -math.inf, bias + given)
    return modifiers._replace(bias=bias)


def allowed(modifiers: ScoreModifiers, queries: int, keys: int, like: Array) -> Array | None:
    """Which keys each query may attend to, broadcastable to (B, H, T, S); None for all."""
    modifiers = modifiers.without_tiles(queries)
    parts = [modifiers.mask, band(modifiers.left, modifiers.right, queries, keys, modifiers.broadcast_q_offset, like)]
    if modifiers.kv_lengths is not None:
        parts.append(within(modifiers.kv_lengths, keys, like))  # (B, 1, 1, S)
    given = [part for part in parts if part is not None]
    return reduce(operator.and_, given) if given else None


def _indices(scores: Array, modifiers: ScoreModifiers) -> tuple[Array, ...]:
    """The batch, the head, and the positions of query and key of each score, as integers that broadcast to it."""
    xp = namespace_of(scores)
    kind = {"dtype": index_dtype(xp, scores), "device": device_of(scores)}
    b, h, q, k = (
        xp.reshape(xp.arange(size, **kind), tuple(size if n == axis else 1 for n in range(4)))
        for axis, size in enumerate(scores.shape)
    )
    return b, h, q + modifiers.broadcast_q_offset, k


def dropout_keep(dropout: Dropout, q_offset: int | Array, shape: tuple[int, int, int, int], like: Array) -> Array:
    """Which weights dropout keeps, broadcastable to (B, H, T, S)."""
    if dropout.keep is not None:
        return dropout.keep
    xp, first = namespace_of(like), dropout.first_key
    return attention_keep_mask(dropout.seed, dropout.p, shape, xp, device_of(like), q_offset + first, first)


def dropout_factor(modifiers: ScoreModifiers, shape: tuple[int, int, int, int], like: Array) -> Array | None:
    """What the weights are multiplied by: 1 / (1 - p) where kept, 0 where dropped; None without dropout."""
    dropout = modifiers.dropout
    if dropout is None:
        return None
    xp, keep = namespace_of(like), dropout_keep(dropout, modifiers.q_offset, shape, like)
    return xp.astype(keep, accumulator_dtype(xp, like.dtype)) * (1.0 / (1.0 - dropout.p) if dropout.p < 1 else 0.0)
