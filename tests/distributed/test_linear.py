"""Linear attention over ranks equals that of one process, by a scan of the states or from rank to rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.distributed import (
    RankError,
    ThreadComm,
    join_sequence,
    scan_linear_attention,
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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_one_process(name: str, with_initial: bool, size: int) -> None:
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
    with aa.use_kernels("reference"):
        expected, ctx = aa.linear_attention_fwd(**arrays, **options)
        dstate = np.cos(expected.state)
        grads = aa.linear_attention_bwd(dout, ctx, dstate)._asdict()

        def axis(x: np.ndarray) -> int:
            return -1 if x.ndim == 3 else -2

        parts = {n: split_sequence(x, size, axis=axis(x)) for n, x in arrays.items()}
        douts = split_sequence(dout, size)

        def on_rank(comm: Any) -> Any:
            own, own_ctx = scan_linear_attention_fwd(comm, **{n: x[comm.rank] for n, x in parts.items()}, **options)
            last = comm.rank == size - 1
            return own, scan_linear_attention_bwd(douts[comm.rank], own_ctx, dstate if last else None)

        results = ThreadComm(size).run(on_rank)
    np.testing.assert_allclose(join_sequence([own.out for own, _ in results]), expected.out, rtol=0, atol=1e-11)
    np.testing.assert_allclose(results[-1][0].state, expected.state, rtol=0, atol=1e-11)
    for n, x in arrays.items():
        found = join_sequence([getattr(own, n) for _, own in results], axis=axis(x))
        np.testing.assert_allclose(found, grads[n], rtol=0, atol=1e-11, err_msg=n)
    for _, own in results:
        if "learned" in name:
            for found, wanted in zip(own.feature_map, grads["feature_map"], strict=True):
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)
        assert (own.initial_state is None) == (not with_initial)
        if with_initial:
            np.testing.assert_allclose(own.initial_state, grads["initial_state"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_errors_stop_all_ranks(rule: Any) -> None:
    x, beta = np.ones((1, 2, 4, 3)), np.ones((1, 2, 4))
    given: Any = {"rule": rule, **({"beta": beta} if rule == "delta" else {})}

    def on_rank(comm: Any) -> None:
        with pytest.raises(ValueError, match="`options` differs between ranks"):
            scan_linear_attention(comm, x, x, x, **given, scale=1.0 + comm.rank)
        with pytest.raises(ValueError if comm.rank == 1 else RankError, match="key"):
            scan_linear_attention(comm, x, x[..., :2] if comm.rank == 1 else x, x, **given)
        with pytest.raises(TypeError, match="`lengths` is not taken"):
            scan_linear_attention(comm, x, x, x, **given, lengths=2)
        result, ctx = scan_linear_attention_fwd(comm, x, x, x, **given)
        with pytest.raises(ValueError if comm.rank == 0 else RankError, match="has shape"):
            scan_linear_attention_bwd(result.out[..., :1] if comm.rank == 0 else result.out, ctx)
        with pytest.raises(TypeError, match="expected the ScanContext"):
            scan_linear_attention_bwd(result.out, None)  # type: ignore[arg-type]

    with aa.use_kernels("reference"):
        ThreadComm(3).run(on_rank)
