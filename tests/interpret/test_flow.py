"""Rollout and flow: matrix products and maximum flows of small inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import interpret
from attnarray.interpret import statistics


def contexts(T: int = 5, layers: int = 3, **options: Any) -> dict[str, Any]:
    encoder = aa.models.Encoder(dim=8, num_layers=layers, num_heads=2, init_std=0.5)
    x = np.random.default_rng(0).standard_normal((2, T, 8))
    return interpret.attention_contexts(encoder.fwd(encoder.init(aa.Philox(0), "float64"), x, **options)[1])


def matrices(found: dict[str, Any]) -> list[np.ndarray]:
    return [aa.attention_weights(ctx).mean(axis=1) for ctx in found.values()]


@pytest.mark.parametrize("residual", [0.0, 0.5, 1.0])
def test_rollout_is_a_product_of_matrices(residual: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "HELD", 50)
    found = contexts(is_causal=True)
    product = np.eye(5)
    for weights in matrices(found):
        product = (residual * np.eye(5) + (1 - residual) * weights) @ product
    rollout = interpret.attention_rollout(found, residual=residual)
    np.testing.assert_allclose(rollout, product, rtol=0, atol=1e-12)
    chosen = interpret.attention_rollout(found, queries=slice(1, 3), residual=residual)
    np.testing.assert_allclose(chosen, product[:, 1:3], rtol=0, atol=1e-12)


def test_flow_through_one_layer_is_its_weights() -> None:
    pytest.importorskip("networkx")
    found = contexts(layers=1)
    expected = 0.5 * np.eye(5)[3] + 0.5 * matrices(found)[0][:, 3]
    np.testing.assert_allclose(interpret.attention_flow(found, query=3), expected, rtol=0, atol=1e-9)


def test_flow_is_bounded_by_every_cut() -> None:
    pytest.importorskip("networkx")
    found = contexts(layers=2, T=4)
    first, second = (0.5 * np.eye(4) + 0.5 * weights for weights in matrices(found))
    flow = interpret.attention_flow(found, query=-1)
    # All paths from j to the output are j -> m -> output, with nothing shared: each carries its narrower edge.
    expected = np.minimum(first, second[:, -1, :, None]).sum(axis=1)
    np.testing.assert_allclose(flow, expected, rtol=0, atol=1e-9)


def test_errors_name_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="`residual` is 2"):
        interpret.attention_rollout(contexts(), residual=2)
    with pytest.raises(TypeError, match="attention_contexts"):
        interpret.attention_rollout([])  # type: ignore[arg-type]
    q, k = np.ones((1, 2, 3, 4)), np.ones((1, 2, 5, 4))
    _, cross = aa.scaled_dot_product_attention_fwd(q, k, k)
    with pytest.raises(ValueError, match="cross has 3 queries and 5 keys"):
        interpret.attention_rollout({"cross": cross})
    x = np.zeros((1, 1, 201, 1))
    _, long = aa.scaled_dot_product_attention_fwd(x, x, x)
    pytest.importorskip("networkx")
    with pytest.raises(ValueError, match="201 tokens, expected at most 200"):
        interpret.attention_flow({"long": long})
