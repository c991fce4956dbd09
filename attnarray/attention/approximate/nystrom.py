"""Nyström attention: through a few landmarks, with a pseudo-inverse that is computed by iteration."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import (
    SDPAContext,
    scaled_dot_product_attention_bwd,
    scaled_dot_product_attention_fwd,
)
from attnarray.attention.engine import SOFTMAX
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, device_of, index_dtype, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.numpy_arrays import read_only, writable

ALL = slice(None)


class NystromContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the two attentions, the landmarks, their weights, and all steps of the iteration."""

    to_landmarks: SDPAContext[ArrayT]  # of the queries, with the values Z B V
    of_landmarks: SDPAContext[ArrayT]  # B V
    query_landmarks: ArrayT  # (B, H, N, D)
    key_landmarks: ArrayT
    weights: ArrayT  # A (B, H, N, N)
    steps: tuple[ArrayT, ...]  # Z_0, Z_1, ...
    query: ArrayT
    scale: float
    layout: Layout


class NystromGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT


def nystrom_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    num_landmarks: int,
    iterations: int = 6,
    scale: float | None = None,
) -> ArrayT:
    r"""The Nyström approximation of softmax attention by N landmarks: time and memory grow with (T + S) N.

    .. math::
        O = \mathrm{softmax}(\mathrm{scale}\; Q \tilde K^T)\; Z\; \mathrm{softmax}(\mathrm{scale}\; \tilde Q K^T)\, V,
        \qquad Z \approx A^+, \quad A = \mathrm{softmax}(\mathrm{scale}\; \tilde Q \tilde K^T)

    where the landmarks are means of N segments of the queries and of the keys, and the pseudo-inverse is approached by

    .. math::
        Z_{n+1} = \tfrac14 Z_n \bigl(13 I - A Z_n (15 I - A Z_n (7 I - A Z_n))\bigr), \qquad
        Z_0 = A^T / (\|A\|_1 \|A\|_\infty)

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        Also (B, T, D) and (T, D). The 16-bit types are computed in float32.
    key : (*batch, H, S, D)
    value : (*batch, H, S, Dv)
    num_landmarks : int
        N, at most T and S. Segments differ by at most one position in length.
    iterations : int
        6 in the paper.
    scale : float, optional
        1 / sqrt(D) by default.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query

    Raises
    ------
    ValueError
        If shapes do not fit, or there are more landmarks than positions.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    Landmarks have later positions, too: there is no causal form. The convolution of the values that the paper adds to
    the output is a layer of its own (`conv1d`).

    References
    ----------
    Xiong et al., "Nyströmformer", 2021, arXiv:2102.03902; the iteration: Razavi et al., "A new iterative method for
    finding approximate inverses of complex matrices", 2014.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 64, 8))
    >>> exact = aa.scaled_dot_product_attention(q, k, v)
    >>> few, all_of_them = (aa.nystrom_attention(q, k, v, num_landmarks=n, iterations=20) for n in (8, 64))
    >>> [round(float(np.mean(abs(y - exact))), 2) for y in (few, all_of_them)]  # random keys are not alike
    [0.17, 0.0]
    """
    return writable(
        nystrom_attention_fwd(query, key, value, num_landmarks=num_landmarks, iterations=iterations, scale=scale)[0]
    )


@ignoring_fp_errors
def nystrom_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    num_landmarks: int,
    iterations: int = 6,
    scale: float | None = None,
) -> tuple[ArrayT, NystromContext[ArrayT]]:
    """`nystrom_attention`, with the same options, and the context for its backward."""
    layout = _checked(query, key, value, num_landmarks, iterations)
    scale = 1.0 / math.sqrt(query.shape[-1] or 1) if scale is None else checks.positive("scale", scale)
    q, k, v = (wide(layout.canonical(x)) for x in (query, key, value))
    xp = namespace_of(q, k, v)
    query_landmarks, key_landmarks = (xp.matmul(_means(x, num_landmarks), x) for x in (q, k))
    weights = SOFTMAX.weights(scale * xp.matmul(query_landmarks, key_landmarks.mT), ALL)[0]
    sums, of_landmarks = scaled_dot_product_attention_fwd(query_landmarks, k, v, scale=scale)
    steps = _inverses(weights, iterations)
    out, to_landmarks = scaled_dot_product_attention_fwd(q, key_landmarks, xp.matmul(steps[-1], sums), scale=scale)
    ctx = NystromContext(
        to_landmarks, of_landmarks, query_landmarks, key_landmarks, weights, steps, query, scale, layout
    )
    return read_only(narrow(layout.restore(out), query)), ctx


@ignoring_fp_errors
def nystrom_attention_bwd(dout: Array, ctx: NystromContext[ArrayT]) -> NystromGrads[ArrayT]:
    r"""The gradients of Nyström attention, through the iteration that was made, not through the pseudo-inverse.

    With X = Z (B V) the values of the attention to landmarks, P the means of segments and dA from the iteration,

    .. math::
        dZ = dX\, (B V)^T, \qquad d(B V) = Z^T dX, \qquad dS = A \odot (dA - \mathrm{rowsum}(A \odot dA))

    .. math::
        d\tilde Q \mathrel{+}= \mathrm{scale}\; dS\, \tilde K, \qquad
        d\tilde K \mathrel{+}= \mathrm{scale}\; dS^T \tilde Q, \qquad
        dQ \mathrel{+}= P^T d\tilde Q, \qquad dK \mathrel{+}= P^T d\tilde K

    where all else is the gradient of `scaled_dot_product_attention`. A step of the iteration, with Y = A Z,
    W_3 = 7 I - Y, W_2 = 15 I - Y W_3 and W_1 = 13 I - Y W_2, has

    .. math::
        dW_1 = \tfrac14 Z^T dZ', \quad dW_2 = -Y^T dW_1, \quad dW_3 = -Y^T dW_2, \quad
        dY = -dW_1 W_2^T - dW_2 W_3^T - dW_3

    .. math:: dA \mathrel{+}= dY Z^T, \qquad dZ = \tfrac14 dZ' W_1^T + A^T dY

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : NystromContext

    Returns
    -------
    NystromGrads
        query, key, value.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 64, 8))
    >>> out, ctx = aa.nystrom_attention_fwd(q, k, v, num_landmarks=8)
    >>> aa.nystrom_attention_bwd(np.ones_like(out), ctx).key.shape
    (1, 2, 64, 8)
    """
    checks.context("ctx", ctx, NystromContext)
    query_landmarks, key_landmarks, weights, layout = ctx.query_landmarks, ctx.key_landmarks, ctx.weights, ctx.layout
    checks.cotangent(dout, layout.restored_shape(tuple(ctx.to_landmarks.out.shape)), ctx.query)
    xp, N = namespace_of(weights), weights.shape[2]
    dq, dkey_landmarks, dvalues, *_ = scaled_dot_product_attention_bwd(wide(layout.canonical(dout)), ctx.to_landmarks)
    dinverse = xp.matmul(dvalues, ctx.of_landmarks.out.mT)
    dsums = xp.matmul(ctx.steps[-1].mT, dvalues)
    dquery_landmarks, dk, dv, *_ = scaled_dot_product_attention_bwd(dsums, ctx.of_landmarks)
    dweights = _inverses_backward(dinverse, weights, ctx.steps)
    dscores = ctx.scale * weights * (dweights - xp.sum(weights * dweights, axis=-1, keepdims=True))
    dquery_landmarks = dquery_landmarks + xp.matmul(dscores, key_landmarks)
    dkey_landmarks = dkey_landmarks + xp.matmul(dscores.mT, query_landmarks)
    dq = dq + xp.matmul(_means(dq, N).mT, dquery_landmarks)
    dk = dk + xp.matmul(_means(dk, N).mT, dkey_landmarks)
    dquery, dkey, dvalue = (narrow(layout.restore(x), ctx.query) for x in (dq, dk, dv))
    return NystromGrads(dquery, dkey, dvalue)


def _means(x: Array, count: int) -> Any:
    """The matrix (count, T) that takes the means of `count` segments of x (B, H, T, D)."""
    xp, T = namespace_of(x), x.shape[2]
    dtype, device = index_dtype(xp, x), device_of(x)
    segment = xp.arange(T, dtype=dtype, device=device) * count // T  # each has T // count positions or one more
    member = xp.astype(segment[None, :] == xp.arange(count, dtype=dtype, device=device)[:, None], x.dtype)
    return member / xp.sum(member, axis=1, keepdims=True)


def _inverses(A: Array, iterations: int) -> tuple[Any, ...]:
    """All steps from Z_0, which is scaled so that the iteration converges, to the pseudo-inverse of A (B, H, N, N)."""
    xp, eye = namespace_of(A), _eye(A)
    Z = A.mT / _norms(A)
    steps = [Z]
    for _ in range(iterations):
        Y = xp.matmul(A, Z)
        Z = 0.25 * xp.matmul(Z, 13.0 * eye - xp.matmul(Y, 15.0 * eye - xp.matmul(Y, 7.0 * eye - Y)))
        steps.append(Z)
    return tuple(steps)


def _inverses_backward(dZ: Array, A: Array, steps: tuple[Array, ...]) -> Any:
    """The gradient of A from that of the last step."""
    xp, eye = namespace_of(A), _eye(A)
    dA = xp.zeros_like(A)
    for Z in steps[-2::-1]:
        Y = xp.matmul(A, Z)
        W3 = 7.0 * eye - Y
        W2 = 15.0 * eye - xp.matmul(Y, W3)
        W1 = 13.0 * eye - xp.matmul(Y, W2)
        dW1 = 0.25 * xp.matmul(Z.mT, dZ)
        dW2 = -xp.matmul(Y.mT, dW1)
        dW3 = -xp.matmul(Y.mT, dW2)
        dY = -xp.matmul(dW1, W2.mT) - xp.matmul(dW2, W3.mT) - dW3
        dA = dA + xp.matmul(dY, Z.mT)
        dZ = 0.25 * xp.matmul(dZ, W1.mT) + xp.matmul(A.mT, dY)
    norms = _norms(A)
    # The maximum of the sums of columns has the gradient of its column. Sums of rows are 1: through a softmax none.
    dnorm = -xp.sum(dZ * steps[0], axis=(2, 3), keepdims=True) / xp.max(xp.sum(A, axis=2), axis=-1)[..., None, None]
    columns = xp.argmax(xp.sum(A, axis=2), axis=-1)[..., None, None]  # (B, H, 1, 1)
    is_largest = xp.arange(A.shape[3], dtype=columns.dtype, device=device_of(A)) == columns
    return dA + dZ.mT / norms + xp.where(is_largest, dnorm, 0.0)


def _norms(A: Array) -> Any:
    """The product of the largest sum of a column and the largest sum of a row: (B, H, 1, 1)."""
    xp = namespace_of(A)
    return (xp.max(xp.sum(A, axis=2), axis=-1) * xp.max(xp.sum(A, axis=3), axis=-1))[..., None, None]


def _eye(A: Array) -> Any:
    return namespace_of(A).eye(A.shape[3], dtype=A.dtype, device=device_of(A))


def _checked(query: Array, key: Array, value: Array, num_landmarks: int, iterations: int) -> Layout:
    given: Any = {"query": query, "key": key, "value": value}
    checks.required(**given)
    checks.namespace(**given)
    checks.floating(**given)
    layout = attention_layout(query, key, value, "BHTD")
    checks.whole("iterations", iterations, 0, 1000, "the steps to the pseudo-inverse")
    most = min(query.shape[-2], key.shape[-2])
    checks.whole("num_landmarks", num_landmarks, 1, most, "the segments of the queries and of the keys")
    if layout.has_heads and query.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"`query` has {query.shape[-3]} heads but `key` has {key.shape[-3]}; they must be equal, as landmarks of "
            f"both are paired. {checks.shapes(**given)}"
        )
    return layout
