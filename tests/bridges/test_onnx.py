"""ONNX: the node tests of its operators, models read and written, errors."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
onnx = pytest.importorskip("onnx", minversion="1.23")
bridge = pytest.importorskip("attnarray.bridges.onnx")

# What onnx 1.23 has: a test more or less is found by its number.
NODE_TESTS = {
    "Attention": 93, "LinearAttention": 14, "CausalConvWithState": 13, "RotaryEmbedding": 8, "RMSNormalization": 19,
    "LayerNormalization": 19, "FlexAttention": 11,
}  # fmt: skip
# Two units in the last place: the expected numbers were rounded to 16 bits after each step, ours once.
ROUNDING = {"float16": 2.0**-9, "bfloat16": 2.0**-6}


@pytest.fixture(scope="module")
def node_tests() -> Iterator[dict[str, list[Any]]]:
    """ONNX's own node tests, by the operator in them; their expanded forms do not have it."""
    from onnx.backend.test.case.node import collect_testcases

    found: dict[str, list[Any]] = {}
    for case in collect_testcases(None):
        for kind in {node.op_type for node in case.model.graph.node} & NODE_TESTS.keys():
            found.setdefault(kind, []).append(case)
    return found


@pytest.mark.parametrize("kind", NODE_TESTS)
def test_node_tests(node_tests: dict[str, list[Any]], kind: str) -> None:
    assert len(node_tests[kind]) == NODE_TESTS[kind]
    for case in node_tests[kind]:
        evaluator = bridge.evaluator(case.model)
        names = [one.name for one in case.model.graph.input]
        for inputs, outputs in case.data_sets:
            for one, expected in zip(evaluator.run(None, dict(zip(names, inputs, strict=True))), outputs, strict=True):
                assert one.dtype == expected.dtype, case.name
                rtol = max(case.rtol, ROUNDING.get(expected.dtype.name, 0.0))
                wide = (x.astype(np.float64) for x in (one, expected))
                np.testing.assert_allclose(*wide, rtol=rtol, atol=max(case.atol, rtol * 1e-2), err_msg=case.name)


@aa.compiled_modifier
class Softcap(NamedTuple):
    cap: Any  # ()

    def mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.cap[()] * np.tanh(score / self.cap[()])

    def mod_backward(self, dscore: Any, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        tanh = np.tanh(score / self.cap[()])
        slope = 1.0 - tanh * tanh
        return dscore * slope, Softcap(((), dscore * (tanh - slope * score / self.cap[()])))


class ScaledSoftmax(NamedTuple):
    """FlexAttention's prob_mod as a normalizer: the weights of a softmax, times a number."""

    factor: Any  # ()

    def weights(self, scores: Any, rows: slice) -> Any:
        weights, lse = aa.Softmax().weights(scores, rows)
        return self.factor * weights, lse

    def backward(self, dweights: Any, dkept: Any, weights: Any, kept: Any, scores: Any, rows: slice) -> Any:
        plain = weights / self.factor
        dscores, _ = aa.Softmax().backward(self.factor * dweights, None, plain, kept, scores, rows)
        return dscores, ScaledSoftmax(np.asarray(np.sum(dweights * plain)))


def graph_of(name: str, nodes: list[tuple[str, list[str], str]], numbers: dict[str, float]) -> Any:
    """A graph of one input `x` and one output `y`."""
    h, floats = onnx.helper, onnx.TensorProto.DOUBLE
    values = [h.make_tensor_value_info(value, floats, ["B", "H", "L", "S"]) for value in ("x", "y")]
    made = [h.make_node(operator, inputs, [out]) for operator, inputs, out in nodes]
    return h.make_graph(
        made, name, values[:1], values[1:], [h.make_tensor(n, floats, [], [x]) for n, x in numbers.items()]
    )


def test_score_mod_and_prob_mod_are_a_modifier_and_a_normalizer() -> None:
    h, rng = onnx.helper, np.random.default_rng(0)
    shapes = {"Q": (2, 4, 5, 16), "K": (2, 2, 7, 16), "V": (2, 2, 7, 3)}  # onnx's square root of the scale is exact
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    mods = {
        "score_mod": graph_of(
            "cap", [("Div", ["x", "c"], "a"), ("Tanh", ["a"], "b"), ("Mul", ["b", "c"], "y")], {"c": 0.75}
        ),
        "prob_mod": graph_of("scale", [("Mul", ["x", "f"], "y")], {"f": 0.5}),
    }
    node = h.make_node("FlexAttention", list(arrays), ["Y"], domain="ai.onnx.preview", **mods)
    infos = [h.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, x.shape) for n, x in arrays.items()]
    out = h.make_tensor_value_info("Y", onnx.TensorProto.DOUBLE, (2, 4, 5, 3))
    opsets = [h.make_opsetid("", 26), h.make_opsetid("ai.onnx.preview", 1)]
    model = h.make_model(h.make_graph([node], "flex", infos, [out]), opset_imports=opsets)
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, arrays)
    parts: dict[str, Any] = {"modifiers": [Softcap(np.array(0.75))], "normalizer": ScaledSoftmax(np.array(0.5))}
    np.testing.assert_allclose(aa.attend(*arrays.values(), **parts), expected, rtol=0, atol=1e-13)
    assert aa.gradcheck(aa.attend, *arrays.values(), **parts, max_elements=20)


def session(model: Any) -> Any:
    onnx.checker.check_model(model, full_check=True)
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def padding(rng: np.random.Generator, B: int, T: int) -> tuple[Any, Any]:
    """Lengths (B,), at least 1, and what exists (B, T)."""
    lengths = rng.integers(1, T + 1, B)
    return lengths, (np.arange(T) < lengths[:, None]).astype(np.int64)


ENCODERS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"pre_norm": False, "activation": "relu"},
    "as LLaMA": {
        "norm": "rms", "gated": True, "activation": "silu", "num_kv_heads": 2, "bias": False,
        "rotary": aa.Rotary(dims=2, base=500.0, scaling="ntk", factor=2.0),
    },
    "interleaved": {"rotary": aa.Rotary(interleaved=True, scaling="linear", factor=3.0)},
}  # fmt: skip


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_exported_encoder(name: str, is_causal: bool) -> None:
    model = aa.models.Encoder(16, 2, 4, 24, **ENCODERS[name])
    params, rng = model.init(aa.Philox(0)), np.random.default_rng(0)
    written = bridge.export(model, params, is_causal=is_causal)
    runtime, own = session(written), bridge.evaluator(written)
    for B, T in ((2, 7), (1, 1), (3, 5)):  # one graph for all sizes
        x, (lengths, exists) = rng.standard_normal((B, T, 16), np.float32), padding(rng, B, T)
        expected = model(params, x, kv_lengths=lengths, is_causal=is_causal)
        for one in (runtime, own):
            (y,) = one.run(None, {"x": x, "attention_mask": exists})
            np.testing.assert_allclose(y[exists == 1], expected[exists == 1], atol=1e-5)


@pytest.mark.parametrize("heads", [True, False])
def test_an_exported_bert(heads: bool) -> None:
    model = aa.models.BERT(50, 16, 16, 2, 4, 24, pooler=heads, mask_head=heads, activation="gelu_tanh")
    params, rng = model.init(aa.Philox(0)), np.random.default_rng(0)
    runtime = session(bridge.export(model, params))
    tokens, types = rng.integers(50, size=(3, 9)), rng.integers(2, size=(3, 9))
    lengths, exists = padding(rng, 3, 9)
    found = runtime.run(None, {"input_ids": tokens, "attention_mask": exists, "token_type_ids": types})
    states, pooled = model(params, tokens, types, lengths=lengths)
    np.testing.assert_allclose(found[0][exists == 1], states[exists == 1], atol=1e-5)
    assert len(found) == (3 if heads else 1)
    if heads:
        np.testing.assert_allclose(found[1], pooled, atol=1e-5)
        np.testing.assert_allclose(found[2][exists == 1], model.mask_logits(params, states)[exists == 1], atol=1e-5)


RELATIVES: dict[str, dict[str, Any]] = {
    "RoBERTa": {"padding_token": 1, "types": 1, "num_labels": 3, "classified": "tokens"},
    "DistilBERT": {"types": None, "pooler_activation": "relu", "num_labels": 3},
    "ALBERT": {"embedding_dim": 8, "share_blocks": True, "activation": "gelu_tanh"},
}


@pytest.mark.parametrize("name", RELATIVES)
def test_an_exported_relative_of_bert(name: str) -> None:
    model = aa.models.BERT(50, 16, 16, 2, 4, 24, init_std=0.3, **RELATIVES[name])
    params, rng = model.init(aa.Philox(0)), np.random.default_rng(0)
    runtime = session(bridge.export(model, params))
    lengths, exists = padding(rng, 3, 9)
    tokens = np.where(exists == 1, rng.integers(2, 50, size=(3, 9)), 1)
    feeds = {"input_ids": tokens, "attention_mask": exists, "token_type_ids": np.zeros_like(tokens)}
    names = [one.name for one in runtime.get_outputs()]
    found = dict(
        zip(names, runtime.run(None, {one.name: feeds[one.name] for one in runtime.get_inputs()}), strict=True)
    )
    result = model(params, tokens, lengths=lengths)
    expected = {
        "last_hidden_state": result.states,
        "pooler_output": result.pooled,
        "logits": model.mask_logits(params, result.states),
        **({"class_logits": model.class_logits(params, result)} if model.num_labels else {}),
    }
    assert found.keys() == expected.keys()
    for part, array in expected.items():
        rows = exists == 1 if array.ndim == 3 else slice(None)
        np.testing.assert_allclose(found[part][rows], array[rows], atol=1e-5, err_msg=part)


LLAMA = {"norm": "rms", "activation": "silu", "gated": True, "bias": False, "num_kv_heads": 2, "tie_embeddings": False}
GPTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary": {"positions": "rotary", **LLAMA},
    "alibi": {"positions": "alibi"},
    "none": {"positions": "none"},
}


@pytest.mark.parametrize("name", GPTS)
def test_an_exported_gpt_with_padding_on_both_sides(name: str) -> None:
    model = aa.models.GPT(50, 16, 16, 2, 4, init_std=0.3, **GPTS[name])
    params, rng = model.init(aa.Philox(0)), np.random.default_rng(0)
    runtime = session(bridge.export(model, params))
    for B, T in ((3, 9), (1, 2)):
        tokens, (lengths, right) = rng.integers(50, size=(B, T)), padding(rng, B, T)
        left = right[:, ::-1].copy()
        for exists, given in ((right, {"lengths": lengths}), (left, {"starts": T - lengths})):
            (logits,) = runtime.run(None, {"input_ids": tokens, "attention_mask": exists})
            expected = model(params, tokens, **given)
            np.testing.assert_allclose(logits[exists == 1], expected[exists == 1], atol=1e-5)


def test_half_precision_is_exported_as_it_is() -> None:
    model = aa.models.Encoder(16, 1, 4)
    params = model.init(aa.Philox(0), dtype="float16")
    x, exists = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float16), np.ones((2, 5), np.int64)
    (y,) = session(bridge.export(model, params)).run(None, {"x": x, "attention_mask": exists})
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, model(params, x), atol=5e-3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_a_bert_written_and_read(activation: Any) -> None:
    model = aa.models.BERT(50, 16, 16, 3, 4, 24, activation=activation, eps=1e-6, init_std=0.3)
    params = model.init(aa.Philox(0))
    again, read = bridge.load_bert(bridge.export(model, params), init_std=0.3)
    assert again == model
    assert [path for path, _ in aa.tree.flatten(read)] != []
    for path, leaf in aa.tree.flatten(params):
        np.testing.assert_array_equal(aa.tree.get(read, path), leaf)


def torch_bert(attention: str, dim: int = 32) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        num_hidden_layers=2, num_attention_heads=4, hidden_size=dim, intermediate_size=64, vocab_size=100,
        max_position_embeddings=20, attn_implementation=attention, initializer_range=0.3,
    )  # fmt: skip
    bert = transformers.BertForMaskedLM(config).eval()
    for name, parameter in bert.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits

    return Logits().eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_bert_that_pytorch_exported(exporter: str, attention: str, tmp_path: Any) -> None:
    torch, bert = pytest.importorskip("torch"), torch_bert(attention)
    tokens = torch.tensor([[1, 2, 3, 4, 7], [5, 6, 0, 0, 0], [9, 8, 7, 0, 0]])
    exists, types, path = (tokens > 0).long(), (tokens > 3).long(), str(tmp_path / "bert.onnx")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    if exporter == "dynamo":
        pytest.importorskip("onnxscript")
        sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        options: dict[str, Any] = {"dynamo": True, "opset_version": 23, "dynamic_shapes": (sizes,) * 3}
    else:
        axes = {name: {0: "batch", 1: "sequence"} for name in names}
        options = {"dynamo": False, "opset_version": 17, "dynamic_axes": axes}
    torch.onnx.export(bert, (tokens, exists, types), path, input_names=names, **options)
    model, params = bridge.load_bert(path)
    assert (model.num_heads, model.num_layers, model.mask_head, model.activation) == (4, 2, True, "gelu")
    states = model(params, tokens.numpy(), types.numpy(), lengths=exists.numpy().sum(axis=1)).states
    expected = bert(tokens, exists, types).detach().numpy()
    found = model.mask_logits(params, states)
    np.testing.assert_allclose(found[exists.numpy() == 1], expected[exists.numpy() == 1], atol=2e-5)


def changed(change: Any) -> Any:
    """An exported BERT with a change of its graph."""
    model = aa.models.BERT(50, 16, 16, 2, 4, 24, init_std=0.3)
    written = bridge.export(model, model.init(aa.Philox(0)))
    change(written.graph)
    return written


def causal(graph: Any) -> None:
    for node in graph.node:
        for one in node.attribute:
            if one.name == "is_causal":
                one.i = 1


def rename(graph: Any, old: str, new: str, nth: int) -> None:
    [node for node in graph.node if node.op_type == old][nth].op_type = new


REFUSED = {
    "causal": (causal, "gives other states"),
    "no norms": (lambda graph: [rename(graph, "LayerNormalization", "Relu", 0) for _ in range(6)], "no LayerNormal"),
    "another activation": (lambda graph: rename(graph, "Gelu", "Softmax", 0), "expected one and GELU, ReLU or SiLU"),
    "no residual": (lambda graph: rename(graph, "Add", "Mul", 6), "expected"),
    "no attention": (lambda graph: rename(graph, "Attention", "Max", 0), "expected attention"),
    "no embedding": (lambda graph: rename(graph, "Gather", "Mul", 0), "expected rows of an embedding"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_is_none_of_a_bert(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        bridge.load_bert(changed(change))


def one_node(kind: str, shapes: list[tuple[int, ...]], outputs: int = 1, **attributes: Any) -> Any:
    names = [f"x{n}" for n in range(len(shapes))]
    results = [f"y{n}" for n in range(outputs)]
    node = onnx.helper.make_node(kind, names, results, **attributes)
    infos = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in given]
        for given in (names, results)
    ]
    graph = onnx.helper.make_graph([node], "test", *infos)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 27)])
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in zip(names, shapes, strict=True)}
    return bridge.evaluator(model).run(None, feeds)


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes", "message"),
    [
        ("Attention", [(2, 5, 12)] * 3, {}, "`q_num_heads` is None"),
        ("Attention", [(2, 5, 12)] * 3, {"q_num_heads": 5, "kv_num_heads": 5}, "divides the last axis"),
        ("Attention", [(2, 3, 5, 4)] * 3, {"q_num_heads": 3, "kv_num_heads": 3}, "without one"),
        ("Attention", [(2, 3, 5, 4), (2, 3, 5, 6), (2, 3, 5, 4)], {}, "head dim"),
        ("LinearAttention", [(2, 5, 12)] * 3, {"q_num_heads": 3, "kv_num_heads": 3}, "decay"),
        ("CausalConvWithState", [(2, 3, 5), (3, 2, 4)], {}, r"expected \(B, C, T\)"),
        ("RotaryEmbedding", [(2, 3, 5, 8), (2, 5, 3), (2, 5, 3)], {}, "expected 4 columns"),
        ("LayerNormalization", [(2, 3), (3,)], {"axis": 2}, "expected one of the 2 axes"),
        ("RMSNormalization", [(2, 3), (3,)], {"stash_type": 16}, "expected 1"),
    ],
)
def test_what_operators_refuse(kind: str, shapes: Any, attributes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_node(kind, shapes, **attributes)


def test_softcapped_scores_are_not_the_raw_ones() -> None:
    given: Any = [(1, 2, 3, 4)] * 3
    raw, capped = (one_node("Attention", given, 4, softcap=0.5, qk_matmul_output_mode=mode)[3] for mode in (0, 1))
    np.testing.assert_allclose(capped, 0.5 * np.tanh(raw / 0.5), rtol=1e-5)


def test_what_cannot_be_exported() -> None:
    layer = aa.layers.MultiHeadAttention(8, 2)
    with pytest.raises(TypeError, match="expected an Encoder, a BERT or a GPT"):
        bridge.export(layer, layer.init(aa.Philox(0)))
    gpt = aa.models.GPT(50, 16, 8, 1, 2)
    with pytest.raises(ValueError, match="`is_causal` is for an Encoder"):
        bridge.export(gpt, gpt.init(aa.Philox(0)), is_causal=True)
    with pytest.raises(TypeError, match="params"):
        bridge.export(gpt, None)
    for model, said in (
        (aa.models.GPT(50, 16, 8, 1, 2, mixers=("retnet",)), "`mixers` has retnet"),
        (aa.models.GPT(50, 16, 8, 1, 2, mixers=(aa.layers.LinearAttention(8, 2),)), "`mixers` has LinearAttention"),
        (aa.models.BERT(50, 16, 8, 1, 2, relative_buckets=4), "relative positions are not exported"),
    ):
        with pytest.raises(ValueError, match=said):
            bridge.export(model, model.init(aa.Philox(0)))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_recurrence_as_onnx_defines_it(kind: str, direction: str) -> None:
    """Gates in the order z, r, n and i, o, f, g; the reset before the product, and peepholes of i, o and f."""
    importlib.import_module("onnx.reference")
    rng, H = np.random.default_rng(0), 3
    gates, order = {"GRU": (3, (1, 0, 2)), "LSTM": (4, (0, 2, 3, 1))}[kind]  # of ours in theirs
    x = rng.standard_normal((5, 2, 4)).astype("f4")
    weights = [rng.standard_normal((1, gates * H, size)).astype("f4") for size in (4, H)]
    bias, peephole = rng.standard_normal((1, 2 * gates * H)).astype("f4"), rng.standard_normal((1, 3 * H)).astype("f4")
    given = {"X": x, "W": weights[0], "R": weights[1], "B": bias}
    names = ["X", "W", "R", "B", *(["", "", "", "P"] if kind == "LSTM" else [])]
    node = onnx.helper.make_node(kind, names, ["Y"], hidden_size=H, direction=direction)
    (expected,) = onnx.reference.ReferenceEvaluator(node).run(
        None, {**given, **({"P": peephole} if kind == "LSTM" else {})}
    )

    def ours(array: np.ndarray, picked: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([np.split(array, len(picked))[n] for n in picked])

    options: dict[str, Any] = {"reverse": direction == "reverse"}
    options |= {"peephole": ours(peephole[0], (0, 2, 1))} if kind == "LSTM" else {"reset_after": False}
    arrays = [ours(array[0], order) for array in (*weights, bias[:, : gates * H], bias[:, gates * H :])]
    result = getattr(aa, kind.lower())(x.swapaxes(0, 1), *arrays, **options)
    np.testing.assert_allclose(result.out, expected[:, 0].swapaxes(0, 1), atol=1e-6)
