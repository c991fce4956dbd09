"""JAX's functions, compiled by jax.jit: jax.nn.dot_product_attention and the primitives of jax.nn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnarray.bench.peers.jax_engine import INSTALL, make_call
from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported

TRANSPOSED = ("query", "key", "value")


def prepare(problem: Problem) -> Call:
    """Causal, windows and lengths by the function's own options where it has them, else by a mask built beforehand."""
    if problem.is_attention:
        return make_call(problem, _attention(problem), TRANSPOSED)
    return make_call(problem, _primitive(problem))


def _attention(problem: Problem) -> Callable[..., Any]:
    import jax

    problem.refuse("dot_product_attention", "softcap", "sinks", "dropout_p")
    if problem.arrays["value"].shape[-1] != problem.arrays["key"].shape[-1]:
        raise Unsupported("dot_product_attention wants values as wide as keys")
    options = problem.case.options
    window, causal = options.get("window"), bool(options.get("is_causal"))
    own = not problem.q_offset and (window is None or None not in window)
    mask = problem.arrays.get("attn_mask") if own else problem.mask
    mask = None if mask is None else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    positions: dict[str, Any] = {"is_causal": causal, "local_window_size": window} if own else {}
    if own and "kv_lengths" in problem.arrays:
        positions["key_value_seq_lengths"] = problem.arrays["kv_lengths"].astype("int32")

    def attention(query: Any, key: Any, value: Any, bias: Any = None, **_: Any) -> Any:
        biases = None if bias is None else bias[None]
        return jax.nn.dot_product_attention(query, key, value, biases, mask, scale=options.get("scale"), **positions)

    return attention


def _primitive(problem: Problem) -> Callable[..., Any]:
    import jax
    from jax import nn
    from jax import numpy as jnp

    options = problem.case.options
    axis, eps = options.get("axis", -1), options.get("eps")

    def layer_norm(x: Any, weight: Any = 1.0, bias: Any = 0.0) -> Any:
        centered = x - x.mean(-1, keepdims=True)
        return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + (eps or 1e-5)) * weight + bias

    def rms_norm(x: Any, weight: Any = 1.0) -> Any:
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + (eps or 1e-6)) * weight

    def cross_entropy(logits: Any, targets: Any) -> Any:
        return -jnp.take_along_axis(nn.log_softmax(logits), targets[:, None], 1).mean()

    def additive(query: Any, key: Any, value: Any, score_vector: Any) -> Any:
        scores = jnp.tanh(query[..., :, None, :] + key[..., None, :, :]) @ score_vector
        return nn.softmax(scores) @ value

    known: dict[str, Callable[..., Any]] = {
        "additive_attention": additive,
        "softmax": lambda x: nn.softmax(x, axis),
        "log_softmax": lambda x: nn.log_softmax(x, axis),
        "linear": lambda x, weight, bias=0.0: x @ weight.T + bias,
        "layer_norm": layer_norm,
        "rms_norm": rms_norm,
        "relu": nn.relu,
        "gelu": lambda x: nn.gelu(x, approximate=options.get("approximate") == "tanh"),
        "silu": nn.silu,
        "tanh": jnp.tanh,
        "sigmoid": nn.sigmoid,
        "embedding": lambda indices, weight: jnp.take(weight, indices, 0),
        "cross_entropy": cross_entropy,
    }
    plain = problem.case.function != "cross_entropy" or not options
    if problem.case.function not in known or "mask" in problem.arrays or not plain:
        raise Unsupported(f"no call of JAX is written down for {problem.case.function}")
    return known[problem.case.function]


PEER = Peer("jax", "JAX's functions, compiled by jax.jit", prepare, ("jax",), INSTALL)
