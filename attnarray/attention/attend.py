"""Attention with a scorer, score modifiers and a normalizer of the caller's choice, or of the caller's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

from attnarray import checks, tree
from attnarray.attention.engine import (
    DOT_PRODUCT,
    SOFTMAX,
    AttentionContext,
    AttentionGrads,
    DotProduct,
    gradients,
    run_canonical,
)
from attnarray.attention.layout import attention_layout
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import HeadScoreOptions, check_arrays, known_options, score_modifiers
from attnarray.attention.parts import Modifier, Normalizer, Scorer
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, dtype_name
from attnarray.dispatch import ignoring_fp_errors
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable


class AttendContext(AttentionContext[ArrayT]):
    """What the backward needs: canonical inputs, output, and what the normalizer kept; no weights."""

    __slots__ = ()


def attend(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scorer: Scorer = DOT_PRODUCT,
    modifiers: Sequence[Modifier] = (),
    normalizer: Normalizer = SOFTMAX,
    **options: Unpack[HeadScoreOptions],
) -> ArrayT:
    r"""Attention from three parts: a scorer, score modifiers and a normalizer.

    .. math::
        o_i = \sum_j w_{ij} v_j, \qquad w_i = \mathrm{normalizer}(\tilde s_i), \qquad
        \tilde s_{ij} = \mathrm{modifiers}\bigl(c \tanh(\mathrm{scale}\; s_{ij} / c) + b_{ij}\bigr), \qquad
        s = \mathrm{scorer}(q, k)

    over the keys that every mask allows. Each part is a NamedTuple of its arrays with a forward and a backward, in
    array code; write one, and masks, dropout, grouped heads, blocks and all gradients come with it. Scores are computed
    for a block of queries at a time, never for all pairs. Integer and boolean arrays of a part, such as tables, are
    named in a class attribute NO_GRADIENT, and their gradient is None; all others are of the dtype of query. A part
    without gradients returns `self` as its own.

    Parameters
    ----------
    query : (*batch, H, T, D) floating
        float64, float32, float16 or bfloat16; the 16-bit types are computed in float32. Also (B, T, D) and (T, D).
    key : (*batch, Hkv, S, Dk)
        Dk = D for dot products. A scorer of your own sees each key head once for every query head of its group.
    value : (*batch, Hkv, S, Dv)
    attn_mask, dropout_p, is_causal, scale, bias, window, q_offset, kv_lengths, softcap, rng, dropout_mask, enable_gqa,
    layout
        As in `scaled_dot_product_attention`; the scale of a scorer of your own is 1 by default.
    scorer : NamedTuple
        `DotProduct()` by default. `scores(q, k, rows)` returns (B, H, rows, S) for queries (B, H, rows, D) and keys
        (B, H, S, Dk); `rows` is the slice of the queries. `backward(dscores, q, k, rows)` returns dq, dk and the
        gradient of its arrays as a value of its own type. Arrays (B, H, T, ...) that belong to queries are named in a
        class attribute PER_QUERY, and are then cut to the rows as q is.
    modifiers : sequence of NamedTuples
        Applied in order. `apply(scores, b, h, q_idx, kv_idx)` returns the new scores; the indices broadcast to them,
        and q_idx is the position i + q_offset. `backward(dscores, scores, b, h, q_idx, kv_idx)` returns the gradient of
        the scores before it, and that of its arrays as a value of its own type.
    normalizer : NamedTuple
        `Softmax()` by default, also `Entmax(alpha)`. `weights(scores, rows)` returns the weights and what is kept of
        each row, or None; `backward(dweights, dkept, weights, kept, scores, rows)` the gradient of the scores, and that
        of its arrays as a value of its own type. Hidden scores are -inf, and their weights must be 0.

    Returns
    -------
    (*batch, H, T, Dv) of the dtype of query
        A query for which nothing is allowed gives 0. Masked keys and values do not matter, even when they hold NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is out of its range.
    TypeError
        If dtypes are not floating or differ, the arrays come from different libraries, or a part lacks a method.

    References
    ----------
    Score modifiers in this form: Dong et al., "Flex attention", 2024, arXiv:2412.05496.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> from typing import NamedTuple
    >>> class Distance(NamedTuple):
    ...     slope: np.ndarray  # (H,)
    ...     def apply(self, scores, b, h, q_idx, kv_idx):
    ...         return scores - self.slope[h] * abs(q_idx - kv_idx)
    ...     def backward(self, dscores, scores, b, h, q_idx, kv_idx):
    ...         return dscores, Distance(-(dscores * abs(q_idx - kv_idx)).sum((0, 2, 3)))
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> aa.attend(q, k, v, is_causal=True, modifiers=[Distance(np.array([0.5, 0.25]))]).shape
    (1, 2, 4, 8)
    """
    return writable(attend_fwd(
        query, key, value, attn_mask, dropout_p, is_causal, scorer=scorer, modifiers=modifiers, normalizer=normalizer,
        **options,
    )[0])  # fmt: skip


@ignoring_fp_errors
def attend_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    attn_mask: Array | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scorer: Scorer = DOT_PRODUCT,
    modifiers: Sequence[Modifier] = (),
    normalizer: Normalizer = SOFTMAX,
    **options: Unpack[HeadScoreOptions],
) -> tuple[ArrayT, AttendContext[ArrayT]]:
    """`attend`, with the same options, and the context for its backward."""
    known_options(options, HeadScoreOptions)
    checks.required(query=query, key=key, value=value)
    if not isinstance(modifiers, tuple | list) or hasattr(modifiers, "_fields"):
        raise TypeError(f"`modifiers` is {checks.shown(modifiers)}, expected a list or tuple of NamedTuples.")
    arrays: dict[str, Array] = {}
    for name, part in _named(scorer, modifiers, normalizer).items():
        _check_part(name, part, {"scorer": "scores", "normalizer": "weights"}.get(name, "apply"))
        own = {f"{name}.{field}": x for field, x in part._asdict().items() if _has_gradient(part, field)}
        for field, x in own.items():
            if dtype_name(x.dtype) not in checks.FLOATS:
                raise TypeError(
                    f"`{field}` has dtype {dtype_name(x.dtype)}, expected one of {', '.join(checks.FLOATS)}. "
                    "Convert it first, or name an array that has no gradient in the class attribute NO_GRADIENT."
                )
        arrays |= own
    check_arrays(attn_mask, options, query=query, key=key, value=value, **arrays)
    by_dots = type(scorer) is DotProduct
    layout = attention_layout(query, key, value, options.get("layout", "BHTD"), same_features=by_dots)
    q, k, v = (layout.canonical(x) for x in (query, key, value))
    for name, part in _named(scorer, modifiers, normalizer).items():
        _check_per_query(name, part, q.shape[:3])
        if hasattr(part, "check"):
            part.check(name, q.shape[1], q.shape[3])
    scale = 1.0 / math.sqrt(q.shape[3] or 1) if by_dots else 1.0
    given = {**options, "sinks": normalizer.sinks} if isinstance(normalizer, Softmax) else options
    changes, bias_shape = score_modifiers(
        q, k.shape[2], layout, attn_mask, dropout_p, is_causal, given, default_scale=scale
    )
    changes = changes._replace(custom=tuple(_wide(part) for part in modifiers))
    return run_canonical(AttendContext, _wide(scorer), _wide(normalizer), q, k, v, changes, layout, bias_shape)


@ignoring_fp_errors
def attend_bwd(
    dout: Array, ctx: AttendContext[ArrayT], dlse: Array | None = None, dweights: Array | None = None
) -> AttentionGrads[ArrayT]:
    r"""The gradients of attention from its three parts; scores and weights are computed again, block by block.

    .. math::
        dv_j = \sum_i w_{ij}\, do_i, \qquad dw_{ij} = do_i \cdot v_j, \qquad
        d\tilde s_i = \mathrm{normalizer.backward}(dw_i), \qquad db = d\tilde s, \qquad
        ds = \mathrm{scale}\, (1 - \tanh^2(\cdot))\; \mathrm{modifiers.backward}(d\tilde s)

    and from ds dq, dk and the gradients of the scorer's arrays by `scorer.backward`. With a softmax,
    :math:`d\tilde s_{ij} = p_{ij} (dw_{ij} - do_i \cdot o_i + d\mathrm{lse}_i)`.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : AttendContext
    dlse : (*batch, H, T), optional
        A cotangent of the lse of a softmax.
    dweights : (*batch, H, T, S), optional
        A cotangent of the weights before dropout.

    Returns
    -------
    AttentionGrads
        query, key, value, bias, and scorer, modifiers and normalizer: the gradients of their arrays, as values of their
        types; None for a bias that was not given and for what has no arrays.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8))
    >>> out, ctx = aa.attend_fwd(q, k, v, normalizer=aa.Softmax(np.zeros(2)))
    >>> aa.attend_bwd(np.ones_like(out), ctx).normalizer.sinks.shape
    (2,)
    """
    checks.context("ctx", ctx, AttendContext)
    for name, part in _named(ctx.scorer, ctx.modifiers.custom, ctx.normalizer).items():
        _check_part(name, part, "backward")
    grads = gradients(dout, ctx, dlse, dweights)
    narrowed: AttentionGrads = tree.map(lambda x: narrow(x, ctx.q), grads)
    given = (any(checks.is_array(x) for _, x in tree.flatten(part)) for part in narrowed)
    return AttentionGrads(*(part if some else None for part, some in zip(narrowed, given, strict=True)))


def _named(scorer: Any, modifiers: Sequence[Any], normalizer: Any) -> dict[str, Any]:
    return {"scorer": scorer, **{f"modifiers[{n}]": part for n, part in enumerate(modifiers)}, "normalizer": normalizer}


def _check_part(name: str, part: Any, method: str) -> None:
    """Check for a NamedTuple with a method."""
    if not isinstance(part, tuple) or not hasattr(part, "_fields"):
        expected = f"a NamedTuple of its arrays with the methods `{method}` and `backward`"
        raise TypeError(f"`{name}` is {checks.shown(part)}, expected {expected}.")
    if not callable(getattr(part, method, None)):
        missing = "mod_backward" if getattr(part, "COMPILED", False) else method
        raise TypeError(
            f"`{name}`, a {type(part).__name__}, has no method `{missing}`. attnarray.attend says what it takes."
        )


def _check_per_query(name: str, part: Any, shape: tuple[int, ...]) -> None:
    """Check the arrays that PER_QUERY names for (B|1, H|1, T|1, ...)."""
    for field in getattr(part, "PER_QUERY", ()):
        array: Any = getattr(part, field, ...)
        sizes = tuple(array.shape[:3]) if checks.is_array(array) else ()
        fits = len(sizes) == 3 and all(size in (1, full) for size, full in zip(sizes, shape, strict=True))
        if array is not None and not fits:
            given = f"has no field `{field}`" if array is ... else f"has {checks.shown(array)} as `{field}`"
            raise ValueError(f"`{name}` {given}, which PER_QUERY names; expected (B|1, H|1, T|1, ...) with {shape}.")


def _has_gradient(part: Any, field: str) -> bool:
    return checks.is_array(getattr(part, field)) and field not in getattr(part, "NO_GRADIENT", ())


def _wide(part: Any) -> Any:
    """A part with its arrays in the dtype of sums."""
    return part._replace(**{field: wide(getattr(part, field)) for field in part._fields if _has_gradient(part, field)})
