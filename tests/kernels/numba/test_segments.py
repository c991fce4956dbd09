"""Kernels of segments and of graph attention against their references: many parts, sizes, NaN, strides, threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.attention.graph import graph_attention as mechanism
from attnarray.kernels import Declined
from attnarray.kernels.numba.graph import edges as graph
from attnarray.kernels.numba.graph import segments as row_segments
from attnarray.kernels.numba.runtime import threads
from attnarray.ops.segments import sum_segments
from tests.support.guarded_memory import before_a_guard, behind_a_guard, new_arrays
from tests.support.libraries import EPS, assert_close

DTYPES = ["float32", "float64"]
# B, E, H, count: one part and several, segments longer and shorter than vectors and chunks, and many empty ones.
SEGMENTS = [(1, 40000, 1, 3000), (1, 40000, 1, 7), (2, 9000, 3, 500), (1, 6000, 8, 20000), (3, 5000, 33, 40)]
# B, targets, sources, E, H, F, Fv: below, at and above whole vectors, heads whose features are summed as vectors.
GRAPHS = [
    (1, 1, 1, 1, 1, 1, 1), (2, 5, 4, 30, 3, 7, 6), (1, 30, 30, 400, 8, 8, 8), (2, 9, 11, 70, 2, 32, 33),
    (1, 40, 6, 130, 1, 100, 64), (3, 4, 4, 0, 2, 3, 5), (0, 4, 4, 9, 2, 3, 5), (2, 3, 5, 9, 0, 3, 5),
    (2, 3, 5, 9, 4, 0, 0),
]  # fmt: skip


def segments_of(sizes: tuple[int, ...], dtype: str, is_sorted: bool = False) -> dict[str, Any]:
    """x and dout, spread out, and their segments; the first quarter of the segments is empty."""
    batch, entries, columns, count = sizes
    rng = np.random.default_rng(entries + columns)
    x, dout = 4.0 * rng.standard_normal((2, batch, entries, columns))
    segments = rng.integers(count // 4, count, entries)
    segments = np.sort(segments) if is_sorted else segments
    return {"x": x.astype(dtype), "dout": dout.astype(dtype), "segments": segments, "count": count}


def run_segments(x: Any, dout: Any, segments: Any, count: int, mask: Any = None, kernels: str = "numba") -> list[Any]:
    with aa.use_kernels(kernels):
        out, pullback = aa.vjp(aa.segment_softmax, x, segments, count, mask=mask)
        return [out, pullback(dout).x, sum_segments(x, segments, count)]


def assert_near(found: list[Any], given: Any, run: Callable[..., list[Any]], roundings: float = 4) -> None:
    """As accurate as the reference, or within roundings of the largest entry: `given` are the arguments of `run`."""
    precise = tree.map(lambda leaf: leaf.astype(np.float64) if getattr(leaf, "dtype", int) in DTYPES else leaf, given)
    dtype = found[0].dtype.name
    truth, beside = run(**precise, kernels="reference"), run(**given, kernels="reference")
    for result, other, exact in zip(found, beside, truth, strict=True):
        if exact is None:
            assert result is None
            continue
        assert (result.dtype.name, result.shape) == (dtype, exact.shape)
        scale = max(float(np.max(np.abs(exact), initial=0.0)), 1.0)
        error = float(np.max(np.abs(other - exact), initial=0.0))
        np.testing.assert_allclose(result, exact, rtol=0, atol=2 * error + roundings * EPS[dtype] * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_sorted", [False, True], ids=["unsorted", "sorted"])
@pytest.mark.parametrize("sizes", SEGMENTS, ids=str)
def test_segments_in_several_parts(sizes: tuple[int, ...], is_sorted: bool, dtype: str) -> None:
    given = segments_of(sizes, dtype, is_sorted)
    # In float64 the reference is not the truth; sums of a thousand terms in their order are off by more roundings.
    assert_near(run_segments(**given), given, run_segments, 200)
    mask = np.random.default_rng(0).random((sizes[1], 1)) < 0.5
    assert_near(run_segments(**given, mask=mask)[:2], {**given, "mask": mask}, lambda **a: run_segments(**a)[:2], 200)


@pytest.mark.parametrize("sizes", SEGMENTS[:3], ids=str)
def test_nan_stays_in_its_segment(sizes: tuple[int, ...]) -> None:
    given = segments_of(sizes, "float32")
    clean = run_segments(**given)
    at = sizes[1] // 3
    given["x"][0, at] = np.nan
    reached = np.zeros(given["x"].shape, bool)
    reached[0, given["segments"] == given["segments"][at]] = True
    for found, expected in zip(run_segments(**given)[:2], clean[:2], strict=True):
        np.testing.assert_array_equal(np.isnan(found), reached)
        np.testing.assert_array_equal(found[~reached], expected[~reached])


@pytest.mark.parametrize("sizes", SEGMENTS, ids=str)
def test_the_number_of_threads_does_not_matter_to_segments(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = segments_of(sizes, "float32")
    assert_same_bits_for_any_threads(lambda: run_segments(**given), monkeypatch)


def assert_same_bits_for_any_threads(run: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    results = []
    for count in ("1", "2", "5"):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", count)
        results.append(run())
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_long_segment_of_float32_is_summed_in_float64() -> None:
    x = np.full((10**6, 1), -3.0, np.float32)
    out = aa.segment_softmax(x, np.zeros(10**6, np.int64), 1)
    np.testing.assert_allclose(out, 1e-6, rtol=3 * EPS["float32"])


def graph_of(sizes: tuple[int, ...], dtype: str = "float64", edge_features: bool = True) -> dict[str, Any]:
    """The arguments of all functions over edges; some gradients of scores and some weights are 0."""
    B, N, M, E, H, F, Fv = sizes
    rng = np.random.default_rng(E + F)
    shapes = {"q": (B, N, H, F), "k": (B, M, H, F), "w": (H, F), "v": (B, M, H, Fv), "dout": (B, N, H, Fv)}
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    for name in ("dscores", "weights"):
        arrays[name] = (rng.standard_normal((B, E, H)) * (rng.random((B, E, H)) < 0.7)).astype(dtype)
    arrays["f"] = rng.standard_normal((B, E, H, F)).astype(dtype) if edge_features else None
    return {**arrays, "sources": rng.integers(0, M, E), "targets": rng.integers(0, N, E)}


def run_graph(
    q: Any, k: Any, w: Any, v: Any, dout: Any, dscores: Any, weights: Any, f: Any, sources: Any, targets: Any,
    kernels: str = "numba",
) -> list[Any]:  # fmt: skip
    of_scores = q, k, f, w, sources, targets, 0.2
    with aa.use_kernels(kernels):
        return [
            mechanism.gatv2_scores(*of_scores),
            *mechanism.gatv2_scores_backward(dscores, *of_scores),
            mechanism.aggregate(weights, v, sources, targets, q.shape[1]),
            *mechanism.aggregate_backward(dout, weights, v, sources, targets),
        ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edge_features", [False, True], ids=["nodes", "edges"])
@pytest.mark.parametrize("sizes", GRAPHS, ids=str)
def test_graphs(sizes: tuple[int, ...], edge_features: bool, dtype: str) -> None:
    given = graph_of(sizes, dtype, edge_features)
    # Terms are of size 1 to 10 and may cancel; in float64 the reference is off by as much.
    assert_near(run_graph(**given), given, run_graph, 40)


def test_what_has_no_weight_and_no_gradient_may_be_nan() -> None:
    given = graph_of(GRAPHS[1])
    expected = run_graph(**given)
    bad = given["sources"] == 1  # whose rows are then visible to no query
    given["weights"][:, bad], given["dscores"][:, bad] = 0.0, 0.0
    expected = run_graph(**given)
    for name in ("k", "v"):
        given[name][:, 1] = np.nan
    given["f"][:, bad] = np.inf
    found = run_graph(**given)
    seen = np.broadcast_to(~bad[:, None], expected[0].shape)
    for place, (result, other) in enumerate(zip(found, expected, strict=True)):
        if place in (0, 6):  # scores, and gradients of weights
            assert np.all(np.isnan(result) | np.isinf(result) == ~seen)
            result, other = result[seen], other[seen]
        assert_close(result, other, 0)


@pytest.mark.parametrize("sizes", GRAPHS[1:5], ids=str)
def test_the_number_of_threads_does_not_matter_to_graphs(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = graph_of(sizes, "float32")
    assert_same_bits_for_any_threads(lambda: run_graph(**given), monkeypatch)


def test_any_strides_and_read_only() -> None:
    given = graph_of(GRAPHS[1])
    expected = run_graph(**given)
    for change in (np.asfortranarray, lambda x: np.repeat(x, 2, axis=-1)[..., ::2]):
        others = {name: change(x) for name, x in given.items()}
        for x in others.values():
            x.flags.writeable = False
        for found, same in zip(run_graph(**others), expected, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("place", [before_a_guard, behind_a_guard])
def test_nothing_beyond_the_arrays_is_touched(place: Callable[[np.ndarray], np.ndarray]) -> None:
    for dtype in DTYPES:
        for sizes in GRAPHS[:5]:
            given = graph_of(sizes, dtype)
            expected = run_graph(**given)
            with new_arrays(place, graph):
                found = run_graph(**{name: place(x) for name, x in given.items()})
            for result, same in zip(found, expected, strict=True):
                np.testing.assert_array_equal(result, same)
        for sizes in SEGMENTS:
            parts = segments_of(sizes, dtype)
            same_segments = run_segments(**parts)[:2]
            moved = {name: place(x) if isinstance(x, np.ndarray) else x for name, x in parts.items()}
            with new_arrays(place, row_segments):
                softmax = row_segments.segment_softmax_forward(moved["x"], moved["segments"], moved["count"], None)
                dx = row_segments.segment_softmax_backward(moved["dout"], softmax, moved["segments"], moved["count"])
            for result, same in zip((softmax, dx), same_segments, strict=True):
                np.testing.assert_array_equal(result, same)


@pytest.mark.parametrize("node", [-1, 4, 2**62])
def test_nodes_that_do_not_exist_are_declined(node: int) -> None:
    """They may have changed since they were checked."""
    given = graph_of(GRAPHS[1])
    given["sources"][3] = node
    with pytest.raises(Declined, match="a node is not from 0 to 3"):
        graph.aggregate(given["weights"], given["v"], given["sources"], given["targets"], 5)
    with pytest.raises(Declined, match="a segment is not from 0 to 3"):
        row_segments.segment_softmax_forward(given["weights"], given["sources"], 4, None)


@pytest.mark.parametrize("score", ["gatv2", "gat"])
def test_graph_attention_runs_on_the_kernels(score: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 2, 4), np.float32)
    vector, edges = np.ones((2, 4 if score == "gatv2" else 8), np.float32), np.array([[0, 1], [2, 2]])
    out, pullback = aa.vjp(aa.graph_attention, x, x, x, vector, edges, score=score)
    forward = aa.explain(aa.graph_attention, x, x, x, vector, edges, score=score)
    for choice in (*forward.choices, *aa.explain(pullback, out).choices):
        assert (choice.kernel == "numba") == ("gat_scores" not in choice.function), choice
