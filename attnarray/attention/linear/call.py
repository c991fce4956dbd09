"""The arguments of linear attention: checked, masked, mapped to features, and in the dtype of sums."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attnarray import checks, tree
from attnarray.attention.layout import Layout, attention_layout
from attnarray.attention.linear.features import FeatureMap, resolve_feature_map
from attnarray.attention.options import scale_or_default
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, accumulator_dtype, device_of, dtype_name, namespace_of
from attnarray.magnitude import check_number

RULES = ("linear", "gated", "delta", "gated_delta")
LARGEST_CHUNK = 2**16


class Recurrence(NamedTuple):
    """The arrays that update the state, in the dtype of sums, and numbers."""

    decay: Any  # (B, Hkv, T, 1) or (B, Hkv, T, Dk) <= 0, or None
    beta: Any  # (B, Hkv, T, 1), or None without a delta rule
    initial: Any  # (B, Hkv, Dk, Dv)
    scale: float
    chunk_size: int  # a power of 2


class Call(NamedTuple):
    """The options of a call, checked."""

    exists: Any  # (B, 1, T, 1) or (T, 1), False at steps past the lengths; None if all exist
    feature_map: FeatureMap | None
    normalize: bool
    scale: float
    chunk_size: int
    per_dim: tuple[str, ...]  # "decay" if it has a number for each key dimension
    initial: Any  # the dtype of the initial state, None if there is none


def check_call(query: Array, key: Array, value: Array, arrays: dict[str, Any], options: Any) -> tuple[Layout, Call]:
    """Check all arguments, and return the layout and the options."""
    checks.required(query=query, key=key, value=value)
    feature_map = resolve_feature_map(options["feature_map"])
    of_map = {f"feature_map.{tree.format_path(path)}": x for path, x in _arrays(feature_map)}
    decay, beta, initial = arrays["decay"], arrays["beta"], arrays["initial_state"]
    checks.namespace(query=query, key=key, value=value, **arrays, **of_map)
    given = {"query": query, "key": key, "value": value, "decay": decay, "beta": beta, **of_map}
    sums = accumulator_dtype(namespace_of(query), query.dtype)
    checks.floating(**given, initial_state=None if initial is not None and initial.dtype == sums else initial)
    checks.floating(**given)
    layout = attention_layout(query, key, value, options["layout"])
    steps = -2 if options["layout"] == "BHTD" else -3
    if query.shape[steps] != key.shape[steps]:
        raise ValueError(
            f"`key` has {key.shape[steps]} steps but `query` has {query.shape[steps]}; each step of linear attention "
            f"has one of both. {checks.shapes(query=query, key=key, value=value)}"
        )
    normalize = checks.flag("normalize", options["normalize"])
    _check_rule(options["rule"], decay, beta, normalize)
    if beta is not None:
        checks.shape("beta", beta, tuple(key.shape[:-1]), "one number for each step of each key head")
    default = 1.0 if feature_map is not None or normalize else 1.0 / math.sqrt(query.shape[-1] or 1)
    scale = check_number("scale", scale_or_default(options["scale"], default), dtype_name(query.dtype), small=True)
    T, exists = query.shape[steps], _exists(options["lengths"], layout, query.shape[steps], query)
    size = checks.whole("chunk_size", options["chunk_size"], 1, LARGEST_CHUNK, "the number of steps of a chunk")
    per_dim = ("decay",) if decay is not None and decay.ndim == key.ndim else ()
    return layout, Call(
        exists, feature_map, normalize, 1.0 if normalize else scale, _power_of_2(min(size, max(T, 1))), per_dim,
        None if initial is None else initial.dtype,
    )  # fmt: skip


class Prepared(NamedTuple):
    """The arguments in canonical layout and in the dtype of sums: as given, and with the feature map."""

    q: Any
    k: Any
    v: Any
    features_q: Any
    features_k: Any
    values: Any
    given: Recurrence
    layout: Layout
    call: Call


def prepare(query: Array, key: Array, value: Array, arrays: dict[str, Any], options: Any) -> Prepared:
    """All arguments of linear attention, checked."""
    layout, call = check_call(query, key, value, arrays, options)
    q, k, v = (hide(wide(layout.canonical(x)), call) for x in (query, key, value))
    features = mapped(q, k, v, call)
    return Prepared(q, k, v, *features, recurrence(arrays, layout, call, *features[1:]), layout, call)


def results(out: Array, state: Array, p: Prepared, query: Array) -> tuple[Any, Any]:
    """The output (B, H, T, Dv), normalized if that is asked for, and the state, as the caller gets them."""
    if p.call.normalize:
        out = out[..., :-1] * denominators(out[..., -1:])
    state = namespace_of(state).reshape(state, state_shape(p.layout, p.features_k, p.values))
    return narrow(p.layout.restore(out), query), state


def _arrays(feature_map: Any) -> list[tuple[Any, Any]]:
    return [(path, leaf) for path, leaf in tree.flatten(feature_map) if checks.is_array(leaf)]


def _check_rule(rule: Any, decay: Array | None, beta: Array | None, normalize: bool) -> None:
    checks.choice("rule", rule, RULES)
    has = {"decay": rule in ("gated", "gated_delta"), "beta": rule in ("delta", "gated_delta")}
    for name, given in (("decay", decay), ("beta", beta)):
        if has[name] and given is None:
            raise ValueError(f"`{name}` is None, but rule={rule!r} needs it. {_rules()}")
        if given is not None and not has[name]:
            raise ValueError(f"`{name}` is given, but rule={rule!r} does not use it. {_rules()}")
    if normalize and has["beta"]:
        raise ValueError(
            f"`normalize` is True, but rule={rule!r} replaces values instead of summing them, so that there are no "
            "weights to divide by their sum. Use rule='linear' or 'gated', or normalize queries and keys instead."
        )


def _rules() -> str:
    return "'gated' takes `decay`, 'delta' takes `beta`, 'gated_delta' takes both, 'linear' neither."


def _power_of_2(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _exists(given: Any, layout: Layout, steps: int, like: Array) -> Any:
    if given is None:
        return None
    xp = namespace_of(like)
    lengths = checks.same_device("lengths", checks.integers("lengths", given), "query", like)
    meaning = "the number of steps of each sequence"
    step = xp.arange(steps, device=device_of(like))[:, None]  # (T, 1)
    if isinstance(lengths, int):
        return step < checks.whole("lengths", lengths, 0, steps, meaning)
    checks.shape("lengths", lengths, layout.batch, "one integer for all, or one per batch")
    checks.within("lengths", lengths, 0, steps, meaning)
    return step < xp.reshape(lengths, (math.prod(layout.batch), 1, 1, 1))


def recurrence(arrays: dict[str, Any], layout: Layout, call: Call, k: Array, v: Array) -> Recurrence:
    """The arrays of the state for features k (B, Hkv, T, Dk) and values v, checked."""
    xp = namespace_of(k)
    decay, beta, initial = arrays["decay"], arrays["beta"], arrays["initial_state"]
    if decay is not None:
        expected = layout.restored_shape(tuple(k.shape))
        if not call.per_dim:
            expected = expected[:-1]
        because = "(*batch, Hkv, T) or (*batch, Hkv, T, Dk), or with T before Hkv for layout='BTHD'"
        checks.shape("decay", decay, expected, because)
        decay = hide(wide(layout.canonical(decay if call.per_dim else decay[..., None])), call)
        if math.prod(decay.shape) and bool(xp.any(decay > 0)):
            raise ValueError(
                f"`decay` goes up to {float(xp.max(decay)):g}, expected numbers <= 0: the logarithm of the factor of "
                "the state. Give log(factor) of factors up to 1, for example -softplus(x)."
            )
    if beta is not None:
        beta = hide(wide(layout.canonical(beta[..., None])), call)
    expected = state_shape(layout, k, v)
    canonical = (k.shape[0], k.shape[1], k.shape[3], v.shape[3])
    if initial is None:
        initial = xp.zeros(canonical, dtype=k.dtype, device=device_of(k))
    else:
        more = " + 1, as the last column is the sum of the keys" if call.normalize else ""
        checks.shape("initial_state", initial, expected, f"(*batch, Hkv, Dk, Dv{more})")
        initial = xp.reshape(wide(initial), canonical)
    return Recurrence(decay, beta, initial, call.scale, call.chunk_size)


def state_shape(layout: Layout, k: Array, v: Array) -> tuple[int, ...]:
    """The shape of a state of the caller for features k (B, Hkv, T, Dk) and values v, whatever the layout."""
    return (*layout.batch, *((k.shape[1],) if layout.has_heads else ()), k.shape[3], v.shape[3])


def hide(x: ArrayT, call: Call) -> ArrayT:
    """x (B, H, T, N) with 0 at steps past the lengths, also in place of NaN."""
    return x if call.exists is None else namespace_of(x).where(call.exists, x, 0.0)


def mapped(q: Array, k: Array, v: Array, call: Call) -> tuple[Any, Any, Any]:
    """The features of queries and keys, and the values, with a column of ones if sums of keys are divided by."""
    if call.feature_map is not None:
        features = _wide_map(call.feature_map)
        q, k = (hide(_features(features, x, side), call) for x, side in ((q, "query"), (k, "key")))
    if call.normalize:
        xp = namespace_of(v)
        v = xp.concat([v, xp.ones((*v.shape[:3], 1), dtype=v.dtype, device=device_of(v))], axis=3)
    return q, k, v


def mapped_backward(dq: Array, dk: Array, q: Array, k: Array, call: Call) -> tuple[Any, Any, Any]:
    """The gradients of q and k before the feature map, and of the map; None if it has no arrays."""
    if call.feature_map is None:
        return dq, dk, None
    features = _wide_map(call.feature_map)
    dq, of_queries = features.backward(dq, q, "query")
    dk, of_keys = features.backward(dk, k, "key")
    own = tree.add(of_queries, of_keys) if _arrays(features) else None
    return hide(dq, call), hide(dk, call), own


def _wide_map(feature_map: Any) -> Any:
    return tree.map(lambda x: wide(x) if checks.is_array(x) else x, feature_map)


def _features(feature_map: Any, x: Array, side: str) -> Any:
    """The features of a map, checked: (B, H, T, F)."""
    found = feature_map.features(x, side)
    if not checks.is_array(found) or tuple(found.shape[:-1]) != tuple(x.shape[:-1]):
        raise ValueError(
            f"`{type(feature_map).__name__}.features` returned {checks.shown(found)} for an array of shape "
            f"{tuple(x.shape)}, expected an array of shape ({', '.join(map(str, x.shape[:-1]))}, F)."
        )
    return found


def denominators(below: Array) -> Any:
    """1 / x, and 0 where x is 0, as no step has been summed."""
    xp = namespace_of(below)
    return xp.where(below == 0, 0.0, 1.0 / xp.where(below == 0, 1.0, below))
