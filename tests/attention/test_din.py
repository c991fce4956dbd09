from __future__ import annotations

import numpy as np
import pytest

import attnarray as aa

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = RNG.standard_normal((3, 2, 5, 4))
UNIT = {"weight": RNG.standard_normal((6, 12)), "unit_bias": RNG.standard_normal(6), "score_vector": np.ones(6)}


def test_what_is_near_counts_by_its_amount() -> None:
    """Without a softmax, a history that is twice as long gives twice the sum; with one, the same mean."""
    twice = np.concatenate([KEY, KEY], axis=1), np.concatenate([VALUE, VALUE], axis=1)
    for normalize, factor in ((False, 2.0), (True, 1.0)):
        once = aa.din_attention(QUERY, KEY, VALUE, **UNIT, normalize=normalize)
        found = aa.din_attention(QUERY, *twice, **UNIT, normalize=normalize)
        np.testing.assert_allclose(found, factor * once, rtol=1e-12)


def test_the_difference_of_query_and_key_is_a_linear_map_of_both() -> None:
    """The paper's four parts [q; k; q - k; q k] are these three, with other weights."""
    first, second, difference, product = (RNG.standard_normal((6, 4)) for _ in range(4))
    parts = [QUERY[:, :, None], KEY[:, None], QUERY[:, :, None] - KEY[:, None], QUERY[:, :, None] * KEY[:, None]]
    maps = (first, second, difference, product)
    hidden = sum(part @ weight.T for part, weight in zip(parts, maps, strict=True)) + UNIT["unit_bias"]
    weights = (hidden / (1.0 + np.exp(-hidden))).sum(-1)
    unit = {**UNIT, "weight": np.concatenate([first + difference, second - difference, product], axis=1)}
    np.testing.assert_allclose(aa.din_attention(QUERY, KEY, VALUE, **unit), weights @ VALUE, rtol=1e-12)


def test_weights_of_the_context_are_scores() -> None:
    out, ctx = aa.din_attention_fwd(QUERY, KEY, VALUE, **UNIT, kv_lengths=[5, 2])
    weights = aa.attention_weights(ctx)
    assert (weights[1, :, 2:] == 0).all()
    assert weights.min() < 0
    np.testing.assert_allclose(weights @ VALUE, out, rtol=1e-12)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"`weight` \(A, 3 D\) columns for query, key and their product"):
        aa.din_attention(QUERY, KEY, VALUE, UNIT["weight"][:, :8], UNIT["unit_bias"], UNIT["score_vector"])
    with pytest.raises(ValueError, match="`unit_bias` has shape"):
        aa.din_attention(QUERY, KEY, VALUE, UNIT["weight"], np.ones(5), UNIT["score_vector"])
    _, ctx = aa.din_attention_fwd(QUERY, KEY, VALUE, **UNIT)
    with pytest.raises(ValueError, match="only the weights of a softmax have an lse"):
        aa.din_attention_bwd(np.ones_like(VALUE), ctx, dlse=np.ones((2, 5)))
