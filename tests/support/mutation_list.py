"""The mutations of `python -m tests.mutations`."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """The replacement of `old` in a file of the package, its effect, and tests of which one must fail."""

    file: str
    old: str
    new: str
    what: str
    tests: str


def forward(function: str) -> str:
    return f"contract/test_contract.py -k 'forward_equals and {function}'"


def backward(function: str) -> str:
    return f"contract/test_contract.py -k 'differences and {function}'"


PROPERTIES = "attention/test_scaled_dot_product_properties.py"
# fmt: off
MUTATIONS = [
    Mutation(
        "attention/engine.py", "dk, dv = dk + grads.key, dv + grads.value", "dk, dv = grads.key, dv + grads.value",
        "the gradient of the keys is that of the last block of queries", PROPERTIES,
    ),
    Mutation(
        "attention/engine.py", "delta = delta - xp.astype(dkept", "delta = delta + xp.astype(dkept",
        "delta adds the cotangent of the lse", backward("partial"),
    ),
    Mutation(
        "attention/engine.py", "dweights = dweights + direct", "pass",
        "the cotangent of the weights is forgotten", "attention/test_attend.py",
    ),
    Mutation(
        "attention/engine.py", "weights = xp.where(factor == 0, 0.0, weights * factor)", "pass",
        "dropout is forgotten in the gradient of the values", backward("scaled_dot_product"),
    ),
    Mutation(
        "attention/normalizers.py", "dmodified = xp.where(weights == 0, 0.0, weights * (dweights - delta[..., None]))",
        "dmodified = xp.where(weights == 0, 0.0, weights * dweights)", "the gradient of the scores lacks delta",
        backward("scaled_dot_product"),
    ),
    Mutation(
        "attention/modifiers.py",
        "return hiding_product(dscores, 1.0 - (capped / modifiers.softcap) ** 2)",
        "return dscores", "the slope of the softcap is missing", backward("scaled_dot_product"),
    ),
    Mutation(
        "attention/modifiers.py", "q_offset=self.q_offset + start", "q_offset=self.q_offset",
        "a block of queries has the positions of the first", PROPERTIES,
    ),
    Mutation(
        "attention/modifiers.py", "(1.0 / (1.0 - dropout.p) if dropout.p < 1 else 0.0)", "1.0",
        "kept weights are not divided by 1 - p", forward("scaled_dot_product"),
    ),
    Mutation(
        "attention/normalizers.py", "else row_sum + xp.exp(sink - row_max)", "else row_sum",
        "the sink is left out of the sum", forward("scaled_dot_product"),
    ),
    Mutation(
        "attention/normalizers.py", "return xp.astype(-xp.sum(", "return xp.astype(xp.sum(",
        "the gradient of the sinks has the wrong sign", backward("scaled_dot_product"),
    ),
    Mutation(
        "attention/products.py", "return xp.where(zero, 0.0, product) if bool(xp.any(zero)) else product",
        "return product", "a weight of zero does not hide NaN", "contract/test_masked_values.py",
    ),
    Mutation(
        "attention/products.py", "reached > 0, math.nan,", "reached < 0, math.nan,",
        "NaN that a weight reaches is hidden, too",
        "attention/test_hard_input.py",
    ),
    Mutation(
        "attention/alignment/additive.py", "weight * (1.0 - hidden**2)", "weight * (1.0 - hidden)",
        "additive: the slope of tanh is 1 - tanh", backward("additive"),
    ),
    Mutation(
        "attention/alignment/recurrent.py", "dkeys = dkeys + part.keys", "dkeys = part.keys",
        "recurrent scores: keys of the last block of queries alone", "attention/test_recurrent.py",
    ),
    Mutation(
        "attention/alignment/location.py", "earlier[-1] + step if given.cumulative else step", "step",
        "location: cumulative weights are those of the step before", backward("location"),
    ),
    Mutation(
        "attention/positional/relative.py", "return dqueries + dposition,", "return dqueries,",
        "relative: the gradient of the queries lacks that through positions", backward("relative"),
    ),
    Mutation(
        "attention/positional/relative.py", "rows - 1 : rows * columns - 1", "rows - 2 : rows * columns - 2",
        "relative: distances are one off", forward("relative"),
    ),
    Mutation(
        "attention/positional/local.py", "(near.distances / sigma**2)", "(near.distances / sigma)",
        "local: the gradient of a center lacks 1 / sigma", backward("local"),
    ),
    Mutation(
        "attention/selection/estimators.py", "p * (logs + entropy)", "p * logs",
        "hard: the gradient of the entropy lacks the entropy", backward("hard"),
    ),
    Mutation(
        "attention/dot_product/partial.py", "change = xp.astype(part.out, wide) - xp.astype(ctx.out, wide)",
        "change = xp.astype(part.out, wide)", "merge: the gradient of a part's lse lacks the merged output",
        backward("merge"),
    ),
    Mutation(
        "attention/dot_product/multi_head.py", "dquery if ctx.has_key else dquery + dkey", "dquery",
        "multi-head: self-attention lacks the gradient through the keys", backward("multi_head"),
    ),
    Mutation(
        "attention/graph/graph_attention.py", "dv = dv + sum_rows(terms", "dv = sum_rows(terms",
        "graph: the gradient of the values is that of the last block of edges", "attention/test_graph.py",
    ),
    Mutation(
        "attention/composed/convolutional.py", "query.x + key.x + layout.canonical(dvalue)", "query.x + key.x",
        "convolutional: the sequence lacks the gradient of the values", backward("convolutional"),
    ),
    Mutation(
        "ops/norm.py", "dx = g - _mean(g)\n", "dx = g + 0.0\n", "layer norm: the gradient lacks the mean",
        backward("layer_norm"),
    ),
    Mutation(
        "ops/norm.py", "dx = g - normal * _mean(g * normal)", "dx = g + 0.0",
        "RMS norm: the gradient lacks the projection", backward("rms_norm"),
    ),
    Mutation(
        "ops/softmax.py", "dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True)", "dy - xp.exp(y) * dy",
        "log softmax: the sum is left out", backward("log_softmax"),
    ),
    Mutation(
        "ops/loss.py", "p *= xp.where(kept, g, 0.0)[:, None]", "p *= g[:, None]",
        "cross-entropy: ignored rows have a gradient", "contract/test_contract.py -k cross_entropy",
    ),
    Mutation(
        "ops/loss.py", "losses -= label_smoothing / x.shape[1]", "losses -= label_smoothing",
        "cross-entropy: smoothing is not divided by the number of classes", forward("cross_entropy"),
    ),
    Mutation(
        "ops/dropout.py", "factor = 1.0 / (1.0 - p) if p < 1 else 0.0", "factor = 1.0",
        "dropout: what is kept is not divided by 1 - p", forward("dropout"),
    ),
    Mutation(
        "ops/lstm_cell.py", "dcell = dc + dh * o * (1.0 - tanh_c * tanh_c)", "dcell = dc + dh * o",
        "LSTM: the slope of the tanh of the cell is missing", backward("lstm"),
    ),
    Mutation(
        "ops/gru.py", "slope_n * r], axis=-1))", "slope_n], axis=-1))",
        "GRU: the reset gate is left out of the gradient of the new state", backward("gru"),
    ),
    Mutation(
        "ops/conv1d.py", "dpadded[:, along.before : along.before + T, :]", "dpadded[:, :T, :]",
        "convolution: the gradient begins in the padding", backward("conv1d"),
    ),
    Mutation(
        "ops/segments.py", "y * (dy - _gather(segment_sum, segments))", "y * dy",
        "softmax of segments: the sum is left out", backward("segment"),
    ),
    Mutation(
        "ops/embedding.py", "scatter_add(rows, flat, size)", "scatter_add(rows[:1], flat[:1], size)",
        "embedding: the gradient is that of the first index", backward("embedding"),
    ),
    Mutation(
        "ops/gelu.py", "(1.0 + 3 * CUBIC * x * x)", "(1.0 + CUBIC * x * x)",
        "GELU by tanh: the slope of the cube lacks its 3", backward("gelu"),
    ),
    Mutation(
        "layers/residual.py", "ResidualGrads(dout + grads.x,", "ResidualGrads(grads.x,",
        "the residual connection has no gradient", "layers/test_block.py",
    ),
    Mutation(
        "layers/feed_forward.py", "bwd(dactive * ctx.active, ctx.gate)", "bwd(dactive, ctx.gate)",
        "gated feed-forward: the gradient of the gate lacks the activation", "layers/test_block.py",
    ),
    Mutation(
        "models/gpt/model.py", 'tree.add(params["token"], own)', "own",
        "tied embeddings: the gradient of what goes in is lost", "models/test_gpt.py",
    ),
    Mutation(
        "models/token_embedding.py", '.bwd(self._scaled(dx), ctx.token)', ".bwd(dx, ctx.token)",
        "the gradient of scaled embeddings is not scaled", "models/test_transformer.py",
    ),
    Mutation(
        "models/seq2seq/model.py", "dropout_bwd(logits.x, ctx.dropout).x, ctx.decoder", "logits.x, ctx.decoder",
        "sequence to sequence: dropout is forgotten in the backward", "models/test_seq2seq.py",
    ),
    Mutation(
        "models/generation/beam.py", "+ np.minimum(parents, width - 1)", "+ 0 * parents",
        "beam search goes on with the cache of the first beam", "models/test_generation.py",
    ),
    Mutation(
        "optim/adam.py", "scale = root / (1 - beta1**step)", "scale = root / (1 - beta1)",
        "Adam: the first moment is corrected as in the first step", "test_optim.py",
    ),
    Mutation(
        "optim/adam.py", "square *= 1 - beta2", "square *= 1 - beta1",
        "Adam: the second moment grows with beta1", "test_optim.py",
    ),
    Mutation(
        "optim/clipping.py", "min(1.0, max_norm * scale / scaled)", "max_norm * scale / scaled",
        "clipping enlarges small gradients", "test_optim.py",
    ),
    Mutation(
        "random.py", "(block & WORD, block >> 32, zero,", "(block & WORD, zero, zero,",
        "the numbers repeat after 2^34", "test_random.py",
    ),
    Mutation(
        "random.py", "own = xp.where(keys & 3 == n, words[n], own)", "own = words[n]",
        "dropout at given keys: one word for all",
        "contract/test_contract.py attention/test_local.py attention/test_local_near.py",
    ),
    Mutation(
        "masks/constraints.py", "bounds.append(j >= i - left)", "bounds.append(j > i - left)",
        "a window is one key shorter on the left", "test_masks.py",
    ),
    Mutation(
        "dispatch.py", "MODE.reset(token)", "pass", "`use_kernels` holds beyond its block", "test_dispatch.py",
    ),
    Mutation(
        "tree.py", "return type(tree)(*items.values())", "return tuple(items.values())",
        "a NamedTuple of arrays becomes a tuple", "test_tree.py",
    ),
    Mutation(
        "checkpoints/state.py", "if _checksum(arrays[name]) != checksum:", "if False:",
        "a damaged array of a state is not noticed", "checkpoints/test_state.py",
    ),
    Mutation(
        "checkpoints/replacing.py", "partial.unlink()", "pass",
        "what killed processes have left stays", "checkpoints/test_replacing.py",
    ),
    Mutation(
        "gradient_check.py", "differences(indices[wrong], SECOND_STEP * step)", "differences(indices[wrong], step)",
        "a kink within the step is no gradient that is right", "test_gradient_check.py test_gradient_check_refusals.py",
    ),
    Mutation(
        "gradient_check.py", "np.abs(analytic[indices] - numeric) / scale",
        "np.abs(np.abs(analytic[indices]) - np.abs(numeric)) / scale",
        "gradients of the wrong sign pass", "test_gradient_check.py",
    ),
    Mutation(
        "kernels/numba/rows/softmax.py", "where(y.equals(0.0), 0.0, y * (dout - row_sum))", "y * (dout - row_sum)",
        "softmax on the CPU: NaN behind a weight of zero", "kernels/numba/test_rows.py -k softmax",
    ),
    Mutation(
        "kernels/numba/rows/loss.py", "target = others + (1.0 - c.smoothing)", "target = 1.0 - c.smoothing",
        "cross-entropy on the CPU: the target lacks its share of the smoothing",
        "kernels/numba/test_rows.py -k cross_entropy",
    ),
    Mutation(
        "kernels/numba/vector/philox.py", "ROUNDS = 10", "ROUNDS = 9",
        "Philox on the CPU has nine rounds", "kernels/numba/test_attention.py -k 'dropped or dropout'",
    ),
    Mutation(
        "kernels/numba/attention/forward.py", "factor = exp(before - shift)", "factor = exp(before - before)",
        "attention on the CPU: sums are not rescaled when the maximum grows",
        "kernels/numba/test_attention.py -k odd_sizes",
    ),
    Mutation(
        "kernels/cuda/sources/softmax.cu", "LOGARITHM ? dy[e] : y[e] * dy[e];", "dy[e];",
        "softmax on a GPU: the sum lacks the weights", "kernels/cuda/test_rows.py -k softmax",
    ),
    Mutation(
        "kernels/cuda/sources/dropout.cu", "mask[i] ? v[e] * factor : Real(0)", "mask[i] ? v[e] : Real(0)",
        "dropout on a GPU: what a mask keeps is not divided by 1 - p", "kernels/cuda/test_rows.py -k drop",
    ),
    Mutation(
        "kernels/cuda/sources/attention_forward.cuh", "row_sum[panel][half] *= rescale[panel][half];", ";",
        "attention on tensor cores: the sum of a row is not rescaled",
        "kernels/cuda/test_attention_tensor_cores.py -k odd_sizes",
    ),
    Mutation(
        "attention/linear/chunks.py", "S = S if r is None else S + chunk(r, n)", "S = S",
        "linear attention: the gradient of the state lacks that through the outputs", backward("linear_attention"),
    ),
    Mutation(
        "attention/linear/chunks.py", "corner = -xp.matmul(second,", "corner = xp.matmul(second,",
        "linear attention: the inverse of the delta rules has a wrong sign", forward("linear_attention"),
    ),
    Mutation(
        "attention/linear/decays.py", "xp.sum(xp.tril(sums_from(through), k=-1), axis=-1, keepdims=True)",
        "xp.sum(sums_from(through), axis=-1, keepdims=True)",
        "linear attention: a decay counts for the pairs before it", backward("linear_attention"),
    ),
    Mutation(
        "attention/linear/linear_attention.py", "sums_before(k_end) + whole * each(through)", "sums_before(k_end)",
        "linear attention: the gradient of the decays lacks that of whole chunks", backward("linear_attention"),
    ),
    Mutation(
        "attention/linear/linear_attention.py", "keepdims=True) * inverse * inverse", "keepdims=True) * inverse",
        "linear attention: the gradient of the denominator is not divided twice", backward("linear_attention"),
    ),
    Mutation(
        "attention/linear/call.py", "return x if call.exists is None else namespace_of(x).where(call.exists, x, 0.0)",
        "return x", "linear attention: steps past the lengths change the state",
        "attention/test_linear_attention.py -k ragged",
    ),
    Mutation(
        "attention/linear/features.py", "xp.matmul(h, w) - y * xp.sum(h, axis=-1, keepdims=True)", "xp.matmul(h, w)",
        "random features: the gradient lacks that of the norm", backward("linear_attention"),
    ),
    Mutation(
        "attention/linear/features.py", "dy = dy - softmax_bwd(", "dy = dy + softmax_bwd(",
        "Hedgehog: the gradient of the negative half has the wrong sign", backward("linear_attention"),
    ),
    Mutation(
        "attention/linear/generalized_delta.py", "sums_after(_each(a_start * da_start",
        "sums_from(_each(a_start * da_start",
        "RWKV-7: what is read is decayed by its own step in the gradient", backward("generalized_delta"),
    ),
    Mutation(
        "attention/linear/step.py", "S = state if decay is None else state * xp.exp(decay).mT", "S = state",
        "a step of linear attention: the state does not decay", "kernels/numba/test_linear.py -k one_step",
    ),
    Mutation(
        "layers/linear_gates.py", "exists = within if exists is None else exists & within", "exists = within",
        "layers of linear attention: of both paddings the right one counts",
        "attention/test_linear_attention.py -k padding",
    ),
    Mutation(
        "kernels/numba/linear/chunk.py", "steps.end[t - 1] = steps.end[t] * steps.each[t]",
        "steps.end[t - 1] = steps.end[t] * steps.each[t - 1]",
        "linear attention on the CPU: decays to the end are one step off", "kernels/numba/test_linear.py -k sizes_and",
    ),
    Mutation(
        "kernels/numba/linear/chunk.py", "part * c.heads * c.steps", "part * c.steps",
        "linear attention on the CPU: gradients of the parts of a head overlap",
        "kernels/numba/test_linear.py -k divided",
    ),
    Mutation(
        "kernels/cuda/sources/linear.cu", "decays == 1 ? 0 : row", "0",
        "linear attention on a GPU: all rows of the state decay alike", "kernels/cuda/test_linear.py",
    ),
]
