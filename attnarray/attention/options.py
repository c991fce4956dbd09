"""The options of scores and weights, checked: masks, positions, bias, scale, dropout -> `ScoreModifiers`."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, TypedDict

from attnarray import checks
from attnarray.attention.layout import Layout
from attnarray.attention.modifiers import Dropout, ScoreModifiers
from attnarray.backend import Array, Namespace, device_of, dtype_name, index_dtype, library_name, namespace_of, to_numpy
from attnarray.magnitude import check_number
from attnarray.masks import LARGEST_POSITION, Causal, Constraints, Intersection, Mask, Window, to_constraints
from attnarray.masks.geometry import Sizes
from attnarray.masks.tiles import TileMask, tile_mask
from attnarray.ops.positions import check_positions
from attnarray.random import Philox, as_seed

FEWEST_PAIRS = 2**14  # of a query and a key: so many are worth tiles
CAUSAL = Causal()
UNCONSTRAINED = Constraints()


class ModifierOptions(TypedDict, total=False):
    """The keyword-only options of scores; `scaled_dot_product_attention` documents each."""

    scale: float | None
    bias: Array | None
    window: tuple[int | None, int | None] | None
    q_offset: Any
    kv_lengths: Any
    softcap: float | None


class ScoreOptions(ModifierOptions, total=False):
    """Those of every function that computes weights from scores, with dropout."""

    rng: Philox | int | None
    dropout_mask: Array | None


class HeadScoreOptions(ScoreOptions, total=False):
    """Those of the dot-product functions but their sinks."""

    enable_gqa: bool | None
    layout: checks.LayoutName


class Options(ScoreOptions, total=False):
    """Those of the dot-product functions; `scaled_dot_product_attention` documents each."""

    sinks: Array | None
    enable_gqa: bool | None
    layout: checks.LayoutName


def known_options(options: Any, known: type) -> None:
    """Check that there are no others."""
    names = set(options) - set(known.__annotations__)
    if names:
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        hint = " Masks are given as `attn_mask`." if any("mask" in name for name in names) else ""
        raise TypeError(f"Attention has no option {listed}. The options: {', '.join(known.__annotations__)}.{hint}")


def check_arrays(attn_mask: Array | Mask | None, options: Any, **named: Array | None) -> Namespace:
    """Check that all arrays of a call, those of its options too, are of one library and of one floating dtype."""
    bias, sinks, keep = options.get("bias"), options.get("sinks"), options.get("dropout_mask")
    dense = None if isinstance(attn_mask, Mask) else attn_mask
    if dense is not None and not checks.is_array(dense):
        checks.require_array("attn_mask", dense, "a boolean array (True = attend), a Mask or a floating array")
    xp = checks.namespace(**named, attn_mask=dense, bias=bias, sinks=sinks, dropout_mask=keep)
    name, bias = _bias(dense, bias)
    checks.floating(**{**named, name: bias, "sinks": sinks})
    return xp


def score_modifiers(
    q: Array,
    keys: int,
    layout: Layout,
    attn_mask: Array | Mask | None,
    dropout_p: float,
    is_causal: bool,
    options: Any,
    *,
    default_scale: float = 1.0,
    kv_offset: int | None = None,
) -> tuple[ScoreModifiers, tuple[int, ...] | None]:
    """What the options say of the scores of canonical queries (B, H, T, D) and that many keys, and the bias's shape.

    With `kv_offset` the keys are a part of more, and key j has position j + kv_offset.
    """
    xp = namespace_of(q)
    full = layout.scores_shape(q.shape[1], q.shape[2], keys)
    max_length, first_key = keys, 0
    if kv_offset is not None:
        max_length = LARGEST_POSITION  # a part does not know how many keys there are in all
        first_key = checks.whole("kv_offset", kv_offset, 0, max_length, "the position of the first key given")
    constraints = _constraints(attn_mask, checks.flag("is_causal", is_causal), options.get("window"))
    scale, softcap = _scale_and_softcap(options, default_scale, q)
    bias_name, bias = _bias(None if isinstance(attn_mask, Mask) else attn_mask, options.get("bias"))
    sinks = options.get("sinks")
    if sinks is not None:
        checks.shape("sinks", sinks, (q.shape[1],), f"one sink for each of the {q.shape[1]} query heads")
    q_offset = _offset(options.get("q_offset", 0), layout, q, xp)
    constraints, tiles = _tiles(constraints, layout, q, keys, q_offset, kv_offset)
    mask = _mask(constraints, layout, full, q)
    if tiles is not None and q.shape[2] * keys < FEWEST_PAIRS:
        dense = tiles.dense(0, q.shape[2])
        mask, tiles = dense if mask is None else mask & dense, None
    modifiers = ScoreModifiers(
        scale=scale,
        softcap=softcap,
        bias=None if bias is None else _scores(bias_name, bias, layout, full),
        mask=mask,
        left=constraints.left,
        right=constraints.right,
        q_offset=q_offset - first_key,
        kv_lengths=_lengths(constraints.lengths, options.get("kv_lengths"), layout, max_length, first_key, q),
        sinks=sinks,
        dropout=_dropout(dropout_p, options.get("rng"), options.get("dropout_mask"), first_key, layout, full),
        tiles=tiles,
    )
    return modifiers, None if bias is None else tuple(bias.shape)


def check_window(window: Any) -> Window:
    """Return the mask of a window (left, right)."""
    if not isinstance(window, tuple | list) or len(window) != 2:
        given = checks.shown(window)
        raise ValueError(f"`window` is {given}, expected (left, right), each an integer >= 0 or None = unbounded.")
    return Window(*window)


def _constraints(
    attn_mask: Array | Mask | None, is_causal: bool, window: tuple[int | None, int | None] | None
) -> Constraints:
    if attn_mask is None and window is None and not is_causal:
        return UNCONSTRAINED
    masks: list[Mask] = [attn_mask] if isinstance(attn_mask, Mask) else []
    if is_causal:
        masks.append(CAUSAL)
    if window is not None:
        masks.append(check_window(window))
    constraints = to_constraints(*masks)
    if not isinstance(attn_mask, Mask) and attn_mask is not None and dtype_name(attn_mask.dtype) == "bool":
        constraints = constraints._replace(dense=(attn_mask,))
    return constraints


def _bias(attn_mask: Array | None, bias: Array | None) -> tuple[str, Array | None]:
    """What is added to the scores, with the name under which it was given."""
    if attn_mask is None or dtype_name(attn_mask.dtype) == "bool":
        return "bias", bias
    if dtype_name(attn_mask.dtype) not in checks.FLOATS:
        raise TypeError(
            f"`attn_mask` has dtype {dtype_name(attn_mask.dtype)}, expected bool (True = attend), a Mask, or a "
            "floating array that is added to the scores. For 0/1 integers write attn_mask != 0."
        )
    if bias is not None:
        raise ValueError("`attn_mask` is a floating array, which is a bias, and `bias` is given too; add them first.")
    return "attn_mask", attn_mask


def _scores(name: str, array: Array, layout: Layout, full: tuple[int, ...]) -> Array:
    """An array over the scores in canonical layout."""
    checks.broadcasts(name, array, full, "(*batch, H, T, S)" if layout.has_heads else "(*batch, T, S)")
    return layout.canonical_scores(array)


def _tiles(
    constraints: Constraints, layout: Layout, q: Array, keys: int, q_offset: int | Array, kv_offset: int | None
) -> tuple[Constraints, TileMask | None]:
    """The masks that are tiled, which are taken from the constraints: documents are where they are many, in NumPy."""
    parts: tuple[Mask, ...] = constraints.others
    if constraints.documents and library_name(q) == "numpy" and q.shape[2] * keys >= FEWEST_PAIRS:
        for documents in constraints.documents:
            checks.namespace(query=q, attn_mask=documents.ids_q)
        parts, constraints = (*parts, *constraints.documents), constraints._replace(documents=())
    if not parts:
        return constraints, None
    mask = parts[0] if len(parts) == 1 else Intersection(parts)
    sizes = Sizes(layout.batch, q.shape[1], q.shape[2], keys, q, layout.has_heads)
    offset = q_offset if isinstance(q_offset, int) else to_numpy(q_offset)
    return constraints, tile_mask(mask, sizes, offset, kv_offset)


def _mask(constraints: Constraints, layout: Layout, full: tuple[int, ...], query: Array) -> Array | None:
    if not constraints.dense and not constraints.documents:
        return None
    masks = [("attn_mask", dense) for dense in constraints.dense]
    for documents in constraints.documents:
        checks.broadcasts("Documents.ids_q", documents.ids_q, (*layout.batch, full[-2]), "(*batch, T)")
        checks.broadcasts("Documents.ids_k", documents.ids_k, (*layout.batch, full[-1]), "(*batch, S)")
        masks.append(("attn_mask", documents.same(layout.has_heads)))
    for name, mask in masks:
        checks.namespace(**{"query": query, name: mask})
    return functools.reduce(operator.and_, [_scores(name, mask, layout, full) for name, mask in masks])


def scale_or_default(scale: float | None, default: float) -> float:
    """The option `scale`, checked."""
    if scale is None:
        return default
    number = checks.real(scale)
    if not math.isfinite(number) or number == 0:
        given = checks.shown(scale)
        raise ValueError(
            f"`scale` is {given}, expected a finite number other than 0; leave it out for the default, {default:.4g}."
        )
    return number


def _scale_and_softcap(options: Any, default_scale: float, q: Array) -> tuple[float, float | None]:
    dtype, softcap = dtype_name(q.dtype), options.get("softcap")
    scale = check_number("scale", scale_or_default(options.get("scale"), default_scale), dtype, small=True)
    if softcap is None:
        return scale, None
    number = check_number("softcap", checks.positive("softcap", softcap), dtype)
    check_number("scale / softcap", scale / number, dtype)  # dot products are multiplied by it
    return scale, number


def _offset(given: Any, layout: Layout, like: Array, xp: Namespace) -> int | Array:
    if type(given) is int and abs(given) <= LARGEST_POSITION:
        return given
    return check_positions("q_offset", _integers("q_offset", given, layout, like, xp))


def _integers(name: str, given: Any, layout: Layout, like: Array, xp: Namespace) -> int | Array:
    """An int as it is; one integer per batch as an array (B,) on the device of `like`."""
    array = checks.same_device(name, checks.integers(name, given), "query", like)
    if isinstance(array, int):
        return array
    array = xp.broadcast_to(array, layout.batch) if array.ndim == 0 else array
    checks.shape(name, array, layout.batch, "one integer for all, or one per batch")
    return xp.astype(xp.reshape(array, (math.prod(layout.batch),)), index_dtype(xp, like))


def _lengths(
    padding: tuple[Any, ...], kv_lengths: Any, layout: Layout, max_length: int, first_key: int, like: Array
) -> Array | None:
    """The number of keys that exist among those given, (B,); lengths count from the start of the whole."""
    if not padding and kv_lengths is None:
        return None
    xp = namespace_of(like)
    named = [*(("Padding.lengths", lengths) for lengths in padding), ("kv_lengths", kv_lengths)]
    total: Array | None = None
    for name, given in named:
        if given is None:
            continue
        lengths = _integers(name, given, layout, like, xp)
        _check_lengths(name, lengths, max_length, xp)
        if isinstance(lengths, int):
            size, dtype = math.prod(layout.batch), index_dtype(xp, like)
            array = xp.full((size,), max(lengths - first_key, 0), dtype=dtype, device=device_of(like))
        else:
            array = xp.maximum(lengths - first_key, xp.zeros_like(lengths))
        total = array if total is None else xp.minimum(total, array)
    return total


def _check_lengths(name: str, lengths: int | Array, max_length: int, xp: Namespace) -> None:
    if isinstance(lengths, int):
        wrong, given = not 0 <= lengths <= max_length, f"is {lengths}"
    else:
        wrong, given = lengths.shape[0] and bool(xp.any((lengths < 0) | (lengths > max_length))), ""
    if wrong:
        given = given or f"goes from {int(xp.min(lengths))} to {int(xp.max(lengths))}"
        expected = f"0 to {max_length}" if max_length == LARGEST_POSITION else f"0 to S = {max_length}"
        raise ValueError(f"`{name}` {given}, expected {expected}: the number of keys that exist in each batch.")


def _dropout(
    p: float, rng: Philox | int | None, keep: Array | None, kv_offset: int, layout: Layout, full: tuple[int, ...]
) -> Dropout | None:
    p, seed = probability_and_seed(p, rng, keep)
    if keep is not None:
        return Dropout(p, 0, _scores("dropout_mask", keep, layout, full), kv_offset)
    return None if seed is None else Dropout(p, seed, None, kv_offset)


def probability_and_seed(p: float, rng: Philox | int | None, keep: Array | None) -> tuple[float, int | None]:
    """The options of dropout, checked; the seed is None where nothing is drawn, as with a mask or p = 0."""
    p, seed = checks.probability("dropout_p", p), None if rng is None else as_seed(rng)
    if keep is not None:
        checks.boolean("dropout_mask", keep)
    elif p > 0 and seed is None:
        raise ValueError(
            f"`dropout_p` is {p} but neither `rng` nor `dropout_mask` is given. Pass rng=attnarray.Philox(seed), a new "
            "one for each step, or leave dropout out at inference."
        )
    return p, seed if keep is None and p > 0 else None
