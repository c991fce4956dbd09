"""Hard attention: each query attends to one key, or to k of them, and to no other."""

from __future__ import annotations

import math
from typing import Any, Generic, NamedTuple, Unpack

from attnarray import checks
from attnarray.attention.cotangents import weights_cotangent
from attnarray.attention.engine import (
    DOT_PRODUCT,
    SOFTMAX,
    AttentionContext,
    backward,
    restored,
    run_canonical,
    weights,
)
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.options import ModifierOptions, check_arrays, known_options, score_modifiers
from attnarray.attention.selection.estimators import ESTIMATORS, ChoiceRows, Estimator
from attnarray.attention.sequences import narrow, result_cotangents
from attnarray.backend import Array, ArrayT, dtype_name, namespace_of
from attnarray.dispatch import ignoring_fp_errors
from attnarray.magnitude import check_number
from attnarray.masks import Mask
from attnarray.numpy_arrays import read_only, writable
from attnarray.random import Philox, as_seed

SAMPLING = ("reinforce", "gumbel", "straight_through")

RELAXED = ("gumbel", "straight_through")


class HardOptions(ModifierOptions, total=False):
    """The options of scores; `scaled_dot_product_attention` documents each."""

    enable_gqa: bool | None
    layout: checks.LayoutName


class HardResult(NamedTuple, Generic[ArrayT]):
    """The output, the log-probability of what was chosen, and the entropy of the probabilities, for each query.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 4))
    >>> result = aa.hard_attention(x, x, x, estimator="argmax")
    >>> result.out.shape, result.log_prob.shape, result.entropy.shape
    ((2, 5, 4), (2, 5), (2, 5))
    """

    out: ArrayT  # (*batch, H, T, Dv)
    log_prob: ArrayT | Any  # (*batch, H, T); None in a cotangent that is 0
    entropy: ArrayT | Any  # (*batch, H, T); as `log_prob`


class HardContext(AttentionContext[ArrayT]):
    """What the backward needs: the canonical inputs (B, H, T, D), the choice, lse and entropy; no weights."""

    __slots__ = ()

    @property
    def choice(self) -> Any:
        """The keys that were chosen: (B, H, T, k), -1 where nothing is allowed."""
        return self.kept.choice

    def weights_of_rows(self, rows: slice) -> Any:
        """The probabilities p of some queries: (B, H, rows, S)."""
        return weights(self._replace(normalizer=SOFTMAX, kept=self.kept.lse), rows)


class HardGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    bias: ArrayT | None


def hard_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    is_causal: bool = False,
    *,
    estimator: Estimator = "reinforce",
    temperature: float = 1.0,
    k: int = 1,
    rng: Philox | int | None = None,
    noise: Array | None = None,
    **options: Unpack[HardOptions],
) -> HardResult[ArrayT]:
    r"""Hard attention: the values of chosen keys, with one of five estimators of the gradient.

    .. math::
        o_i = \sum_j w_{ij} v_j, \qquad \log P_i = \log \sum_{j \in C_i} p_{ij}, \qquad
        H_i = -\sum_j p_{ij} \log p_{ij}, \qquad p_i = \mathrm{softmax}(s_i)

    over the keys that every mask allows, with the choice C and the weights w by estimator (g is Gumbel noise, so that
    argmax(s + g) is a sample of p; the temperature is written as theta):

    ================  ======================  ==================================  ===================================
    estimator         choice C                weights w                           gradient of o for the scores
    ================  ======================  ==================================  ===================================
    reinforce         argmax(s + g)           1 for the choice                    none: see `reinforce_cotangent`
    gumbel            argmax(s + g)           softmax((s + g) / theta)            exact, for this noise
    straight_through  argmax(s + g)           1 for the choice                    that of gumbel: biased
    argmax            argmax(s)               1 for the choice                    none
    top_k             the k largest scores    p over C, divided by its sum        exact, for this choice
    ================  ======================  ==================================  ===================================

    log P and H have exact gradients with each of them. Of equal scores the first key is chosen.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32. Also (B, T, D) and (T, D).
    key : (*batch, Hkv, S, D)
    value : (*batch, Hkv, S, Dv)
    attn_mask, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, enable_gqa, layout
        As in `scaled_dot_product_attention`. There is no dropout, and there are no sinks.
    estimator : {"reinforce", "gumbel", "straight_through", "argmax", "top_k"}
    temperature : float
        theta of "gumbel" and "straight_through". Towards 0, "gumbel" approaches the choice.
    k : int
        How many keys "top_k" chooses: 1 to S. No query may have fewer allowed keys than that, unless it has none.
    rng : Philox or int
        The seed of the noise, for the first three estimators. A number depends on the seed and on batch, head and
        positions alone. A new seed for each step.
    noise : (*batch, H, T, S) or broadcastable to it, optional
        The Gumbel noise g itself, instead of `rng`. It has no gradient.

    Returns
    -------
    HardResult
        out (*batch, H, T, Dv), log_prob and entropy (*batch, H, T), which `layout` does not reorder, of the dtype of
        query. A query for which nothing is allowed gives 0, 0, 0. Masked keys and values do not matter, nor do values
        whose weight is 0, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, an option is out of its range, noise is missing or has no use, or k is more than the
        number of keys that some query may attend to.
    TypeError
        If dtypes are not floating or differ, or the arrays come from different libraries.

    Notes
    -----
    The bias of "straight_through": its gradient is that of a different function, in which the choice is replaced by
    soft weights, at the value that the choice gave. It goes to the true one only where the loss is linear in the output
    and the temperature small, and then its variance grows. "gumbel" has no such bias, but its output is soft.

    References
    ----------
    Xu et al., "Show, attend and tell", 2015, arXiv:1502.03044, section 4.1. Williams, "Simple statistical
    gradient-following algorithms for connectionist reinforcement learning", 1992. Jang, Gu and Poole, "Categorical
    reparameterization with Gumbel-softmax", 2016, arXiv:1611.01144.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 7, 16))
    >>> result, ctx = aa.hard_attention_fwd(q, k, v, estimator="top_k", k=3)
    >>> ctx.choice[0, 0, 0].tolist(), aa.attention_weights(ctx).shape
    ([4, 5, 6], (2, 5, 7, 7))
    """
    return writable(hard_attention_fwd(
        query, key, value, attn_mask, is_causal, estimator=estimator, temperature=temperature, k=k, rng=rng,
        noise=noise, **options,
    )[0])  # fmt: skip


@ignoring_fp_errors
def hard_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    is_causal: bool = False,
    *,
    estimator: Estimator = "reinforce",
    temperature: float = 1.0,
    k: int = 1,
    rng: Philox | int | None = None,
    noise: Array | None = None,
    **options: Unpack[HardOptions],
) -> tuple[HardResult[ArrayT], HardContext[ArrayT]]:
    """`hard_attention`, with the same options, and the context for its backward; `ctx.choice` is (B, H, T, k)."""
    known_options(options, HardOptions)
    checks.required(query=query, key=key, value=value)
    check_arrays(attn_mask, options, query=query, key=key, value=value, noise=noise)
    layout = attention_layout(query, key, value, options.get("layout", "BHTD"))
    q, keys, v = (layout.canonical(x) for x in (query, key, value))
    normalizer = estimator_normalizer(
        estimator, temperature, k, rng, noise, layout, (q.shape[1], q.shape[2], keys.shape[2])
    )
    check_number("temperature", getattr(normalizer, "temperature", 1.0), dtype_name(query.dtype))
    scale = 1.0 / math.sqrt(q.shape[3] or 1)
    modifiers, bias_shape = score_modifiers(
        q, keys.shape[2], layout, attn_mask, 0.0, is_causal, options, default_scale=scale
    )
    if estimator in SAMPLING:
        normalizer = normalizer._replace(q_offset=modifiers.q_offset)
    out, ctx = run_canonical(HardContext, DOT_PRODUCT, normalizer, q, keys, v, modifiers, layout, bias_shape)
    rows = (read_only(narrow(layout.restore_rows(x), query)) for x in ctx.kept[:2])
    return HardResult(out, *rows), ctx


@ignoring_fp_errors
def hard_attention_bwd(dout: HardResult, ctx: HardContext[ArrayT], dweights: Array | None = None) -> HardGrads[ArrayT]:
    r"""The gradients of hard attention; probabilities are computed again from q, k and the lse.

    .. math::
        ds_{ij} = \frac{\tilde w_{ij}}{\vartheta} \Bigl(dw_{ij} - \sum_l \tilde w_{il}\, dw_{il}\Bigr)
        + d\log P_i \Bigl(\frac{[j \in C_i]\, p_{ij}}{P_i} - p_{ij}\Bigr) - dH_i\, p_{ij} (\log p_{ij} + H_i),
        \qquad dw_{ij} = do_i \cdot v_j

    where w~ is softmax((s + g) / theta) for "gumbel" and "straight_through" and w for "top_k" (with theta = 1); for
    "reinforce" and "argmax" the first term is 0. The gradient of the values is exact: dv_j = sum_i w_ij do_i. From ds
    on as in `scaled_dot_product_attention_bwd`: dq = scale ds k, dk = scale ds^T q, db = ds.

    Parameters
    ----------
    dout : HardResult
        The cotangents of out, log_prob and entropy; None for one that does not count.
    ctx : HardContext
    dweights : (*batch, H, T, S), optional
        A cotangent of the weights w.

    Returns
    -------
    HardGrads
        query, key, value, bias; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> result, ctx = aa.hard_attention_fwd(q, k, v, estimator="gumbel", temperature=0.5, rng=3)
    >>> aa.hard_attention_bwd(aa.HardResult(result.out, None, None), ctx).query.shape
    (1, 2, 4, 8)
    """
    checks.context("ctx", ctx, HardContext)
    rows = ctx.layout.scores_shape(ctx.q.shape[1], ctx.q.shape[2], 1)[:-1]
    do, *drows = result_cotangents(dout, HardResult, (ctx.out_shape, rows, rows), ctx.q)
    dlog_prob, dentropy = (namespace_of(x).reshape(x, ctx.lse.shape) for x in drows)
    dkept = ChoiceRows(dlog_prob, dentropy, None, None)
    grads = backward(ctx.layout.canonical(do), ctx, dkept, weights_cotangent(dweights, ctx))
    return HardGrads(*restored(grads, ctx)[:4])


def estimator_normalizer(
    estimator: Estimator,
    temperature: float,
    k: int,
    rng: Philox | int | None,
    noise: Array | None,
    layout: Layout,
    shape: tuple[int, int, int],
) -> Any:
    """The normalizer of an estimator for scores of canonical `shape` (H, T, S)."""
    checks.choice("estimator", estimator, tuple(ESTIMATORS))
    temperature, k = check_numbers(estimator, temperature, k)
    keys = shape[2]
    if k > keys > 0:
        raise ValueError(
            f"`k` is {k}, but there are {keys} keys; expected an integer from 1 to {keys}. Choose a smaller `k`."
        )
    sampling = estimator in SAMPLING
    for name, given in (("rng", rng), ("noise", noise)):
        if given is not None and not sampling:
            raise ValueError(
                f"`{name}` is given, but the estimator '{estimator}' does not sample. Leave it out, or choose another "
                "`estimator`."
            )
    if sampling and (rng is None) == (noise is None):
        both = "neither `rng` nor `noise` is" if rng is None else "both `rng` and `noise` are"
        raise ValueError(
            f"The estimator '{estimator}' samples, but {both} given. Pass rng=attnarray.Philox(seed), a new one for "
            "each step, or the Gumbel noise itself; at inference, estimator='argmax' needs none."
        )
    if noise is not None:
        axes = "(*batch, H, T, S)" if layout.has_heads else "(*batch, T, S)"
        checks.broadcasts("noise", noise, layout.scores_shape(*shape), axes)
        noise = layout.canonical_scores(noise)
    options: dict[str, Any] = {"seed": None if rng is None else as_seed(rng), "noise": noise} if sampling else {}
    if estimator in RELAXED:
        options["temperature"] = temperature
    if estimator == "top_k":
        options["k"] = k
    return ESTIMATORS[estimator](**options)


def check_numbers(estimator: Estimator, temperature: float, k: int) -> tuple[float, int]:
    """Check the temperature and k of an estimator that is known."""
    temperature = checks.positive("temperature", temperature)
    if temperature != 1 and estimator not in RELAXED:
        raise ValueError(
            f"`temperature` is {temperature:g}, but the estimator '{estimator}' has none. Leave it out, or choose "
            "'gumbel' or 'straight_through'."
        )
    k = checks.whole("k", k, 1, 2**31, "the number of keys that are chosen")
    if k > 1 and estimator != "top_k":
        raise ValueError(
            f"`k` is {k}, but the estimator '{estimator}' chooses one key. Leave it out, or choose 'top_k'."
        )
    return temperature, k
