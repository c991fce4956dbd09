"""ONNX Runtime on a model of one node: the operator Attention of ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.bench.peers.peer import Call, Peer, Problem, Unsupported

OPSET, IR_VERSION = 23, 10  # the first opset with Attention, for older versions of ONNX Runtime


def prepare(problem: Problem) -> Call:
    """A session with the problem's number of threads; the model is built beforehand."""
    import onnxruntime

    if not problem.is_attention:
        raise Unsupported("a model is written down for attention only")
    if problem.case.direction != "forward":
        raise Unsupported("no gradients")
    problem.refuse("Attention", "sinks", "dropout_p")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = problem.threads, 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would continue while others are timed
    feeds = _feeds(problem)
    session = onnxruntime.InferenceSession(_model(problem, feeds), options, providers=["CPUExecutionProvider"])
    shrinking = onnxruntime.RunOptions()
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return Call(
        lambda: session.run(None, feeds),
        lambda result: {"out": np.asarray(result[0])},
        forget=lambda: session.run(None, feeds, shrinking),
    )


def _feeds(problem: Problem) -> dict[str, np.ndarray]:
    """The inputs in the operator's order; it takes one mask, boolean or added to the scores."""
    feeds = {name: problem.arrays[name] for name in ("query", "key", "value")}
    mask, bias = None if problem.plainly_causal else problem.mask, problem.arrays.get("bias")
    if bias is not None:
        hidden = bias.dtype.type(-np.inf)
        feeds["attn_mask"] = bias if mask is None else np.where(mask, bias, hidden)
    elif mask is not None:
        feeds["attn_mask"] = mask
    return feeds


def _model(problem: Problem, feeds: dict[str, np.ndarray]) -> bytes:
    from onnx import helper

    def info(name: str, dtype: np.dtype[Any], shape: Any) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)

    options = problem.case.options
    attributes = {name: options[name] for name in ("scale", "softcap") if options.get(name)}
    if problem.plainly_causal:
        attributes["is_causal"] = 1
    node = helper.make_node("Attention", list(feeds), ["out"], **attributes)
    inputs = [info(name, array.dtype, array.shape) for name, array in feeds.items()]
    graph = helper.make_graph([node], "attention", inputs, [info("out", feeds["query"].dtype, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    serialized: bytes = model.SerializeToString()
    return serialized


PEER = Peer(
    "onnxruntime", "ONNX Runtime, operator Attention", prepare, ("onnx", "onnxruntime"), "pip install onnx onnxruntime"
)
