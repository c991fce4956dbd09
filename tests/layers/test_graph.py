"""The layer of graph attention, and errors of graph attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.layers import GraphAttention
from tests.attention.test_graph import ADJACENCY, EDGES, FEATURES, KEY, QUERY, RNG, VALUE, B, F, H, N
from tests.support.libraries import assert_close
from tests.support.messages import says

LAYERS: dict[str, dict[str, Any]] = {
    "gatv2": {},
    "gatv2, everything": {"edge_dim": 6, "concat": False, "share_weights": True, "residual": True},
    "gatv2, no bias": {"bias": False, "residual": True},
    "gat": {"score": "gat"},
    "gat, everything": {"score": "gat", "edge_dim": 6, "concat": False, "share_weights": False, "residual": True},
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=list(LAYERS))
def test_gradients_of_the_layer(options: dict[str, Any]) -> None:
    layer = GraphAttention(5, F, H, **options)
    params = layer.init(aa.Philox(2), "float64")
    x = RNG.standard_normal((B, N, 5))
    f = RNG.standard_normal((B, EDGES.shape[1], 6)) if "edge_dim" in options else None
    out, ctx = layer.fwd(params, x, EDGES, f, dropout_p=0.2, rng=3)
    assert out.shape == (B, N, H * F if layer.concat else F)
    # A small step: no argument of a LeakyReLU may cross its kink within it.
    report = aa.gradcheck(layer, params, x, EDGES, f, dropout_p=0.2, rng=3, step=1e-5, tolerance=1e-6)
    assert report, str(report)
    names = {f"params.{'.'.join(path)}" for path, _ in tree.flatten(params)} | {"x"}
    assert {check.name for check in report.inputs} == names | ({"edge_features"} if f is not None else set())
    tree.add(layer.bwd(out, ctx).params, params)  # trees of the same structure


@pytest.mark.parametrize("options", LAYERS.values(), ids=list(LAYERS))
def test_the_layer_of_no_nodes(options: dict[str, Any]) -> None:
    layer = GraphAttention(5, F, H, **options)
    params = layer.init(aa.Philox(2))
    f = np.zeros((0, 6), np.float32) if "edge_dim" in options else None
    out, ctx = layer.fwd(params, np.zeros((0, 5), np.float32), np.zeros((2, 0), np.int64), f)
    grads = layer.bwd(out, ctx)
    assert (out.shape[0], grads.x.shape) == (0, (0, 5))
    assert not any(leaf.any() for _, leaf in tree.flatten(grads.params))


def test_the_layer_computes_16_bit_floats_in_32() -> None:
    layer = GraphAttention(5, F, H, residual=True)
    params = layer.init(aa.Philox(2), "float16")
    x = RNG.standard_normal((N, 5)).astype(np.float16)
    out, ctx = layer.fwd(params, x, EDGES)
    exact, exact_ctx = layer.fwd(*tree.map(lambda leaf: leaf.astype(np.float64), (params, x)), EDGES)
    dout = np.ones_like(out)
    for (path, leaf), (_, other) in zip(
        tree.flatten((out, layer.bwd(dout, ctx))),
        tree.flatten((exact, layer.bwd(np.ones_like(exact), exact_ctx))),
        strict=True,
    ):
        assert leaf.dtype == np.float16
        assert_close(leaf, other, 2.0**-10, tree.format_path(path))  # the rounding of the result


ONES = np.ones((H, F))
BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "score": (ValueError, {"score": "dot"}, "`score` is 'dot', expected one of 'gatv2', 'gat'."),
    "source": (ValueError, {"edges": np.add(EDGES, [[N], [0]])}, "`edges[0]` holds 8 at position (0,), expected 0 to"),
    "its range": (ValueError, {"key": KEY[:, :1], "value": VALUE[:, :1]}, "expected 0 to 0 (the nodes of `key`, where"),
    "target": (ValueError, {"query": QUERY[:, :3]}, "expected 0 to 2 (the nodes of `query`, where edges end: 3)"),
    "negative": (ValueError, {"edges": EDGES - 1}, "`edges[0]` holds -1 at position (3,), expected 0 to 6"),
    "transposed": (ValueError, {"edges": EDGES.T}, f"`edges` has shape {EDGES.T.shape}, expected (2, E), the"),
    "pairs": (ValueError, {"edges": EDGES[0]}, "the sources and the targets of the edges."),
    "adjacency": (TypeError, {"edges": ADJACENCY}, "`edges` has dtype bool, expected an integer dtype"),
    "floats": (TypeError, {"edges": EDGES + 0.0}, "`edges` has dtype float64, expected an integer dtype"),
    "a list": (TypeError, {"edges": [[0], [1]]}, "`edges` has type list, expected an array"),
    "axes": (ValueError, {"query": QUERY[0]}, "have 3, 4 and 4 axes; they must have equally many, at least 3: (*batch"),
    "no heads": (ValueError, {"query": ONES, "key": ONES, "value": ONES}, "have 2, 2 and 2 axes"),
    "features": (ValueError, {"key": KEY[..., :3]}, "`key` has shape (2, 7, 3, 3), expected (2, 7, 3, 4): (*batch, M,"),
    "batch": (ValueError, {"key": KEY[:1]}, "`key` has shape (1, 7, 3, 4), expected (2, 7, 3, 4)"),
    "heads": (ValueError, {"value": VALUE[:, :, :2]}, "`value` has shape (2, 7, 2, 5), expected (2, 7, 3, 5): (*batch"),
    "one value": (ValueError, {"value": VALUE[:, :6]}, "expected (2, 7, 3, 5): (*batch, M, H, Fv), one value per key."),
    "vector": (ValueError, {"score_vector": ONES[0]}, "`score_vector` has shape (4,), expected (3, 4): (H, F) for the"),
    "vector of gat": (ValueError, {"score": "gat"}, "expected (3, 8): (H, 2 F) for the score 'gat' without edge f"),
    "vector, edges": (
        ValueError,
        {"score": "gat", "edge_features": FEATURES},
        "expected (3, 12): (H, 3 F) for the score 'gat' with edge features.",
    ),
    "edge features": (ValueError, {"edge_features": FEATURES[:, 1:]}, "(*batch, E, H, F), one row for each edge, with"),
    "slope": (ValueError, {"negative_slope": np.nan}, "`negative_slope` is nan, expected a finite number such as 0.2."),
    "mask": (ValueError, {"edge_mask": ADJACENCY}, "`edge_mask` has shape (7, 7), which does not broadcast to ("),
    "mask of numbers": (TypeError, {"edge_mask": EDGES[0]}, "`edge_mask` has dtype int64, expected bool"),
    "dropout": (ValueError, {"dropout_p": 2}, "`dropout_p` is 2, expected a probability from 0 to 1."),
    "no seed": (ValueError, {"dropout_p": 0.1}, "but neither `rng` nor `dropout_mask` is given. Pass rng="),
    "seed": (ValueError, {"dropout_p": 0.1, "rng": "abc"}, "`rng` is 'abc', expected attnarray.Philox(seed) or a seed"),
    "dropout mask": (
        ValueError,
        {"dropout_p": 0.1, "dropout_mask": ADJACENCY},
        "`dropout_mask` has shape (7, 7), which does not broadcast to (*batch, E, H) = (2, ",
    ),
    "dtype": (TypeError, {"key": KEY.astype("f4")}, "different dtypes: query float64, key float32, value float64"),
    "no value": (TypeError, {"value": None}, "`value` is None, expected an array"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "changes", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input_gets_one_clear_error(error: type[Exception], changes: dict[str, Any], expected: str) -> None:
    given = {"query": QUERY, "key": KEY, "value": VALUE, "score_vector": ONES, "edges": EDGES, **changes}
    says(error, expected, lambda: aa.graph_attention(**given))


def test_the_layer_and_the_backward_say_what_is_wrong() -> None:
    says(ValueError, "`score` is 'dot', expected one of", lambda: GraphAttention(5, F, score="dot"))
    says(ValueError, "`num_heads` is 0, expected an integer", lambda: GraphAttention(5, F, num_heads=0))
    says(TypeError, "`concat` is 'mean', expected True or False", lambda: GraphAttention(5, F, concat="mean"))
    layer, x = GraphAttention(5, F), np.zeros((N, 5), np.float32)
    params = layer.init(aa.Philox(0))
    says(ValueError, "but `edge_dim` of the layer is None; give both", lambda: layer(params, x, EDGES, FEATURES))
    out, ctx = layer.fwd(params, x, EDGES)
    says(ValueError, "`dout` has shape (4,), expected (7, 4)", lambda: layer.bwd(out[0], ctx))
    out, ctx = aa.graph_attention_fwd(QUERY, KEY, VALUE, ONES, EDGES)
    says(ValueError, "`dout` has shape (7, 3, 5), expected (2, 7, 3, 5)", lambda: aa.graph_attention_bwd(out[0], ctx))
    says(TypeError, "expected the GraphContext that the", lambda: aa.graph_attention_bwd(out, out))
