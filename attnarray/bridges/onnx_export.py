"""Models as ONNX graphs, with its operators for attention, norms and rotary positions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import attnarray
from attnarray import checks, tree
from attnarray.backend import to_numpy
from attnarray.layers.block import TransformerBlock
from attnarray.layers.checking import check_params
from attnarray.models import BERT, GPT, Encoder
from attnarray.ops.positions import alibi_slopes

OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization


def export(model: Encoder | BERT | GPT, params: Any, *, is_causal: bool = False) -> Any:
    """Return a model and its parameters as an ONNX model of opset 23, for inference.

    All axes of batch and sequence are dynamic. Inputs and outputs have the names that transformers gives them; each
    parameter is an initializer with the name of its path, such as "blocks.0.attention.query.weight".

    Parameters
    ----------
    model : Encoder, BERT or GPT
    params : dict
        Its parameters, of any array library.
    is_causal : bool
        Of an `Encoder`: whether each position attends to earlier ones only.

    Returns
    -------
    onnx.ModelProto
        With these inputs and outputs, integers in int64; `attention_mask` (B, T) is 1 for tokens, 0 for padding.

        - `Encoder`: x (B, T, E), attention_mask -> y (B, T, E)
        - `BERT`: input_ids, attention_mask and, if it has types, token_type_ids (B, T) -> last_hidden_state (B, T, E),
          and with these heads pooler_output (B, E), logits (B, T, V) of masked tokens, and class_logits
        - `GPT`: input_ids, attention_mask -> logits (B, T, V); the padding may be on the left or the right

    Raises
    ------
    TypeError
        If `model` is of another class.
    ValueError
        If the parameters do not fit the model, a GPT or BERT is given with `is_causal`, or the model has linear
        attention or relative positions.

    Notes
    -----
    A model of more than 2 GB is saved by ``onnx.save(model, path, save_as_external_data=True)``.

    Examples
    --------
    >>> import attnarray as aa
    >>> from attnarray.bridges import onnx as bridge
    >>> gpt = aa.models.GPT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> graph = bridge.export(gpt, gpt.init(aa.Philox(0))).graph
    >>> [one.name for one in graph.input], [one.name for one in graph.output]
    (['input_ids', 'attention_mask'], ['logits'])
    """
    writers: dict[type, Any] = {Encoder: _encoder, BERT: _bert, GPT: _gpt}
    if type(model) not in writers:
        raise TypeError(f"`model` is {checks.shown(model)}, expected an Encoder, a BERT or a GPT of attnarray.models.")
    if is_causal and type(model) is not Encoder:
        raise ValueError(f"`is_causal` is for an Encoder: a {type(model).__name__} knows what its tokens attend to.")
    _check_options(model)
    check_params(params, model)
    graph = _Graph(tree.map(to_numpy, params))
    writers[type(model)](graph, model, checks.flag("is_causal", is_causal))
    return graph.model(type(model).__name__)


def _check_options(model: Any) -> None:
    blocks = (model if isinstance(model, Encoder) else model.body).blocks
    named = {block.mixer if isinstance(block.mixer, str) else type(block.mixer).__name__ for block in blocks}
    mixers = sorted(named - {"attention"})
    if mixers:
        raise ValueError(f"`mixers` has {', '.join(mixers)}, expected attention alone: opset {OPSET} has no other.")
    if getattr(model, "relative_buckets", None) is not None:
        raise ValueError("`relative_buckets` is given, but models with relative positions are not exported.")


class _Graph:
    """Nodes and initializers, one after the other; tensors are named by what makes them."""

    def __init__(self, params: Any) -> None:
        self.params = params
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.initializers: dict[str, Any] = {}
        leaf = tree.flatten(params)[0][1]
        self.dtype, self.kind = leaf.dtype, helper.np_dtype_to_tensor_dtype(leaf.dtype)

    def input(self, name: str, kind: Any, *shape: Any) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, x: str, name: str, *shape: Any) -> None:
        self.nodes.append(helper.make_node("Identity", [x], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, self.kind, shape))

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One more node, and the name of its result."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, array: Any, dtype: Any = np.int64, name: str | None = None) -> str:
        array = np.asarray(array, dtype, order="C")
        name = name or f"constant_{array.dtype.name}_{'_'.join(map(str, (*array.shape, *array.flat)))}"
        self.initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def parameter(self, *path: str | int) -> str:
        return self.constant(tree.get(self.params, path), self.dtype, ".".join(map(str, path)))

    def has(self, *path: str | int) -> bool:
        return path[-1] in tree.get(self.params, path[:-1])

    def linear(self, x: str, *path: str | int) -> str:
        """W x + b; the weights stay as they are, and runtimes transpose them once."""
        x = self.add("MatMul", x, self.add("Transpose", self.parameter(*path, "weight"), perm=[1, 0]))
        return self.add("Add", x, self.parameter(*path, "bias")) if self.has(*path, "bias") else x

    def norm(self, x: str, eps: float, *path: str | int) -> str:
        if self.has(*path, "bias"):
            parameters = self.parameter(*path, "weight"), self.parameter(*path, "bias")
            return self.add("LayerNormalization", x, *parameters, axis=-1, epsilon=eps)
        return self.add("RMSNormalization", x, self.parameter(*path, "weight"), axis=-1, epsilon=eps)

    def activate(self, x: str, name: str) -> str:
        if name == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if name in ("relu", "tanh"):
            return self.add(name.capitalize(), x)
        return self.add("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")

    def positions(self, x: str) -> str:
        """0, 1, ... for the second axis of x."""
        count = self.add("Squeeze", self.add("Shape", x, start=1, end=2))
        return self.add("Range", self.constant(0), count, self.constant(1))

    def model(self, name: str) -> Any:
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=10, producer_name="attnarray",
            producer_version=attnarray.__version__,
        )  # fmt: skip


class _Attention:
    """What the attention of all blocks shares: the mask, and the tables of a rotation."""

    def __init__(
        self, graph: _Graph, x: str, block: TransformerBlock, is_causal: bool, bias: str | None = None
    ) -> None:
        self.is_causal, self.block = is_causal, block
        self.rotation: tuple[tuple[str, ...], dict[str, int]] | None = None
        exists = graph.add("Cast", "attention_mask", to=TensorProto.BOOL)
        mask = graph.add("Unsqueeze", exists, graph.constant([1, 2]))  # (B, 1, 1, T)
        # Finite, so that a row whose keys are all masked, as in left padding, gives no NaN.
        lowest = graph.constant(-1e4 if graph.dtype.itemsize == 2 else -1e30, graph.dtype)
        shown = graph.constant(0.0, graph.dtype) if bias is None else bias
        mask = graph.add("Where", mask, shown, lowest)
        batch, length = (graph.add("Shape", x, start=n, end=n + 1) for n in (0, 1))
        heads = graph.constant([1 if bias is None else block.num_heads])
        full = graph.add("Concat", batch, heads, length, length, axis=0)
        self.mask = graph.add("Expand", mask, full)
        if block.rotary is not None:
            self._rotate(graph, x, batch, length)

    def _rotate(self, graph: _Graph, x: str, batch: str, length: str) -> None:
        rotary = self.block.rotary
        assert rotary is not None
        if rotary.depends_on_length or rotary.axial:
            raise ValueError("`model` has `rotary` positions by length or by rows and columns, which is not exported.")
        like = np.zeros((1, self.block.dim // self.block.num_heads))
        rotation = attnarray.rotary_fwd(like, **asdict(rotary))[1].rotation
        frequencies = np.array([rotation.frequencies])
        positions = graph.positions(x)
        column = graph.add("Unsqueeze", graph.add("Cast", positions, to=TensorProto.DOUBLE), graph.constant([1]))
        angles = graph.add("Mul", column, graph.constant(frequencies, np.float64, "rotary.frequencies"))
        tables = [graph.add(kind, angles) for kind in ("Cos", "Sin")]
        if rotation.magnitude != 1.0:
            magnitude = graph.constant([rotation.magnitude], np.float64, "rotary.attention_factor")
            tables = [graph.add("Mul", table, magnitude) for table in tables]
        tables = [graph.add("Cast", table, to=graph.kind) for table in tables]
        ids = graph.add("Expand", positions, graph.add("Concat", batch, length, axis=0))
        self.rotation = (*tables, ids), {
            "interleaved": int(rotation.interleaved), "rotary_embedding_dim": rotation.dims,
        }  # fmt: skip

    def __call__(self, graph: _Graph, x: str, *path: str | int) -> str:
        q, k, v = (graph.linear(x, *path, name) for name in ("query", "key", "value"))
        heads, kv_heads = self.block.num_heads, self.block.num_kv_heads or self.block.num_heads
        if self.rotation is not None:
            inputs, attributes = self.rotation
            q = graph.add("RotaryEmbedding", q, *inputs, num_heads=heads, **attributes)
            k = graph.add("RotaryEmbedding", k, *inputs, num_heads=kv_heads, **attributes)
        out = graph.add(
            "Attention", q, k, v, self.mask, q_num_heads=heads, kv_num_heads=kv_heads, is_causal=int(self.is_causal)
        )
        return graph.linear(out, *path, "out")


def _blocks(graph: _Graph, x: str, encoder: Encoder, attention: _Attention) -> str:
    """The blocks and the final norm."""
    block = encoder.block

    def feed(x: str, *path: str | int) -> str:
        active = graph.activate(graph.linear(x, *path, "hidden"), block.activation)
        if block.gated:
            active = graph.add("Mul", active, graph.linear(x, *path, "gate"))
        return graph.linear(active, *path, "out")

    for n in range(encoder.num_layers):
        n = min(n, len(graph.params["blocks"]) - 1)  # blocks may share their parameters
        for name in ("attention", "feed_forward"):
            own, norm = ("blocks", n, name), ("blocks", n, f"{name}_norm")
            before = graph.norm(x, block.eps, *norm) if block.pre_norm else x
            branch = attention(graph, before, *own) if name == "attention" else feed(before, *own)
            x = graph.add("Add", x, branch)
            x = x if block.pre_norm else graph.norm(x, block.eps, *norm)
    return graph.norm(x, block.eps, "norm") if graph.has("norm") else x


def _encoder(graph: _Graph, model: Encoder, is_causal: bool) -> None:
    x = graph.input("x", graph.kind, "batch", "sequence", model.dim)
    graph.input("attention_mask", TensorProto.INT64, "batch", "sequence")
    y = _blocks(graph, x, model, _Attention(graph, x, model.block, is_causal))
    graph.output(y, "y", "batch", "sequence", model.dim)


def _bert(graph: _Graph, model: BERT, is_causal: bool) -> None:
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.types is not None else [])]
    tokens, _, *types = (graph.input(name, TensorProto.INT64, "batch", "sequence") for name in names)
    x = graph.add("Gather", graph.parameter("token", "weight"), tokens)
    x = graph.add(
        "Add", x, graph.add("Gather", graph.parameter("position", "weight"), _positions(graph, model, tokens))
    )
    for one in types:
        x = graph.add("Add", x, graph.add("Gather", graph.parameter("type", "weight"), one))
    x = graph.norm(x, model.eps, "embedding_norm")
    x = graph.linear(x, "projection") if graph.has("projection") else x
    states = _blocks(graph, x, model.body, _Attention(graph, x, model.body.block, is_causal))
    graph.output(states, "last_hidden_state", "batch", "sequence", model.dim)
    pooled = ""
    if model.pooler:
        first = graph.add("Gather", states, graph.constant(0), axis=1)
        pooled = graph.activate(graph.linear(first, "pooler"), model.pooler_activation)
        graph.output(pooled, "pooler_output", "batch", model.dim)
    if model.mask_head:
        x = graph.activate(graph.linear(states, "mask_head", "dense"), model.activation)
        x = graph.norm(x, model.eps, "mask_head", "norm")
        x = graph.add("Add", graph.linear(x, "token"), graph.parameter("mask_head", "bias"))
        graph.output(x, "logits", "batch", "sequence", model.vocab_size)
    if model.num_labels is not None:
        of_sequences = model.classified == "sequences"
        x = graph.linear(pooled if of_sequences else states, "classifier")
        graph.output(x, "class_logits", "batch", *([] if of_sequences else ["sequence"]), model.num_labels)


def _positions(graph: _Graph, model: BERT, tokens: str) -> str:
    """The rows of the position table: from 0 on, or counted over the tokens that are no padding, as in RoBERTa."""
    if model.padding_token is None:
        return graph.positions(tokens)
    pad = graph.constant(model.padding_token)
    exists = graph.add("Cast", graph.add("Not", graph.add("Equal", tokens, pad)), to=TensorProto.INT64)
    return graph.add("Add", graph.add("Mul", graph.add("CumSum", exists, graph.constant(1)), exists), pad)


def _gpt(graph: _Graph, model: GPT, is_causal: bool) -> None:
    tokens = graph.input("input_ids", TensorProto.INT64, "batch", "sequence")
    mask = graph.input("attention_mask", TensorProto.INT64, "batch", "sequence")
    x, bias = graph.add("Gather", graph.parameter("token", "weight"), tokens), None
    if model.positions == "learned":  # from the first token on, wherever the padding is
        counted = graph.add("CumSum", mask, graph.constant(1))
        positions = graph.add("Sub", counted, graph.constant(1))  # -1, the last one, in left padding
        x = graph.add("Add", x, graph.add("Gather", graph.parameter("position", "weight"), positions))
    if model.positions == "alibi":  # as a bias of each key, which equals that of each distance but for a constant
        slopes = to_numpy(alibi_slopes(model.num_heads)).reshape(-1, 1, 1)
        indices = graph.add("Cast", graph.positions(tokens), to=graph.kind)
        bias = graph.add("Mul", graph.constant(slopes, graph.dtype, "alibi.slopes"), indices)  # (H, 1, T)
    x = _blocks(graph, x, model.body, _Attention(graph, x, model.body.block, True, bias))
    x = graph.linear(x, "token" if model.tie_embeddings else "logits")
    graph.output(x, "logits", "batch", "sequence", model.vocab_size)
