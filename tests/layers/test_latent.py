"""Latent attention as a layer: steps, caches of latent vectors, and the model that it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers, tree
from tests.support.frozen import frozen
from tests.support.libraries import assert_close
from tests.support.messages import says

RNG = np.random.default_rng(4)
X = RNG.standard_normal((2, 5, 10))
LAYER = layers.LatentAttention(10, 3, latent_dim=7, nope_dim=4, rope_dim=2, value_dim=6, query_latent_dim=8)
PARAMS = tree.map(lambda x: x + 0.3 * RNG.standard_normal(x.shape), LAYER.init(aa.Philox(0), "float64"))
Q, C, WK, WV = (RNG.standard_normal(shape) for shape in ((2, 3, 5, 6), (2, 7, 10), (3, 4, 8), (3, 9, 8)))


@pytest.mark.parametrize("absorb", [False, True])
def test_steps_equal_one_call(absorb: bool) -> None:
    cache, outs = LAYER.cache(2, 5, "float64"), []
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        out, cache = LAYER.step(PARAMS, X[:, start:stop], cache, absorb=absorb)
        outs.append(out)
    assert cache.latent.shape == (2, 5, 9)
    assert_close(np.concatenate(outs, axis=1), LAYER(PARAMS, X, is_causal=True), 1e-12, "steps")


def test_absorbed_projections_change_nothing() -> None:
    bias, dout = RNG.standard_normal((3, 5, 7)), RNG.standard_normal((2, 3, 5, 9))
    results = []
    for absorb in (False, True):
        out, ctx = aa.latent_attention_fwd(Q, C, WK, WV, bias=bias, sinks=np.ones(3), absorb=absorb)
        results.append((out, aa.attention_weights(ctx), *aa.latent_attention_bwd(dout, ctx)))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 1e-12, "absorbed")


def test_it_is_absorbed_where_queries_are_few() -> None:
    one, latent = np.ones((1, 16, 1, 12)), np.ones((1, 64, 36))
    weights = np.ones((16, 8, 32)), np.ones((16, 8, 32))
    assert aa.latent_attention_fwd(one, latent, *weights)[1].absorb
    assert not aa.latent_attention_fwd(np.ones((1, 16, 64, 12)), latent, *weights)[1].absorb


def test_it_equals_deepseek() -> None:
    reference = frozen("variants.npz")["latent"].arrays
    layer = layers.LatentAttention(6, 3, latent_dim=5, nope_dim=4, rope_dim=2, value_dim=3, query_latent_dim=7)
    params: dict[str, Any] = {name: {"weight": reference[name]} for name in layer.parts()}
    out, ctx = layer.fwd(params, reference["x"], is_causal=True)
    assert_close(out, reference["result"], 1e-13, "out")
    grads = layer.bwd(reference["dout"], ctx)
    assert_close(grads.x, reference["grad_x"], 1e-12, "x")
    for name, part in grads.params.items():
        assert_close(part["weight"], reference[f"grad_{name}"], 1e-12, name)


BAD: dict[str, tuple[type[Exception], Any, str]] = {
    "odd rotation": (ValueError, lambda: layers.LatentAttention(8, 2, 4, 4, 3), "`rope_dim` is 3, the width of one"),
    "offset": (TypeError, lambda: LAYER(PARAMS, X, q_offset=2), "`q_offset` is given, but LatentAttention attends"),
    "no cache": (TypeError, lambda: LAYER.step(PARAMS, X, None), "`cache` is None, expected a LatentCache"),
    "batch": (ValueError, lambda: LAYER.step(PARAMS, X, LAYER.cache(3, 9, "float64")), "`x` has shape (2, 5, 10), exp"),
    "full": (ValueError, lambda: LAYER.step(PARAMS, X, LAYER.cache(2, 4, "float64")), "`cache` has `max_seq_len` 4"),
    "batches": (ValueError, lambda: aa.latent_attention(Q, C[:1], WK, WV), "`query` and `latent` do not fit together"),
    "heads": (ValueError, lambda: aa.latent_attention(Q, C, WK[:2], WV), "`key_up` has shape (2, 4, 8), expected (H,"),
    "values": (ValueError, lambda: aa.latent_attention(Q, C, WK, WV[..., 1:]), "`value_up` has 7 latent features, but"),
    "latent": (ValueError, lambda: aa.latent_attention(Q, C[..., 1:], WK, WV), "`latent` has 9 features, expected C +"),
    "absorb": (TypeError, lambda: aa.latent_attention(Q, C, WK, WV, absorb=2), "`absorb` is 2"),
}


@pytest.mark.parametrize(("error", "call", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input(error: type[Exception], call: Any, expected: str) -> None:
    says(error, expected, call)
