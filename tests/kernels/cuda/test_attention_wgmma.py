"""Kernels with warpgroup instructions: emulated primitives, attention against float64, and NVIDIA's compiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from attnarray.backend import asarray
from attnarray.kernels.cuda import attention, cache, loader, nvrtc
from attnarray.kernels.cuda import attention_plan as plan
from attnarray.kernels.cuda.attention_problem import PLAIN, compile_constants
from attnarray.kernels.cuda.grid import Grid
from attnarray.kernels.cuda.halves import split_halves
from tests.cuda_emulation import building, fake_cupy
from tests.cuda_emulation.building import Failed
from tests.support.kernel_calls import Call, Sizes, call_of, in_dtype
from tests.support.tensor_core_calls import assert_as_exact_as_float32, faults, run, truth_of, warpgroup_calls
from tests.support.tiers import first

SEEDS = range(6)
SQUARE = Sizes(130, 130, 64, 64, 1, 1, 1)


# The primitives.


@pytest.mark.slow
@pytest.mark.emulation
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("keys", "dim"), [(64, 128), (128, 64), (128, 128)])
def test_products_of_rows_and_of_weights(keys: int, dim: int, dtype: str) -> None:
    library = building.library(building.unit("calibration_warpgroup.cu", [dtype], ["CALIBRATION=1"]))
    rng = np.random.default_rng(0)
    q, k = (asarray(rng.standard_normal((rows, dim)), dtype) for rows in (64, keys))
    d, e = np.full((64, keys), np.nan, np.float32), np.full((64, dim), np.nan, np.float32)
    grid = Grid((1, 1, 1), (128, 1, 1), 2 * dim * (64 + keys))
    for seed in SEEDS:
        building.run(getattr(library, f"grouped_{keys}_by_{dim}_{dtype}"), grid, [q, k, d, e], seed)
        exact = q.astype(np.float64) @ k.astype(np.float64).T
        np.testing.assert_allclose(d, exact, rtol=1e-5, atol=1e-5)
        weights = asarray(d, dtype).astype(np.float64)
        np.testing.assert_allclose(e, weights @ k.astype(np.float64), rtol=1e-5, atol=1e-4)


# Correct except for the bug `bug`: two tiles, the second over the first once its products are done.
SOURCE = """
#define Stored float16
#include "warpgroup.cuh"
using Matrix = PanelTile<float16, 64, 64>;

KERNEL(128) doubled(Global<const float16> x, Global<float> out, int64 bug) {
  float sums[8][4] = {};
  for (int tile = 0; tile < 2; tile++) {
    const Matrix matrix = {0};
    fill<128>(matrix, x + tile * 4096, 64, 64, 64);
    commit_copies();
    if (bug != 1) wait_copies<0>();
    if (bug != 2) show_products();
    if (bug != 3) sync_threads();
    if (bug == 4 && threadIdx.x >= 96) return;
    begin_products();
    multiply_rows(sums, matrix, 0, matrix);
    commit_products();
    if (bug == 5) out[threadIdx.x] = sums[0][0];
    if (bug != 6) wait_products<0>();
    if (bug != 7) sync_threads();
  }
  if (bug != 5)
    for (int part = 0; part < 8; part++)
      for (int n = 0; n < 4; n++)
        out[(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + n / 2 * 8) * 64 + 8 * part + threadIdx.x % 4 * 2 + n % 2] =
            sums[part][n];
}
EXPORT(doubled)
"""
BUGS = [
    (1, "while an asynchronous copy fills it"),
    (2, "after which thread .* has not called show_products"),
    (3, "race: reads|while an asynchronous copy fills it|nobody has written|has not called show_products"),
    (4, "deadlock: .* wait at multiply_group|is at .* while others are at"),
    (6, "race: writes byte .* while a product reads it"),
    (7, "race: writes byte .* (while a product reads it|which thread .* has read)"),
]


def doubled(bug: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float16)
    out = np.full((64, 64), np.nan, np.float32)
    grid = Grid((1, 1, 1), (128, 1, 1), 8192)
    building.run(building.library(SOURCE).doubled_float16, grid, [x, out, np.int64(bug)], seed)
    wide = x.astype(np.float64)
    return out, wide[1] @ wide[1].T


@pytest.mark.emulation
@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_kernel_passes(seed: int) -> None:
    out, exact = doubled(0, seed)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.emulation
@pytest.mark.parametrize(("bug", "message"), BUGS)
def test_races_are_found_in_any_order(bug: int, message: str) -> None:
    for seed in SEEDS:
        with pytest.raises(Failed, match=message):
            doubled(bug, seed)


@pytest.mark.emulation
def test_sums_without_a_wait_are_missing() -> None:
    for seed in SEEDS:
        out, _ = doubled(5, seed)
        assert (out.ravel()[:128] == 777).all()


# Attention.


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("ATTNARRAY_WARPGROUPS", "1")
    with fake_cupy.installed() as module:
        yield module


def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    launch = attention.launch
    monkeypatch.setattr(
        attention, "launch", lambda kernel, *rest: (names.append(kernel.name), launch(kernel, *rest))[1]
    )
    return names


def assert_right(dtype: str, call: Call, seed: int = 0) -> None:
    fake_cupy.State.seed = seed
    rounded = in_dtype(call, dtype)
    found = run(rounded, fake_cupy.ndarray, lambda array: array.held)
    assert not list(faults(found, truth_of(rounded), rounded, dtype))


@pytest.mark.emulation
@pytest.mark.parametrize("number", first(1, range(len(warpgroup_calls()))))
def test_plain_calls(cupy: Any, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    names = launched(monkeypatch)
    dtype, call = warpgroup_calls()[number]
    assert_right(dtype, call, number)
    kernels = [name for name in names if name.startswith("warpgroup")]
    assert kernels == ["warpgroup_forward", "warpgroup_queries", "warpgroup_keys"]


@pytest.mark.slow
@pytest.mark.emulation
def test_float32_is_as_exact_as_float32(cupy: Any) -> None:
    for dim in (64, 128):
        call = in_dtype(call_of(Sizes(128, 700, dim, dim, 1, 1, 1)), "float32")
        found = run(call, fake_cupy.ndarray, lambda array: array.held)
        assert_as_exact_as_float32(found, call)


@pytest.mark.emulation
def test_halves_make_up_the_numbers(cupy: Any) -> None:
    """For each batch and head of keys, with the maximum anywhere; non-finite numbers stay non-finite."""
    rng = np.random.default_rng(0)
    shapes = (2, 4, 300, 36), (2, 2, 90, 36), (2, 2, 90, 64), (2, 4, 300, 64)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    arrays[0][0, 3, 299, 35], arrays[1][1] = 1e6, 0
    arrays[2][1, 1, 5, 2], arrays[2][1, 0] = np.nan, 1e-30 * arrays[2][1, 0]
    strides = tuple(stride // 4 for x in arrays for stride in x.strides[:3])
    *halves, units = split_halves(tuple(map(fake_cupy.ndarray, arrays)), strides, (64, 64), 2)
    for x, both, unit in zip(arrays, halves, units.held.reshape(4, 2, 2), strict=True):
        first, second = np.moveaxis(both.held.view(np.float16).reshape(*x.shape[:3], 2, 64).astype(np.float64), 3, 0)
        by = np.repeat(unit, x.shape[1] // 2, axis=1)[..., None, None].astype(np.float64)
        whole, width, seen = (first + second) * by, x.shape[3], np.isfinite(x)
        largest = np.max(np.abs(np.where(seen, x, 0)).reshape(2, 2, -1), axis=2)
        assert np.all((largest == 0) | ((largest / unit >= 2**14) & (largest / unit < 2**15)))
        assert not whole[..., width:].any()
        np.testing.assert_array_equal(np.isfinite(whole[..., :width]), seen)
        error = np.abs(whole[..., :width] - x)[seen] / np.broadcast_to(by, x.shape)[seen]
        assert np.all(error <= np.maximum(2.0**-22 * np.abs(x / by)[seen], 2.0**-25))


MAGNITUDES = [(1e15, 1e-15, 1e20, 1e-25), (1e-18, 1e18, 1e-20, 1e10), (1.0, 1.0, 1e-25, 1e-5)]


@pytest.mark.slow
@pytest.mark.emulation
@pytest.mark.parametrize("magnitudes", MAGNITUDES, ids=str)
def test_float32_of_any_magnitude(cupy: Any, magnitudes: tuple[float, ...]) -> None:
    call = call_of(Sizes(130, 300, 64, 64, 2, 1, 2))
    for name, magnitude in zip(("query", "key", "value", "dout"), magnitudes, strict=True):
        call[name] *= magnitude * np.exp(np.random.default_rng(1).standard_normal((2, 1, 1, 1)))
    call = in_dtype(call, "float32")
    found = run(call, fake_cupy.ndarray, lambda array: array.held)
    assert_as_exact_as_float32(found, call)


@pytest.mark.slow
@pytest.mark.emulation
def test_gradients_whose_rows_grow(cupy: Any) -> None:
    """Cotangents that grow by 2^100 from the first query to the last: the powers of two of rows decrease repeatedly."""
    call = call_of(Sizes(256, 256, 64, 64, 1, 1, 1), is_causal=True)
    call["dout"] *= 2.0 ** np.linspace(-50, 50, 256)[:, None]
    call = in_dtype(call, "float32")
    found, exact = run(call, fake_cupy.ndarray, lambda array: array.held), truth_of(call)
    for name in ("dquery", "dkey", "dvalue"):
        np.testing.assert_allclose(found[name], exact[name], atol=1e-5 * np.abs(exact[name]).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.emulation
def test_other_calls_take_the_other_kernels(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = launched(monkeypatch)
    assert_right("float16", call_of(SQUARE, attn_mask=np.arange(130) > 3))
    assert_right("float32", call_of(SQUARE._replace(dim=128, value_dim=192)))
    assert_right("float16", call_of(SQUARE._replace(dim=32)))
    assert not [name for name in names if "warpgroup" in name]
    names.clear()
    assert_right("float16", call_of(SQUARE._replace(queries=100)))  # few queries, many keys
    assert names == ["attention_forward", "attention_delta", "attention_queries", "warpgroup_keys"]


@pytest.mark.emulation
def test_they_are_used_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNARRAY_WARPGROUPS", raising=False)
    with fake_cupy.installed():
        names = launched(monkeypatch)
        assert_right("float16", call_of(SQUARE))
        assert not [name for name in names if "warpgroup" in name]
    monkeypatch.setenv("ATTNARRAY_WARPGROUPS", "1")
    assert plan.has_wgmma(90)
    assert not plan.has_wgmma(100)


@pytest.mark.slow
@pytest.mark.emulation
@pytest.mark.parametrize("name", ["key", "value", "query", "dout"])
def test_masked_entries_are_ignored(cupy: Any, name: str) -> None:
    call = call_of(Sizes(128, 200, 64, 64, 1, 1, 1), 1, is_causal=True, q_offset=20)
    call[name][:, :, 190 if name in ("key", "value") else 3, ::3] = np.nan
    assert_right("float16", call)


@pytest.mark.slow
@pytest.mark.emulation
def test_the_order_of_blocks_and_threads_does_not_matter(cupy: Any) -> None:
    call = in_dtype(call_of(Sizes(150, 210, 64, 64, 1, 2, 1), is_causal=True, q_offset=60), "bfloat16")
    results = []
    for seed in range(10):
        fake_cupy.State.seed = seed
        results.append(run(call, fake_cupy.ndarray, lambda array: array.held))
    for other in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.emulation
def test_keys_in_parts(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "multiprocessors", lambda device: 64)
    names = launched(monkeypatch)
    assert_right("bfloat16", call_of(Sizes(128, 700, 64, 64, 1, 1, 1), kv_lengths=np.array([600])))
    assert names[:2] == ["warpgroup_forward", "attention_merge"]


@pytest.mark.slow
@pytest.mark.emulation
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_warmup_compiles_what_plain_calls_need(cupy: Any, dtype: str) -> None:
    attention.warmup(dtype)
    loaded = set(fake_cupy.RawKernel.loaded)
    assert_right(dtype, call_of(Sizes(128, 128, 128, 128, 1, 1, 1)))
    assert set(fake_cupy.RawKernel.loaded) == loaded


# The compiler.

CASES = [(kind, size, dim) for kind, sizes in plan.WARPGROUPS.items() for size, dims in sizes.items() for dim in dims]


def logs_of(kind: str, itemsize: int, dim: int, tiling: plan.Tiling) -> Iterator[str]:
    for more in plan.gradients_of_keys(dim, dim, itemsize == 4) if kind == "keys" else ({},):
        constants = compile_constants((dim, dim), tiling, PLAIN, **more)
        dtype = {2: "bfloat16", 4: "float32"}[itemsize]
        yield loader.compile_for(f"warpgroup_{kind}.cu", dtype, "sm_90a", constants).log


@pytest.mark.slow
@pytest.mark.nvrtc
@pytest.mark.parametrize(("kind", "itemsize", "dim"), CASES)
def test_products_overlap_with_the_rest_and_nothing_spills(kind: str, itemsize: int, dim: int) -> None:
    tiling, shared = plan.wgmma_tiling(kind, dim, dim, itemsize, 10**6) or (None, 0)
    assert tiling is not None
    assert shared <= 227 * 1024
    for log in logs_of(kind, itemsize, dim, tiling):
        assert nvrtc.usage(log)[f"warpgroup_{kind}"].spilled == 0
        assert "serialized" not in log


@pytest.mark.nvrtc
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_primitive_compiles(dtype: str) -> None:
    text = (building.HERE / "calibration_warpgroup.cu").read_text()
    headers = {name: cache.source_text(name) for name in ("primitives.cuh", "matrix.cuh", "warpgroup.cuh")}
    options = (*loader.OPTIONS, f"-DStored={dtype}")
    log = nvrtc.compile_source(text, "calibration_warpgroup.cu", headers, options, "sm_90a").log
    assert [used.spilled for used in nvrtc.usage(log).values()] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.nvrtc
def test_the_compiler_says_when_products_wait_for_each_other() -> None:
    (log,) = logs_of("keys", 2, 128, plan.Tiling(8, 1, 128))  # more sums than registers
    assert "serialized" in log
