"""A BERT from the graph that PyTorch, or `export`, wrote of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from attnarray import tree
from attnarray.backend import asarray, dtype_name
from attnarray.layers.feed_forward import Activation
from attnarray.models import BERT

# Nodes that give their first input in another shape, order or dtype.
VIEWS = {"Reshape", "Transpose", "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Dropout"}
# What may be between a matrix product and a softmax, or between the two linear maps of a feed-forward network.
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Where", "Erf", "Tanh", "Pow", "Relu", "Gelu", "Sigmoid", "IsNaN", "Sqrt"}


class Linear(NamedTuple):
    """W x + b in a graph."""

    x: str
    params: dict[str, Any]


def load_bert(model: Any, **fields: Any) -> tuple[BERT, Any]:
    """Return the BERT in an ONNX model, and its parameters, on the current backend.

    The graph is read by its structure, not by names: embeddings, post-norm blocks, and a pooler and a head for masked
    tokens if they are there. Then a small batch runs through the graph, by onnx's own evaluator, and through the model:
    if they differ, the model is refused.

    Parameters
    ----------
    model : onnx.ModelProto or path
        Of opset 17 or newer, such as that of ``torch.onnx.export`` of a BERT of transformers.
    **fields
        Fields of `BERT` that a graph does not say, such as `dropout`.

    Raises
    ------
    ValueError
        If the graph is not that of a BERT: the message says what was found where something else was expected.

    Examples
    --------
    >>> import attnarray as aa
    >>> from attnarray.bridges import onnx as bridge
    >>> bert = aa.models.BERT(vocab_size=50, max_seq_len=16, dim=8, num_layers=2, num_heads=2)
    >>> again, params = bridge.load_bert(bridge.export(bert, bert.init(aa.Philox(0))))
    >>> again.num_layers, again.num_heads, params["pooler"]["weight"].shape
    (2, 2, (8, 8))
    """
    proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    reader = _Reader(proto.graph)
    found, params, states = reader.bert()
    example = _Example(proto, found, [states, reader.attended])
    bert = BERT(**{**found, "num_heads": reader.num_heads or example.num_heads, **fields})
    error = example.error(bert, params)
    if not error < 1e-4:
        raise ValueError(
            f"The graph has the weights of a BERT with {bert.num_heads} heads, but gives other states: they differ "
            f"by {error:.2g} of their size. It is not the graph of a BERT with absolute positions and padding masks."
        )
    return bert, tree.map(lambda leaf: asarray(leaf, dtype=dtype_name(leaf.dtype)), params)


class _Reader:
    """Finds the parts of a BERT in a graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.maker = {name: node for node in graph.node for name in node.output}
        self.arrays = {one.name: one for one in graph.initializer}
        self.inputs = [one.name for one in graph.input if one.name not in self.arrays]
        self.num_heads = 0  # if an attribute says it
        self.attended = ""  # the output of an attention, whose shape says it otherwise

    def bert(self) -> tuple[dict[str, Any], dict[str, Any], str]:
        """The fields, the parameters, and the name of the states in the graph."""
        norms = [node for node in self.graph.node if node.op_type == "LayerNormalization"]
        if not norms:
            raise ValueError(
                "The graph has no LayerNormalization: it is none of a BERT, or of an opset before 17. Export it with "
                "opset 17 or newer."
            )
        fields, params = self._embedding(norms[0])
        blocks: list[dict[str, Any]] = []
        after = norms[0].output[0]
        while len(norms) >= 2 * len(blocks) + 3:
            block, own = self._block(after, *norms[2 * len(blocks) + 1 : 2 * len(blocks) + 3])
            blocks.append(block)
            fields |= own
            after = norms[2 * len(blocks)].output[0]
        if not blocks:
            raise ValueError(f"The graph has {len(norms)} LayerNormalization, expected 3 or more: one block has 2.")
        heads = self._heads(norms[2 * len(blocks) + 1 :], after)
        fields |= {name: name in heads for name in ("pooler", "mask_head")}
        fields |= {"num_layers": len(blocks), "eps": float(f"{_attribute(norms[0], 'epsilon', 1e-5):.6g}")}
        return fields, {**params, "blocks": blocks, **heads}, after

    def _embedding(self, norm: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        gathers = list(self._summands(norm.input[0]))
        tables: dict[str, Any] = {}
        for name in gathers:
            node = self.maker.get(name)
            if node is None or node.op_type != "Gather" or self._array(node.input[0]) is None:
                raise ValueError(f"The first norm has the summand {self._shown(name)}, expected rows of an embedding.")
            source = self._source(node.input[1])
            kind = "position" if source not in self.inputs else "type" if "type" in source else "token"
            tables[kind] = self._array(node.input[0])
        if len(gathers) != 3 or len(tables) != 3:
            raise ValueError(
                f"The first norm has {len(gathers)} summands, {', '.join(sorted(tables))}, expected three embeddings: "
                "of tokens, of positions, and of types, whose indices are an input with 'type' in its name."
            )
        sizes = {"token": "vocab_size", "position": "max_seq_len", "type": "types"}
        fields = {sizes[kind]: len(table) for kind, table in tables.items()} | {"dim": tables["token"].shape[1]}
        return fields, {**{kind: {"weight": x} for kind, x in tables.items()}, "embedding_norm": self._norm(norm)}

    def _block(self, x: str, attention: Any, feed_forward: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        out = self._branch(attention, x)
        q, k, v = (self._linear(self._through(name, VIEWS | {"Mul", "Div"})) for name in self._attention(out.x))
        for name, part in (("queries", q), ("keys", k), ("values", v)):
            if self._source(part.x) != self._source(x):
                raise ValueError(f"The {name} are made of {self._shown(part.x)}, expected the input of the block.")
        last = self._branch(feed_forward, attention.output[0])
        hidden, activation = self._activation(last.x)
        block = {
            "attention": {"query": q.params, "key": k.params, "value": v.params, "out": out.params},
            "attention_norm": self._norm(attention),
            "feed_forward": {"hidden": hidden.params, "out": last.params},
            "feed_forward_norm": self._norm(feed_forward),
        }
        return block, {"hidden_dim": len(hidden.params["bias"]), "activation": activation}

    def _branch(self, norm: Any, x: str) -> Linear:
        """The linear map that is added to x before a norm."""
        summands = list(self._sum(norm.input[0]))
        rest = [name for name in summands if self._source(name) != self._source(x)]
        if len(summands) != 2 or len(rest) != 1:
            raise ValueError(
                f"A norm has the input {self._shown(norm.input[0])}, expected a post-norm residual connection: "
                "the input of the branch plus its output."
            )
        return self._linear(rest[0])

    def _attention(self, out: str) -> tuple[str, str, str]:
        """Queries, keys and values of the attention whose output, in whatever shape, is `out`."""
        node = self.maker.get(self._through(out, VIEWS))
        if node is not None and node.op_type in ("Attention", "MatMul"):
            self.attended, self.num_heads = node.output[0], _attribute(node, "q_num_heads", 0)
        if node is not None and node.op_type == "Attention":
            return node.input[0], node.input[1], node.input[2]
        if node is None or node.op_type != "MatMul":
            raise ValueError(f"The output projection has the input {self._shown(out)}, expected attention.")
        weights = self.maker.get(self._through(node.input[0], VIEWS | {"Where"}, last=True))
        if weights is None or weights.op_type != "Softmax":
            raise ValueError(f"The values are multiplied by {self._shown(node.input[0])}, expected a softmax.")
        products = [one for one in self._before(weights.input[0], ELEMENTWISE | VIEWS) if one.op_type == "MatMul"]
        if len(products) != 1:
            raise ValueError(
                f"The scores come from {len(products)} matrix products, expected that of queries and keys."
            )
        return *products[0].input[:2], node.input[1]

    def _activation(self, x: str) -> tuple[Linear, Activation]:
        """The linear map before an activation, and the name of it."""
        kinds: set[str] = set()
        maps: dict[str, Linear] = {}
        names = [x]
        while names:
            name = names.pop()
            node = self.maker.get(name)
            linear = self._linear(name, strict=False)
            if linear is not None:
                maps[name] = linear
            elif node is not None and node.op_type in ELEMENTWISE | VIEWS:
                kinds.add("GeluTanh" if _attribute(node, "approximate", b"none") == b"tanh" else node.op_type)
                names += node.input
        known: dict[str, Activation] = {
            "Gelu": "gelu", "Erf": "gelu", "GeluTanh": "gelu_tanh", "Tanh": "gelu_tanh", "Relu": "relu",
            "Sigmoid": "silu",
        }  # fmt: skip
        found = {known[kind] for kind in kinds & known.keys()}
        if len(maps) != 1 or len(found) != 1:
            raise ValueError(
                f"{self._shown(x)} comes from {len(maps)} linear maps by {', '.join(sorted(kinds)) or 'nothing'}, "
                "expected one and GELU, ReLU or SiLU."
            )
        return next(iter(maps.values())), found.pop()

    def _heads(self, norms: list[Any], states: str) -> dict[str, Any]:
        heads: dict[str, Any] = {}
        for node in self.graph.node:
            if node.op_type == "Tanh":
                pooler = self._linear(node.input[0], strict=False)
                if pooler is not None and self._source(self._through(pooler.x, {*VIEWS, "Gather", "Slice"})) == states:
                    heads["pooler"] = pooler.params
            logits = self._linear(node.output[0], strict=False) if norms else None
            if logits is not None and self._source(logits.x) == norms[0].output[0]:
                dense, _ = self._activation(norms[0].input[0])
                heads["mask_head"] = {
                    "dense": dense.params,
                    "norm": self._norm(norms[0]),
                    "bias": logits.params["bias"],
                }
        return heads

    def _linear(self, name: str, strict: bool = True) -> Any:
        """The linear map with this result; None without one if not `strict`."""
        node = self.maker.get(self._through(name, {"Identity"}))
        bias, products = None, [node]
        if node is not None and node.op_type == "Add":
            constants = [self._array(one) for one in node.input]
            bias = next((array for array in constants if array is not None), None)
            products = [self.maker.get(one) for one, array in zip(node.input, constants, strict=True) if array is None]
        made = products[0] if len(products) == 1 else None
        if made is not None and made.op_type in ("MatMul", "Gemm"):
            weight = self._array(made.input[1])
            weight = weight if weight is None or _attribute(made, "transB", 0) else weight.T
            bias = self._array(made.input[2]) if len(made.input) == 3 else bias
            if weight is not None and weight.ndim == 2:  # a bias of zeros may have been optimized away
                bias = np.zeros(len(weight), weight.dtype) if bias is None else bias
                return Linear(made.input[0], {"weight": weight, "bias": bias})
        if strict:
            raise ValueError(f"The graph has {self._shown(name)}, expected a linear map with a bias.")
        return None

    def _norm(self, node: Any) -> dict[str, Any]:
        return {"weight": self._array(node.input[1]), "bias": self._array(node.input[2])}

    def _array(self, name: str) -> Any:
        """A constant of the graph, transposed if the graph does; None for what is computed."""
        if name in self.arrays:
            return numpy_helper.to_array(self.arrays[name])
        node = self.maker.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
        if node.op_type in ("Identity", "Transpose"):
            array = self._array(node.input[0])
            return (
                array
                if array is None or node.op_type == "Identity"
                else array.transpose(_attribute(node, "perm", None))
            )
        return None

    def _sum(self, name: str) -> Iterator[str]:
        """Both summands of an addition."""
        node = self.maker.get(self._through(name, {"Identity"}))
        yield from node.input if node is not None and node.op_type == "Add" else (name,)

    def _summands(self, name: str) -> Iterator[str]:
        """All summands of additions of additions."""
        parts = list(self._sum(name))
        for part in parts:
            yield from (part,) if len(parts) == 1 else self._summands(part)

    def _through(self, name: str, kinds: set[str], last: bool = False) -> str:
        """The tensor before nodes of these kinds, by their first input, or by their last one."""
        node = self.maker.get(name)
        while node is not None and node.op_type in kinds:
            name = node.input[-1] if last and node.op_type == "Where" else node.input[0]
            node = self.maker.get(name)
        return name

    def _source(self, name: str) -> str:
        return self._through(name, VIEWS)

    def _before(self, name: str, kinds: set[str]) -> list[Any]:
        """All nodes from which a tensor comes by nodes of these kinds only, and which are of another kind."""
        found, names, seen = [], [name], set()
        while names:
            node = self.maker.get(names.pop())
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type in kinds:
                names += node.input
            else:
                found.append(node)
        return found

    def _shown(self, name: str) -> str:
        node = self.maker.get(name)
        return f"`{name}`" if node is None else f"`{name}` of the node {node.op_type}"


class _Example:
    """A small batch with padding, and what the graph gives for it: the states, and the output of an attention."""

    def __init__(self, proto: Any, fields: dict[str, Any], names: list[str]) -> None:
        rng, length = np.random.default_rng(0), min(fields["max_seq_len"], 7)
        self.lengths = np.array([length, max(1, length - 3)])
        self.tokens, self.types = (rng.integers(fields[name], size=(2, length)) for name in ("vocab_size", "types"))
        self.exists = np.arange(length) < self.lengths[:, None]
        whole = onnx.ModelProto()
        whole.CopyFrom(proto)
        for name in {*names} - {one.name for one in proto.graph.output}:
            whole.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        feeds = {}
        for one in proto.graph.input:
            if one.name not in {x.name for x in proto.graph.initializer}:
                given = self.types if "type" in one.name else self.exists if "mask" in one.name else self.tokens
                feeds[one.name] = given.astype(onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type))
        self.states, attended = ReferenceEvaluator(whole).run(names, feeds)
        self.num_heads = attended.shape[1]  # (B, H, T, D)

    def error(self, bert: BERT, params: Any) -> float:
        """The largest difference of the states, less those of padding, relative to their size."""
        states = bert(params, self.tokens, self.types, lengths=self.lengths).states
        difference = np.abs(np.asarray(states, np.float64) - self.states)[self.exists]
        return float(difference.max() / np.abs(self.states[self.exists]).max())


def _attribute(node: Any, name: str, default: Any) -> Any:
    for one in node.attribute:
        if one.name == name:
            return onnx.helper.get_attribute_value(one)
    return default
