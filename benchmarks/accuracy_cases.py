"""Calls with long sums, for accuracy.py: one for each function, and each axis that it sums over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import attnarray as aa

Arrays = dict[str, Any]
Results = dict[str, np.ndarray]


class Numbers:
    """Random numbers with a mean that is not zero, rounded to float32."""

    def __init__(self, mean: float, draw: int = 0) -> None:
        self.rng, self.mean = np.random.default_rng(draw), mean

    def centered(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)

    def __call__(self, *shape: int) -> np.ndarray:
        return self.centered(*shape) + np.float32(self.mean)


class Case(NamedTuple):
    """`arrays` of a size, of which those in float32 are differentiated, and the call on them."""

    name: str
    arrays: Callable[[int, Numbers], Arrays]
    call: Callable[..., Results]
    most: int = 2**16  # the largest size that is not too slow


def triple(name: str, *others: str, **options: Any) -> Callable[..., Results]:
    """Forward and backward of a public function: its output and all gradients."""
    forward, backward = getattr(aa, f"{name}_fwd"), getattr(aa, f"{name}_bwd")

    def call(dout: np.ndarray, **arrays: Any) -> Results:
        out, ctx = forward(**arrays, **options)
        out = out[0] if isinstance(out, tuple) else out
        grads = backward(dout.astype(out.dtype), ctx)._asdict()
        return {"out": out, **{f"d{key}": grads[key] for key in grads if isinstance(grads[key], np.ndarray)}}

    return call


def partial(**options: Any) -> Callable[..., Results]:
    """Tiled attention: also the lse and its cotangent."""

    def call(dout: np.ndarray, dlse: np.ndarray | None = None, **arrays: Any) -> Results:
        part, ctx = aa.attention_partial_fwd(**arrays, **options)
        grads = aa.attention_partial_bwd(aa.Partial(dout, dlse), ctx)._asdict()
        return {"out": part.out, "lse": part.lse, **{f"d{n}": x for n, x in grads.items() if x is not None}}

    return call


def attention(
    queries: int | None, keys: int | None, dim: int = 64, heads: int = 2, kv_heads: int = 2, batch: int = 1
) -> Callable[[int, Numbers], Arrays]:
    """The arrays of tiled attention with a size for the one of queries and keys that is None."""

    def arrays(n: int, some: Numbers) -> Arrays:
        T, S = queries or n, keys or n
        return {
            "query": some.centered(batch, heads, T, dim), "key": some.centered(batch, kv_heads, S, dim),
            "value": some(batch, kv_heads, S, dim), "dout": some(batch, heads, T, dim),
        }  # fmt: skip

    return arrays


def also(
    arrays: Callable[[int, Numbers], Arrays], **more: Callable[[int, Numbers], Any]
) -> Callable[[int, Numbers], Arrays]:
    return lambda n, some: {**arrays(n, some), **{name: make(n, some) for name, make in more.items()}}


def softmax_rows(n: int, some: Numbers) -> Arrays:
    return {"x": some.centered(16, n), "dout": some(16, n)}


def norm_rows(rows: int | None, columns: int | None) -> Callable[[int, Numbers], Arrays]:
    def arrays(n: int, some: Numbers) -> Arrays:
        N, E = rows or n, columns or n
        return {"x": some(N, E), "weight": some(E), "bias": some(E), "dout": some(N, E)}

    return arrays


def without(arrays: Callable[[int, Numbers], Arrays], *names: str) -> Callable[[int, Numbers], Arrays]:
    return lambda n, some: {name: array for name, array in arrays(n, some).items() if name not in names}


def cross_entropy(logits: np.ndarray, targets: np.ndarray, smoothing: float) -> Results:
    loss, ctx = aa.cross_entropy_fwd(logits, targets, label_smoothing=smoothing)
    return {"loss": loss, "dlogits": aa.cross_entropy_bwd(loss.dtype.type(1), ctx).logits}


def embedding(weight: np.ndarray, dout: np.ndarray, indices: np.ndarray) -> Results:
    _, ctx = aa.embedding_fwd(indices, weight)
    return {"dweight": aa.embedding_bwd(dout, ctx).weight}


def segment_softmax(x: np.ndarray, dout: np.ndarray, segments: np.ndarray) -> Results:
    out, ctx = aa.segment_softmax_fwd(x, segments, 4)
    return {"out": out, "dx": aa.segment_softmax_bwd(dout, ctx).x}


def graph(n: int, some: Numbers) -> Arrays:
    """A node with n edges from n sources, and one that is the source of n edges."""
    nodes = max(n, 2)
    stars = np.stack([np.concatenate([np.arange(n), np.zeros(n)]), np.concatenate([np.zeros(n), np.arange(n)])])
    q, k, v = some.centered(1, nodes, 2, 8), some.centered(1, nodes, 2, 8), some(1, nodes, 2, 8)
    return {
        "query": q, "key": k, "value": v, "score_vector": some.centered(2, 8), "edges": stars.astype(np.int64),
        "edge_features": some.centered(1, 2 * n, 2, 8), "dout": some(1, nodes, 2, 8),
    }  # fmt: skip


def additive(
    queries: int | None, keys: int | None, features: int = 24, batch: int | None = 1
) -> Callable[[int, Numbers], Arrays]:
    def arrays(n: int, some: Numbers) -> Arrays:
        T, S, B = queries or n, keys or n, batch or n
        return {
            "query": some.centered(B, T, features), "key": some.centered(B, S, features), "value": some(B, S, 16),
            "score_vector": some.centered(features), "dout": some(B, T, 16),
        }  # fmt: skip

    return arrays


def local(queries: int | None, keys: int | None) -> Callable[[int, Numbers], Arrays]:
    def arrays(n: int, some: Numbers) -> Arrays:
        T, S = queries or n, keys or n
        return {
            "query": some.centered(1, T, 16), "key": some.centered(1, S, 16), "value": some(1, S, 16),
            "position_weight": some.centered(16, 16), "position_vector": some.centered(16), "dout": some(1, T, 16),
        }  # fmt: skip

    return arrays


def local_call(dout: np.ndarray, **arrays: Any) -> Results:
    window = arrays["key"].shape[1] // 2
    return triple("local_attention", window=window, alignment="predictive", sigma=window / 2.0 + 1.0)(dout, **arrays)


def recurrent(queries: int | None, keys: int | None) -> Callable[[int, Numbers], Arrays]:
    def arrays(n: int, some: Numbers) -> Arrays:
        T, S, H = queries or n, keys or n, 8
        return {
            "query": some.centered(1, T, 8), "key": some.centered(1, S, 8), "value": some(1, S, 8),
            "weight_ih": some.centered(4 * H, 16) / np.float32(4), "weight_hh": some.centered(4 * H, H) / np.float32(4),
            "output_weight": some.centered(8, H) / np.float32(4), "score_vector": some.centered(8),
            "dout": some(1, T, 8),
        }  # fmt: skip

    return arrays


def targets(rows: int | None, classes: int | None) -> Callable[[int, Numbers], Arrays]:
    def arrays(n: int, some: Numbers) -> Arrays:
        N, C = rows or n, classes or n
        return {"logits": some(N, C), "targets": some.rng.integers(0, C, N)}

    return arrays


def multiplicative(queries: int | None, keys: int | None) -> Callable[[int, Numbers], Arrays]:
    def arrays(n: int, some: Numbers) -> Arrays:
        T, S = queries or n, keys or n
        return {
            "query": some.centered(1, T, 16), "key": some.centered(1, S, 16), "value": some(1, S, 16),
            "weight": some.centered(16, 16) / np.float32(4), "dout": some(1, T, 16),
        }  # fmt: skip

    return arrays


CASES = [
    Case("sdpa, keys", attention(64, None), partial()),
    Case("sdpa, queries", attention(None, 64), partial()),
    Case("sdpa, keys, dim 512", attention(40, None, dim=512, heads=1, kv_heads=1), partial()),
    Case("sdpa, queries, dim 512", attention(None, 40, dim=512, heads=1, kv_heads=1), partial()),
    Case("sdpa, keys, dropout", attention(64, None), partial(dropout_p=0.2, rng=3)),
    Case("sdpa, queries, dropout", attention(None, 64), partial(dropout_p=0.2, rng=3)),
    Case("sdpa, keys, softcap", attention(64, None), partial(softcap=3.0)),
    Case("sdpa, keys, mask", also(attention(64, None), attn_mask=lambda n, s: s.rng.random((64, n)) < 0.9), partial()),
    Case("sdpa, keys, bias", also(attention(64, None), bias=lambda n, s: s.centered(64, n)), partial()),
    Case("sdpa, keys, shared bias", also(
        attention(64, None), bias=lambda n, s: s.centered(1, 1, 64, 1), dlse=lambda n, s: s(1, 2, 64)
    ), partial()),
    Case("sdpa, queries, shared bias", also(attention(None, 64), bias=lambda n, s: s.centered(1, 1, 1, 64)), partial()),
    Case("sdpa, queries, bias of heads", also(
        attention(None, 64), bias=lambda n, s: s.centered(1, 2, 1, 1), dlse=lambda n, s: s(1, 2, n)
    ), partial()),
    Case("sdpa, queries, dlse", also(attention(None, 64), dlse=lambda n, s: s(1, 2, n)), partial()),
    Case("sdpa, queries, sinks", also(attention(None, 64), sinks=lambda n, s: s.centered(2)), partial()),
    Case("sdpa, keys, sinks", also(attention(64, None), sinks=lambda n, s: s.centered(2)), partial()),
    Case("sdpa, causal", attention(None, None), partial(is_causal=True), 8192),
    Case("sdpa, queries, shared keys", attention(None, 64, heads=4, kv_heads=1), partial()),
    Case("decode", attention(1, None), partial()),
    Case("decode, shared keys", attention(1, None, heads=4, kv_heads=1), partial()),
    Case("decode, 4 queries", attention(4, None, heads=1, kv_heads=1), partial()),
    Case("decode, mask", also(attention(1, None), attn_mask=lambda n, s: s.rng.random((1, n)) < 0.9), partial()),
    Case("decode, softcap", attention(1, None), partial(softcap=3.0)),
    Case("decode, dropout", attention(1, None), partial(dropout_p=0.2, rng=3)),
    Case("decode, dim 20", attention(1, None, dim=20), partial()),
    Case("batches, shared bias", lambda n, s: {
        **attention(8, 64, dim=16, heads=1, kv_heads=1, batch=n)(n, s), "bias": s.centered(1, 1, 8, 64)
    }, partial(), 16384),
    Case("batches, one bias", lambda n, s: {
        **attention(1, 1, dim=4, heads=1, kv_heads=1, batch=n)(n, s), "bias": s.centered(1, 1, 1, 1), "dlse": s(n, 1, 1)
    }, partial(), 16384),
    Case("additive, keys", additive(8, None), triple("additive_attention")),
    Case("additive, queries", additive(None, 8), triple("additive_attention")),
    Case("additive, queries, one feature", additive(None, 8, features=1), triple("additive_attention")),
    Case("additive, batches, one feature", additive(2, 3, 1, batch=None), triple("additive_attention"), 16384),
    Case("additive, both", additive(None, None), triple("additive_attention"), 1024),
    Case("multiplicative, keys", multiplicative(8, None), triple("multiplicative_attention", score="general")),
    Case("multiplicative, queries", multiplicative(None, 8), triple("multiplicative_attention", score="general")),
    Case("local, keys", local(8, None), local_call),
    Case("local, queries", local(None, 16), local_call),
    Case("recurrent, keys", recurrent(8, None), triple("recurrent_attention"), 1024),
    Case("recurrent, queries", recurrent(None, 8), triple("recurrent_attention"), 16384),
    Case("graph", graph, triple("graph_attention")),
    Case("segment softmax", lambda n, s: {
        "x": s.centered(n, 4), "dout": s(n, 4), "segments": np.sort(s.rng.integers(0, 2, n))
    }, segment_softmax),
    Case("embedding", lambda n, s: {
        "weight": s(4, 32), "dout": s(n, 32), "indices": s.rng.integers(0, 2, n)
    }, embedding),
    Case("layer norm, rows", norm_rows(None, 64), triple("layer_norm")),
    # NumPy adds the numbers of a single column in pairs.
    Case("layer norm, rows of one", norm_rows(None, 1), triple("layer_norm")),
    Case("layer norm, columns", norm_rows(16, None), triple("layer_norm")),
    Case("RMS norm, rows", without(norm_rows(None, 64), "bias"), triple("rms_norm")),
    Case("RMS norm, rows of one", without(norm_rows(None, 1), "bias"), triple("rms_norm")),
    Case("RMS norm, columns", without(norm_rows(16, None), "bias"), triple("rms_norm")),
    Case("softmax", softmax_rows, triple("softmax")),
    Case("log softmax", softmax_rows, triple("log_softmax")),
    Case("sparsemax", softmax_rows, triple("sparsemax")),
    Case("entmax", softmax_rows, triple("entmax")),
    Case("entmax, flat", lambda n, s: {"x": s.centered(16, n) / 64, "dout": s(16, n)}, triple("entmax")),
    Case("sparsemax, flat", lambda n, s: {"x": s.centered(16, n) / n, "dout": s(16, n)}, triple("sparsemax")),
    Case("cross-entropy, rows", targets(None, 32), lambda **arrays: cross_entropy(**arrays, smoothing=0.1)),
    Case("cross-entropy, classes", targets(16, None), lambda **arrays: cross_entropy(**arrays, smoothing=0.1)),
]  # fmt: skip
