"""Tiled attention on the CPU against its reference: sizes, options, dropout bits, strides, tiles, and bad numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.kernels.numba.attention import tiled
from attnarray.random import attention_keep_mask
from tests.support.kernel_calls import (
    DTYPES,
    KINDS,
    OPTIONS,
    Sizes,
    assert_equal,
    assert_right,
    call_of,
    distance,
    in_dtype,
    kinds,
    largest,
    run,
    set_tiles,
)

# T, S, D, Dv and G: below and above whole panels, register tiles, tiles of keys and chunks of queries; where G T is no
# multiple of 16, a panel holds queries of two heads. The rest has few queries and many keys, as in decoding.
ODD = [
    (1, 1, 1, 3, 1), (3, 241, 8, 1, 3), (15, 16, 63, 64, 3), (16, 15, 3, 8, 2), (17, 63, 80, 63, 1),
    (63, 111, 96, 111, 2), (111, 17, 111, 96, 3), (241, 63, 128, 192, 1), (500, 3, 256, 128, 2), (63, 241, 192, 256, 1),
    (111, 500, 64, 63, 2), (500, 241, 8, 1, 1), (241, 500, 1, 3, 3), (16, 240, 64, 80, 1), (500, 111, 3, 8, 2),
    (1, 500, 64, 80, 3), (3, 63, 16, 24, 2), (2, 111, 63, 64, 3), (1, 1025, 128, 96, 1), (6, 513, 8, 16, 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [Sizes(*sizes) for sizes in ODD], ids=["-".join(map(str, sizes)) for sizes in ODD])
def test_odd_sizes(sizes: Sizes, dtype: str) -> None:
    for options in ({}, {"is_causal": True, "q_offset": sizes.keys - sizes.queries}):
        call = call_of(sizes, **options)
        found = assert_right(call, dtype)
        arrays = in_dtype({name: call[name] for name in ("query", "key", "value")}, dtype)
        np.testing.assert_array_equal(aa.scaled_dot_product_attention(**arrays, **options), found["out"])


@pytest.mark.parametrize("name", ["out", "lse"])
def test_results_of_another_dtype_are_brought_to_that_of_the_query(name: str) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 40, 8), dtype=np.float32)
    part, ctx = aa.attention_partial_fwd(q, k, v)
    cotangent = aa.Partial(np.ones_like(part.out), None)
    other = part._replace(**{name: getattr(part, name).astype(np.float64)})
    expected, found = (aa.attention_partial_bwd(cotangent, ctx, merged)[:3] for merged in (part, other))
    for gradient, same in zip(expected, found, strict=True):
        np.testing.assert_array_equal(same, gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [Sizes(37, 260, 16, 24, 3), Sizes(2, 600, 16, 24)], ids=["many queries", "few"])
@pytest.mark.parametrize("option", list(OPTIONS))
def test_each_option(option: str, sizes: Sizes, dtype: str) -> None:
    for seed in range(4):
        assert_right(call_of(sizes, seed, [option]), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_shape_of_biases_and_masks(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_tiles(monkeypatch, 2, 3)
    rng = np.random.default_rng(5)
    for sizes in (Sizes(19, 50, 3, 5, 3), Sizes(1, 70, 3, 5, 3)):
        for shape in itertools.product(*({size, 1} for size in sizes.scores)):
            bias = np.where(rng.random(shape) < 0.2, -math.inf, rng.standard_normal(shape))
            assert_right(call_of(sizes, bias=bias), dtype)
            mask = rng.random(shape) < 0.7
            assert_right(call_of(sizes, attn_mask=mask, dropout_mask=~mask | (rng.random(shape) < 0.5)), dtype)


@pytest.mark.parametrize("seed", range(60))
def test_random_options(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    queries, keys = (rng.integers(1, 4), rng.integers(1, 700)) if seed % 4 == 0 else rng.integers(1, (80, 150))
    dims = rng.choice([1, 3, 8, 15, 16, 17, 24, 33], 2, replace=False)
    sizes = Sizes(*map(int, (queries, keys, *dims, *rng.integers(1, 4, 3))))
    call = call_of(sizes, seed, rng.permutation(list(OPTIONS))[: rng.integers(1, 7)])
    if seed % 3:
        set_tiles(monkeypatch, *((1, 1), (3, 6))[seed % 3 - 1])  # 6 panels are more than one block of the backward
    for dtype in DTYPES:
        assert_right(call, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiles", [None, (2, 2)], ids=["normal tiles", "small tiles"])
@pytest.mark.parametrize(
    ("queries", "keys", "group", "offset", "first_key"),
    [(37, 70, 3, 0, 0), (20, 300, 1, np.array([-7, 2**30 - 9]), 3), (70, 33, 2, 5, 2**20 + 2), (1, 130, 2, 129, 0)],
)
def test_the_same_weights_are_dropped(
    queries: int, keys: int, group: int, offset: Any, first_key: int, tiles: Any, dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if tiles is not None:
        set_tiles(monkeypatch, *tiles)
    sizes, seed = Sizes(queries, keys, 2, max(queries, keys), group), 2**63 + 11
    b, h, t, s = sizes.scores
    call = call_of(sizes, dropout_p=0.3, rng=seed, q_offset=offset, kv_offset=first_key)
    call["key"] *= 0  # all weights are 1 / S, the unit vectors as values and cotangents show them
    call["value"], call["dout"] = (
        np.broadcast_to(np.eye(n, sizes.value_dim), call[name].shape) for n, name in ((s, "value"), (t, "dout"))
    )
    found = run(in_dtype(call, dtype))
    keep = attention_keep_mask(seed, 0.3, (b, h, t, s), np, None, offset, first_key)
    np.testing.assert_array_equal(found["out"][..., :s] != 0, keep)
    kept = keep.reshape(b, -1, group, t, s).sum(axis=2).mT
    np.testing.assert_array_equal(np.rint(found["dvalue"][..., :t] * (0.7 * s)), kept)


def _at_an_odd_address(x: np.ndarray) -> np.ndarray:
    memory = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    memory[...] = x
    return memory


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "negative strides": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "every other number": lambda x: np.repeat(np.repeat(x, 2, axis=-1), 2, axis=-2)[..., ::2, ::2],
    "every other row": lambda x: np.repeat(x, 2, axis=-2)[..., ::2, :],
    "last axes transposed": lambda x: x.mT.copy().mT,
    "all axes reversed": np.asfortranarray,
    "odd address": _at_an_odd_address,
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "read-only": _read_only,
}
# With few queries, keys whose rows are whole registers are read in place, others are copied first.
STRIDED = [Sizes(21, 50, 6, 9, 3), Sizes(2, 90, 6, 9), Sizes(2, 90, 16, 32)]


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("kind", range(3), ids=KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_layouts_do_not_matter(layout: str, kind: int, dtype: str) -> None:
    for sizes in STRIDED:
        call = in_dtype(kinds(sizes)[kind], dtype)
        lain = {n: LAYOUTS[layout](x[None])[0] if isinstance(x, np.ndarray) else x for n, x in call.items()}
        assert_equal(run(lain), run(call))


@pytest.mark.parametrize("kind", [1, 2], ids=KINDS[1:])
@pytest.mark.parametrize("sizes", STRIDED)
def test_layout_bthd_and_repeated_arrays(sizes: Sizes, kind: int) -> None:
    call = in_dtype(kinds(sizes)[kind], "float32")
    expected = run(call)
    heads_last = {n: call[n].swapaxes(1, 2).copy() for n in ("query", "key", "value", "dout")}
    found = run({**call, **heads_last, "layout": "BTHD"})
    swapped = ("out", "dquery", "dkey", "dvalue")
    assert_equal({n: x.swapaxes(1, 2) if n in swapped else x for n, x in found.items()}, expected)

    same = {n: np.broadcast_to(x[:1, :1], x.shape) for n, x in call.items() if isinstance(x, np.ndarray) and x.ndim > 2}
    row = {n: np.broadcast_to(call[n][..., :1, :], call[n].shape) for n in ("query", "dout", "bias")}
    for repeated in (same, row):
        copied = {n: x.copy() for n, x in repeated.items()}
        assert_equal(run({**call, **repeated}), run({**call, **copied}))


@pytest.mark.parametrize(("dtype", "eps"), [("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
@pytest.mark.parametrize("sizes", [Sizes(37, 70, 16, 24, 3), Sizes(1, 600, 32, 64)], ids=["many queries", "few"])
def test_16_bit_floats_are_computed_in_float32(sizes: Sizes, dtype: str, eps: float) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    for call in kinds(sizes):
        rounded = in_dtype(call, dtype)
        found, expected = run(rounded), run(in_dtype(rounded, "float32"), "reference")
        assert {name: array.dtype.name for name, array in found.items()} == {
            name: "float32" if name == "lse" else dtype for name in expected
        }
        for name, array in expected.items():
            # Rounded once; gradients depend on the output besides, which is saved rounded.
            allowed = 1e-5 if name == "lse" else eps if name == "out" else 4 * eps
            assert distance(found[name], array) <= allowed * max(largest(array), 1.0), name


@pytest.mark.parametrize("tiles", [(1, 1), (2, 3), (5, 9), (200, 64)])
def test_tiles_do_not_matter(tiles: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for call in kinds(Sizes(130, 300, 8, 12, 3)):
        expected = run(call)
        with monkeypatch.context() as patch:
            set_tiles(patch, *tiles)
            assert_equal(run(call), expected, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [Sizes(37, 61, 2, 7), Sizes(2, 80, 2, 7)], ids=["many queries", "few"])
def test_huge_and_equal_scores(sizes: Sizes, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_tiles(monkeypatch, 2, 2)
    rng = np.random.default_rng(6)
    query, key = (rng.integers(-size, size + 1, call_of(sizes)[n].shape) for n, size in (("query", 100), ("key", 50)))
    huge = {"query": query.astype(float), "key": key.astype(float), "scale": 1.0}  # whole numbers up to 10^4
    equal = {"key": np.zeros(key.shape)}
    lowest = float(np.finfo(np.float32).min)
    for numbers in (huge, equal, huge | {"softcap": 30.0}, equal | {"bias": np.full((1, 1), 1e4)}):
        assert_right(call_of(sizes, **numbers), dtype)
    for bias in (np.full((1, 1), lowest), np.where(np.arange(sizes.keys) % 30 < 20, lowest, 0.0)):
        assert_right(call_of(sizes, bias=bias), dtype)  # used by other code for -inf


SPREAD = {
    "no option": (),
    "causal": ("offset",),
    "window and lengths": ("window", "lengths"),
    "mask": ("mask",),
    "bias": ("bias",),
    "dropout": ("dropout",),
    "softcap and sinks": ("softcap", "sinks"),
}


@pytest.mark.parametrize("sizes", [Sizes(37, 61, 5, 7), Sizes(2, 80, 5, 7)], ids=["many queries", "few"])
@pytest.mark.parametrize("place", ["query", "key", "value", "dout", "dlse"])
@pytest.mark.parametrize("options", SPREAD.values(), ids=list(SPREAD))
def test_nan_and_infinities_spread_as_in_the_reference(
    options: tuple[str, ...], place: str, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tiles(monkeypatch, 2, 2)
    for rubbish, dtype in itertools.product((math.nan, math.inf, -math.inf), DTYPES):
        call = call_of(sizes, 8, (*options, "cotangent of the lse"))
        call["query"] /= 3  # no weight and no slope of a softcap may round to 0
        call[place][1, 1, call[place].shape[2] // 2, ...] = rubbish
        call = in_dtype(call, dtype)
        with np.errstate(all="ignore"):
            expected = run(call, "reference")
        found = run(call)
        for name, array in expected.items():
            assert distance(found[name], array) <= 2e-5 * max(largest(array), 1.0), name  # float32


@pytest.mark.parametrize("queries", [1, 40])
def test_weights_that_round_to_zero_hide_nan(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_tiles(monkeypatch, 2, 2)
    call = call_of(Sizes(queries, 100, 2, 3), query=np.ones((2, 4, queries, 2)), scale=1.0, kv_lengths=99)
    call["key"][:, :, 80] = 2000.0
    call["value"][:, :, 1] = math.nan
    expected = run(call, "reference")
    assert np.all(np.isfinite(expected["out"]))
    assert_equal(run(call), expected, 1e-11)  # scores of 4000


def test_read_only_arrays_take_the_fast_path() -> None:
    q = np.random.default_rng(0).standard_normal((1, 2, 8, 4))
    out, ctx = aa.scaled_dot_product_attention_fwd(q, q, q)
    assert not out.flags.writeable
    before = tiled._plan.cache_info()
    aa.scaled_dot_product_attention_bwd(out, ctx)
    aa.scaled_dot_product_attention(out, out, out)
    after = tiled._plan.cache_info()
    assert after.hits + after.misses == before.hits + before.misses + 2
