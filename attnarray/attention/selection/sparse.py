"""Dot-product attention with sparse weights: sparsemax or entmax instead of the softmax."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import attention_problem
from attnarray.attention.engine import DOT_PRODUCT, AttentionContext, gradients, run_canonical
from attnarray.attention.options import HeadScoreOptions, known_options
from attnarray.backend import Array, ArrayT
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.ops.entmax import ENTMAX, SPARSEMAX, _entmax, _entmax_backward, check_alpha


class Entmax(NamedTuple):
    r"""The normalizer of sparse attention: alpha 2 is sparsemax, and softmax the limit for alpha to 1.

    .. math:: p_{ij} = [(\alpha - 1)\, s_{ij} - \tau_i]_+^{1 / (\alpha - 1)}

    Parameters
    ----------
    alpha : float
        Above 1, to 10; see `entmax`.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.attend_fwd(q, k, v, normalizer=aa.Entmax(2.0))
    >>> bool(np.any(aa.attention_weights(ctx) == 0))
    True
    """

    alpha: float = ENTMAX

    def weights(self, scores: Array, rows: slice) -> tuple[Array, None]:
        return _entmax(scores, None, 3, self.alpha), None

    def backward(
        self, dweights: Array, dkept: None, weights: Array, kept: None, scores: Array, rows: slice
    ) -> tuple[Array, Entmax]:
        r"""The gradient of the scores.

        .. math:: ds_{ij} = r_{ij} \Bigl(dp_{ij} - \frac{\sum_l r_{il}\, dp_{il}}{\sum_l r_{il}}\Bigr), \qquad
            r_{ij} = p_{ij}^{2 - \alpha}, \text{ and } 0 \text{ where } p_{ij} = 0
        """
        return _entmax_backward(dweights, weights, 3, self.alpha), self


class SparseContext(AttentionContext[ArrayT]):
    """What the backward needs: the canonical inputs (B, H, T, D) alone; no weights."""

    __slots__ = ()


class SparseGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    bias: ArrayT | None


def sparsemax_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[HeadScoreOptions],
) -> ArrayT:
    r"""Dot-product attention that leaves most keys out: its weights are sparsemax of the scores.

    .. math::
        o_i = \sum_j p_{ij} v_j, \qquad p_{ij} = [s_{ij} - \tau_i]_+, \qquad
        s_{ij} = \mathrm{scale}\; q_i \cdot k_j + b_{ij}

    over the keys that every mask allows, with the tau_i that makes the weights sum to 1.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32. Also (B, T, D) and (T, D).
    key : (*batch, Hkv, S, D)
    value : (*batch, Hkv, S, Dv)
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask, enable_gqa,
    layout
        As in `scaled_dot_product_attention`. There are no sinks: they are a share of the softmax's sum.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries, or sinks are given.

    Notes
    -----
    A key counts only if its score is less than 1 below the highest: `scale` decides how many do.

    References
    ----------
    Martins and Astudillo, "From softmax to sparsemax", 2016, arXiv:1602.02068, section 4.3.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 7, 16))
    >>> out, ctx = aa.sparsemax_attention_fwd(q, k, v, is_causal=True, scale=1.0)
    >>> out.shape, bool((aa.attention_weights(ctx) == 0).mean() > 0.7)
    ((2, 5, 7, 16), True)
    """
    return sparsemax_attention_fwd(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]


def sparsemax_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Unpack[HeadScoreOptions],
) -> tuple[ArrayT, SparseContext[ArrayT]]:
    """`sparsemax_attention`, with the same options, and the context for its backward."""
    return _forward(SPARSEMAX, query, key, value, attn_mask, dropout_p, is_causal, options)


def sparsemax_attention_bwd(
    dout: Array, ctx: SparseContext[ArrayT], dweights: Array | None = None
) -> SparseGrads[ArrayT]:
    r"""The gradients of sparsemax attention; the weights are computed again from q and k.

    .. math::
        ds_{ij} = do_i \cdot v_j - \frac{1}{|S_i|} \sum_{l \in S_i} do_i \cdot v_l \quad \text{for } j \in S_i
        = \{j : p_{ij} > 0\}, \text{ else } 0

    .. math:: dv_j = \sum_i p_{ij}\, do_i, \quad dq_i = \mathrm{scale} \sum_j ds_{ij} k_j, \quad
        dk_j = \mathrm{scale} \sum_i ds_{ij} q_i, \quad db = ds

    Softcap and dropout as in `scaled_dot_product_attention_bwd`. At a kink, where a score equals tau, the key is taken
    to lie outside S.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : SparseContext
    dweights : (*batch, H, T, S), optional
        A cotangent of the weights before dropout.

    Returns
    -------
    SparseGrads
        query, key, value, bias; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.sparsemax_attention_fwd(q, k, v)
    >>> aa.sparsemax_attention_bwd(np.ones_like(out), ctx).query.shape
    (1, 2, 4, 8)
    """
    return _backward(dout, ctx, dweights)


def entmax_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    alpha: float = ENTMAX,
    **options: Unpack[HeadScoreOptions],
) -> ArrayT:
    r"""Dot-product attention whose weights are entmax of the scores: sparse, and with alpha = 1.5 smooth.

    .. math:: o_i = \sum_j p_{ij} v_j, \qquad p_i = \mathrm{entmax}_\alpha(s_i)

    Parameters
    ----------
    query, key, value, attn_mask, dropout_p, is_causal
        As in `sparsemax_attention`, and so are the other options.
    alpha : float
        Above 1, where softmax is the limit, to 10; see `entmax`.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query

    Raises
    ------
    ValueError, TypeError
        As in `sparsemax_attention`, and if alpha is out of range.

    References
    ----------
    Peters, Niculae and Martins, "Sparse sequence-to-sequence models", 2019, arXiv:1905.05702. In Transformers: Correia,
    Niculae and Martins, "Adaptively sparse Transformers", 2019, arXiv:1909.00015, where alpha is learned too.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 7, 16))
    >>> same = aa.entmax_attention(q, k, v, alpha=2.0)
    >>> bool(np.array_equal(same, aa.sparsemax_attention(q, k, v)))
    True
    """
    return entmax_attention_fwd(query, key, value, attn_mask, dropout_p, is_causal, alpha=alpha, **options)[0]


def entmax_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    alpha: float = ENTMAX,
    **options: Unpack[HeadScoreOptions],
) -> tuple[ArrayT, SparseContext[ArrayT]]:
    """`entmax_attention`, with the same options, and the context for its backward."""
    return _forward(check_alpha(alpha), query, key, value, attn_mask, dropout_p, is_causal, options)


def entmax_attention_bwd(dout: Array, ctx: SparseContext[ArrayT], dweights: Array | None = None) -> SparseGrads[ArrayT]:
    r"""The gradients of entmax attention; the weights are computed again from q and k.

    .. math::
        ds_{ij} = r_{ij} \Bigl(do_i \cdot v_j - \frac{\sum_l r_{il}\, do_i \cdot v_l}{\sum_l r_{il}}\Bigr), \qquad
        r_{ij} = p_{ij}^{2 - \alpha}, \text{ and } 0 \text{ where } p_{ij} = 0

    and the others from ds as in `sparsemax_attention_bwd`: dv = p^T do, dq = scale ds k, dk = scale ds^T q, db = ds.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.entmax_attention_fwd(q, k, v, alpha=1.3)
    >>> aa.entmax_attention_bwd(np.ones_like(out), ctx).query.shape
    (1, 2, 4, 8)
    """
    return _backward(dout, ctx, dweights)


@ignoring_fp_errors
def _forward(
    alpha: float,
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    options: Any,
) -> tuple[Any, SparseContext]:
    if "sinks" in options:
        raise TypeError(
            "`sinks` is given, but sparse weights have none: a sink is a share of the softmax's sum. Leave it out, or "
            "use scaled_dot_product_attention."
        )
    known_options(options, HeadScoreOptions)
    q, k, v, modifiers, layout, bias_shape = attention_problem(
        query, key, value, attn_mask, dropout_p, is_causal, **options
    )
    return run_canonical(SparseContext, DOT_PRODUCT, Entmax(alpha), q, k, v, modifiers, layout, bias_shape)


@ignoring_fp_errors
def _backward(dout: Array, ctx: SparseContext, dweights: Array | None) -> SparseGrads:
    checks.context("ctx", ctx, SparseContext)
    return SparseGrads(*gradients(dout, ctx, dweights=dweights)[:4])
