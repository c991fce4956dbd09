"""The short way for small NumPy calls says what the long way says, and leaves everything unusual to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention.arguments import plain_problem, problem_of

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((2, 6, 5, 4))
KEY, VALUE = RNG.standard_normal((2, 3, 7, 4)), RNG.standard_normal((2, 3, 7, 3))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3, -2.0])
@pytest.mark.parametrize("q_offset", [0, 2, -1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_ways_agree(is_causal: bool, scale: float | None, q_offset: int, dtype: str) -> None:
    arrays = [x.astype(dtype) for x in (QUERY, KEY, VALUE)]
    for _ in range(2):  # found out, and then remembered
        short = plain_problem(*arrays, None, 0.0, is_causal, scale, q_offset)
        long = problem_of(*arrays, None, 0.0, is_causal, scale=scale, q_offset=q_offset)
        assert short is not None
        assert all(one is other for one, other in zip(short[:3], long[:3], strict=True))
        assert short[3:] == long[3:]
    out = aa.scaled_dot_product_attention(*arrays, None, 0.0, is_causal, scale=scale, q_offset=q_offset)
    other = aa.scaled_dot_product_attention(*arrays, None, 0.0, is_causal, scale=scale, q_offset=np.full(2, q_offset))
    np.testing.assert_array_equal(out, other)


@pytest.mark.parametrize(
    "call",
    [
        (QUERY[0], KEY[0], VALUE[0], False),
        (QUERY[0, 0], KEY[0, 0], VALUE[0, 0], False),
        (QUERY.astype(np.float16), KEY.astype(np.float16), VALUE.astype(np.float16), False),
        (QUERY, KEY.astype(np.float32), VALUE, False),
        (QUERY, KEY[..., :3], VALUE, False),
        (QUERY, KEY, VALUE[:, :, :2], False),
        (QUERY[:, :4], KEY, VALUE, False),
        (QUERY, KEY, VALUE.tolist(), False),
        (QUERY, None, VALUE, False),
        (QUERY, KEY, VALUE, 1),
        (QUERY, KEY, VALUE, False, 1),
        (QUERY, KEY, VALUE, False, 0.0),
        (QUERY, KEY, VALUE, False, float("nan")),
        (QUERY, KEY, VALUE, False, None, np.array([0, 1])),
        (QUERY, KEY, VALUE, False, None, True),
        (QUERY, KEY, VALUE, False, None, 2**40),
        (QUERY.astype(">f8"), KEY.astype(">f8"), VALUE.astype(">f8"), False),
        (np.ma.masked_array(QUERY), KEY, VALUE, False),
    ],
)
def test_what_is_unusual_goes_the_long_way(call: tuple[Any, ...]) -> None:
    for _ in range(2):
        problem = plain_problem(*call[:3], None, 0.0, *call[3:])
        assert problem is None or problem.scoring == problem_of(*call[:3], None, 0.0, call[3]).scoring


def test_a_wrong_call_gets_the_error_of_the_long_way() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="`key` has head dim 3 but `query` has 4"):
            aa.scaled_dot_product_attention(QUERY, KEY[..., :3], VALUE)
        with pytest.raises(ValueError, match="`scale` is nan"):
            aa.scaled_dot_product_attention(QUERY, KEY, VALUE, scale=float("nan"))


@pytest.mark.parametrize("causal", [False, True])
def test_small_calls_have_the_bits_of_others(causal: bool) -> None:
    """Contiguous arrays take the remembered description of the call, others make their own."""
    for dtype in (np.float32, np.float64):
        q, k, v = (x.astype(dtype) for x in (QUERY, KEY, VALUE))
        apart = [np.repeat(x, 2, axis=2)[:, :, ::2] for x in (q, k, v)]
        (out, ctx), (other, other_ctx) = (
            aa.scaled_dot_product_attention_fwd(*arrays, is_causal=causal) for arrays in ((q, k, v), apart)
        )
        np.testing.assert_array_equal(out, other)
        grads = aa.scaled_dot_product_attention_bwd(out, ctx)
        others = aa.scaled_dot_product_attention_bwd(np.repeat(out, 2, axis=2)[:, :, ::2], other_ctx)
        for one, two in zip(grads[:3], others[:3], strict=True):
            np.testing.assert_array_equal(one, two)
