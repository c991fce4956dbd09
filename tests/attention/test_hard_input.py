"""Unusual but valid input: NaN in masked entries, rows without keys, empty sizes, memory layouts, huge logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((2, 6, 5, 4))  # B 2, H 6, T 5, D 4
KEY = RNG.standard_normal((2, 3, 7, 4))  # Hkv 3, S 7
VALUE = RNG.standard_normal((2, 3, 7, 8))  # Dv 8
DOUT = RNG.standard_normal((2, 6, 5, 8))
HIDDEN = np.array([True, False, False, True, True, False, True])  # the keys that are masked below
RUBBISH = [math.nan, math.inf, -math.inf]


@pytest.fixture(params=["reference", "auto"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    with aa.use_kernels(request.param):
        yield request.param


def run(query: Any = QUERY, key: Any = KEY, value: Any = VALUE, dout: Any = None, **options: Any) -> tuple[Any, ...]:
    """Output, lse, and the gradients for `dout`."""
    out, ctx = aa.scaled_dot_product_attention_fwd(query, key, value, **options)
    dout = np.ones_like(out) if dout is None else dout
    return out, ctx.lse, *aa.scaled_dot_product_attention_bwd(dout, ctx)


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


MASKS = {
    "boolean": {"attn_mask": ~HIDDEN},
    "-inf": {"attn_mask": np.where(HIDDEN, -math.inf, 0.3)},
    "-inf in the bias": {"bias": np.where(HIDDEN, -math.inf, np.zeros((6, 1, 7)))},
    "Dense": {"attn_mask": aa.Dense(~HIDDEN)},
    "Documents": {"attn_mask": aa.Documents(np.zeros(5, int), HIDDEN.astype(int))},
    "dropout": {"dropout_p": 0.5, "dropout_mask": ~HIDDEN},
}


@pytest.mark.parametrize("options", MASKS.values(), ids=list(MASKS))
@pytest.mark.parametrize("rubbish", RUBBISH)
def test_masked_entries_are_ignored(options: dict[str, Any], rubbish: float) -> None:
    value = VALUE.copy()
    value[:, :, HIDDEN] = rubbish
    key = (
        KEY if "dropout_mask" in options else np.where(HIDDEN[:, None], rubbish, KEY)
    )  # dropout comes after the scores
    clean, dirty = run(dout=DOUT, **options), run(key=key, value=value, dout=DOUT, **options)
    assert_same(dirty, clean)
    assert not np.any(dirty[4][:, :, HIDDEN])  # dvalue
    assert "dropout_mask" in options or not np.any(dirty[3][:, :, HIDDEN])  # dkey
    assert all(np.all(np.isfinite(array)) for array in dirty if array is not None)


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({"is_causal": True}, slice(5, 7)),
        ({"window": (0, 2), "q_offset": 2}, slice(0, 2)),
        ({"kv_lengths": 4}, slice(4, 7)),
        ({"attn_mask": aa.Padding([4, 4])}, slice(4, 7)),
        ({"attn_mask": aa.Causal(-2), "sinks": np.linspace(-1.0, 1.0, 6)}, slice(3, 7)),
    ],
    ids=["causal", "window", "lengths", "Padding", "sinks"],
)
def test_keys_outside_the_window_are_ignored(options: dict[str, Any], hidden: slice, rubbish: float) -> None:
    key, value = KEY.copy(), VALUE.copy()
    key[:, :, hidden], value[:, :, hidden] = rubbish, rubbish
    assert_same(run(key=key, value=value, dout=DOUT, **options), run(dout=DOUT, **options))


def test_visible_nan_propagates() -> None:
    value = VALUE.copy()
    value[0, 1, 2, 3] = math.nan
    out = run(value=value, is_causal=True)[0]
    expected = np.zeros(out.shape, bool)
    expected[0, 2:4, 2:, 3] = True  # the two query heads of key head 1, from query 2 on
    np.testing.assert_array_equal(np.isnan(out), expected)


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_masked_keys_are_free_of_the_nan_of_a_query(rubbish: float) -> None:
    query = QUERY.copy()
    query[0, 1, 2] = rubbish  # it attends to the keys 0 to 2, of key head 0
    dropped = {"dropout_p": 0.5, "dropout_mask": np.tri(5, 7, dtype=bool)}
    for options, places in (({"is_causal": True}, (3, 4)), (dropped, (4,))):  # dkey and dvalue; dvalue
        dirty, clean = run(query=query, dout=DOUT, **options), run(dout=DOUT, **options)
        for place in places:
            found, expected = dirty[place].copy(), clean[place].copy()
            assert np.all(np.isnan(found[0, 0, :3])) or not math.isnan(rubbish)
            found[0, 0, :3] = expected[0, 0, :3] = 0.0
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("hidden", "large"), [(1, 80), (1, 200), (1, 700), (700, 1)])
@pytest.mark.parametrize("queries", [1, 40])
def test_a_weight_that_rounds_to_zero_hides_nan_wherever_the_large_one_is(
    hidden: int, large: int, queries: int
) -> None:
    key, value = np.zeros((1, 2, 1100, 4)), RNG.standard_normal((1, 2, 1100, 8))
    key[:, :, large] = 1000.0
    value[:, :, hidden] = math.nan
    out, _, *grads = run(np.ones((1, 4, queries, 4)), key, value, kv_lengths=1099)
    np.testing.assert_array_equal(out, np.broadcast_to(value[:, [0, 0, 1, 1], large, None], out.shape))
    assert all(np.all(np.isfinite(grad)) for grad in grads[:3])


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sink_far_from_the_scores_of_many_keys(dtype: str, queries: int) -> None:
    query, key, value = (RNG.standard_normal((1, 2, n, 4)).astype(dtype) for n in (queries, 600, 600))
    out, lse, *_, dsinks = run(query, key, value, sinks=np.full(2, 1e4, dtype))  # e^1e4 overflows every dtype
    assert np.all(out == 0)
    assert np.all(lse == 1e4)
    assert np.all(dsinks == 0)
    far_below = run(query, key, value, sinks=np.full(2, -1e4, dtype))
    assert np.all(far_below[-1] == 0)
    for found, expected in zip(far_below[:5], run(query, key, value), strict=False):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("where", ["some rows", "all rows"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_rows_without_keys_are_zero_and_pass_nothing_back(where: str, softcap: float | None) -> None:
    rows = np.array([0, 3]) if where == "some rows" else np.arange(5)
    mask = np.ones((5, 7), bool)
    mask[rows] = False
    bias = np.where(mask, 0.0, -math.inf)
    sinks = np.linspace(-2.0, 3.0, 6)
    boolean = run(attn_mask=mask, softcap=softcap, dout=DOUT)
    floating = run(attn_mask=bias, softcap=softcap, dout=DOUT)
    with_sinks = run(attn_mask=mask, softcap=softcap, sinks=sinks, dout=DOUT)
    for out, _, dquery, dkey, dvalue, *_ in (boolean, floating, with_sinks):
        assert not np.any(out[:, :, rows])
        assert not np.any(dquery[:, :, rows])
        assert all(np.all(np.isfinite(grad)) for grad in (dquery, dkey, dvalue))
        assert where == "some rows" or not np.any([np.any(dkey), np.any(dvalue)])
    assert np.all(boolean[1][:, :, rows] == -math.inf)
    np.testing.assert_array_equal(with_sinks[1][:, :, rows], np.broadcast_to(sinks[:, None], (2, 6, len(rows))))
    assert not np.any(floating[5][rows])  # dbias
    _, ctx = aa.scaled_dot_product_attention_fwd(QUERY, KEY, VALUE, mask, softcap=softcap)
    assert not np.any(aa.attention_weights(ctx)[:, :, rows])


def test_minus_infinity_in_a_float_mask_is_a_boolean_mask() -> None:
    mask = RNG.random((6, 5, 7)) < 0.5
    boolean, floating = run(attn_mask=mask, dout=DOUT), run(attn_mask=np.where(mask, 0.0, -math.inf), dout=DOUT)
    for one, other in zip(boolean[:5], floating[:5], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)  # the numbers differ by a few roundings at most
    assert not np.any(floating[5][~mask])


EMPTY = {
    "S": {"key": (2, 3, 0, 4), "value": (2, 3, 0, 8)},
    "T": {"query": (2, 6, 0, 4)},
    "B": {"query": (0, 6, 5, 4), "key": (0, 3, 7, 4), "value": (0, 3, 7, 8)},
    "D": {"query": (2, 6, 5, 0), "key": (2, 3, 7, 0)},
    "Dv": {"value": (2, 3, 7, 0)},
    "H": {"query": (2, 0, 5, 4), "key": (2, 0, 7, 4), "value": (2, 0, 7, 8)},
    "T and S": {"query": (2, 6, 0, 4), "key": (2, 3, 0, 4), "value": (2, 3, 0, 8)},
}


@pytest.mark.parametrize("shapes", EMPTY.values(), ids=list(EMPTY))
@pytest.mark.parametrize("everything", [False, True], ids=["plain", "all options"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_empty_sizes(shapes: dict[str, tuple[int, ...]], everything: bool, dtype: str) -> None:
    shapes = {"query": QUERY.shape, "key": KEY.shape, "value": VALUE.shape, **shapes}
    given = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
    (batch, heads, queries, dim), keys, value_dim = shapes["query"], shapes["key"][2], shapes["value"][3]
    if everything:
        given["bias"] = np.ones((heads, queries, keys), dtype)
        given["sinks"] = np.ones(heads, dtype)
        given["attn_mask"] = (
            aa.Dense(np.ones((batch, 1, queries, keys), bool)) & aa.Padding([keys] * batch) & aa.Causal()
        )
    options = {"window": (3, None), "softcap": 2.0, "dropout_p": 0.5, "rng": 1} if everything else {}
    out, lse, *grads = run(**given, **options)
    assert out.shape == (batch, heads, queries, value_dim)
    assert out.dtype == dtype
    assert lse.shape == (batch, heads, queries)
    for name, grad in zip(aa.vjp(aa.scaled_dot_product_attention, **given)[1](out)._fields, grads, strict=True):
        assert (grad is None) == (name not in given)
        assert grad is None or grad.shape == given[name].shape
        assert grad is None or np.all(np.isfinite(grad))
    if keys == 0:
        assert not np.any(out)
        assert np.all(lse == (1.0 if everything else -math.inf))
    if dim == 0 and not everything:
        np.testing.assert_allclose(out, np.ones_like(out), rtol=1e-3)  # the mean of the values, 10 bits of float16


def test_empty_sizes_of_softmax_and_partials() -> None:
    for shape in ((0, 3), (3, 0), (2, 0, 4)):
        for function in (aa.softmax, aa.log_softmax):
            out, pullback = aa.vjp(function, np.ones(shape))
            assert out.shape == pullback(np.ones(shape)).x.shape == shape
    nothing = aa.attention_partial(QUERY, KEY[:, :, :0], VALUE[:, :, :0], kv_offset=7)
    whole = aa.attention_partial(QUERY, KEY, VALUE)
    assert_same(aa.merge_partials([nothing, whole, nothing]), whole)
    assert_same(aa.merge_partials([nothing, nothing]), nothing)


def test_strange_memory() -> None:
    strided = np.zeros((4, 4, 5, 6, 4))[::2, 0].transpose(0, 2, 1, 3)
    strided[...] = QUERY
    reversed_keys = KEY[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1]
    frozen = VALUE.copy()
    frozen.flags.writeable = False
    bias = np.broadcast_to(np.linspace(-1.0, 1.0, 7), (6, 5, 7))
    expected = run(bias=bias.copy(), dout=DOUT, kv_lengths=np.array([7, 3]))
    found = run(strided, reversed_keys, frozen, np.asfortranarray(DOUT), bias=bias, kv_lengths=np.array([7, 0, 3])[::2])
    for one, other in zip(found[:6], expected[:6], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)  # other strides, another order of summation


def test_inputs_that_are_one_array_are_not_changed() -> None:
    x = RNG.standard_normal((2, 5, 6, 5))
    before = x.copy()
    options = {"is_causal": True, "bias": x[0, 0, :5, :1] * 0 + 1.0, "softcap": 2.0, "dropout_p": 0.3, "rng": 4}
    rows = np.swapaxes(x, 2, 3)[..., :5]  # overlaps x in other strides
    shared = run(rows, rows, rows, rows, **options)
    np.testing.assert_array_equal(x, before)
    assert_same(shared, run(rows.copy(), rows.copy(), rows.copy(), rows.copy(), **options))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1e4, 6e4])
def test_huge_logits(dtype: str, size: float) -> None:
    query = np.array([[[[100.0], [-100.0], [0.0]]]], dtype)
    key = np.array([[[[size / 100], [0.0], [-size / 100]]]], dtype)  # scores up to 10^4, where e^x overflows
    value = np.array([[[[1.0, -2.0], [3.0, 5.0], [4.0, 0.5]]]], dtype)
    out, lse, *grads = run(query, key, value, scale=1.0)
    np.testing.assert_allclose(out[0, 0, :2], value[0, 0, [0, 2]], rtol=0)
    np.testing.assert_allclose(out[0, 0, 2], value[0, 0].mean(axis=0), rtol=1e-3)  # 10 bits of float16
    np.testing.assert_allclose(lse[0, 0, :2], [size, size], rtol=1e-3)
    assert all(np.all(np.isfinite(grad)) for grad in grads[:3])
    biased = run(query, key, value, scale=1.0, attn_mask=np.array([0.0, size, size], dtype))
    assert all(np.all(np.isfinite(array)) for array in biased[:6])
    if size == 1e4:
        np.testing.assert_array_equal(aa.softmax(np.array([1e4, -1e4, 0.0], dtype)), [1.0, 0.0, 0.0])


def test_positions_that_no_array_reaches() -> None:
    plain = run(is_causal=True, window=(None, None))
    assert_same(run(is_causal=True, window=(2**62, 2**62)), plain)
    assert_same(run(attn_mask=aa.Window(10**12, None) & aa.Causal()), plain)
    assert not np.any(run(is_causal=True, q_offset=-(2**30))[0])
    assert_same(run(is_causal=True, q_offset=2**30), run())
