"""A BERT for ONNX Runtime, in the fused operators that its own optimizer makes of exported models."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.models import BERT

IR_VERSION, OPSET = 9, 17


class Graph:
    """The nodes and constants of a model, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, results: int = 1, fused: bool = True, **options: Any) -> str:
        """Add a node; return the name of its first result."""
        from onnx import helper

        names = [f"x{len(self.nodes)}_{n}" for n in range(results)]
        domain = "com.microsoft" if fused else ""
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **options))
        return names[0]

    def norm(self, params: Any) -> tuple[str, str]:
        return self.constant(params["weight"]), self.constant(params["bias"])

    def product(self, x: str, params: Any) -> str:
        return self.node("MatMul", x, self.constant(params["weight"].T), fused=False)


def bert_session(model: BERT, params: Any, threads: int) -> Any:
    """A session that takes tokens, types and mask, (B, T) int32 each, and returns states and pooled vectors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(bert_model(model, params), options, providers=["CPUExecutionProvider"])


def bert_model(model: BERT, params: Any) -> bytes:
    """The model, serialized."""
    from onnx import TensorProto, helper

    graph, eps = Graph(), {"epsilon": model.eps}
    tables = [graph.constant(params[name]["weight"]) for name in ("token", "position", "type")]
    norm = graph.norm(params["embedding_norm"])
    x = graph.node("EmbedLayerNormalization", "tokens", "types", *tables, *norm, "mask", results=2, **eps)
    mask = graph.nodes[-1].output[1]
    for block in params["blocks"]:
        attention, feed = block["attention"], block["feed_forward"]
        inputs = [attention[name] for name in ("query", "key", "value")]
        weight, bias = (np.concatenate([each[name].T for each in inputs], axis=-1) for name in ("weight", "bias"))
        y = graph.node("Attention", x, graph.constant(weight), graph.constant(bias), mask, num_heads=model.num_heads)
        y, norm, bias = (
            graph.product(y, attention["out"]),
            graph.norm(block["attention_norm"]),
            attention["out"]["bias"],
        )
        x = graph.node("SkipLayerNormalization", y, x, *norm, graph.constant(bias), **eps)
        hidden = graph.node("BiasGelu", graph.product(x, feed["hidden"]), graph.constant(feed["hidden"]["bias"]))
        y, norm, bias = graph.product(hidden, feed["out"]), graph.norm(block["feed_forward_norm"]), feed["out"]["bias"]
        x = graph.node("SkipLayerNormalization", y, x, *norm, graph.constant(bias), **eps)
    first = graph.node("Gather", x, graph.constant(np.int64(0)), fused=False, axis=1)
    pooler = [graph.constant(params["pooler"][name]) for name in ("weight", "bias")]
    pooled = graph.node("Tanh", graph.node("Gemm", first, *pooler, fused=False, transB=1), fused=False)
    named = {"states": (x, ["B", "T", model.dim]), "pooled": (pooled, ["B", model.dim])}
    graph.nodes += [helper.make_node("Identity", [name], [result]) for result, (name, _) in named.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.INT32, ["B", "T"]) for name in ("tokens", "types", "mask")]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in named.items()]
    made = helper.make_graph(graph.nodes, "bert", given, results, graph.constants)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    serialized: bytes = helper.make_model(made, opset_imports=imports, ir_version=IR_VERSION).SerializeToString()
    return serialized
