"""Calls that type checkers must refuse, each with the error that mypy must give; run, each raises an error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import attnarray as aa

x: NDArray[np.float64] = np.ones((2, 3))
q: NDArray[np.float64] = np.ones((1, 2, 4, 8))
indices: NDArray[np.int64] = np.array([1, 0])
params: dict[str, Any] = {}
out, ctx = aa.scaled_dot_product_attention_fwd(q, q, q)
_, relu_ctx = aa.relu_fwd(x)
model = aa.models.GPT(vocab_size=9, max_seq_len=8, dim=8, num_layers=1, num_heads=2)

# No arrays.
aa.softmax([1.0, 2.0])  # E: type-var
aa.scaled_dot_product_attention("query", q, q)  # E: type-var
aa.scaled_dot_product_attention(q, q, None)  # E: type-var
aa.softmax(x, mask=[True, False, True])  # E: arg-type
aa.linear(x, 3.0)  # E: type-var
aa.softmax_bwd(1.0, aa.softmax_fwd(x)[1])  # E: arg-type

# Missing, surplus and misspelt arguments.
aa.scaled_dot_product_attention(q, q)  # E: call-arg
aa.scaled_dot_product_attention(q, q, q, is_casual=True)  # E: call-arg
aa.scaled_dot_product_attention_fwd(q, q, q, softcaps=2.0)  # E: call-arg
aa.sparsemax_attention(q, q, q, sinks=q[0, :, 0, 0])  # E: call-arg
aa.softmax(x, -1, x > 0)  # E: call-arg
aa.HardResult(q)  # E: call-arg
aa.models.GPT(vocabulary=9, max_seq_len=8, dim=8, num_layers=1, num_heads=2)  # E: call-arg

# Something else than what is meant.
aa.scaled_dot_product_attention(q, q, q, 3)  # E: arg-type
aa.scaled_dot_product_attention(q, q, q, aa.Causal)  # E: arg-type
aa.scaled_dot_product_attention(q, q, q, window=3)  # E: arg-type
aa.scaled_dot_product_attention(q, q, q, dropout_p=0.5, rng=np.random.default_rng(0))  # E: arg-type
aa.scaled_dot_product_attention_bwd(out, relu_ctx)  # E: arg-type
aa.scaled_dot_product_attention_bwd(out, ctx).weights.sum()  # E: attr-defined
aa.attend(q, q, q, scorer=aa.Softmax())  # E: arg-type
aa.attend(q, q, q, normalizer="softmax")  # E: arg-type
aa.Window("1", 0)  # E: arg-type
aa.softmax(x).softmax()  # E: attr-defined

# Words that there are not.
aa.scaled_dot_product_attention(q, q, q, layout="BHDT")  # E: arg-type
aa.scaled_dot_product_attention_fwd(q, q, q, layout="bhtd")  # E: arg-type
aa.rotary(q, layout="THBD")  # E: arg-type
aa.rotary(q, scaling="cubic")  # E: arg-type
aa.cross_entropy(x, indices, reduction="average")  # E: arg-type
aa.hard_attention(q, q, q, estimator="score_function")  # E: arg-type
aa.local_attention(x, x, x, window=1, alignment="global")  # E: arg-type
aa.multiplicative_attention(x, x, x, score="cosine")  # E: arg-type
aa.graph_attention(q[0], q[0], q[0], q[0, 0], indices[:, None], score="gatv3")  # E: arg-type
aa.conv1d(x, x[:, :, None], padding="full")  # E: arg-type
aa.convolutional_attention(x, x[:, :, None], x[:, :, None], padding="valid")  # E: arg-type
aa.attentional_hidden_state(x, x, x, x, activation="relu")  # E: arg-type
aa.gelu(x, approximate="erf")  # E: arg-type
aa.rnn(x, x, x[:, :2], nonlinearity="sigmoid")  # E: arg-type
aa.layers.FeedForward(3, 5, activation="elu")  # E: arg-type
aa.layers.TransformerBlock(4, 2, 8, norm="batch")  # E: arg-type
aa.layers.HardAttention(3, 3, 2, estimator="soft")  # E: arg-type
aa.layers.LuongAttention(3, 3, score="additive")  # E: arg-type
aa.models.GPT(vocab_size=9, max_seq_len=8, dim=8, num_layers=1, num_heads=2, positions="absolute")  # E: arg-type
aa.models.generate(model, params, indices[None], 2, method="top_p")  # E: arg-type
aa.models.beam_search(model, params, indices[None], 2, early_stopping="always")  # E: arg-type
aa.use_kernels("gpu").__enter__()  # E: arg-type
