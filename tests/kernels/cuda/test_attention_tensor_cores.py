"""Attention on tensor cores, by emulation and through its own host functions, against the reference in float64."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention import engine
from attnarray.attention.modifiers import ScoreModifiers
from attnarray.dispatch import KernelUnavailableError
from attnarray.kernels import Declined
from attnarray.kernels.cuda import attention, attention_problem
from tests.cuda_emulation import fake_cupy
from tests.support.kernel_calls import OPTIONS, Call, Sizes, call_of, in_dtype, kinds
from tests.support.tensor_core_calls import DTYPES, assert_as_exact_as_float32, faults, run, truth_of
from tests.support.tiers import first

pytestmark = pytest.mark.emulation


@pytest.fixture(autouse=True)
def cupy() -> Iterator[Any]:
    with fake_cupy.installed() as module:
        yield module


def found_by_kernels(call: Call) -> dict[str, np.ndarray]:
    return run(call, fake_cupy.ndarray, lambda array: array.held)


def assert_right(call: Call, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    fake_cupy.State.seed = seed
    rounded = in_dtype(call, dtype)
    found = found_by_kernels(rounded)
    assert not list(faults(found, truth_of(rounded), rounded, dtype))
    return found


ODD = [(1, 1, 8, 8, 1), (5, 70, 16, 8, 2), (70, 33, 40, 64, 1), (65, 129, 64, 32, 1), (130, 67, 32, 48, 3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", first(2, [Sizes(*sizes, batch=1) for sizes in ODD]), ids=["-".join(map(str, s)) for s in ODD]
)
def test_odd_sizes(sizes: Sizes, dtype: str) -> None:
    for options in ({}, {"is_causal": True, "q_offset": sizes.keys - sizes.queries}):
        assert_right(call_of(sizes, **options), dtype)


SMALL, FEW = Sizes(37, 70, 16, 24, 3, batch=2), Sizes(2, 150, 16, 24, 2, batch=2)
WHOLE = Sizes(37, 80, 16, 24, 3, batch=2)  # rows over the keys are whole chunks of 16 bytes


@pytest.mark.parametrize("sizes", [SMALL, FEW], ids=["many queries", "few"])
@pytest.mark.parametrize("option", first(3, OPTIONS))
def test_each_option(option: str, sizes: Sizes) -> None:
    for seed, dtype in enumerate(("float16", "float32", "float16")):
        assert_right(call_of(sizes, seed, [option]), dtype, seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", range(3))
def test_all_options_together(kind: int, dtype: str) -> None:
    assert_right(kinds(SMALL)[kind], dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [WHOLE, Sizes(150, 144, 64, 48, 1, 1), Sizes(70, 48, 128, 100, 2, 1), Sizes(3, 176, 16, 8, 3)], ids=str
)
@pytest.mark.parametrize("option", ["bias", "mask"])
def test_bias_and_mask_in_tiles(option: str, sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    reading = attention_problem._reading
    monkeypatch.setattr(attention_problem, "_reading", lambda *given: (read.append(reading(*given)), read[-1])[1])
    rng = np.random.default_rng(0)
    for seed, dtype in enumerate(("float16", "bfloat16", "float32")):
        scores = rng.standard_normal((sizes.batch, 1, sizes.queries, sizes.keys))
        given = {"bias": np.where(scores > 1.5, -np.inf, scores)} if option == "bias" else {"attn_mask": scores < 0.5}
        more = {} if seed % 2 else {"is_causal": True, "q_offset": sizes.keys - sizes.queries}
        assert_right(call_of(sizes, seed, **given, **more), dtype, seed)
    assert attention_problem.IN_TILES in read
    assert attention_problem.BY_NUMBER not in read


@pytest.mark.slow
def test_a_bias_of_keys_whose_first_visible_queries_are_the_last() -> None:
    """The tile of keys from 128 on, loaded with 36 queries of the first batch, is reused for the second with all."""
    bias = np.random.default_rng(0).standard_normal((1, 4, 1, 256))
    call = call_of(Sizes(100, 256, 16, 16), bias=bias, is_causal=True, q_offset=np.array([40, 80]))
    assert_right(call, "float16")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 1, 80), (2, 1, 150, 1), (1, 1, 1, 1)], ids=str)
def test_the_gradient_of_a_shared_bias_ignores_masked_entries(shape: tuple[int, ...]) -> None:
    call = call_of(Sizes(150, 80, 16, 24, 1), bias=np.ones(shape), attn_mask=np.arange(80) != 65)
    call["value"][:, :, 65] = np.nan
    assert_right(call, "float16")


@pytest.mark.slow
def test_a_mask_and_a_bias_of_other_heads() -> None:
    """The gradient of a broadcast bias is a sum over heads with different masks."""
    rng = np.random.default_rng(0)
    given = {"bias": rng.standard_normal((1, 1, 37, 80)), "attn_mask": rng.random((2, 6, 37, 80)) < 0.7}
    assert_right(call_of(WHOLE, **given), "float16")


LOW = [("float16", -65504.0), ("bfloat16", -1e9), ("bfloat16", -3.38e38), ("float32", float(np.finfo(np.float32).min))]
LOW += [("float32", value) for value in (-1e9, -1e12, -1e32)]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "low"), LOW, ids=str)
@pytest.mark.parametrize("sizes", [SMALL, WHOLE], ids=["by number", "in tiles"])
def test_biases_that_stand_for_minus_infinity(sizes: Sizes, dtype: str, low: float) -> None:
    """As in other code. A row with no other bias has equal weights."""
    keys = np.arange(sizes.keys)
    of_rows = np.where(np.arange(sizes.queries)[:, None] % 5 == 0, low, 0.0) + np.zeros(sizes.keys)
    for bias in (np.full((1, sizes.keys), low), np.where(keys % 30 < 20, low, 0.0)[None], of_rows):
        assert_right(call_of(sizes._replace(kv_heads=1, batch=1), bias=bias), dtype)


@pytest.mark.slow
def test_float32_is_about_as_exact_as_float32() -> None:
    """Tensor cores truncate sums, which gives many times this error for long sums."""
    for sizes in (Sizes(64, 900, 64, 64, 1, 1, 1), Sizes(64, 400, 128, 128, 1, 1, 1)):
        call = in_dtype(call_of(sizes), "float32")
        assert_as_exact_as_float32(found_by_kernels(call), call)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [-0.3, -1.7])
def test_negative_scales(scale: float) -> None:
    assert_right(call_of(SMALL, scale=scale), "float16")


@pytest.mark.slow
@pytest.mark.parametrize("shape", list(itertools.product((2, 1), (6, 1), (37, 1), (70, 80, 1))), ids=str)
def test_every_shape_of_bias(shape: tuple[int, ...]) -> None:
    bias = np.random.default_rng(0).standard_normal(shape)
    assert_right(call_of(WHOLE if shape[3] == 80 else SMALL, bias=bias, is_causal=True, q_offset=30), "float16")


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_empty_sizes(sizes: tuple[int, int]) -> None:
    assert_right(call_of(Sizes(*sizes, 16, 8), sinks=np.ones(4)), "float16")
    assert_right(call_of(Sizes(*sizes, 16, 8, batch=0)), "float16")


def test_fully_masked_rows_are_zero() -> None:
    call = call_of(SMALL, kv_lengths=np.array([0, 70]), attn_mask=np.arange(37)[:, None] % 5 > 0)
    found = assert_right(call, "float16")
    assert not found["out"][0].any()
    assert not found["out"][:, :, ::5].any()
    assert (found["lse"][0] == -np.inf).all()


HIDING = {"causal": {"is_causal": True, "q_offset": 20}, "lengths": {"kv_lengths": np.array([50, 61])}}


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["key", "value", "query", "dout"])
@pytest.mark.parametrize("by", [*HIDING, "dropout", "mask", "mask in tiles", "bias", "bias in tiles"])
def test_masked_entries_are_ignored(by: str, name: str, value: float) -> None:
    """Non-finite numbers in masked keys or queries affect only the results that depend on them."""
    sizes = (WHOLE if by.endswith("in tiles") else SMALL)._replace(group=2, kv_heads=1)
    given = HIDING.get(by, {"dropout_p": 0.5, "rng": 3})
    if by.startswith(("mask", "bias")):
        mask = np.random.default_rng(0).random(sizes.scores) < 0.5
        mask[..., 65] = False
        given = {"attn_mask": mask} if by.startswith("mask") else {"bias": np.where(mask, 0.5, -np.inf)}
    call = call_of(sizes, 1, (), **given)
    where = 65 if name in ("key", "value") else 3
    call[name][:, :, where, ::3] = value
    assert_right(call, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [SMALL, FEW], ids=["many queries", "few"])
def test_cotangents_of_rows_without_keys_do_not_reach_the_sinks(sizes: Sizes) -> None:
    mask = np.arange(sizes.queries)[:, None] != 1
    call = call_of(sizes, 1, ("sinks",), attn_mask=np.broadcast_to(mask, (sizes.queries, sizes.keys)))
    call["dout"][:, :, 1] = np.nan
    found = assert_right(call, "float32")
    assert all(np.all(np.isfinite(array)) for array in found.values())


def test_visible_nan_propagates() -> None:
    for name, row in (("query", 30), ("key", 5), ("value", 5)):
        call = call_of(SMALL, is_causal=True)
        call[name][0, 1, row, 2] = np.nan
        found = assert_right(call, "float32")
        assert np.isnan(found["out"]).any()


@pytest.mark.slow
def test_the_order_of_blocks_and_threads_does_not_matter() -> None:
    for sizes in (SMALL, WHOLE, FEW):
        call = in_dtype(kinds(sizes)[1], "float16")
        results = []
        for seed in range(10):
            fake_cupy.State.seed = seed
            results.append(found_by_kernels(call))
        for other in results[1:]:
            for name, array in results[0].items():
                np.testing.assert_array_equal(array, other[name], err_msg=name)
    assert fake_cupy.State.synchronisations == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_options(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dims = rng.choice([3, 8, 20, 31], 2, replace=False)
    sizes = Sizes(*map(int, (*rng.integers(1, 140, 2), *dims, *rng.integers(1, 4, 2), 2)))
    chosen = rng.permutation(list(OPTIONS))[: rng.integers(1, 5)]
    assert_right(call_of(sizes, seed, chosen), ("float16", "bfloat16", "float32")[seed % 3], seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_huge_scores(dtype: str) -> None:
    call = call_of(SMALL, is_causal=True, q_offset=20)
    call["query"] *= np.where(np.random.default_rng(0).random(call["query"].shape) < 0.05, 200.0, 1.0)
    assert_right(call, dtype)


STRANGE = {
    "rows of all heads together": lambda x: x.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3),
    "every other row": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "every other number": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "backwards": lambda x: x[:, :, ::-1].copy()[:, :, ::-1],
    "an odd address": lambda x: np.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(x.shape),
    "one for all heads": lambda x: np.broadcast_to(x[:, :1], x.shape),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(STRANGE))
def test_layouts(layout: str) -> None:
    call = in_dtype(call_of(SMALL), "float16")
    for name in ("query", "key", "value", "dout"):
        call[name] = STRANGE[layout](call[name])
    assert not list(faults(found_by_kernels(call), truth_of(call), call, "float16"))


def test_explain_names_the_slower_way() -> None:
    def told(width: int, keys: int = 5, **options: Any) -> str:
        x = fake_cupy.ndarray(np.ones((1, 2, keys, width), np.float16))
        return str(aa.explain(engine.attention, x, x, x, ScoreModifiers(1.0, **options)))

    assert told(16) == "attention.engine:attention  cuda"
    assert (
        told(13) == "attention.engine:attention  cuda  (an input is copied: its rows are no whole chunks of 16 bytes)"
    )
    reason = "is read number by number: its rows are no whole chunks of 16 bytes"
    for name, dtype in (("mask", bool), ("bias", np.float16)):
        tables = {size: fake_cupy.ndarray(np.ones((1, 1, *size), dtype)) for size in ((16, 16), (5, 5), (16, 1))}
        assert told(16, 16, **{name: tables[16, 16]}) == "attention.engine:attention  cuda"
        for size in ((5, 5), (16, 1)):
            assert (
                told(16, size[0], **{name: tables[size]}) == f"attention.engine:attention  cuda  (the {name} {reason})"
            )


def test_what_no_kernel_does_is_declined_with_the_reason() -> None:
    wide = fake_cupy.ndarray(np.ones((1, 1, 2, 300), np.float16))
    with pytest.raises(Declined, match="head dim 300: at most 256"):
        attention.attention(wide, wide, wide, ScoreModifiers(1.0))
    double = fake_cupy.ndarray(np.ones((1, 1, 2, 8)))
    with pytest.raises(Declined, match="dtype float64"):
        attention.attention(double, double, double, ScoreModifiers(1.0))
    with aa.use_kernels("cuda"), pytest.raises(KernelUnavailableError, match="dtype float64"):
        engine.attention(double, double, double, ScoreModifiers(1.0))


def test_strides_and_offsets_are_64_bits_wide() -> None:
    memory = np.zeros(1, np.float16)
    far = np.lib.stride_tricks.as_strided(memory, (1, 2, 3, 8), (0, 2**40, 2**35, 2))
    x = types.SimpleNamespace(
        shape=far.shape,
        strides=far.strides,
        itemsize=2,
        dtype=far.dtype,
        data=types.SimpleNamespace(ptr=0),
        flags=types.SimpleNamespace(c_contiguous=False),
    )
    packed = attention_problem.make_problem(x, x, x, ScoreModifiers(1.0, q_offset=2**40, right=0)).packed()
    numbers = attention_problem.PACKED.unpack(packed)
    assert numbers[:3] == (0, 2**39, 2**34)
    assert numbers[24:27] == (2**40, 0, 2**40)


def test_the_struct_is_that_of_the_kernels() -> None:
    assert_right(call_of(Sizes(3, 5, 8, 8)), "float16")
    kernel = next(kernel for kernel in fake_cupy.RawKernel.loaded.values() if "s" in kernel.parameters)
    assert kernel.sizes[kernel.parameters.index("s")] == attention_problem.PACKED.size


@pytest.mark.slow
def test_warmup_compiles_what_plain_calls_need() -> None:
    attention.warmup("float16")
    loaded = set(fake_cupy.RawKernel.loaded)
    assert_right(call_of(Sizes(300, 70, 64, 64, 1)), "float16")
    assert set(fake_cupy.RawKernel.loaded) == loaded


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_in_parts(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more multiprocessors than blocks the keys are split, and some parts have no visible key of a query."""
    monkeypatch.setattr(attention, "multiprocessors", lambda device: 64)
    sizes = Sizes(3, 500, 16, 24, 2, batch=2)
    for options in ((), ("sinks", "cotangent of the lse"), ("window",), ("lengths", "dropout"), ("mask", "bias")):
        call = call_of(sizes, 3, options)
        if "window" in options:
            call |= {"q_offset": 200, "window": (150, 3)}
        assert_right(call, dtype)
    call = call_of(sizes, kv_lengths=np.array([0, 400]))
    call["value"][:, :, 450, ::3] = np.nan
    assert_right(call, dtype)


@pytest.mark.slow
def test_the_parts_of_few_queries_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    merged = []
    launch = attention.launch
    monkeypatch.setattr(attention, "multiprocessors", lambda device: 64)
    monkeypatch.setattr(
        attention, "launch", lambda kernel, *rest: (merged.append(kernel.name), launch(kernel, *rest))[1]
    )
    assert_right(call_of(Sizes(3, 500, 16, 24, 2, batch=1)), "float16")
    assert "attention_merge" in merged
