"""The map of kernels: reference function -> backend -> "module:kernel". Read by `attnarray.dispatch` alone.

A key is "module:function" below `attnarray`; a kernel is "module:function" below `attnarray.kernels.<backend>`.
A kernel has the signature of its reference. To add one, write it and add its row: dispatch, `attnarray info`,
`attnarray check` and the tests in tests/kernels/test_table.py pick it up from here.
"""

KERNELS: dict[str, dict[str, str]] = {
    "attention.engine:attention": {"numba": "attention.tiled:attention", "cuda": "attention:attention"},
    "attention.engine:attention_backward": {
        "numba": "attention.tiled:attention_backward",
        "cuda": "attention:attention_backward",
    },
    "attention.engine:modified_attention": {"numba": "attention.tiled:attention"},
    "attention.engine:modified_attention_backward": {"numba": "attention.tiled:modified_attention_backward"},
    "attention.products:matmul_16_bit": {"cuda": "products:matmul_16_bit"},
    "attention.normalizers:masked_softmax": {
        "numba": "attention.masked_softmax:masked_softmax",
        "cuda": "masked_softmax:masked_softmax",
    },
    "attention.normalizers:masked_softmax_backward": {
        "numba": "attention.masked_softmax:masked_softmax_backward",
        "cuda": "masked_softmax:masked_softmax_backward",
    },
    "attention.alignment.additive:additive_scores": {
        "numba": "attention.additive:additive_scores",
        "cuda": "additive:additive_scores",
    },
    "attention.alignment.additive:additive_scores_backward": {
        "numba": "attention.additive:additive_scores_backward",
        "cuda": "additive:additive_scores_backward",
    },
    "attention.positional.local:attend_around": {"numba": "attention.local:attend_around"},
    "attention.positional.local:attend_around_backward": {"numba": "attention.local:attend_around_backward"},
    "attention.alignment.recurrent:recurrent_scores": {"numba": "recurrent.scores:recurrent_scores"},
    "attention.alignment.recurrent:recurrent_scores_backward": {"numba": "recurrent.scores:recurrent_scores_backward"},
    "attention.linear.linear_attention:attend_in_chunks": {"numba": "linear.calls:attend_in_chunks"},
    "attention.linear.linear_attention:attend_in_chunks_backward": {"numba": "linear.calls:attend_in_chunks_backward"},
    "attention.linear.chunks:scan_chunks": {"cuda": "linear:scan_chunks"},
    "attention.linear.step:advance": {"numba": "linear.step:advance"},
    "attention.spatial.neighborhood:attend_to_neighbors": {"numba": "spatial.neighborhood:attend_to_neighbors"},
    "attention.spatial.neighborhood:attend_to_neighbors_backward": {
        "numba": "spatial.neighborhood:attend_to_neighbors_backward"
    },
    "attention.spatial.deformable:sample": {"numba": "spatial.deformable:sample"},
    "attention.spatial.deformable:sample_backward": {"numba": "spatial.deformable:sample_backward"},
    "attention.selection.top_k:top_k_indices": {"numba": "rows.selection:top_k_indices"},
    "attention.selection.top_k:choice_mask": {"numba": "rows.selection:index_mask"},
    "attention.graph.graph_attention:gatv2_scores": {"numba": "graph.edges:gatv2_scores"},
    "attention.graph.graph_attention:gatv2_scores_backward": {"numba": "graph.edges:gatv2_scores_backward"},
    "attention.graph.graph_attention:aggregate": {"numba": "graph.edges:aggregate"},
    "attention.graph.graph_attention:aggregate_backward": {"numba": "graph.edges:aggregate_backward"},
    "models.prepared.bert:bert_states": {"numba": "prepared.models:bert_states"},
    "models.prepared.gpt:gpt_logits": {"numba": "prepared.gpt:gpt_logits"},
    "models.prepared.encoder:encoder_states": {"numba": "prepared.models:encoder_states"},
    "ops.softmax:_softmax": {"numba": "rows.softmax:softmax_forward", "cuda": "softmax:softmax_forward"},
    "ops.softmax:_softmax_backward": {"numba": "rows.softmax:softmax_backward", "cuda": "softmax:softmax_backward"},
    "ops.softmax:_log_softmax": {
        "numba": "rows.softmax:log_softmax_forward",
        "cuda": "softmax:log_softmax_forward",
    },
    "ops.softmax:_log_softmax_backward": {
        "numba": "rows.softmax:log_softmax_backward",
        "cuda": "softmax:log_softmax_backward",
    },
    "ops.entmax:_entmax": {"numba": "rows.sparsemax:entmax_forward"},
    "ops.entmax:_entmax_backward": {"numba": "rows.sparsemax:entmax_backward"},
    "ops.norm:_layer_norm": {"numba": "rows.norm:layer_norm_forward", "cuda": "norm:layer_norm_forward"},
    "ops.norm:_layer_norm_backward": {"numba": "rows.norm:layer_norm_backward", "cuda": "norm:layer_norm_backward"},
    "ops.norm:_rms_norm": {"numba": "rows.norm:rms_norm_forward", "cuda": "norm:rms_norm_forward"},
    "ops.norm:_rms_norm_backward": {"numba": "rows.norm:rms_norm_backward", "cuda": "norm:rms_norm_backward"},
    "ops.gelu:_gelu": {"numba": "rows.activations:gelu_forward", "cuda": "activations:gelu_forward"},
    "ops.gelu:_gelu_backward": {"numba": "rows.activations:gelu_backward", "cuda": "activations:gelu_backward"},
    "ops.activations:_relu": {"numba": "rows.activations:relu_forward", "cuda": "activations:relu_forward"},
    "ops.activations:_relu_backward": {"numba": "rows.activations:relu_backward", "cuda": "activations:relu_backward"},
    "ops.activations:_silu": {"numba": "rows.activations:silu_forward", "cuda": "activations:silu_forward"},
    "ops.activations:_silu_backward": {"numba": "rows.activations:silu_backward", "cuda": "activations:silu_backward"},
    "ops.activations:_tanh": {"numba": "rows.activations:tanh_forward", "cuda": "activations:tanh_forward"},
    "ops.activations:_tanh_backward": {"numba": "rows.activations:tanh_backward", "cuda": "activations:tanh_backward"},
    "ops.activations:_sigmoid": {
        "numba": "rows.activations:sigmoid_forward",
        "cuda": "activations:sigmoid_forward",
    },
    "ops.activations:_sigmoid_backward": {
        "numba": "rows.activations:sigmoid_backward",
        "cuda": "activations:sigmoid_backward",
    },
    "ops.correlate:correlate": {"numba": "rows.correlation:correlate"},
    "ops.correlate:correlate_weight_gradient": {"numba": "rows.correlation:correlate_weight_gradient"},
    "ops.lstm:_steps": {"numba": "recurrent.lstm:lstm_steps"},
    "ops.lstm:_steps_backward": {"numba": "recurrent.lstm:lstm_steps_backward"},
    "ops.lstm_cell:lstm_cell": {"numba": "recurrent.lstm_cell:lstm_cell", "cuda": "lstm_cell:lstm_cell"},
    "ops.lstm_cell:lstm_cell_backward": {
        "numba": "recurrent.lstm_cell:lstm_cell_backward",
        "cuda": "lstm_cell:lstm_cell_backward",
    },
    "ops.rotary:_rotary": {"numba": "rows.rotary:rotate"},
    "ops.dropout:_dropout": {"numba": "rows.dropout:drop", "cuda": "dropout:drop"},
    "ops.embedding:_embedding": {"numba": "rows.embedding:embedding_forward"},
    "ops.embedding:_embedding_backward": {
        "numba": "rows.embedding:embedding_backward",
        "cuda": "segments:embedding_backward",
    },
    "ops.segments:_segment_softmax": {
        "numba": "graph.segments:segment_softmax_forward",
        "cuda": "segments:segment_softmax_forward",
    },
    "ops.segments:_segment_softmax_backward": {
        "numba": "graph.segments:segment_softmax_backward",
        "cuda": "segments:segment_softmax_backward",
    },
    "ops.segments:sum_segments": {"numba": "graph.segments:sum_segments", "cuda": "segments:sum_segments"},
    "optim.adam:adam_step": {"numba": "rows.adam:adam_step"},
    "ops.loss:_cross_entropy": {
        "numba": "rows.loss:cross_entropy_forward",
        "cuda": "loss:cross_entropy_forward",
    },
    "ops.loss:_cross_entropy_backward": {
        "numba": "rows.loss:cross_entropy_backward",
        "cuda": "loss:cross_entropy_backward",
    },
}

# Which kernel backend serves the arrays of which library, and what that backend needs.
BACKEND_OF_LIBRARY = {"numpy": "numba", "cupy": "cuda"}

# The modes of `use_kernels` that run the kernels of a backend, where they are others than its own name.
MODES_OF_BACKEND = {"numba": ("compiled", "numba")}
