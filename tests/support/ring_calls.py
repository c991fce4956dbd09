"""Calls of attention on several ranks, beside the same calls in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa
from attnarray.distributed import join_sequence, ring_attention_bwd, ring_attention_fwd, split_sequence

B, H, HKV, T, S, D, DV = 2, 4, 2, 23, 26, 5, 3
TOLERANCES = {"float64": 1e-12, "float32": 2e-6}  # the goals: rounding of sums over the keys in another order
ROWS = ("bias", "attn_mask", "dropout_mask")

# name -> what draws the arrays over scores, and the other options.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "causal, offset": {"is_causal": True, "q_offset": 4},
    "causal, offset of each batch": {"is_causal": True, "q_offset": np.array([-5, 9])},
    "window to the left": {"window": (5, 0)},
    "window to both sides": {"window": (3, 4), "q_offset": 2},
    "window mask": {"attn_mask": aa.Window(None, 3) & aa.Causal(2)},
    "lengths": {"kv_lengths": np.array([7, 20])},
    "length, causal": {"kv_lengths": 12, "is_causal": True},
    "bias": {"bias": (B, H, T, S)},
    "bias of rows": {"bias": (H, T, 1), "is_causal": True},
    "bias of columns": {"bias": (1, S), "softcap": 2.0},
    "mask": {"attn_mask": (B, 1, T, S)},
    "mask of columns": {"attn_mask": (S,), "window": (9, None)},
    "dropout": {"dropout_p": 0.3, "rng": 5, "is_causal": True, "q_offset": 3},
    "dropout mask": {"dropout_p": 0.3, "dropout_mask": (H, T, S)},
    "scale": {"scale": 0.7, "softcap": 2.0},
    "sinks": {"window": (2, 0), "sinks": (H,)},
}


class Call(NamedTuple):
    """The whole arrays of a call, and its options without arrays over the scores."""

    arrays: dict[str, np.ndarray]  # query, key, value, and those over scores
    options: dict[str, Any]
    dout: np.ndarray
    dlse: np.ndarray


def make_call(name: str, dtype: str, seed: int = 0) -> Call:
    rng = np.random.default_rng(seed)
    draw = {"attn_mask": lambda shape: rng.random(shape) < 0.6, "dropout_mask": lambda shape: rng.random(shape) < 0.7}
    options = dict(OPTIONS[name])
    shapes = {"query": (B, H, T, D), "key": (B, HKV, S, D), "value": (B, HKV, S, DV)}
    shapes |= {key: options.pop(key) for key in (*ROWS, "sinks") if isinstance(options.get(key), tuple)}
    arrays = {
        key: draw[key](shape) if key in draw else rng.standard_normal(shape).astype(dtype)
        for key, shape in shapes.items()
    }
    dout, dlse = rng.standard_normal((B, H, T, DV)).astype(dtype), rng.standard_normal((B, H, T)).astype(dtype)
    return Call(arrays, options, dout, dlse)


def whole_results(call: Call) -> dict[str, Any]:
    """Output, lse and gradients in one process."""
    out, ctx = aa.scaled_dot_product_attention_fwd(**call.arrays, **call.options)
    grads = aa.scaled_dot_product_attention_bwd(call.dout, ctx, call.dlse)
    return {"out": out, "lse": ctx.lse, **grads._asdict()}


def rank_arrays(call: Call, size: int, rank: int, order: str) -> dict[str, np.ndarray]:
    """The arrays of one rank."""

    def own(name: str, x: np.ndarray) -> np.ndarray:
        divided = name in ("query", "key", "value") or (name in ROWS and x.ndim > 1 and x.shape[-2] != 1)
        return split_sequence(x, size, order=order)[rank] if divided else x

    return {name: own(name, x) for name, x in call.arrays.items()}


def rank_results(
    comm: Any, call: Call, order: str, forward: Callable[..., Any] = ring_attention_fwd,
    backward: Callable[..., Any] = ring_attention_bwd, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Output, lse and gradients of one rank."""
    rank, size = comm.Get_rank(), comm.Get_size()
    out, ctx = forward(comm, **rank_arrays(call, size, rank, order), order=order, **call.options, **more)
    dout = split_sequence(call.dout, size, order=order)[rank]
    dlse = split_sequence(call.dlse, size, order=order, axis=-1)[rank]
    return {"out": out, "lse": ctx.lse, **backward(dout, ctx, dlse)._asdict()}


def joined(results: list[dict[str, Any]], call: Call, order: str) -> dict[str, Any]:
    """The results of all ranks as those of one process."""
    found: dict[str, Any] = {}
    for name in results[0]:
        parts = [result[name] for result in results]
        if parts[0] is None or name == "sinks":
            found[name] = parts[-1]
        elif name == "bias" and call.arrays["bias"].shape[-2] == 1:
            found[name] = sum(parts)
        else:
            found[name] = join_sequence(parts, order=order, axis=-1 if name == "lse" else -2)
    return found


def errors(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """The largest error of each result, in terms of its largest number (of 1 where all are smaller)."""
    compared = {}
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
            continue
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        finite = np.isfinite(value)
        np.testing.assert_array_equal(found[name][~finite], value[~finite], err_msg=name)
        scale = np.max(np.abs(value[finite]), initial=1.0)
        compared[name] = float(np.max(np.abs(found[name][finite] - value[finite]), initial=0.0) / scale)
    return compared
