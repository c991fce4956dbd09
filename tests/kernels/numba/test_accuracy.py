"""Long sums in float32: the error of kernels is at most about twice that of the array code.

The calls are those of benchmarks/accuracy_cases.py, which `python -m benchmarks.accuracy` measures at other sizes, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.kernel_calls import EPS, run

accuracy = pytest.importorskip("benchmarks.accuracy", reason="this copy of the sources has no benchmarks")
NAMES = {case.name: case for case in accuracy.CASES}
MANY, MORE = 2**12, 2**14


@pytest.mark.parametrize("name", list(NAMES))
def test_long_sums(name: str) -> None:
    # Numbers whose mean is 1: partial sums grow, and errors of what is subtracted in the end show.
    rows = accuracy.measured(NAMES[name], min(MANY, NAMES[name].most), mean=1.0, draws=2)
    assert not [row for row in rows if not row.is_right]


@pytest.mark.parametrize("name", ["sdpa, keys", "sdpa, queries", "decode", "local, queries", "graph", "additive, keys"])
def test_longer_sums(name: str) -> None:
    assert not [
        row for mean in (0.0, 1.0) for row in accuracy.measured(NAMES[name], MORE, mean, draws=1) if not row.is_right
    ]


def test_many_tiles_of_wide_rows() -> None:
    """Tiles of 24 keys, of which there are several hundred: three levels of sums."""
    rows = accuracy.measured(NAMES["sdpa, keys, dim 512"], MORE, mean=1.0, draws=1)
    assert not [row for row in rows if not row.is_right]


LARGE = 4e4  # a score: its distance to the next float32 is 0.004, and so is that of its weight if the lse is off by it


def large_scores(queries: int, keys: int, dim: int, heads: int = 1, **options: Any) -> dict[str, Any]:
    """Each query has a key whose score is `LARGE`, far above all others: its weight is 1."""
    rng = np.random.default_rng(dim + queries)
    query = rng.standard_normal((1, heads, queries, dim))
    query *= np.sqrt(LARGE * dim**0.5) / np.linalg.norm(query, axis=-1, keepdims=True)
    key = rng.standard_normal((1, 1, keys, dim))
    key[0, 0, : heads * queries] = query.reshape(-1, dim)
    arrays = {"query": query, "key": key, "value": np.ones((1, 1, keys, 1)), "dout": np.ones((1, heads, queries, 1))}
    return {**{name: x.astype(np.float32) for name, x in arrays.items()}, **options}


SHAPES = [(1, 30, 64), (1, 300, 20), (3, 300, 64), (6, 600, 80), (2, 300, 300), (7, 300, 64), (64, 300, 64), (4, 20, 8)]
OPTIONS: list[dict[str, Any]] = [{}, {"softcap": 1e6}, {"is_causal": True, "q_offset": 300}, {"sinks": [0.0]}]


@pytest.mark.parametrize("kernels", ["numba", "reference"])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 1e6}, {"is_causal": True, "q_offset": 300}, {"sinks": [0.0]}], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_of_large_scores_are_normalized_in_the_backward(
    shape: tuple[int, int, int], options: dict[str, Any], kernels: str
) -> None:
    # The backward has e^(score - lse): 1 to a few roundings only if its scores have the bits of the forward's.
    given = {name: np.array(x, np.float32) if isinstance(x, list) else x for name, x in options.items()}
    call = large_scores(*shape, **given)
    dvalue = run(call, kernels)["dvalue"][0, 0, :, 0]
    np.testing.assert_allclose(dvalue[: shape[0]], 1.0, rtol=4 * EPS["float32"])
    assert not dvalue[shape[0] :].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_of_large_scores_under_dropout(shape: tuple[int, int, int]) -> None:
    call = large_scores(*shape, dropout_p=0.5, rng=3)
    found, expected = (run(call, kernels)["dvalue"][0, 0, :, 0] for kernels in ("numba", "reference"))
    np.testing.assert_allclose(found, expected, rtol=4 * EPS["float32"])


@pytest.mark.parametrize("kernels", [("numba", "reference"), ("reference", "numba")], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_large_scores_forward_on_one_and_backward_on_the_other(
    shape: tuple[int, int, int], kernels: tuple[str, str]
) -> None:
    # Two orders of a sum of D terms: weights are off by as much as the scores.
    call = large_scores(*shape)
    with aa.use_kernels(kernels[0]):
        _, ctx = aa.attention_partial_fwd(*(call[name] for name in ("query", "key", "value")))
    with aa.use_kernels(kernels[1]):
        dvalue = aa.attention_partial_bwd(aa.Partial(call["dout"], None), ctx).value[0, 0, :, 0]
    np.testing.assert_allclose(dvalue[: shape[0]], 1.0, rtol=EPS["float32"] * LARGE * shape[2] ** 0.5)


def test_large_scores_of_additive_attention() -> None:
    query, key = np.zeros((1, 9, 24), np.float32), np.random.default_rng(0).standard_normal((1, 90, 24), np.float32)
    key[0, 5] = 20.0  # where tanh is 1
    weights = np.full(24, LARGE / 24, np.float32)
    _, ctx = aa.additive_attention_fwd(query, key, key, weights)
    dvalue = aa.additive_attention_bwd(np.ones((1, 9, 24), np.float32), ctx).value
    np.testing.assert_allclose(dvalue[0, 5], 9.0, rtol=4 * EPS["float32"])
