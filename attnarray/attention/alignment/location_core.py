"""Location-aware attention on canonical arrays: the steps, and the way back through them."""

from __future__ import annotations

from typing import NamedTuple

from attnarray.attention.alignment.additive_core import additive_scores, additive_scores_backward
from attnarray.attention.core import bias_gradient, join, sum_to_shape, weighted_sum, weighted_sum_backward
from attnarray.attention.scoring import Scoring, gradients_of_dots, weights_from_dots
from attnarray.backend import Array, device_of, namespace_of
from attnarray.dispatch import accelerated
from attnarray.ops.conv1d import Conv1dContext, conv1d_bwd, conv1d_fwd
from attnarray.ops.linear import LinearContext, linear_bwd, linear_fwd


class Located(NamedTuple):
    """What all steps share, in float32 or float64. `before` is what is convolved in the first step."""

    k: Array  # (B, 1, S, A)
    v: Array  # (B, 1, S, Dv)
    score_vector: Array  # (A,)
    location_filter: Array  # (F, width)
    location_weight: Array  # (A, F)
    before: Array  # (B, 1, 1, S), 0 past the lengths
    cumulative: bool

    @property
    def maps(self) -> tuple[Array, Array]:
        """F and U, which together make the features of a step's keys from what was looked at before."""
        return self.location_filter, self.location_weight


class Keys(NamedTuple):
    """The keys of one step, k + U f, and the contexts of the two maps that made them."""

    keys: Array  # (B, 1, S, A)
    filtered: Conv1dContext
    mapped: LinearContext


def keys_of_step(given: Located, looked: Array) -> Keys:
    """The keys where `looked` (B, 1, 1, S) is what the steps before looked at."""
    features, filtered = conv1d_fwd(looked.mT, given.location_filter[:, None, :])  # (B, 1, S, F)
    moved, mapped = linear_fwd(features, given.location_weight)
    return Keys(given.k + moved, filtered, mapped)


def looked_before(given: Located, weights: Array) -> list[Array]:
    """What each step convolves, (B, 1, 1, S): the weights of the step before, or the sum of all so far."""
    looked = [given.before]
    for i in range(weights.shape[2] - 1):
        step = weights[:, :, i : i + 1, :]
        looked.append(looked[-1] + step if given.cumulative else step)
    return looked[: weights.shape[2]]


@accelerated
def attend_by_location(q: Array, given: Located, scoring: Scoring) -> tuple[Array, Array, Array]:
    r"""All steps of q (B, 1, T, A), one after the other.

    .. math::
        f_i = F * \alpha_{i-1}, \qquad e_{ij} = \sum_a w_a \tanh(q_{ia} + k_{ja} + (U f_{ij})_a), \qquad
        \alpha_i = \mathrm{softmax}(e_i), \qquad o_i = \sum_j \alpha_{ij} v_j

    Returns
    -------
    out : (B, 1, T, Dv)
    weights : (B, 1, T, S)
        Before dropout.
    lse : (B, 1, T)
    """
    xp = namespace_of(q)
    place = {"dtype": q.dtype, "device": device_of(q)}
    weights, lses = [xp.zeros((q.shape[0], 1, 0, given.k.shape[2]), **place)], [xp.zeros((q.shape[0], 1, 0), **place)]
    looked = given.before
    for i in range(q.shape[2]):
        keys = keys_of_step(given, looked).keys
        dots = additive_scores(q[:, :, i : i + 1, :], keys, given.score_vector)  # (B, 1, 1, S)
        step, lse = weights_from_dots(dots, scoring.rows(i, i + 1))
        looked = looked + step if given.cumulative else step
        weights.append(step)
        lses.append(lse)
    every = join(weights)
    return weighted_sum(every, given.v, scoring), every, join(lses)


@accelerated
def attend_by_location_backward(
    dout: Array, dweights: Array, q: Array, given: Located, weights: Array, lse: Array, scoring: Scoring
) -> tuple[Array, ...]:
    r"""From the last step back to the first; the keys and the scores of each step are computed again.

    .. math::
        d\alpha_i \mathrel{+}= v\, do_i + F^T df_{i+1}, \qquad
        de_{ij} = \alpha_{ij} \Bigl(d\alpha_{ij} - \sum_l \alpha_{il}\, d\alpha_{il}\Bigr), \qquad
        df_{ij} = U^T g_{ij}, \qquad g_{ija} = de_{ij}\, w_a (1 - h_{ija}^2)

    where F^T is the gradient of the convolution and h the hidden layer. With `cumulative`, F^T df of every later step
    comes back.

    Parameters
    ----------
    dout : (B, 1, T, Dv), dweights : (B, 1, T, S)

    Returns
    -------
    dq : the shape of q
    dk, dv, dscore_vector, dlocation_filter, dlocation_weight, dbefore : the shapes of the fields of `given`
    dbias : the shape of scoring.bias, or None
    """
    xp = namespace_of(dout, dweights, q)
    through, dv = weighted_sum_backward(dout, weights, given.v, scoring)
    dweights = dweights + through
    looked, nothing, dqs = looked_before(given, weights), scoring.rows(0, 0).bias, [q[:, :, :0, :]]
    dbiases = [] if nothing is None else [sum_to_shape(weights[:, :, :0, :], nothing.shape)]
    dk, dw, dfilter, dweight = (xp.zeros_like(x) for x in (given.k, given.score_vector, *given.maps))
    dlooked = xp.zeros_like(given.before)  # what comes back from the steps after
    for i in reversed(range(q.shape[2])):
        rows, block = slice(i, i + 1), scoring.rows(i, i + 1)
        query, step, made = q[:, :, rows, :], weights[:, :, rows, :], keys_of_step(given, looked[i])
        dstep = dweights[:, :, rows, :] + dlooked
        delta = xp.sum(xp.where(step == 0, 0.0, step * dstep), axis=-1)  # (B, 1, 1)
        dots = additive_scores(query, made.keys, given.score_vector)
        _, ddots, dscores = gradients_of_dots(dots, dstep, lse[:, :, rows], delta, block)
        dquery, dkeys, dw_step = additive_scores_backward(ddots, query, made.keys, given.score_vector)
        mapped = linear_bwd(dkeys, made.mapped)
        filtered = conv1d_bwd(mapped.x, made.filtered)
        dk, dw = dk + dkeys, dw + dw_step
        dfilter, dweight = dfilter + filtered.weight[:, 0, :], dweight + mapped.weight
        dlooked = filtered.x.mT + dlooked if given.cumulative else filtered.x.mT  # (B, 1, 1, S)
        dqs.insert(1, dquery)
        if dscores is not None and block.bias is not None:
            dbiases.insert(1, sum_to_shape(dscores, block.bias.shape))
    dbias = bias_gradient(dbiases, scoring.bias)
    return join(dqs), dk, dv, dw, dfilter, dweight, dlooked, dbias
