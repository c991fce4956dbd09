"""Models on a sequence that is divided among ranks, beside the same models in one process."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import attnarray as aa

B, T, V = 2, 13, 17
LLAMA: dict[str, Any] = {"positions": "rotary", "norm": "rms", "activation": "silu", "gated": True, "bias": False}
LENGTHS = {"lengths": np.array([9, 13])}

# name -> the model, and the options of its call.
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (aa.models.GPT(V, T, 8, 2, 2), LENGTHS),
    "llama": (aa.models.GPT(V, T, 16, 2, 4, num_kv_heads=2, **LLAMA), {}),
    "recompute, norms of heads": (aa.models.GPT(V, T, 8, 2, 2, recompute=True, qk_norm="head", **LLAMA), {}),
    "rotary by length": (
        aa.models.GPT(V, T, 8, 2, 2, **LLAMA, rotary=aa.Rotary(scaling=aa.DynamicNTK(factor=2.0, max_seq_len=8))),
        {},
    ),
    "alibi": (aa.models.GPT(V, T, 8, 2, 2, positions="alibi", embedding_norm=True), LENGTHS),
    "windows, sinks, softcap": (aa.models.GPT(V, T, 8, 2, 2, windows=(3, None), sinks=True, softcap=3.0), {}),
    "experts, parallel": (aa.models.GPT(V, T, 8, 1, 2, num_experts=3, parallel_residual="one_norm"), {}),
    "mask": (aa.models.GPT(V, T, 8, 1, 2), {"attn_mask": aa.Strided(2)}),
}


class Call(NamedTuple):
    model: Any
    params: Any
    tokens: np.ndarray
    dlogits: np.ndarray
    options: dict[str, Any]


def make_call(name: str) -> Call:
    model, options = MODELS[name]
    rng = np.random.default_rng(0)
    tokens, dlogits = rng.integers(V, size=(B, T)), rng.standard_normal((B, T, V))
    return Call(model, model.init(aa.Philox(0), "float64"), tokens, dlogits, options)


def whole_gradients(call: Call) -> tuple[Any, Any]:
    """Logits and the gradients of the parameters in one process."""
    logits, ctx = call.model.fwd(call.params, call.tokens, **call.options)
    return logits, call.model.bwd(call.dlogits, ctx).params


def gradients(call: Call, parallel: Any) -> tuple[Any, Any]:
    """Those of one rank."""
    logits, ctx = call.model.fwd(call.params, parallel.split(call.tokens), **call.options, context_parallel=parallel)
    return logits, call.model.bwd(parallel.split(call.dlogits), ctx).params
