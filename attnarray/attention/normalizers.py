"""Normalizers: from modified scores to attention weights. Here softmax; entmax and hard choices in `selection`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray.attention.modifiers import ScoreModifiers, modified_scores, modifier_stages, scaled_and_capped_backward
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated


class Softmax(NamedTuple):
    r"""Softmax over the keys, with one more logit z per head that has no value: the sink.

    .. math:: p_{ij} = e^{s_{ij} - \mathrm{lse}_i}, \qquad \mathrm{lse}_i = \log\Bigl(e^{z} + \sum_j e^{s_{ij}}\Bigr)

    Without sinks the term e^z is absent.

    Parameters
    ----------
    sinks : (H,), optional

    References
    ----------
    Sinks: Xiao et al., "Efficient streaming language models with attention sinks", 2023, arXiv:2309.17453.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out = aa.attend(q, k, v, normalizer=aa.Softmax(np.zeros(2)))
    >>> bool(np.allclose(out, aa.scaled_dot_product_attention(q, k, v, sinks=np.zeros(2))))
    True
    """

    sinks: Array | None = None

    def weights(self, scores: Array, rows: slice) -> tuple[Array, Array]:
        """The weights (B, H, rows, S), and the lse (B, H, rows)."""
        return _softmax(scores, self.sinks)

    def weights_again(self, scores: Array, lse: Array, rows: slice) -> Array:
        """The weights from the lse."""
        return _softmax_from_lse(scores, lse)

    def backward(
        self, dweights: Array, dlse: Array | None, weights: Array, lse: Array, scores: Array, rows: slice
    ) -> tuple[Array, Softmax]:
        r"""The gradients of scores and sinks.

        .. math::
            \delta_i = \sum_j p_{ij}\, dp_{ij} - d\mathrm{lse}_i, \qquad ds_{ij} = p_{ij} (dp_{ij} - \delta_i), \qquad
            dz = -\sum_i e^{z - \mathrm{lse}_i} \delta_i
        """
        xp = namespace_of(weights)
        delta = xp.sum(xp.where(weights == 0, 0.0, weights * dweights), axis=-1)
        delta = delta if dlse is None else delta - dlse
        dscores = xp.where(weights == 0, 0.0, weights * (dweights - delta[..., None]))
        return dscores, Softmax(None if self.sinks is None else sinks_gradient(lse, delta, self.sinks))


class Sigmoid(NamedTuple):
    r"""Weights that need not sum to 1: each key is weighed apart from the others.

    .. math:: w_{ij} = \frac{1}{1 + e^{-(s_{ij} + b)}}

    Hidden scores have the weight 0. There is no log-sum-exp.

    Parameters
    ----------
    shift : (H,), optional
        b; by default -log S, so that weights of S keys with scores near 0 sum to about 1.

    References
    ----------
    Ramapuram et al., "Theory, analysis, and best practices for sigmoid self-attention", 2024, arXiv:2409.04431.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.attend_fwd(q, k, v, normalizer=aa.Sigmoid())
    >>> aa.attention_weights(ctx).sum(-1).round(1).tolist()
    [[[1.4, 0.7, 0.9, 0.7], [0.7, 0.7, 1.4, 0.8]]]
    """

    shift: Array | None = None

    def weights(self, scores: Array, rows: slice) -> tuple[Array, None]:
        xp = namespace_of(scores)
        shift = -math.log(max(scores.shape[3], 1)) if self.shift is None else self.shift[:, None, None]
        return xp.where(scores == -math.inf, 0.0, 1.0 / (1.0 + xp.exp(-(scores + shift)))), None

    def backward(
        self, dweights: Array, dkept: None, weights: Array, kept: None, scores: Array, rows: slice
    ) -> tuple[Array, Sigmoid]:
        r"""The gradients of scores and shift.

        .. math:: ds_{ij} = dw_{ij}\, w_{ij} (1 - w_{ij}), \qquad db = \sum_{ij} ds_{ij}
        """
        xp = namespace_of(scores)
        dscores = xp.where(weights == 0, 0.0, dweights * weights * (1.0 - weights))
        return dscores, Sigmoid(None if self.shift is None else xp.sum(dscores, axis=(0, 2, 3)))


def _softmax(scores: Array, sinks: Array | None) -> tuple[Array, Array]:
    xp = namespace_of(scores)
    sink = None if sinks is None else xp.astype(sinks, scores.dtype)[None, :, None, None]
    if scores.shape[3] == 0:
        row_max = xp.full((*scores.shape[:3], 1), -math.inf, dtype=scores.dtype, device=device_of(scores))
    else:
        row_max = xp.max(scores, axis=-1, keepdims=True)  # (B, H, T, 1)
    row_max = row_max if sink is None else xp.maximum(row_max, sink)
    row_max = xp.where(row_max == -math.inf, 0.0, row_max)
    exps = xp.exp(scores - row_max)
    row_sum = xp.sum(exps, axis=-1, keepdims=True)
    row_sum = row_sum if sink is None else row_sum + xp.exp(sink - row_max)
    lse = row_max + xp.log(row_sum)  # log 0 = -inf for fully masked rows
    return exps / xp.where(row_sum == 0, 1.0, row_sum), lse[..., 0]


def _softmax_from_lse(scores: Array, lse: Array) -> Array:
    """exp(scores - lse), 0 in fully masked rows."""
    xp = namespace_of(scores)
    weights = xp.exp(scores - finite_lse(lse)[..., None])
    return xp.where(scores == -math.inf, 0.0, weights)  # also where the lse is NaN: what is hidden stays apart


def finite_lse(lse: Array) -> Array:
    """The lse, with 0 in fully masked rows."""
    return namespace_of(lse).where(lse == -math.inf, 0.0, lse)


def sinks_gradient(lse: Array, delta: Array, sinks: Array) -> Array:
    """The gradient of the sinks (H,): minus the sink's own weight times delta, over all batches and queries."""
    xp = namespace_of(lse)
    weight = xp.exp(xp.astype(sinks, lse.dtype)[None, :, None] - finite_lse(lse))  # (B, H, T)
    return xp.astype(-xp.sum(xp.where(weight == 0, 0.0, weight * delta), axis=(0, 2)), sinks.dtype)


@accelerated
def masked_softmax(scores: Array, modifiers: ScoreModifiers) -> tuple[Array, Array]:
    r"""The softmax of modified scores in one pass, with the sinks that the modifiers carry; before dropout.

    Kernels may overwrite `scores`.

    Parameters
    ----------
    scores : (B, H, T, S) float32 or float64
    modifiers : ScoreModifiers

    Returns
    -------
    weights : (B, H, T, S)
        Fully masked rows are 0.
    lse : (B, H, T)
        -inf for fully masked rows without a sink.
    """
    return _softmax(modified_scores(scores, modifiers), modifiers.sinks)


@accelerated
def masked_softmax_backward(
    scores: Array, dweights: Array, lse: Array, delta: Array, modifiers: ScoreModifiers
) -> tuple[Array, Array, Any]:
    r"""Recompute the weights from the saved lse and carry dweights back to the scores before their modifiers.

    .. math::
        d\tilde s_{ij} = p_{ij} (dp_{ij} - \delta_i), \qquad
        ds_{ij} = \mathrm{scale}\; d\tilde s_{ij} \bigl(1 - \tanh^2(\mathrm{scale}\; s_{ij} / c)\bigr)

    (the last factor only with a softcap c). Kernels may overwrite `scores` and `dweights`.

    Parameters
    ----------
    scores, dweights : (B, H, T, S)
    lse, delta : (B, H, T)
        delta = sum_j weights * dweights - dlse.
    modifiers : ScoreModifiers

    Returns
    -------
    weights, dscores : (B, H, T, S)
    dmodified : (B, H, T, S) or None
        The gradient of the modified scores, which is that of the bias; only when there is one.
    """
    xp, stages = namespace_of(scores), modifier_stages(scores, modifiers)
    weights = _softmax_from_lse(stages[-1], lse)
    dmodified = xp.where(weights == 0, 0.0, weights * (dweights - delta[..., None]))
    dscores = scaled_and_capped_backward(dmodified, stages[0], modifiers)
    return weights, dscores, None if modifiers.bias is None else dmodified


def masked_softmax_from_lse(scores: Array, lse: Array, modifiers: ScoreModifiers) -> Array:
    """The weights of `masked_softmax` again: (B, H, T, S)."""
    return _softmax_from_lse(modified_scores(scores, modifiers), lse)
