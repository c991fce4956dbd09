"""Calls of linear attention whose parts are on ranks, and the same in one process."""

from __future__ import annotations

from typing import Any

import numpy as np

import attnarray as aa
from attnarray.distributed import (
    join_sequence,
    scan_linear_attention_bwd,
    scan_linear_attention_fwd,
    split_sequence,
)

B, H, HKV, T, DK, DV = 2, 4, 2, 19, 3, 5
HEDGEHOG = [np.random.default_rng(n).standard_normal((heads, 4, DK)) for n, heads in enumerate((H, HKV))]
CASES: dict[str, dict[str, Any]] = {
    "linear": {"rule": "linear"},
    "linear, normalized": {"rule": "linear", "normalize": True, "feature_map": "elu+1"},
    "linear, learned features": {"feature_map": aa.Hedgehog(*HEDGEHOG), "normalize": True},
    "gated": {"rule": "gated", "decay": (B, HKV, T)},
    "gated, each dim": {"rule": "gated", "decay": (B, HKV, T, DK), "scale": 0.7},
    "delta": {"rule": "delta", "beta": (B, HKV, T)},
    "gated delta": {"rule": "gated_delta", "beta": (B, HKV, T), "decay": (B, HKV, T)},
}


def make_call(name: str, with_initial: bool) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """The arrays along the sequence, the gradient of the output, and all other options."""
    rng, options = np.random.default_rng(0), dict(CASES[name])
    arrays = {n: rng.standard_normal(s) for n, s in (("query", (B, H, T, DK)), ("key", (B, HKV, T, DK)))}
    arrays |= {"value": rng.standard_normal((B, HKV, T, DV)), "dout": rng.standard_normal((B, H, T, DV))}
    for n in ("decay", "beta"):
        if n in options:
            arrays[n] = rng.random(options.pop(n)) * (-0.3 if n == "decay" else 1.0)
    if "beta" in arrays:
        arrays["key"] /= np.linalg.norm(arrays["key"], axis=-1, keepdims=True)
    dout = arrays.pop("dout")
    if with_initial:
        options["initial_state"] = rng.standard_normal(
            (B, HKV, 8 if "learned" in name else DK, DV + ("normalize" in options))
        )
    return arrays, dout, options


def whole_results(call: Any) -> tuple[Any, dict[str, Any]]:
    """The result and the gradients of one process; that of the state is the cosine of the state."""
    arrays, dout, options = call
    result, ctx = aa.linear_attention_fwd(**arrays, **options)
    return result, aa.linear_attention_bwd(dout, ctx, np.cos(result.state))._asdict()


def rank_results(comm: Any, call: Any, state: np.ndarray) -> tuple[Any, Any]:
    """The result and the gradients of a rank; `state` is the last one of one process."""
    (arrays, dout, options), rank, size = call, comm.Get_rank(), comm.Get_size()
    own = {n: split_sequence(x, size, axis=_axis(x))[rank] for n, x in arrays.items()}
    result, ctx = scan_linear_attention_fwd(comm, **own, **options)
    dstate = np.cos(state) if rank == size - 1 else None
    return result, scan_linear_attention_bwd(split_sequence(dout, size)[rank], ctx, dstate)


def errors(results: list[tuple[Any, Any]], call: Any, whole: tuple[Any, dict[str, Any]]) -> dict[str, float]:
    """The largest error of each result and gradient."""
    expected, grads = whole
    found = {
        "out": _error(join_sequence([own.out for own, _ in results]), expected.out),
        "state": _error(results[-1][0].state, expected.state),
    }
    for n, x in call[0].items():
        found[n] = _error(join_sequence([getattr(own, n) for _, own in results], axis=_axis(x)), grads[n])
    for rank, (_, own) in enumerate(results):
        for n in ("feature_map", "initial_state"):
            parts = zip(_several(getattr(own, n)), _several(grads[n]), strict=True)
            found |= {f"{n} {k} on rank {rank}": _error(one, other) for k, (one, other) in enumerate(parts)}
    return found


def _several(x: Any) -> tuple[Any, ...]:
    return () if x is None else tuple(x) if isinstance(x, tuple) else (x,)


def _error(one: Any, other: Any) -> float:
    return float(np.max(np.abs(np.asarray(one) - other))) if np.shape(one) == np.shape(other) else float("inf")


def _axis(x: np.ndarray) -> int:
    return -1 if x.ndim == 3 else -2
