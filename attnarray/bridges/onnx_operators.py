"""Operators of ONNX computed by this package, as classes for `onnx.reference.ReferenceEvaluator`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import attnarray
from attnarray.attention.modifiers import modifier_stages
from attnarray.backend import accumulator_dtype
from attnarray.ops.rotary import rotate

try:
    from onnx.helper import tensor_dtype_to_np_dtype
    from onnx.reference.op_run import OpRun
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "attnarray.bridges.onnx needs ONNX, which is not installed: pip install 'attnarray[onnx]'"
    ) from error


class _Operator(OpRun):
    """An operator whose errors are those of this package; onnx hides a TypeError behind one that lists attributes."""

    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        try:
            return self.compute(*inputs, **attributes)[: len(self.onnx_node.output)]
        except TypeError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from error

    def compute(self, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        """All outputs; those that the node does not name are dropped."""
        raise NotImplementedError

    def asks_for(self, n: int) -> bool:
        """Whether the node names its output n."""
        return len(self.onnx_node.output) > n and self.onnx_node.output[n] != ""


class Attention(_Operator):
    """Attention of the opsets 23 to 25: `scaled_dot_product_attention`."""

    def compute(
        self, Q: Any, K: Any, V: Any, attn_mask: Any = None, past_key: Any = None, past_value: Any = None,
        nonpad_kv_seqlen: Any = None, *, is_causal: int = 0, scale: float | None = None, softcap: float | None = 0.0,
        q_num_heads: int | None = None, kv_num_heads: int | None = None, softmax_precision: int | None = None,
        qk_matmul_output_mode: int = 0, left_window_size: int | None = -1, right_window_size: int | None = -1,
    ) -> tuple[Any, ...]:  # fmt: skip
        if (past_key is None) != (past_value is None):
            raise ValueError("`past_key` and `past_value` belong together: give both or none.")
        if past_key is not None and nonpad_kv_seqlen is not None:
            raise ValueError("`nonpad_kv_seqlen` is for keys without a past: leave out `past_key` and `past_value`.")
        flat, dtype = Q.ndim == 3, Q.dtype
        q, k, v = (
            _heads(x, name, count)
            for x, name, count in ((Q, "q_num_heads", q_num_heads), (K, "kv_num_heads", kv_num_heads),
                                   (V, "kv_num_heads", kv_num_heads))
        )  # fmt: skip
        q_offset: Any = 0
        if past_key is not None:
            q_offset = past_key.shape[2]
            k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
        elif nonpad_kv_seqlen is not None:
            q_offset = nonpad_kv_seqlen - q.shape[2]
        present = k, v
        precision = _wide(dtype)
        if softmax_precision is not None and tensor_dtype_to_np_dtype(softmax_precision) == np.float64:
            precision = np.dtype(np.float64)
        if precision != _wide(dtype):  # 16-bit arrays are computed in float32 as they are
            q, k, v = (x.astype(precision) for x in (q, k, v))
        options: dict[str, Any] = {
            "is_causal": bool(is_causal), "scale": scale, "softcap": softcap or None, "q_offset": q_offset,
            "attn_mask": None if attn_mask is None else _padded_mask(attn_mask, k.shape[2], q.dtype),
            "kv_lengths": nonpad_kv_seqlen, "window": _window(left_window_size, right_window_size),
        }  # fmt: skip
        out, ctx = attnarray.scaled_dot_product_attention_fwd(q, k, v, **options)
        weights = None
        if self.asks_for(3) and qk_matmul_output_mode == 3:
            weights = attnarray.attention_weights(ctx).astype(dtype)
        elif self.asks_for(3):
            weights = _scores(ctx, qk_matmul_output_mode).astype(dtype)
        out = out.astype(dtype, copy=False)
        return (_flat(out) if flat else out), *present, weights


def _wide(dtype: Any) -> np.dtype:
    """The dtype in which an array is computed with: float32 for 16 bits."""
    return np.dtype(accumulator_dtype(np, dtype))


def _heads(x: Any, name: str, count: int | None) -> Any:
    """(B, T, H D) -> (B, H, T, D); four axes stay."""
    if x.ndim == 4 and count is None:
        return x
    if x.ndim != 3 or not count or x.shape[2] % count:
        raise ValueError(
            f"The input has shape {x.shape} and `{name}` is {count}, expected (B, T, H * D) with a number of heads "
            "that divides the last axis, or (B, H, T, D) without one."
        )
    return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


def _flat(x: Any) -> Any:
    """(B, H, T, D) -> (B, T, H D)"""
    B, H, T, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * D)


def _padded_mask(mask: Any, keys: int, dtype: Any) -> Any:
    """A mask for all keys: what it is too short for is masked."""
    if mask.dtype != np.bool_:
        mask = mask.astype(dtype)
    if 1 < mask.shape[-1] < keys or (mask.shape[-1] == 1 < keys and mask.ndim == 1):
        rest = np.full((*mask.shape[:-1], keys - mask.shape[-1]), False if mask.dtype == np.bool_ else -np.inf)
        mask = np.concatenate([mask, rest.astype(mask.dtype)], axis=-1)
    return mask


def _window(left: int | None, right: int | None) -> tuple[int | None, int | None] | None:
    sides = [None if size in (None, -1) else size for size in (left, right)]
    return None if sides == [None, None] else (sides[0], sides[1])


def _scores(ctx: Any, mode: int) -> Any:
    """The scores (B, H, T, S) before the softcap (mode 0), after it (1), or with biases and masks (2)."""
    wide, modifiers = _wide(ctx.q.dtype), ctx.modifiers
    k = np.repeat(ctx.k, ctx.q.shape[1] // ctx.k.shape[1], axis=1)
    products = ctx.q.astype(wide, copy=False) @ k.astype(wide, copy=False).swapaxes(-1, -2)
    stages = modifier_stages(products, modifiers if mode else modifiers._replace(softcap=None))
    return stages[-1] if mode == 2 else stages[0]


class LinearAttention(_Operator):
    """LinearAttention of opset 27: `linear_attention`."""

    def compute(
        self, query: Any, key: Any, value: Any, past_state: Any = None, decay: Any = None, beta: Any = None, *,
        q_num_heads: int, kv_num_heads: int, update_rule: Any = "gated_delta", scale: float | None = 0.0,
        chunk_size: int = 64,
    ) -> tuple[Any, ...]:  # fmt: skip
        q = _heads(query, "q_num_heads", q_num_heads)
        k, v = (_heads(x, "kv_num_heads", kv_num_heads) for x in (key, value))
        if decay is not None:
            decay = _heads(decay, "kv_num_heads", kv_num_heads)
            decay = decay[..., 0] if decay.shape[-1] == 1 != q.shape[-1] else decay
        if beta is not None:
            beta = np.broadcast_to(beta.swapaxes(1, 2), k.shape[:3])
        state = past_state if past_state is None else past_state.astype(_wide(q.dtype))
        out, last = attnarray.linear_attention(
            q, k, v, decay=decay, beta=beta, rule=update_rule, scale=scale or None, initial_state=state,
            chunk_size=chunk_size,
        )  # fmt: skip
        return _flat(out), last.astype(query.dtype if past_state is None else past_state.dtype)


class CausalConvWithState(_Operator):
    """CausalConvWithState of opset 27: `causal_conv1d`, with channels before steps."""

    def compute(
        self, input: Any, weight: Any, bias: Any = None, past_state: Any = None, *, activation: str = "none"  # noqa: A002 - the operator's name
    ) -> tuple[Any, ...]:  # fmt: skip
        if input.ndim != 3 or weight.ndim != 3 or weight.shape[1] != 1:
            raise ValueError(
                f"`input` has shape {input.shape} and `weight` {weight.shape}, expected (B, C, T), (C, 1, K)."
            )
        out, state = attnarray.causal_conv1d(
            input.swapaxes(1, 2), weight[:, 0, :], bias,
            initial_state=None if past_state is None else past_state.swapaxes(1, 2),
            activation={"none": None, "swish": "silu"}.get(activation, activation),
        )  # fmt: skip
        return out.swapaxes(1, 2), state.swapaxes(1, 2)


class RotaryEmbedding(_Operator):
    """RotaryEmbedding of opset 23: the rotation of `rotary`, with given cosines and sines."""

    def compute(
        self, X: Any, cos_cache: Any, sin_cache: Any, position_ids: Any = None, *, interleaved: int = 0,
        rotary_embedding_dim: int = 0, num_heads: int = 0,
    ) -> tuple[Any, ...]:  # fmt: skip
        x = _heads(X, "num_heads", num_heads or None) if X.ndim == 3 else X  # (B, H, T, D)
        dims = rotary_embedding_dim or x.shape[-1]
        cos, sin = (
            (table if position_ids is None else table[position_ids])[:, None] for table in (cos_cache, sin_cache)
        )
        if cos.shape != sin.shape or cos.shape[-1] != dims // 2:
            raise ValueError(
                f"`cos_cache` and `sin_cache` have shapes {cos_cache.shape} and {sin_cache.shape}, expected "
                f"{dims // 2} columns: half of the rotated features."
            )
        wide = _wide(X.dtype)
        rotated = rotate(x[..., :dims].astype(wide), cos.astype(wide), sin.astype(wide), bool(interleaved))
        out = np.concatenate([rotated.astype(X.dtype), x[..., dims:]], axis=-1)
        return (_flat(out) if X.ndim == 3 else out,)


class RMSNormalization(_Operator):
    """RMSNormalization of opset 23: `rms_norm` over the axes from `axis` on."""

    def compute(self, X: Any, scale: Any, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Any:
        _check_stash_type(stash_type)
        rows = _rows(X, axis)
        return ((attnarray.rms_norm(rows, eps=epsilon).reshape(X.shape) * scale).astype(X.dtype, copy=False),)


class LayerNormalization(_Operator):
    """LayerNormalization of opset 17: `layer_norm` over the axes from `axis` on."""

    def compute(
        self, X: Any, Scale: Any, B: Any = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
    ) -> tuple[Any, ...]:
        _check_stash_type(stash_type)
        rows = _rows(X, axis)
        out, ctx = attnarray.layer_norm_fwd(rows, eps=epsilon)
        out = out.reshape(X.shape) * Scale
        out = out if B is None else out + B
        reduced = (*X.shape[: axis % X.ndim], *[1] * (X.ndim - axis % X.ndim))
        moments = (x.reshape(reduced).astype(np.float32, copy=False) for x in (ctx.mean, ctx.inverse_deviation))
        return out.astype(X.dtype, copy=False), *moments


def _rows(x: Any, axis: int) -> Any:
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"`axis` is {axis}, expected one of the {x.ndim} axes of the input.")
    return x.reshape(-1, math.prod(x.shape[axis:]))


def _check_stash_type(stash_type: int) -> None:
    if stash_type != 1:
        raise ValueError(f"`stash_type` is {stash_type}, expected 1: 16-bit types are computed in float32.")


class FlexAttention(_Operator):
    """FlexAttention of the preview domain: attention whose scores and weights are changed by graphs."""

    op_domain = "ai.onnx.preview"

    def compute(
        self, Q: Any, K: Any, V: Any, *, scale: float | None = None, score_mod: Any = None, prob_mod: Any = None,
        softmax_precision: int | None = None, attributes: Any = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        if not Q.ndim == K.ndim == V.ndim == 4:
            raise ValueError(f"Q, K and V have shapes {Q.shape}, {K.shape}, {V.shape}, expected four axes each.")
        if score_mod is prob_mod is softmax_precision is None:
            return (attnarray.scaled_dot_product_attention(Q, K, V, scale=scale),)
        wide = _wide(Q.dtype)
        if softmax_precision is not None:
            wide = np.dtype(tensor_dtype_to_np_dtype(softmax_precision))
        group = Q.shape[1] // K.shape[1]
        k, v = (np.repeat(x.astype(wide), group, axis=1) for x in (K, V))
        scores = (Q.astype(wide) @ k.swapaxes(-1, -2)) * wide.type(
            1 / math.sqrt(Q.shape[3]) if scale is None else scale
        )
        weights = attnarray.softmax(_changed(scores, score_mod, attributes))
        return ((_changed(weights, prob_mod, attributes) @ v).astype(V.dtype, copy=False),)


def _changed(x: Any, graph: Any, attributes: Any) -> Any:
    """x (B, H, T, S), changed by a graph of one input and one output."""
    if graph is None:
        return x
    (out,) = graph.run(None, {graph.input_names[0]: x}, attributes=attributes)
    return np.asarray(out, x.dtype)


OPERATORS: list[type[OpRun]] = [
    Attention, CausalConvWithState, FlexAttention, LayerNormalization, LinearAttention, RMSNormalization,
    RotaryEmbedding,
]  # fmt: skip
