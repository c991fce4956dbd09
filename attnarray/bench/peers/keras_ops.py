"""Keras: keras.ops.dot_product_attention on the library that Keras is set to (JAX if there, else PyTorch)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from attnarray.bench.peers import jax_engine, torch_engine
from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported

TRANSPOSED = ("query", "key", "value")


def prepare(problem: Problem) -> Call:
    """Keras' function compiled and differentiated by JAX or PyTorch."""
    if not problem.is_attention:
        raise Unsupported("written down for attention only")
    installed = [name for name in ("jax", "torch") if importlib.util.find_spec(name) is not None]
    if not installed:
        raise Unsupported("Keras computes with JAX or PyTorch, and neither is installed")
    os.environ.setdefault("KERAS_BACKEND", installed[0])
    import keras

    problem.refuse("dot_product_attention", "sinks", "dropout_p")
    library = keras.backend.backend()
    if library == "jax":
        if problem.arrays["value"].shape[-1] != problem.arrays["key"].shape[-1]:
            raise Unsupported("on JAX it wants values as wide as keys")
        return jax_engine.make_call(problem, _attention(problem), TRANSPOSED)
    if library == "torch":
        return torch_engine.make_call(problem, _transposing(_attention(problem)))
    raise Unsupported(f"Keras is set to {library}; set KERAS_BACKEND to jax or torch")


def _attention(problem: Problem) -> Callable[..., Any]:
    import keras

    options, causal = problem.case.options, problem.plainly_causal
    mask = None if causal else problem.mask
    mask = None if mask is None else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)

    def attention(query: Any, key: Any, value: Any, bias: Any = None, **_: Any) -> Any:
        return keras.ops.dot_product_attention(
            query, key, value, bias if bias is None else bias[None], mask, options.get("scale"), causal,
            attn_logits_soft_cap=options.get("softcap"),
        )  # fmt: skip

    return attention


def _transposing(attention: Callable[..., Any]) -> Callable[..., Any]:
    """(B, H, T, D) viewed as (B, T, H, D) and back: PyTorch transposes without a copy."""

    def transposed(**tensors: Any) -> Any:
        swapped = {name: x.transpose(1, 2) if name in TRANSPOSED else x for name, x in tensors.items()}
        return attention(**swapped).transpose(1, 2)

    return transposed


PEER = Peer("keras", "Keras, ops.dot_product_attention", prepare, ("keras",), "pip install keras")
