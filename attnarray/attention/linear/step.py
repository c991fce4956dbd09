"""One step of linear attention, for decoding token by token."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray import checks
from attnarray.attention.layout import CANONICAL
from attnarray.attention.linear.call import check_call, denominators, mapped, recurrence, state_shape
from attnarray.attention.linear.features import FeatureMap, FeatureName
from attnarray.attention.linear.linear_attention import LinearAttentionResult, Rule
from attnarray.attention.sequences import narrow, wide
from attnarray.backend import Array, ArrayT, accumulator_dtype, dtype_name, library_name, namespace_of
from attnarray.dispatch import accelerated, ignoring_fp_errors


@ignoring_fp_errors
def linear_attention_step(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    state: ArrayT,
    *,
    decay: ArrayT | None = None,
    beta: ArrayT | None = None,
    rule: Rule = "linear",
    scale: float | None = None,
    normalize: bool = False,
    feature_map: FeatureName | FeatureMap | None = None,
) -> LinearAttentionResult[ArrayT]:
    r"""One step of `linear_attention`, which changes the state in place.

    .. math:: S \leftarrow e^{g} S + k u^T, \qquad o = \mathrm{scale}\; S^T q

    with u = v, or beta (v - (e^g S)^T k) for the delta rules.

    Parameters
    ----------
    query : (B, H, Dk) floating
    key : (B, Hkv, Dk)
    value : (B, Hkv, Dv)
    state : (B, Hkv, Dk, Dv)
        The state of the steps before, in the dtype of sums: float64 for float64, else float32. It is overwritten, but
        for libraries whose arrays are immutable.
    decay : (B, Hkv) or (B, Hkv, Dk)
    beta : (B, Hkv)
    rule, scale, normalize, feature_map
        As in `linear_attention`.

    Returns
    -------
    LinearAttentionResult
        out (B, H, Dv), and the state: the same array, or a new one where arrays are immutable.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 4, 10, 8))
    >>> state = np.zeros((2, 4, 8, 8))
    >>> for t in range(10):
    ...     out, state = aa.linear_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], state)
    >>> bool(np.allclose(out, aa.linear_attention(q, k, v).out[:, :, -1]))
    True
    """
    checks.required(query=query, key=key, value=value, state=state)
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 3:
            raise ValueError(f"`{name}` has shape {tuple(array.shape)}, expected one step of (B, heads, dim).")
    xp = checks.namespace(query=query, key=key, value=value, state=state, decay=decay, beta=beta)
    for name, gate in (("decay", decay), ("beta", beta)):
        if gate is not None and (gate.ndim == 2 or name == "beta"):
            checks.shape(name, gate, tuple(key.shape[:2]), "one number for each key head")
    sums = accumulator_dtype(xp, query.dtype)
    if state.dtype != sums:
        raise TypeError(
            f"`state` has dtype {dtype_name(state.dtype)}, expected {dtype_name(sums)}, the dtype in "
            f"which arrays of {dtype_name(query.dtype)} are summed. Start with zeros of it."
        )
    if isinstance(state, np.ndarray) and not state.flags.writeable:
        raise ValueError("`state` is read-only, but it is overwritten: give a copy of it.")
    one = {"decay": _with_step(decay, 2), "beta": _with_step(beta, 2), "initial_state": state}
    options = {"rule": rule, "scale": scale, "normalize": normalize, "feature_map": feature_map,
               "chunk_size": 1, "lengths": None, "layout": "BHTD"}  # fmt: skip
    step_q, step_k, step_v = (_with_step(x, 2) for x in (query, key, value))
    _, call = check_call(step_q, step_k, step_v, one, options)
    q, k, v = mapped(wide(step_q), wide(step_k), wide(step_v), call)  # (B, heads, 1, D)
    if call.per_dim and decay is not None:
        checks.shape("decay", decay, (*key.shape[:2], k.shape[3]), "(B, Hkv) or (B, Hkv, Dk)")
    layout = CANONICAL._replace(batch=tuple(query.shape[:1]))
    checks.shape("state", state, state_shape(layout, k, v), "(B, Hkv, Dk, Dv), with one column more if normalized")
    given = recurrence(one, layout, call, k, v)
    out, new = advance(q, k, v, state, given.decay, given.beta)
    out = out[..., :-1] * denominators(out[..., -1:]) if call.normalize else call.scale * out
    return LinearAttentionResult(narrow(out[:, :, 0, :], query), new)


@accelerated
def advance(q: Array, k: Array, v: Array, state: Array, decay: Array | None, beta: Array | None) -> tuple[Any, Any]:
    """S <- e^g S + k u^T and S^T q, of q (B, H, 1, Dk), k and v (B, Hkv, 1, D), and a state that is overwritten.

    Returns
    -------
    out : (B, H, 1, Dv)
    state : (B, Hkv, Dk, Dv)
    """
    xp = namespace_of(q, state)
    S = state if decay is None else state * xp.exp(decay).mT
    u = v if beta is None else beta * (v - xp.matmul(k, S))
    S = S + k.mT * u
    B, H, _, Dk = q.shape
    heads = S.shape[1]
    out = xp.matmul(xp.reshape(q, (B, heads, H // heads if heads else 1, Dk)), S)
    return xp.reshape(out, (B, H, 1, S.shape[3])), _overwritten(state, S)


def _overwritten(state: Any, new: Any) -> Any:
    if library_name(state) == "jax":
        return new
    state[...] = new
    return state


def _with_step(x: Any, axis: int) -> Any:
    """x with an axis of one step."""
    if x is None or not checks.is_array(x):
        return x
    shape = tuple(x.shape)
    return namespace_of(x).reshape(x, (*shape[:axis], 1, *shape[axis:]))
