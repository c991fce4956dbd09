"""Random settings of the page docs/flow, and what the library computes for them."""

from __future__ import annotations

from typing import Any

import numpy as np

import attnarray as aa

MECHANISMS = ("softmax", "additive", "sparsemax", "local")
WORDS = ("the", "cat", "chased", "a", "mouse", "Zürich", "and", "slept")
Numbers = dict[str, np.ndarray]


def random_settings(seed: int) -> dict[str, Any]:
    """One choice of everything that the page lets choose."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    words = rng.choice(WORDS, count).tolist()
    heads = int(rng.integers(1, 5))
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    changed = {f"X/{words[0].lower()}": rng.normal(size=4).tolist(), "WQ/1": rng.normal(size=12).tolist()}
    return {
        "sentence": " ".join(words),
        "mechanism": MECHANISMS[seed % 4],
        "heads": heads,
        "keyHeads": int(rng.choice(divisors)),
        "causal": bool(rng.random() < 0.4),
        "window": int(rng.integers(0, 4)) if rng.random() < 0.4 else None,
        "padding": int(rng.integers(0, count)) if rng.random() < 0.4 else 0,
        "scale": float(rng.normal()) if rng.random() < 0.4 else None,
        "temperature": float(rng.uniform(0.3, 3)),
        "around": int(rng.integers(1, 4)),
        "sigma": float(rng.uniform(0.4, 2)),
        "lossRow": int(rng.integers(count)) if rng.random() < 0.5 else None,
        "lossColumn": int(rng.integers(2)) if rng.random() < 0.3 else None,
        "lossKind": str(rng.choice(["sum", "squares"])),
        "numbers": changed if rng.random() < 0.5 else {},
    }


def arrays(found: dict[str, Any]) -> Numbers:
    return {name: np.array(x, dtype=float) for name, x in found.items()}  # null is NaN


def dout(chosen: dict[str, Any], out: np.ndarray) -> np.ndarray:
    """The cotangent of the loss."""
    rows = range(out.shape[1] - chosen["padding"]) if chosen["lossRow"] is None else [chosen["lossRow"]]
    columns = [0, 1] if chosen["lossColumn"] is None else [chosen["lossColumn"]]
    counted = np.zeros(out.shape)
    counted[np.ix_(range(len(out)), rows, columns)] = 1
    return counted * out if chosen["lossKind"] == "squares" else counted


def library(chosen: dict[str, Any], given: Numbers) -> Numbers:
    """What the library computes from the inputs of the page."""
    projected = {
        name: [aa.linear_fwd(given["X"][0], np.ascontiguousarray(weight.T)) for weight in given[f"W{name}"]]
        for name in "QKV"
    }
    q, k, v = (np.stack([out for out, _ in projected[name]]) for name in "QKV")
    attend = around if chosen["mechanism"] in ("additive", "local") else dot_product
    found = {"Q": q, "K": k, "V": v, **attend(chosen, given, q, k, v)}
    found["dX"] = sum(
        aa.linear_bwd(grad, ctx).x
        for name in "QKV"
        for grad, (_, ctx) in zip(found[f"d{name}"], projected[name], strict=True)
    )[None]
    loss = found["O"] * found["dO"]
    found["L"] = np.sum(loss, keepdims=True) / (2 if chosen["lossKind"] == "squares" else 1)
    return found


def options(chosen: dict[str, Any], heads: int, keys: int) -> dict[str, Any]:
    dot = chosen["mechanism"] in ("softmax", "sparsemax")
    scale = (1 / np.sqrt(3) if dot else 1.0) if chosen["scale"] is None else chosen["scale"]
    window = chosen["window"]
    return {
        "is_causal": chosen["causal"],
        "attn_mask": None if window is None else aa.Window(window, window),
        "scale": scale / chosen["temperature"],
        "bias": np.zeros((1, heads, keys, keys) if dot else (heads, keys, keys)),  # its gradient is that of the scores
    }


def dot_product(chosen: dict[str, Any], given: Numbers, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Numbers:
    keys = q.shape[1]
    softmax = chosen["mechanism"] == "softmax"
    forward, backward = (
        (aa.scaled_dot_product_attention_fwd, aa.scaled_dot_product_attention_bwd)
        if softmax
        else (aa.sparsemax_attention_fwd, aa.sparsemax_attention_bwd)
    )
    lengths = np.array([keys - chosen["padding"]])
    out, ctx = forward(q[None], k[None], v[None], kv_lengths=lengths, **options(chosen, len(q), keys))
    do = dout(chosen, out[0])
    grads = backward(do[None], ctx)
    found = {"P": aa.attention_weights(ctx)[0], "O": out[0], "dO": do, "dS": grads.bias[0]}
    found |= {"dQ": grads.query[0], "dK": grads.key[0], "dV": grads.value[0]}
    if softmax:
        found["lse"] = np.where(np.isinf(ctx.lse[0]), np.nan, ctx.lse[0])[..., None]
        found["delta"] = np.sum(do * out[0], axis=2, keepdims=True)
    return found


def around(chosen: dict[str, Any], given: Numbers, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Numbers:
    """Additive and local attention have no heads: here they are a batch, and shared keys are repeated."""
    keys, group = q.shape[1], len(q) // len(k)
    shared = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    given_too = {"kv_lengths": np.full(len(q), keys - chosen["padding"]), **options(chosen, len(q), keys)}
    if chosen["mechanism"] == "additive":
        out, ctx = aa.additive_attention_fwd(q, *shared, given["w"][0, 0], **given_too)
        do = dout(chosen, out)
        grads = aa.additive_attention_bwd(do, ctx)
        found = {"P": aa.attention_weights(ctx), "dw": grads.score_vector[None, None]}
    else:
        network = given["Wp"][0], given["vp"][0, 0]
        sizes = {"window": chosen["around"], "sigma": chosen["sigma"], "alignment": "predictive"}
        out, ctx = aa.local_attention_fwd(q, *shared, *network, **sizes, **given_too)
        do = dout(chosen, out)
        grads = aa.local_attention_bwd(do, ctx)
        found = {"A": aa.attention_weights(ctx), "dWp": grads.position_weight[None]}
        found["dvp"] = grads.position_vector[None, None]
    found |= {"O": out, "dO": do, "dS": grads.bias, "dQ": grads.query}
    for name, grad in (("dK", grads.key), ("dV", grads.value)):
        found[name] = grad.reshape(len(k), group, keys, -1).sum(1)
    return found
