"""Uses of attnarray that type checkers must accept, with the types that they must find. It runs, too."""

from __future__ import annotations

from typing import Any, NamedTuple, assert_type

import numpy as np
from numpy.typing import NDArray

import attnarray as aa

x: NDArray[np.float64] = np.ones((2, 3))
q: NDArray[np.float32] = np.ones((1, 2, 4, 8), np.float32)
keep: NDArray[np.bool_] = np.ones((4, 4), np.bool_)
numbers: NDArray[np.int64] = np.array([1, 0])

# Results are arrays of the kind that is given; those of another kind, or of none that is known, are Any.
assert_type(aa.softmax(x), NDArray[np.float64])
assert_type(aa.softmax(q, axis=1, mask=keep[:1, :1]), NDArray[np.float32])
assert_type(aa.linear(x, x, None), NDArray[np.float64])
assert_type(aa.gelu(x, approximate="tanh"), NDArray[np.float64])
assert_type(aa.embedding(numbers, x), NDArray[np.float64])
assert_type(aa.cross_entropy(x, numbers, reduction="sum"), NDArray[np.float64])
assert_type(aa.softmax(aa.asarray([1.0])), Any)
assert_type(aa.to_numpy(aa.asarray([1.0])), np.ndarray)

# Attention: forward, context, backward.
assert_type(aa.scaled_dot_product_attention(q, q, q), NDArray[np.float32])
aa.scaled_dot_product_attention(q, q, q, aa.Causal() & aa.Window(1, None), layout="BTHD")
aa.scaled_dot_product_attention(q, q, q, keep, 0.1, rng=0, kv_lengths=[4], q_offset=np.int64(0))
aa.scaled_dot_product_attention(q, q, q, bias=q[..., :4], window=(2, 0), sinks=q[0, :, 0, 0], softcap=2.0)
out, ctx = aa.scaled_dot_product_attention_fwd(q, q, q, scale=0.5)
assert_type(out, NDArray[np.float32])
assert_type(ctx, "aa.SDPAContext[NDArray[np.float32]]")
assert_type(ctx.lse, NDArray[np.float32])
grads = aa.scaled_dot_product_attention_bwd(out * 2 / 3, ctx, dlse=ctx.lse)
assert_type(grads.query, NDArray[np.float32])
assert_type(grads.bias, NDArray[np.float32] | None)
aa.attention_weights(ctx)[0, 0].sum()
assert_type(aa.attend(q, q, q, scorer=aa.DotProduct(), normalizer=aa.Entmax(1.5)), NDArray[np.float32])
assert_type(aa.merge_partials([aa.attention_partial(q, q, q)]).out, NDArray[np.float32])

# Results of several arrays, which in a cotangent may be None.
chosen, hard_ctx = aa.hard_attention_fwd(q, q, q, estimator="gumbel", rng=aa.Philox(1))
assert_type(chosen.out, NDArray[np.float32])
hard_grads = aa.hard_attention_bwd(aa.HardResult(chosen.out, None, None), hard_ctx)
assert_type(hard_grads, "aa.HardGrads[NDArray[np.float32]]")
assert_type(aa.reinforce_cotangent(chosen, chosen.log_prob), "aa.HardResult[NDArray[np.float32]]")
assert_type(aa.rnn(x, x, np.ones((2, 2)), nonlinearity="relu").out, NDArray[np.float64])


# A score modifier for NumPy alone.
class Distance(NamedTuple):
    slope: NDArray[np.float32]

    def apply(self, scores: np.ndarray, b: Any, h: Any, q_idx: np.ndarray, kv_idx: np.ndarray) -> np.ndarray:
        return scores - self.slope[:, None, None] * abs(q_idx - kv_idx)

    def backward(
        self, dscores: np.ndarray, scores: np.ndarray, b: Any, h: Any, q_idx: np.ndarray, kv_idx: np.ndarray
    ) -> tuple[np.ndarray, Distance]:
        return dscores, Distance(-np.sum(dscores * abs(q_idx - kv_idx), axis=(0, 2, 3)))


assert_type(aa.attend(q, q, q, modifiers=[Distance(q[0, :, 0, 0])]), NDArray[np.float32])

# Layers and models.
layer = aa.layers.FeedForward(3, 5, activation="silu")
params = layer.init(aa.Philox(0), "float64")
assert_type(layer(params, x), NDArray[np.float64])
y, layer_ctx = layer.fwd(params, x)
assert_type(layer.bwd(y, layer_ctx).x, NDArray[np.float64])
model = aa.models.GPT(vocab_size=9, max_seq_len=8, dim=8, num_layers=1, num_heads=2, positions="alibi", norm="rms")
assert_type(model(model.init(aa.Philox(0)), numbers[None]), Any)
aa.models.generate(model, model.init(aa.Philox(0)), numbers[None], 2, method="sample", rng=1)
with aa.use_kernels("reference"):
    aa.explain(aa.softmax, x)
