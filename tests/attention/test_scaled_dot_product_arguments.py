"""The fast path of small NumPy calls agrees with the general path, and falls back to it for all other calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention.dot_product.scaled_dot_product import attention_problem, plain_problem

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((2, 6, 5, 4))
KEY, VALUE = RNG.standard_normal((2, 3, 7, 4)), RNG.standard_normal((2, 3, 7, 3))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3, -2.0])
@pytest.mark.parametrize("q_offset", [0, 2, -1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_paths_agree(is_causal: bool, scale: float | None, q_offset: int, dtype: str) -> None:
    arrays = [x.astype(dtype) for x in (QUERY, KEY, VALUE)]
    for _ in range(2):  # found out, and then remembered
        short = plain_problem(*arrays, None, 0.0, is_causal, scale, q_offset)
        long = attention_problem(*arrays, None, 0.0, is_causal, scale=scale, q_offset=q_offset)
        assert all(given is canonical for given, canonical in zip(arrays, long[:3], strict=True))
        assert short == (long.modifiers, long.layout)
        assert long.bias_shape is None
    out = aa.scaled_dot_product_attention(*arrays, None, 0.0, is_causal, scale=scale, q_offset=q_offset)
    other = aa.scaled_dot_product_attention(*arrays, None, 0.0, is_causal, scale=scale, q_offset=np.full(2, q_offset))
    np.testing.assert_array_equal(out, other)


PLAIN = {
    "query": QUERY, "key": KEY, "value": VALUE, "attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None,
    "q_offset": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "unusual",
    [
        {"query": QUERY[0], "key": KEY[0], "value": VALUE[0]},
        {"query": QUERY[0, 0], "key": KEY[0, 0], "value": VALUE[0, 0]},
        {name: PLAIN[name].astype(np.float16) for name in ("query", "key", "value")},
        {name: PLAIN[name].astype(">f8") for name in ("query", "key", "value")},
        {"key": KEY.astype(np.float32)},
        {"key": KEY[..., :3]},
        {"value": VALUE[:, :, :2]},
        {"query": QUERY[:, :4]},
        {"query": np.ma.masked_array(QUERY)},
        {"value": VALUE.tolist()},
        {"key": None},
        {"attn_mask": np.ones((5, 7), bool)},
        {"attn_mask": aa.Causal()},
        {"attn_mask": np.zeros((5, 7))},
        {"dropout_p": 0.1},
        {"dropout_p": 0},
        {"dropout_p": np.float64(0)},
        {"dropout_p": float("nan")},
        {"is_causal": 1},
        {"is_causal": None},
        {"is_causal": np.True_},
        {"scale": 1},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"scale": np.float64(0.5)},
        {"q_offset": np.array([0, 1])},
        {"q_offset": True},
        {"q_offset": 2**40},
    ],
    ids=lambda unusual: "-".join(unusual),
)
def test_other_calls_take_the_general_path(unusual: dict[str, Any]) -> None:
    assert plain_problem(**PLAIN) is not None
    for _ in range(2):  # found out, and then remembered
        assert plain_problem(**{**PLAIN, **unusual}) is None


@pytest.mark.parametrize("is_causal", [False, True])
def test_another_byte_order_gives_the_same_numbers(is_causal: bool) -> None:
    """Arrays of one such dtype may take the fast path, but kernels need them converted."""
    swapped = QUERY.dtype.newbyteorder()
    given, plain = [x.astype(swapped) for x in (QUERY, KEY, VALUE)], (QUERY, KEY, VALUE)
    assert {id(x.dtype) for x in given} == {id(swapped)}
    for _ in range(2):
        found, expected = (aa.scaled_dot_product_attention_fwd(*x, is_causal=is_causal) for x in (given, plain))
        np.testing.assert_array_equal(found[0], expected[0])
        grads = (aa.scaled_dot_product_attention_bwd(out, ctx) for out, ctx in (found, expected))
        for one, other in zip(*grads, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_wrong_call_gets_the_error_of_the_general_path() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="`key` has head dim 3 but `query` has 4"):
            aa.scaled_dot_product_attention(QUERY, KEY[..., :3], VALUE)
        with pytest.raises(ValueError, match="`scale` is nan"):
            aa.scaled_dot_product_attention(QUERY, KEY, VALUE, scale=float("nan"))


@pytest.mark.parametrize("strided", ["all", "query", "key", "value", "dout"])
@pytest.mark.parametrize("causal", [False, True])
def test_small_calls_have_the_bits_of_others(causal: bool, strided: str) -> None:
    """Contiguous arrays use the cached description of the call, others compute it."""

    def apart(name: str, x: np.ndarray) -> np.ndarray:
        return np.repeat(x, 2, axis=2)[:, :, ::2] if strided in (name, "all") else x

    for dtype in (np.float32, np.float64):
        arrays = {"query": QUERY.astype(dtype), "key": KEY.astype(dtype), "value": VALUE.astype(dtype)}
        out, ctx = aa.scaled_dot_product_attention_fwd(**arrays, is_causal=causal)
        given = {name: apart(name, x) for name, x in arrays.items()}
        other, other_ctx = aa.scaled_dot_product_attention_fwd(**given, is_causal=causal)
        np.testing.assert_array_equal(out, other)
        np.testing.assert_array_equal(out, aa.scaled_dot_product_attention(**given, is_causal=causal))
        grads = aa.scaled_dot_product_attention_bwd(out, ctx)
        others = aa.scaled_dot_product_attention_bwd(apart("dout", out), other_ctx)
        for one, two in zip(grads[:3], others[:3], strict=True):
            np.testing.assert_array_equal(one, two)
