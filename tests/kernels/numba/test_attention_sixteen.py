"""Attention on 16-bit arrays: the bits of float32 arrays with the same numbers, rounded once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import Partial
from attnarray.attention import options as attention_options
from attnarray.attention.dot_product.partial import attention_partial_bwd, attention_partial_fwd
from attnarray.kernels.numba.attention import tiled
from attnarray.kernels.numba.vector.pairs import available
from attnarray.masks import tiles as mask_tiles
from tests.support.kernel_calls import (
    KINDS,
    OPTIONS,
    Call,
    Sizes,
    call_of,
    distance,
    in_dtype,
    kinds,
    largest,
    run,
    set_tiles,
)

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
# Whole and broken registers, panels and tiles of keys; the last four have few queries and many keys, as in decoding.
SIZES = [
    Sizes(37, 70, 16, 24, 3), Sizes(33, 61, 5, 7, 1), Sizes(111, 300, 64, 63, 2), Sizes(70, 241, 33, 96, 2),
    Sizes(1, 600, 32, 64), Sizes(2, 577, 33, 15, 3), Sizes(1, 1025, 128, 128), Sizes(3, 90, 16, 1, 2),
]  # fmt: skip


WAYS = ["float16", "bfloat16", "bfloat16 in pairs"]


@pytest.fixture(params=WAYS)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A dtype; bfloat16 numbers are multiplied as float32, or in pairs where this CPU does that."""
    name, _, in_pairs = request.param.partition(" ")
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    if in_pairs and not available():
        pytest.skip("this CPU has no AVX512-BF16")
    monkeypatch.setattr(tiled, "available", lambda: bool(in_pairs))
    plan = tiled._plan  # which remembers how to multiply
    plan.cache_clear()
    yield name
    plan.cache_clear()


as_float32 = pytest.mark.parametrize("dtype", WAYS[:2], indirect=True)


def rounded_once(call: Call, dtype: str) -> dict[str, np.ndarray]:
    """What float32 arrays of the same numbers give; the backward pass sees the rounded output."""
    wide = in_dtype(call, "float32")
    arguments = {name: value for name, value in wide.items() if name not in ("dout", "dlse")}
    part, ctx = attention_partial_fwd(**arguments)
    out = part.out.astype(dtype)
    part = part._replace(out=out.astype(np.float32))
    grads = attention_partial_bwd(Partial(wide["dout"], wide.get("dlse")), ctx, part)
    named = {f"d{name}": array.astype(dtype) for name, array in grads._asdict().items() if array is not None}
    return {"out": out, "lse": part.lse, **named}


def assert_near(call: Call, dtype: str) -> None:
    """Of float32 kernels, results differ by one rounding, and gradients by that of the output, which is saved rounded.

    In pairs, weights and gradients of scores are rounded, too, each on its own: so their errors hardly add up.
    """
    found, expected = run(call), run(in_dtype(call, "float32"), "reference")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        allowed = 1e-5 if name == "lse" else EPS[dtype] if name == "out" else 4 * EPS[dtype]
        assert distance(found[name], array) <= allowed * max(largest(array), 1.0), name


def assert_rounded_once(call: Call, dtype: str) -> None:
    found, expected = run(call), rounded_once(call, dtype)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name].astype(np.float32), array.astype(np.float32), err_msg=name)


@as_float32
@pytest.mark.parametrize("kind", range(3), ids=KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=["-".join(map(str, sizes)) for sizes in SIZES])
def test_16_bit_arrays_are_read_as_their_numbers(sizes: Sizes, kind: int, dtype: str) -> None:
    assert_rounded_once(in_dtype(kinds(sizes)[kind], dtype), dtype)


@pytest.mark.parametrize("option", list(OPTIONS))
@pytest.mark.parametrize("sizes", [Sizes(37, 131, 16, 24, 3), Sizes(2, 600, 16, 24)], ids=["many queries", "few"])
def test_options(option: str, sizes: Sizes, dtype: str) -> None:
    assert_near(in_dtype(call_of(sizes, options=[option]), dtype), dtype)


# Even widths, as those of pairs: keys and queries are even and odd, and a window begins at an odd key.
EVEN = [Sizes(37, 70, 16, 24, 3), Sizes(33, 61, 2, 6, 1), Sizes(111, 299, 64, 62, 2), Sizes(70, 241, 34, 96, 2)]


@pytest.mark.parametrize("kind", range(3), ids=KINDS)
@pytest.mark.parametrize("sizes", EVEN, ids=["-".join(map(str, sizes)) for sizes in EVEN])
def test_all_options_together(sizes: Sizes, kind: int, dtype: str) -> None:
    assert_near(in_dtype(kinds(sizes)[kind], dtype), dtype)


@pytest.mark.parametrize("tiles", [(1, 1), (3, 2)])
@pytest.mark.parametrize("kind", range(3), ids=KINDS)
def test_several_chunks_and_threads_add_to_gradients(
    kind: int, tiles: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tiles(monkeypatch, *tiles)
    for sizes in (Sizes(130, 90, 8, 12, 2), Sizes(70, 91, 8, 12, 1, 3)):
        assert_near(in_dtype(kinds(sizes)[kind], dtype), dtype)


@as_float32
@pytest.mark.parametrize("kind", range(3), ids=KINDS)
def test_gradients_that_many_add_to_are_rounded_once(
    kind: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    set_tiles(monkeypatch, 1, 1)
    assert_rounded_once(in_dtype(kinds(Sizes(130, 90, 8, 12, 2))[kind], dtype), dtype)


def strided(x: np.ndarray) -> np.ndarray:
    """The same numbers, 6 bytes apart."""
    spread = np.zeros((*x.shape[:-1], 3 * x.shape[-1]), x.dtype)
    spread[..., 1::3] = x
    return spread[..., 1::3]


LAYOUTS = {
    "strided": strided,
    "transposed": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
    "heads after positions": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) if x.ndim == 4 else x,
    "odd address": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, x.size, 1).reshape(x.shape),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("kind", range(3), ids=KINDS)
def test_memory_layouts_do_not_matter(layout: str, kind: int, dtype: str) -> None:
    for sizes in (Sizes(21, 50, 6, 10, 3), Sizes(2, 90, 6, 9), Sizes(2, 90, 16, 32)):
        call = in_dtype(kinds(sizes)[kind], dtype)
        lain = {n: LAYOUTS[layout](x) if is_sixteen(x) else x for n, x in call.items()}
        in_place = layout in ("heads after positions", "odd address") or not tiled.available()
        if not in_place:  # strided features are not multiplied in pairs
            assert_near(lain, dtype)
            continue
        expected = run(call)
        for name, array in run(lain).items():
            np.testing.assert_array_equal(array.astype(np.float32), expected[name].astype(np.float32), err_msg=name)


def is_sixteen(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.itemsize == 2 and x.ndim > 1


@pytest.mark.parametrize("sizes", [Sizes(37, 70, 6, 10, 3), Sizes(2, 600, 16, 32)], ids=["many queries", "few"])
def test_bad_numbers_behind_masks(sizes: Sizes, dtype: str) -> None:
    call = in_dtype(call_of(sizes, is_causal=True, q_offset=sizes.keys // 4), dtype)
    clean = run(call)
    hidden = sizes.keys // 4 + sizes.queries
    for name, bad in itertools.product(("key", "value"), (np.nan, np.inf)):
        changed = {**call, name: call[name].copy()}
        changed[name][:, :, hidden:] = bad
        for other, array in run(changed).items():
            np.testing.assert_array_equal(array.astype(np.float32), clean[other].astype(np.float32), err_msg=other)
    for name, affected in (("value", "out"), ("dout", "dvalue"), ("query", "dkey")):
        changed = {**call, name: call[name].copy()}
        changed[name][0, 0, 0, 0] = np.nan
        assert np.isnan(run(changed)[affected].astype(np.float32)).any()
        with np.errstate(all="ignore"):
            expected = run(in_dtype(changed, "float32"), "reference")[affected]
        found = run(changed)[affected].astype(np.float32)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)


@pytest.mark.parametrize("size", [4, 5, 24])
def test_masks_in_tiles(size: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_options, "FEWEST_PAIRS", 0)
    monkeypatch.setattr(mask_tiles, "SIZE", size)
    mask = aa.Window(2, 3) | aa.Global(2)
    assert_near(in_dtype(call_of(Sizes(37, 61, 16, 24, 3), attn_mask=mask), dtype), dtype)
