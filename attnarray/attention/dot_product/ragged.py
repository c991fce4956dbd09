"""Attention of sequences of different lengths that are packed one after the other, without padding."""

from __future__ import annotations

import itertools
from typing import Any, Generic, Literal, NamedTuple, TypedDict, Unpack

import numpy as np

from attnarray import checks
from attnarray.attention.dot_product.scaled_dot_product import (
    SDPAContext,
    attention_problem,
    scaled_dot_product_attention_bwd,
)
from attnarray.attention.engine import DOT_PRODUCT, attention
from attnarray.attention.normalizers import Softmax
from attnarray.attention.options import check_arrays, known_options, probability_and_seed
from attnarray.backend import Array, ArrayT, device_of, namespace_of, to_numpy
from attnarray.masks import Mask
from attnarray.numpy_arrays import writable
from attnarray.random import Philox, as_seed

Alignment = Literal["end", "start"]


class RaggedOptions(TypedDict, total=False):
    """The options of all sequences; `scaled_dot_product_attention` documents each."""

    scale: float | None
    bias: Array | None
    window: tuple[int | None, int | None] | None
    softcap: float | None
    sinks: Array | None
    rng: Philox | int | None
    dropout_mask: Array | None
    enable_gqa: bool | None


class RaggedContext(NamedTuple, Generic[ArrayT]):
    """What the backward needs: the context of each sequence, and where each begins and ends."""

    sequences: tuple[SDPAContext[ArrayT], ...]
    bounds_q: tuple[int, ...]
    bounds_k: tuple[int, ...]
    empty: tuple[ArrayT, ArrayT, ArrayT]  # no rows of query, key and value, for a batch of no sequences
    bias: ArrayT | None

    @property
    def lse(self) -> Any:
        """log sum_j e^s, sinks included: (H, sum T)."""
        none = namespace_of(self.empty[0]).permute_dims(self.empty[0], (1, 0, 2))[:, :, 0]
        return _joined([none, *(ctx.lse[0, ...] for ctx in self.sequences)], 1)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the output."""
        return self.bounds_q[-1], self.empty[0].shape[1], self.empty[2].shape[2]


class RaggedGrads(NamedTuple, Generic[ArrayT]):
    query: ArrayT
    key: ArrayT
    value: ArrayT
    bias: ArrayT | None
    sinks: ArrayT | None


def ragged_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    attn_mask: Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    align: Alignment = "end",
    **options: Unpack[RaggedOptions],
) -> ArrayT:
    r"""Attention within each of several sequences that are packed one after the other; nothing is padded.

    .. math::
        o_i = \sum_{j \in n(i)} p_{ij} v_j, \qquad p_i = \mathrm{softmax}_{j \in n(i)}(\mathrm{scale}\; q_i \cdot k_j)

    where n(i) is the sequence of query i.

    Parameters
    ----------
    query : (sum T, H, D) floating
    key : (sum S, Hkv, D)
    value : (sum S, Hkv, Dv)
    cu_seqlens_q : (N + 1,) integers
        Where the queries of each sequence begin, from 0 to sum T: sequence n has those from entry n to entry n + 1.
        Sequences may be empty.
    cu_seqlens_k : (N + 1,) integers, optional
        The same for keys; that of the queries by default.
    attn_mask : Mask, optional
        A rule of positions within a sequence, such as `Window(256, 256) | Global(16)`, the same for each.
    align : {"end", "start"}
        Positions where a sequence has more keys than queries: its last query is at its last key, as in FlashAttention,
        or its first at its first key. Causal masks, windows and `attn_mask` count with them.
    bias : (H|1, sum T, max S), optional
        Added to the scores; of a row only as many entries count as the sequence has keys.
    dropout_p, rng, dropout_mask
        Sequence n draws from `Philox(rng).fold_in(n)`; a mask has the shape of a bias.
    is_causal, scale, window, softcap, sinks, enable_gqa
        As in `scaled_dot_product_attention`.

    Returns
    -------
    (sum T, H, Dv) of the dtype of query
        Equal to `scaled_dot_product_attention` of each sequence alone.

    Raises
    ------
    ValueError
        If `cu_seqlens` does not start at 0, falls, or does not end at the number of rows, or shapes do not fit.
    TypeError
        As `scaled_dot_product_attention`; also for a mask that is an array.

    References
    ----------
    Dao et al., FlashAttention, arXiv:2205.14135 (its function for sequences of variable length).

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 7, 2, 8))
    >>> out = aa.ragged_attention(q, k, v, [0, 3, 7], is_causal=True)  # sequences of 3 and 4
    >>> alone = aa.scaled_dot_product_attention(q[None, :3], k[None, :3], v[None, :3], is_causal=True, layout="BTHD")
    >>> bool(np.allclose(out[:3], alone[0]))
    True
    """
    return writable(ragged_attention_fwd(
        query, key, value, cu_seqlens_q, cu_seqlens_k, attn_mask, dropout_p, is_causal, align=align, **options
    )[0])  # fmt: skip


def ragged_attention_fwd(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    attn_mask: Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    align: Alignment = "end",
    **options: Unpack[RaggedOptions],
) -> tuple[ArrayT, RaggedContext[ArrayT]]:
    """`ragged_attention`, with the same options, and the context for its backward."""
    known_options(options, RaggedOptions)
    checks.choice("align", align, ("end", "start"))
    bounds_q, bounds_k = _checked(query, key, value, cu_seqlens_q, cu_seqlens_k, attn_mask, options)
    seed = probability_and_seed(dropout_p, options.get("rng"), options.get("dropout_mask"))[1]
    outs, contexts = [query[:0, :, :1] * value[:0, :1, :]], []
    for n, (rows, keys) in enumerate(zip(_ranges(bounds_q), _ranges(bounds_k), strict=True)):
        own: dict[str, Any] = dict(options)
        for name in ("bias", "dropout_mask"):
            if own.get(name) is not None:
                own[name] = own[name][:, rows, : keys.stop - keys.start]
        own["rng"] = None if seed is None else as_seed(Philox(seed).fold_in(n))
        own["q_offset"] = keys.stop - keys.start - (rows.stop - rows.start) if align == "end" else 0
        q_own, k_own, v_own = query[None, rows, ...], key[None, keys, ...], value[None, keys, ...]
        q, k, v, modifiers, layout, bias_shape = attention_problem(
            q_own, k_own, v_own, attn_mask, dropout_p, is_causal, layout="BTHD", **own
        )
        out, lse = attention(q, k, v, modifiers)
        sinks = Softmax(modifiers.sinks)
        contexts.append(SDPAContext(q, k, v, out, lse, DOT_PRODUCT, modifiers, sinks, layout, bias_shape))
        outs.append(layout.restore(out)[0, ...])
    empty = tuple(x[:0, ...] for x in (query, key, value))
    ctx = RaggedContext(tuple(contexts), bounds_q, bounds_k, empty, options.get("bias"))
    return _joined(outs, 0), ctx


def ragged_attention_bwd(dout: Array, ctx: RaggedContext[ArrayT], dlse: Array | None = None) -> RaggedGrads[ArrayT]:
    r"""The gradients of attention within packed sequences: those of each sequence, one after the other.

    .. math::
        dq_i = \sum_{j \in n(i)} ds_{ij} k_j, \qquad dk_j = \sum_{i \in n(j)} ds_{ij} q_i, \qquad
        dv_j = \sum_{i \in n(j)} p_{ij}\, do_i

    .. math:: ds_{ij} = \mathrm{scale}\; p_{ij} (do_i \cdot v_j - do_i \cdot o_i)

    The gradient of the sinks is the sum over the sequences; that of a bias is 0 beyond the keys of a sequence.

    Parameters
    ----------
    dout : the shape and dtype of the output
    ctx : RaggedContext
    dlse : (H, sum T), optional
        A cotangent of `ctx.lse`.

    Returns
    -------
    RaggedGrads
        query, key, value, bias, sinks; None for what was not given.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 7, 2, 8))
    >>> out, ctx = aa.ragged_attention_fwd(q, k, v, [0, 3, 7])
    >>> aa.ragged_attention_bwd(np.ones_like(out), ctx).key.shape
    (7, 2, 8)
    """
    checks.context("ctx", ctx, RaggedContext)
    checks.shape("dout", dout, ctx.out_shape, "the shape of the output")
    checks.namespace(dout=dout, dlse=dlse, query=ctx.empty[0])
    checks.floating(dout=dout, query=ctx.empty[0])
    if dlse is not None:
        checks.shape("dlse", dlse, (ctx.out_shape[1], ctx.out_shape[0]), "the shape of the lse")
    grads = []
    for rows, one in zip(_ranges(ctx.bounds_q), ctx.sequences, strict=True):
        own = None if dlse is None else dlse[None, :, rows]
        grads.append(scaled_dot_product_attention_bwd(dout[None, rows, ...], one, own))
    columns = zip(*(grad[:3] for grad in grads), strict=True) if grads else ((), (), ())
    dq, dk, dv = (_joined([x, *(part[0, ...] for part in own)], 0) for x, own in zip(ctx.empty, columns, strict=True))
    dsinks = [grad.sinks for grad in grads if grad.sinks is not None]
    dbias = None if ctx.bias is None else _bias_gradient(ctx.bias, [grad.bias for grad in grads])
    return RaggedGrads(dq, dk, dv, dbias, sum(dsinks[1:], start=dsinks[0]) if dsinks else None)


def _bias_gradient(bias: Array, parts: list[Any]) -> Array:
    """The gradients (H|1, T, S) of the sequences, with 0 beyond their keys."""
    xp, rows = namespace_of(bias), [bias[:, :0, :]]
    for part in parts:
        beyond = (part.shape[0], part.shape[1], bias.shape[2] - part.shape[2])
        rows.append(xp.concat([part, xp.zeros(beyond, dtype=bias.dtype, device=device_of(bias))], axis=2))
    return xp.concat(rows, axis=1)


def _joined(parts: list[Any], axis: int) -> Any:
    xp = namespace_of(*parts)
    if parts[0].dtype != parts[-1].dtype:
        parts = [xp.astype(parts[0], parts[-1].dtype), *parts[1:]]
    return xp.concat(parts, axis=axis)


def _ranges(bounds: tuple[int, ...]) -> list[slice]:
    return [slice(first, past) for first, past in itertools.pairwise(bounds)]


def _checked(
    query: Array, key: Array, value: Array, cu_seqlens_q: Any, cu_seqlens_k: Any, attn_mask: Any, options: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check the arguments, and return the bounds of the sequences."""
    checks.required(query=query, key=key, value=value)
    if attn_mask is not None and not isinstance(attn_mask, Mask):
        raise TypeError(
            f"`attn_mask` is {checks.shown(attn_mask)}, expected a Mask of positions, such as attnarray.Window(8, 0): "
            "sequences of different lengths share no array. What is added to the scores is given as `bias`."
        )
    check_arrays(attn_mask, options, query=query, key=key, value=value)
    named = checks.shapes(query=query, key=key, value=value)
    if not query.ndim == key.ndim == value.ndim == 3:
        raise ValueError(f"`query`, `key` and `value` must have three axes: (sum T, heads, dim). {named}")
    if key.shape[0] != value.shape[0]:
        raise ValueError(f"`value` has {value.shape[0]} rows but `key` has {key.shape[0]}; they must be equal. {named}")
    bounds_q = _bounds("cu_seqlens_q", cu_seqlens_q, query, "query")
    bounds_k = bounds_q
    if cu_seqlens_k is not None:
        bounds_k = _bounds("cu_seqlens_k", cu_seqlens_k, key, "key")
    elif key.shape[0] != query.shape[0]:
        raise ValueError(f"`cu_seqlens_k` is needed where there are not as many keys as queries. {named}")
    if len(bounds_q) != len(bounds_k):
        raise ValueError(
            f"`cu_seqlens_q` has {len(bounds_q) - 1} sequences and `cu_seqlens_k` has {len(bounds_k) - 1}; give one "
            "number more than sequences in both."
        )
    most = max((keys.stop - keys.start for keys in _ranges(bounds_k)), default=0)
    for name in ("bias", "dropout_mask"):
        given = options.get(name)
        if given is not None and (
            given.ndim != 3 or given.shape[0] not in (1, query.shape[1]) or given.shape[1] != query.shape[0]
            or given.shape[2] < most
        ):  # fmt: skip
            expected = f"(H|1, sum T, max S) with {(query.shape[1], query.shape[0], most)}"
            raise ValueError(f"`{name}` has shape {tuple(given.shape)}, expected {expected}. {named}")
    return bounds_q, bounds_k


def _bounds(name: str, given: Any, packed: Array, of: str) -> tuple[int, ...]:
    array, rows = checks.same_device(name, checks.integers(name, given), of, packed), packed.shape[0]
    bounds = np.zeros(0, np.int64) if isinstance(array, int) else to_numpy(array)
    if bounds.ndim != 1 or not len(bounds):
        raise ValueError(f"`{name}` is {checks.shown(given)}, expected (N + 1,): where each of N sequences begins.")
    found = tuple(int(n) for n in bounds)
    if found[0] != 0 or any(first > past for first, past in itertools.pairwise(found)) or found[-1] != rows:
        raise ValueError(
            f"`{name}` goes from {found[0]} to {found[-1]}{_falls(found)}, expected to rise from 0 to the {rows} rows "
            f"of `{of}`. From lengths: numpy.concatenate([[0], numpy.cumsum(lengths)])."
        )
    return found


def _falls(bounds: tuple[int, ...]) -> str:
    falls = [n for n, (first, past) in enumerate(itertools.pairwise(bounds)) if first > past]
    return f" and falls after entry {falls[0]}" if falls else ""
