"""attnarray: attention on plain arrays, every mechanism with a hand-derived forward and backward.

A differentiable function `f` is three functions: `f` for inference, `f_fwd`, which takes the same arguments and returns
(out, ctx), and `f_bwd`, which takes (dout, ctx) and returns a NamedTuple of gradients, named as the parameters of `f`.
An output of `f_fwd` that `ctx` holds, too, is a read-only NumPy array, since changing it would change the gradients:
write `out = out + x`, not `out += x`, or work on `out.copy()`. What `f` returns is writable.

`layers` and `models` have the same three as `__call__`, `fwd` and `bwd`, with parameters from `init`; `optim` updates
them, `checkpoints` saves and loads them, `tree` works on them. Docstrings have the formulas, the shapes and examples.

Names are resolved when they are first used: `import attnarray` loads NumPy and nothing else.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module; `__init__.pyi` has the same for type checkers.
_MODULES = {
    "tree": "tree",
    "optim": "optim",
    "layers": "layers",
    "models": "models",
    "checkpoints": "checkpoints",
    "distributed": "distributed",
    "interpret": "interpret",
    "learn": "learn",
    **dict.fromkeys(["namespace_of", "use_backend", "asarray", "to_numpy", "available_backends"], "backend"),
    **dict.fromkeys(["use_kernels", "explain", "warmup"], "dispatch"),
    "gradcheck": "gradient_check",
    "vjp": "triples",
    "Philox": "random",
    **dict.fromkeys(["Causal", "Window", "Padding", "Documents", "Dense", "Mask"], "masks"),
    **dict.fromkeys(["Prefix", "Global", "Strided", "RandomBlocks", "Blocks", "Tree", "Predicate"], "masks"),
    "attention_weights": "attention.weights",
    "DotProduct": "attention.engine",
    **dict.fromkeys(["Softmax", "Sigmoid"], "attention.normalizers"),
    "compiled_modifier": "attention.compiled_modifiers",
    **dict.fromkeys(["KERPLE", "FIRE"], "attention.positional.learned_biases"),
    "CoPE": "attention.positional.contextual",
    "Entmax": "attention.selection.sparse",
    **dict.fromkeys(["Argmax", "TopK"], "attention.selection.estimators"),
    "Rotary": "ops.rotary",
    **dict.fromkeys(["DynamicNTK", "YaRN", "Llama3RoPE", "LongRoPE"], "ops.rotary_scaling"),
    "graph_attention_weights": "attention.graph.edges",
    "add_self_loops": "attention.graph.edges",
    **dict.fromkeys(["sinusoidal", "alibi", "alibi_slopes", "relative_buckets"], "ops.positions"),
    "Partial": "attention.dot_product.partial",
    "HardResult": "attention.selection.hard",
    "reinforce_cotangent": "attention.selection.reinforce",
    "LocationResult": "attention.alignment.location",
    "LinearAttentionResult": "attention.linear.linear_attention",
    "linear_attention_step": "attention.linear.step",
    **dict.fromkeys(["FAVOR", "Hedgehog"], "attention.linear.features"),
    "CausalConv1dResult": "ops.causal_conv1d",
    "RNNResult": "ops.rnn",
    "LSTMResult": "ops.lstm",
    "GRUResult": "ops.gru",
}

# The differentiable functions: each is a triple f, f_fwd, f_bwd in one module.
TRIPLES = {
    "attend": "attention.attend",
    "scaled_dot_product_attention": "attention.dot_product.scaled_dot_product",
    "attention_partial": "attention.dot_product.partial",
    "merge_partials": "attention.dot_product.partial",
    "ragged_attention": "attention.dot_product.ragged",
    "multi_head_attention": "attention.dot_product.multi_head",
    "latent_attention": "attention.dot_product.latent",
    "differential_attention": "attention.composed.differential",
    "forgetting_attention": "attention.positional.forgetting",
    "additive_attention": "attention.alignment.additive",
    "recurrent_attention": "attention.alignment.recurrent",
    "multiplicative_attention": "attention.composed.multiplicative",
    "scaled_attention": "attention.dot_product.scaled",
    "attentional_hidden_state": "attention.composed.attentional_hidden_state",
    "pairwise_attention": "attention.composed.pairwise",
    "din_attention": "attention.composed.din",
    "convolutional_attention": "attention.composed.convolutional",
    "location_attention": "attention.alignment.location",
    "sparsemax_attention": "attention.selection.sparse",
    "entmax_attention": "attention.selection.sparse",
    "sigmoid_attention": "attention.selection.sigmoid",
    "hard_attention": "attention.selection.hard",
    "block_topk_attention": "attention.selection.block_topk",
    "local_attention": "attention.positional.local",
    "graph_attention": "attention.graph.graph_attention",
    "relative_attention": "attention.positional.relative",
    "linear_attention": "attention.linear.linear_attention",
    "generalized_delta_rule": "attention.linear.generalized_delta",
    "neighborhood_attention": "attention.spatial.neighborhood",
    "shifted_window_attention": "attention.spatial.shifted_window",
    "axial_attention": "attention.spatial.axial",
    "deformable_attention": "attention.spatial.deformable",
    "linformer_attention": "attention.approximate.linformer",
    "nystrom_attention": "attention.approximate.nystrom",
    "lsh_attention": "attention.approximate.lsh",
    "softmax": "ops.softmax",
    "log_softmax": "ops.softmax",
    "sparsemax": "ops.sparsemax",
    "entmax": "ops.entmax",
    "linear": "ops.linear",
    "layer_norm": "ops.norm",
    "rms_norm": "ops.norm",
    "relu": "ops.activations",
    "gelu": "ops.gelu",
    "silu": "ops.activations",
    "tanh": "ops.activations",
    "sigmoid": "ops.activations",
    "embedding": "ops.embedding",
    "segment_softmax": "ops.segments",
    "rotary": "ops.rotary",
    "dropout": "ops.dropout",
    "cross_entropy": "ops.loss",
    "conv1d": "ops.conv1d",
    "causal_conv1d": "ops.causal_conv1d",
    "conv2d": "ops.conv2d",
    "max_over_time": "ops.max_over_time",
    "rnn": "ops.rnn",
    "lstm": "ops.lstm",
    "gru": "ops.gru",
}

# The types that `_fwd` and `_bwd` of the triples return: <stem>Context and <stem>Grads -> module.
_STEMS = {
    "SDPA": "attention.dot_product.scaled_dot_product",
    "Merge": "attention.dot_product.partial",
    "Ragged": "attention.dot_product.ragged",
    "MultiHead": "attention.dot_product.multi_head",
    "Latent": "attention.dot_product.latent",
    "Differential": "attention.composed.differential",
    "Forgetting": "attention.positional.forgetting",
    "Additive": "attention.alignment.additive",
    "Recurrent": "attention.alignment.recurrent",
    "Location": "attention.alignment.location",
    "Multiplicative": "attention.composed.multiplicative",
    "Scaled": "attention.dot_product.scaled",
    "AttentionalHiddenState": "attention.composed.attentional_hidden_state",
    "Pairwise": "attention.composed.pairwise",
    "DIN": "attention.composed.din",
    "Convolutional": "attention.composed.convolutional",
    "Sparse": "attention.selection.sparse",
    "SigmoidAttention": "attention.selection.sigmoid",
    "Hard": "attention.selection.hard",
    "BlockTopK": "attention.selection.block_topk",
    "Local": "attention.positional.local",
    "Relative": "attention.positional.relative",
    "Graph": "attention.graph.graph_attention",
    "LinearAttention": "attention.linear.linear_attention",
    "GeneralizedDelta": "attention.linear.generalized_delta",
    "Neighborhood": "attention.spatial.neighborhood",
    "ShiftedWindow": "attention.spatial.shifted_window",
    "Axial": "attention.spatial.axial",
    "Deformable": "attention.spatial.deformable",
    "Linformer": "attention.approximate.linformer",
    "Nystrom": "attention.approximate.nystrom",
    "LSH": "attention.approximate.lsh",
    **dict.fromkeys(["Softmax", "LogSoftmax"], "ops.softmax"),
    "Sparsemax": "ops.sparsemax",
    "Entmax": "ops.entmax",
    "Linear": "ops.linear",
    **dict.fromkeys(["LayerNorm", "RMSNorm"], "ops.norm"),
    **dict.fromkeys(["ReLU", "SiLU", "Tanh", "Sigmoid"], "ops.activations"),
    "GELU": "ops.gelu",
    "Embedding": "ops.embedding",
    "SegmentSoftmax": "ops.segments",
    "Rotary": "ops.rotary",
    "Dropout": "ops.dropout",
    "CrossEntropy": "ops.loss",
    "Conv1d": "ops.conv1d",
    "CausalConv1d": "ops.causal_conv1d",
    "Conv2d": "ops.conv2d",
    "MaxOverTime": "ops.max_over_time",
    "RNN": "ops.rnn",
    "LSTM": "ops.lstm",
    "GRU": "ops.gru",
}
_TYPES = {
    "AttendContext": "attention.attend",
    "AttentionGrads": "attention.engine",
    **{stem + kind: module for stem, module in _STEMS.items() for kind in ("Context", "Grads")},
}

__all__ = sorted([*_MODULES, *_TYPES, *(f + suffix for f in TRIPLES for suffix in ("", "_fwd", "_bwd"))])


def __getattr__(name: str) -> Any:
    stem = name.removesuffix("_fwd").removesuffix("_bwd")
    module = _MODULES.get(name) or _TYPES.get(name) or TRIPLES.get(stem)
    if module is None:
        raise AttributeError(f"module 'attnarray' has no attribute {name!r}")
    loaded = importlib.import_module(f"attnarray.{module}")
    importlib.import_module("attnarray.tree").shorten_reprs()
    value = loaded if name == module else getattr(loaded, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
