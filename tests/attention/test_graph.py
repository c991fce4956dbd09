"""Graph attention: equal to the papers' formulas in PyTorch and to dense attention, and other properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.attention import blocks
from attnarray.backend import to_numpy
from attnarray.layers import GraphAttention
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import LIBRARIES, NUMPY, Library, assert_close, assert_trees_close, marks_of
from tests.support.messages import says

# Relative to the largest entry of each array, or to 1 if all are smaller.
TOLERANCE = {"float64": 1e-13, "float32": 1e-5}  # PyTorch's own float32 is off by up to 3e-6 here
ROUNDING = 1e-13  # sums of a few dozen products in another order
REFERENCES = frozen("graph.npz")
SCORES = {"gatv2": 1, "gat": 2}  # and of how many parts the score vector has
each_kernels = pytest.mark.parametrize("kernels", ["reference", "auto"])
each_score = pytest.mark.parametrize("score", SCORES)
each_library = pytest.mark.parametrize(
    "library",
    [pytest.param(library, marks=marks_of(library), id=library.name) for library in (NUMPY, *LIBRARIES)],
)


def params_of(reference: Frozen, arrays: dict[str, Any]) -> dict[str, Any]:
    """The papers' weights as parameters of the layer: the matrix of GATv2 for [h_i; h_j; f], split."""
    W, a = arrays["W"], arrays["a"]
    D = reference.arrays["h"].shape[-1]
    parts = {"source": W}
    if reference.options["score"] == "gatv2":
        parts = {"target": W[..., :D], "source": W[..., D : 2 * D], "edge": W[..., 2 * D :]}
    elif "W_e" in arrays:
        parts["edge"] = arrays["W_e"]
    maps = {name: {"weight": part.reshape(-1, part.shape[-1])} for name, part in parts.items() if part.shape[-1]}
    return {**maps, "score_vector": a, "bias": arrays["b"]}


@each_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reference", REFERENCES.values(), ids=list(REFERENCES))
def test_it_equals_the_papers(reference: Frozen, dtype: str, kernels: str) -> None:
    reference, tolerance = reference.in_dtype(dtype), TOLERANCE[dtype]
    arrays = reference.arrays
    f = arrays.get("f")
    layer = GraphAttention(5, 4, 3, edge_dim=None if f is None else f.shape[-1], **reference.options)
    with aa.use_kernels(kernels):
        out, ctx = layer.fwd(params_of(reference, arrays), arrays["h"], arrays["edges"], f)
        grads = layer.bwd(arrays["dout"], ctx)
    assert_close(out, arrays["out"], tolerance, "out")
    assert_close(grads.x, arrays["grad_h"], tolerance, "h")
    if f is not None:
        assert_close(grads.edge_features, arrays["grad_f"], tolerance, "f")
    expected = params_of(reference, reference.below("grad_"))
    assert_trees_close({name: grads.params[name] for name in expected}, expected, tolerance)
    assert set(grads.params) == set(expected)


RNG = np.random.default_rng(6)
B, N, H, F, Fv = 2, 7, 3, 4, 5
ADJACENCY = RNG.random((N, N)) < 0.4  # [i, j]: an edge from j to i
ADJACENCY[3] = False  # node 3 has no edge, nothing comes from node 5
ADJACENCY[:, 5] = False
EDGES = np.stack(np.nonzero(ADJACENCY)[::-1])  # (2, E)
QUERY, KEY, VALUE = (RNG.standard_normal((B, N, H, width)) for width in (F, F, Fv))
FEATURES = RNG.standard_normal((B, EDGES.shape[1], H, F))


def vector(score: str, edge_features: bool = False) -> np.ndarray:
    parts = 1 if score == "gatv2" else SCORES[score] + edge_features
    return np.random.default_rng(9).standard_normal((H, parts * F))


def pulled(score: str, edges: Any = EDGES, *, nodes: Any = (QUERY, KEY, VALUE), **options: Any) -> tuple[Any, Any]:
    w = vector(score, options.get("edge_features") is not None)
    out, pullback = aa.vjp(aa.graph_attention, *nodes, w, edges, score=score, **options)
    return out, pullback(np.random.default_rng(1).standard_normal(out.shape))


@each_kernels
def test_gatv2_is_dense_additive_attention_with_the_adjacency_as_mask(kernels: str) -> None:
    """LeakyReLU(z) = 0.6 z + 0.4 |z| in place of tanh, written out for all pairs; the graph as a mask of softmax."""
    w = vector("gatv2")
    with aa.use_kernels(kernels):
        out, grads = pulled("gatv2")
    hidden = QUERY[:, :, None] + KEY[:, None]  # (B, N, N, H, F)
    scores = np.sum(np.where(hidden > 0, hidden, 0.2 * hidden) * w, axis=-1)  # (B, N, N, H)
    weights, of_softmax = aa.vjp(aa.softmax, np.moveaxis(scores, -1, 1), mask=ADJACENCY)  # (B, H, N, N)
    value = np.moveaxis(VALUE, 2, 1)
    assert_close(out, np.moveaxis(weights @ value, 1, 2), ROUNDING)
    dout = np.moveaxis(np.random.default_rng(1).standard_normal(out.shape), 2, 1)
    assert_close(grads.value, np.moveaxis(np.swapaxes(weights, 2, 3) @ dout, 1, 2), ROUNDING)
    dscores = np.moveaxis(of_softmax(dout @ np.swapaxes(value, 2, 3)).x, 1, -1)[..., None]  # (B, N, N, H, 1)
    dhidden = dscores * w * np.where(hidden > 0, 1.0, 0.2)
    assert_close(grads.query, dhidden.sum(2), ROUNDING)
    assert_close(grads.key, dhidden.sum(1), ROUNDING)
    assert_close(grads.score_vector, (dscores * np.where(hidden > 0, hidden, 0.2 * hidden)).sum((0, 1, 2)), ROUNDING)


@each_kernels
def test_gat_is_dense_attention_with_the_adjacency_as_mask(kernels: str) -> None:
    """The scores as a bias of dot-product attention whose queries are 0, and the graph as its mask."""
    w = vector("gat")
    with aa.use_kernels(kernels):
        out, grads = pulled("gat")
    of_query, of_key = (np.moveaxis((x * part).sum(-1), -1, 1) for x, part in ((QUERY, w[:, :F]), (KEY, w[:, F:])))
    z = of_query[..., :, None] + of_key[..., None, :]  # (B, H, N, N)
    value = np.moveaxis(VALUE, 2, 1)
    expected, pullback = aa.vjp(
        aa.scaled_dot_product_attention, np.zeros((B, H, N, 1)), np.zeros((B, H, N, 1)), value, ADJACENCY,
        bias=np.where(z > 0, z, 0.2 * z),
    )  # fmt: skip
    assert_close(out, np.moveaxis(expected, 1, 2), ROUNDING)
    dense = pullback(np.moveaxis(np.random.default_rng(1).standard_normal(out.shape), 2, 1))
    dz = dense.bias * np.where(z > 0, 1.0, 0.2)
    assert_close(grads.value, np.moveaxis(dense.value, 1, 2), ROUNDING)
    assert_close(grads.query, np.moveaxis(dz.sum(-1), 1, -1)[..., None] * w[:, :F], ROUNDING)
    assert_close(grads.key, np.moveaxis(dz.sum(-2), 1, -1)[..., None] * w[:, F:], ROUNDING)
    both = [np.einsum("bhn,bnhf->hf", d, x) for d, x in ((dz.sum(-1), QUERY), (dz.sum(-2), KEY))]
    assert_close(grads.score_vector, np.concatenate(both, axis=-1), ROUNDING)


@each_kernels
@each_score
def test_isolated_nodes_give_zeros_and_do_not_matter(score: str, kernels: str) -> None:
    with aa.use_kernels(kernels):
        out, grads = pulled(score)
        assert not out[:, 3].any()
        assert out[:, :3].all()
        assert not grads.query[:, 3].any()
        assert not grads.key[:, 5].any()
        assert not grads.value[:, 5].any()
        query, key, value = QUERY.copy(), KEY.copy(), VALUE.copy()
        query[:, 3], key[:, 5], value[:, 5] = np.nan, np.inf, np.nan
        assert_trees_close(pulled(score, nodes=(query, key, value)), (out, grads), 0)


@each_library
@each_score
def test_masked_edges_are_ignored(score: str, library: Library) -> None:
    """Results equal those without them; sources of masked edges only may be NaN."""
    mask = np.random.default_rng(3).random(EDGES.shape[1]) < 0.6
    mask[EDGES[0] == 4] = False
    mask[EDGES[1] == 1] = False
    key, value, query, f = KEY.copy(), VALUE.copy(), QUERY.copy(), FEATURES.copy()
    key[:, 4], value[:, 4], query[:, 1], f[:, ~mask] = np.nan, np.inf, np.nan, np.nan
    w, dout = vector(score, True), np.random.default_rng(1).standard_normal((B, N, H, Fv))
    results = []
    for edges, features, option in ((EDGES[:, mask], f[:, mask], {}), (EDGES, f, {"edge_mask": library.array(mask)})):
        given = [library.array(x) for x in (query, key, value, w, edges, features)]
        out, ctx = aa.graph_attention_fwd(*given, score=score, **option)
        results.append([out, *aa.graph_attention_bwd(library.array(dout), ctx)])
    few, all_of_them = results
    assert not to_numpy(all_of_them[-1])[:, ~mask].any()
    all_of_them[-1] = to_numpy(all_of_them[-1])[:, mask]
    for found, expected in zip(all_of_them, few, strict=True):
        assert np.all(np.isfinite(to_numpy(expected)))
        assert_close(found, expected, ROUNDING)


@each_kernels
@each_score
def test_permuted_edges_give_the_same(score: str, kernels: str) -> None:
    order = RNG.permutation(EDGES.shape[1])
    with aa.use_kernels(kernels):
        out, grads = pulled(score, edge_features=FEATURES)
        other, of_others = pulled(score, EDGES[:, order], edge_features=FEATURES[:, order])
    assert_close(other, out, ROUNDING)
    expected = grads._replace(edge_features=grads.edge_features[:, order])
    assert_trees_close(of_others, expected, ROUNDING)


@each_score
def test_permuted_nodes_are_permuted_results(score: str) -> None:
    order = RNG.permutation(N)
    out, _ = pulled(score)
    renamed = np.argsort(order)[EDGES]  # node order[n] is now called n
    permuted, _ = pulled(score, renamed, nodes=[x[:, order] for x in (QUERY, KEY, VALUE)])
    assert_close(permuted, out[:, order], ROUNDING)


@each_score
def test_an_edge_given_twice_counts_twice(score: str) -> None:
    nodes = (QUERY, KEY, VALUE)
    edges = np.array([[0, 1], [2, 2]])
    w = vector(score)
    _, ctx = aa.graph_attention_fwd(*nodes, w, edges, score=score)
    out, twice = aa.graph_attention_fwd(*nodes, w, np.concatenate([edges, edges[:, :1]], axis=1), score=score)
    p = aa.graph_attention_weights(ctx)[:, 0]  # (B, H)
    doubled = 2 * p / (1 + p)
    assert_close(aa.graph_attention_weights(twice)[:, [0, 2]], np.stack([doubled / 2] * 2, 1), ROUNDING)
    expected = doubled[..., None] * VALUE[:, 0] + (1 - doubled)[..., None] * VALUE[:, 1]
    assert_close(out[:, 2], expected, ROUNDING)


@each_library
@each_score
def test_no_edges_give_zeros(score: str, library: Library) -> None:
    nodes = [library.array(x) for x in (QUERY, KEY, VALUE, vector(score))]
    out, ctx = aa.graph_attention_fwd(*nodes, library.array(np.zeros((2, 0), np.int64)), score=score)
    assert not to_numpy(out).any()
    for grad, given in zip(aa.graph_attention_bwd(out, ctx)[:4], nodes, strict=True):
        assert tuple(grad.shape) == tuple(given.shape)
        assert not to_numpy(grad).any()
    assert tuple(aa.graph_attention_weights(ctx).shape) == (B, 0, H)


@each_library
@each_score
@pytest.mark.parametrize("shape", [(0, N), (B, 0), (0, 0)], ids=str)
def test_empty_graphs_and_batches(score: str, shape: tuple[int, int], library: Library) -> None:
    nodes = [library.array(np.zeros((*shape, H, width))) for width in (F, F, Fv)]
    edges = library.array(EDGES if shape[1] else np.zeros((2, 0), np.int64))
    out, ctx = aa.graph_attention_fwd(*nodes, library.array(vector(score)), edges, score=score)
    assert tuple(out.shape) == (*shape, H, Fv)
    assert tuple(aa.graph_attention_bwd(out, ctx).query.shape) == (*shape, H, F)


@each_score
def test_more_sources_than_targets(score: str) -> None:
    edges = np.array([[8, 0, 4], [0, 1, 1]])
    key, value = RNG.standard_normal((B, 9, H, F)), RNG.standard_normal((B, 9, H, Fv))
    out, _ = pulled(score, edges, nodes=(QUERY[:, :2], key, value))
    assert out.shape == (B, 2, H, Fv)
    assert_close(out[:, 0], value[:, 8], 0)


@each_score
def test_several_graphs_are_one_of_several_parts(score: str) -> None:
    other = EDGES[::-1]
    joined = np.concatenate([EDGES, other + N], axis=1)
    nodes = [x.reshape(1, B * N, *x.shape[2:]) for x in (QUERY, KEY, VALUE)]
    out, _ = pulled(score, joined, nodes=nodes)
    for b, edges in enumerate((EDGES, other)):
        expected, _ = pulled(score, edges, nodes=[x[b] for x in (QUERY, KEY, VALUE)])
        assert_close(out[0, b * N : (b + 1) * N], expected, ROUNDING)


@each_kernels
@each_score
def test_blocks_of_edges_give_the_same(score: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks.BLOCK_ELEMENTS > 5 * B * H * F
    with aa.use_kernels(kernels):
        expected = pulled(score, edge_features=FEATURES)
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 5 * B * H * F)
        assert_trees_close(pulled(score, edge_features=FEATURES), expected, ROUNDING)


def test_the_context_holds_nothing_of_the_size_of_the_hidden_layer() -> None:
    edges = RNG.integers(0, 50, (2, 4000))
    nodes = RNG.standard_normal((50, 4, 32))
    _, ctx = aa.graph_attention_fwd(nodes, nodes, nodes, np.ones((4, 32)), edges)
    assert tree.nbytes(ctx) < 4000 * 4 * 32 * 8 / 2


@each_score
def test_dropout_by_a_seed_is_that_of_its_mask(score: str) -> None:
    count = EDGES.shape[1]
    keep = aa.dropout(np.ones((B, count, H)), 0.4, rng=7) > 0
    by_seed = pulled(score, dropout_p=0.4, rng=7)
    assert_trees_close(by_seed, pulled(score, dropout_p=0.4, dropout_mask=keep), 0)
    assert np.max(np.abs(by_seed[0] - pulled(score)[0])) > 0.1


@each_score
def test_weights_sum_to_one_over_the_edges_of_a_node(score: str) -> None:
    _, ctx = aa.graph_attention_fwd(QUERY, KEY, VALUE, vector(score), EDGES, score=score)
    weights = aa.graph_attention_weights(ctx)
    for node in range(N):
        there = EDGES[1] == node
        assert_close(weights[:, there].sum(1), np.full((B, H), float(there.any())), ROUNDING)
    layer = GraphAttention(F, 2, score=score)
    _, ctx = layer.fwd(layer.init(aa.Philox(0), "float64"), QUERY[:, :, 0], EDGES)
    assert aa.graph_attention_weights(ctx).shape == (B, EDGES.shape[1], 1)
    says(TypeError, "whose weights belong to edges and not to pairs of", lambda: aa.attention_weights(ctx))
    says(TypeError, "expected the GraphContext that the forward", lambda: aa.graph_attention_weights(weights))


def test_self_loops_follow_the_edges() -> None:
    edges = np.array([[0, 2, 1], [1, 1, 1]], np.int32)
    looped = aa.add_self_loops(edges, 3)
    np.testing.assert_array_equal(looped, [[0, 2, 1, 0, 1, 2], [1, 1, 1, 0, 1, 2]])
    assert looped.dtype == np.int64  # which holds any number of nodes
    says(ValueError, "`edges` has shape (3,), expected (2, E), the", lambda: aa.add_self_loops(edges[0], 3))
    says(ValueError, "`nodes` is -1, expected an integer >= 0", lambda: aa.add_self_loops(edges, -1))
    says(TypeError, "`edges` has dtype float64, expected an integer", lambda: aa.add_self_loops(edges + 0.0, 3))


@each_kernels
@each_score
def test_a_cotangent_of_the_weights_has_the_gradient_of_their_sum(score: str, kernels: str) -> None:
    given = (QUERY, KEY, VALUE, np.random.default_rng(3).standard_normal((H, SCORES[score] * F)), EDGES)
    options: dict[str, Any] = {"score": score, "dropout_p": 0.3, "rng": 2}
    with aa.use_kernels(kernels):
        out, ctx = aa.graph_attention_fwd(*given, **options)
        dweights = RNG.standard_normal(aa.graph_attention_weights(ctx).shape)
        found = aa.graph_attention_bwd(np.zeros_like(out), ctx, dweights).query
        for index in [(0, 1, 0, 2), (1, 3, 1, 0)]:
            step = np.zeros_like(QUERY)
            step[index] = 1e-5  # central differences are good to about 1e-10
            sums = [
                np.sum(dweights * aa.graph_attention_weights(aa.graph_attention_fwd(q, *given[1:], **options)[1]))
                for q in (QUERY + step, QUERY - step)
            ]
            assert abs(found[index] - (sums[0] - sums[1]) / 2e-5) < 1e-8


def test_a_cotangent_of_the_weights_of_another_shape_is_refused() -> None:
    out, ctx = aa.graph_attention_fwd(QUERY, KEY, VALUE, np.ones((H, F)), EDGES)
    with pytest.raises(ValueError, match="`dweights` has shape"):
        aa.graph_attention_bwd(out, ctx, np.ones((1, 2)))
