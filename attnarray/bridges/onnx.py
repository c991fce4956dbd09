"""ONNX: its attention operators computed by this package, and models written to it and read from it.

`evaluator(model)` runs a model with `OPERATORS`, this package's Attention, LinearAttention, CausalConvWithState,
RotaryEmbedding, RMSNormalization, LayerNormalization and FlexAttention, in place of those of onnx. `export` writes an
`Encoder`, a `BERT` or a `GPT` as an ONNX model, `load_bert` reads a BERT that PyTorch exported.

Examples
--------
>>> import numpy as np
>>> from onnx import TensorProto, helper
>>> from attnarray.bridges import onnx as bridge
>>> node = helper.make_node("Attention", ["q", "k", "v"], ["out"], is_causal=1)
>>> names = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("q", "k", "v", "out")]
>>> graph = helper.make_graph([node], "example", names[:3], names[3:])
>>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 5, 8), np.float32)
>>> bridge.evaluator(model).run(None, {"q": q, "k": k, "v": v})[0].shape
(1, 2, 5, 8)
"""

from __future__ import annotations

from typing import Any

# The operators come first: their error names the extra.
from attnarray.bridges.onnx_operators import OPERATORS  # isort: split

from onnx.reference import ReferenceEvaluator

from attnarray.bridges.onnx_export import export
from attnarray.bridges.onnx_import import load_bert

__all__ = ["OPERATORS", "evaluator", "export", "load_bert"]


def evaluator(model: Any) -> ReferenceEvaluator:
    """ONNX's evaluator of a model, or of the file of this name, with the operators of this package.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> from attnarray.bridges import onnx as bridge
    >>> encoder = aa.models.Encoder(dim=8, num_layers=1, num_heads=2)
    >>> model = bridge.export(encoder, encoder.init(aa.Philox(0)))
    >>> x, exists = np.ones((1, 3, 8), np.float32), np.ones((1, 3), np.int64)
    >>> bridge.evaluator(model).run(None, {"x": x, "attention_mask": exists})[0].shape
    (1, 3, 8)
    """
    return ReferenceEvaluator(model, new_ops=OPERATORS)
