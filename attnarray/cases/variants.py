"""Cases of attention with forget gates and of differential attention."""

from __future__ import annotations

import numpy as np

from attnarray.cases.case import Arrays, Case, also, bits, normal

# B 2, H 4 over Hkv 2, T 5, S 7, D 3, Dv 6
GATED = {"query": (2, 4, 5, 3), "key": (2, 2, 7, 3), "value": (2, 2, 7, 6)}
# B 2, 3 pairs of heads over 1 pair, T 5, S 7, D 4, Dv 8
PAIRS = {"query": (2, 6, 5, 4), "key": (2, 2, 7, 4), "value": (2, 1, 7, 8)}


def _gates(*shape: int) -> dict[str, object]:
    return {"log_forget": lambda rng: np.log(0.3 + 0.7 * rng.random(shape))}


def _lengths(rng: np.random.Generator) -> np.ndarray:
    return np.array([7, 4])


def _forgetting(label: str, arrays: Arrays, drawn: Arrays, **options: object) -> Case:
    return Case("forgetting_attention", label, also(normal(**arrays), **drawn), options)


def _differential(label: str, arrays: Arrays, drawn: Arrays, **options: object) -> Case:
    return Case("differential_attention", label, also(normal(**arrays), **drawn), options)


VARIANT_CASES: tuple[Case, ...] = (
    _forgetting("causal, cache", {**GATED, "bias": (4, 1, 7), "sinks": (4,)}, _gates(2, 4, 7), is_causal=True,
                q_offset=2),
    _forgetting("both sides, dropout, mask", GATED,
                {**_gates(2, 4, 7), "dropout_mask": bits(2, 4, 5, 7), "attn_mask": bits(2, 1, 5, 7)},
                dropout_p=0.3, scale=0.4, q_offset=1),
    _forgetting("lengths, window", GATED, {**_gates(2, 4, 7), "kv_lengths": _lengths}, window=(3, 1)),
    _forgetting("no heads", {"query": (5, 4), "key": (7, 4), "value": (7, 3)}, _gates(7), is_causal=True, q_offset=2),
    _differential("causal", {**PAIRS, "lambd": (3,), "bias": (6, 1, 7), "sinks": (6,)}, {}, is_causal=True, q_offset=2,
                  softcap=2.0),
    _differential("one lambda, dropout, mask", {**PAIRS, "lambd": ()},
                  {"dropout_mask": bits(2, 6, 5, 7), "attn_mask": bits(2, 1, 5, 7)}, dropout_p=0.3, scale=0.4),
    _differential("lengths", {**PAIRS, "lambd": (3,)}, {"kv_lengths": _lengths}),
)  # fmt: skip
