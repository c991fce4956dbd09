"""The emulation finds each bug, whatever the order of threads, and accepts correct code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attnarray.backend import asarray
from attnarray.kernels.cuda.grid import Grid
from tests.cuda_emulation import building
from tests.cuda_emulation.building import Failed

pytestmark = pytest.mark.emulation
SEEDS = range(8)
BLOCK = Grid((1, 1, 1), (64, 1, 1), 1024)

# Each kernel is correct except for the bug `bug`.
SOURCE = """
#include "primitives.cuh"
#define Stored float

// Turns 64 numbers around through shared memory. 1: no barrier; 2: only the warps wait; 3: one number too far.
KERNEL(64) reversed(Global<const float> x, Global<float> out, int64 bug) {
  Shared<float> held = shared<float>(0);
  const int t = threadIdx.x;
  held[bug == 3 && t == 63 ? 256 : t] = x[t];
  if (bug == 2) sync_warp();
  if (bug == 0 || bug == 3) sync_threads();
  out[t] = held[63 - t];
}
EXPORT(reversed)

// The same number for all. 1: reads what nobody has written; 2: the next round writes before all have read.
KERNEL(64) shared_number(Global<const float> x, Global<float> out, int64 bug) {
  Shared<float> held = shared<float>(0);
  for (int n = 0; n < 4; n++) {
    if (threadIdx.x == 0 && bug != 1) held[0] = x[n];
    sync_threads();
    out[n * 64 + threadIdx.x] = held[0];
    if (bug != 2) sync_threads();
  }
}
EXPORT(shared_number)

// A copy in global memory. 1: reads behind the array; 2: writes before it; 3: two blocks write one number;
// 4: 16 bytes from a place that is not aligned.
KERNEL(64) copied(Global<const float> x, Global<float> out, int64 bug) {
  const int64 n = int64(blockIdx.x) * 64 + threadIdx.x;
  float numbers[4];
  if (bug == 4 && n == 1) load16<float>(x, 1, numbers);
  out[bug == 2 && n == 0 ? -1 : bug == 3 && n == 64 ? 0 : n] = x[bug == 1 && n == 127 ? 128 : n];
}
EXPORT(copied)

// Threads that do not meet. 1: half of them never come; 2: some lanes leave before the shuffle; 3: other barriers.
KERNEL(64) parted(Global<float> out, int64 bug) {
  float value = threadIdx.x;
  if (!(bug == 2 && threadIdx.x % 32 < 3)) value += shuffle_xor(value, 1);
  if (bug == 3 && threadIdx.x < 32) sync_warp();
  else if (bug == 3 && threadIdx.x == 40) sync_warp();
  if (!(bug == 1 && threadIdx.x < 32)) sync_threads();
  out[threadIdx.x] = value;
}
EXPORT(parted)

// Two stages of asynchronous copies. 1: waits for the wrong group; 2: no wait; 3: no barrier after the wait.
KERNEL(64) streamed(Global<const float> x, Global<float> out, int64 bug) {
  Shared<float> held = shared<float>(0);
  const int t = threadIdx.x;
  auto fetch = [&](int n) {
    if (t < 16) copy_async<float>(held + (n % 2 * 64 + 4 * t), x + (n * 64 + 4 * t));
    commit_copies();
  };
  fetch(0);
  for (int n = 0; n < 4; n++) {
    if (n < 3) fetch(n + 1);
    else commit_copies();
    if (bug == 1) wait_copies<2>();
    else if (bug != 2) wait_copies<1>();
    if (bug != 3) sync_threads();
    out[n * 64 + t] = held[n % 2 * 64 + 63 - t];
    sync_threads();
  }
}
EXPORT(streamed)

// The copy engine and mbarriers. 1: the wrong phase; 2: no wait; 3: more bytes expected than come; 4: stages used again
// before they are read.
KERNEL(64) engine(Global<const float> x, Global<float> out, int64 bug) {
  Shared<float> held = shared<float>(0);
  Shared<uint64> full = shared<uint64>(512), read = shared<uint64>(528);
  const int t = threadIdx.x;
  if (t == 0) {
    for (int s = 0; s < 2; s++) barrier_init(full + s, 1), barrier_init(read + s, 64);
    barrier_fence();
  }
  sync_threads();
  auto fetch = [&](int n) {
    const int s = n % 2;
    if (n >= 2 && bug != 4) barrier_wait(read + s, bug == 1 ? 1 : (n / 2 - 1) % 2);
    barrier_expect(full + s, bug == 3 ? 272 : 256);
    copy_bulk<float>(held + s * 64, x + n * 64, 256, full + s);
  };
  if (t == 0) fetch(0);
  for (int n = 0; n < 6; n++) {
    if (t == 0 && n + 1 < 6) fetch(n + 1);
    if (bug != 2) barrier_wait(full + n % 2, bug == 1 ? 0 : n / 2 % 2);
    out[n * 64 + t] = held[n % 2 * 64 + 63 - t];
    barrier_arrive(read + n % 2);
  }
}
EXPORT(engine)
"""


def run(name: str, arrays: list[np.ndarray], bug: int, grid: Grid = BLOCK, seed: int = 0) -> None:
    function = getattr(building.library(SOURCE), f"{name}_float")
    building.run(function, grid, [*arrays, np.int64(bug)], seed)


def numbers(count: int) -> np.ndarray:
    whole = np.random.default_rng(0).standard_normal(count + 4).astype(np.float32)
    start = -whole.ctypes.data // 4 % 4
    return whole[start : start + count]  # aligned to 16 bytes


KERNELS = {
    "reversed": (64, 64, BLOCK, lambda x: x[::-1]),
    "shared_number": (4, 256, BLOCK, lambda x: np.repeat(x, 64)),
    "copied": (128, 128, BLOCK._replace(blocks=(2, 1, 1)), lambda x: x),
    "streamed": (256, 256, BLOCK, lambda x: x.reshape(4, 64)[:, ::-1].ravel()),
    "engine": (384, 384, BLOCK, lambda x: x.reshape(6, 64)[:, ::-1].ravel()),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", KERNELS)
def test_right_kernels_pass(name: str, seed: int) -> None:
    count, results, grid, expected = KERNELS[name]
    x, out = numbers(count), np.full(results, np.nan, np.float32)
    run(name, [x, out], 0, grid, seed)
    np.testing.assert_array_equal(out, expected(x))


BUGS = [
    ("reversed", 1, "race: reads .* shared memory, which thread .* has written|nobody has written"),
    ("reversed", 2, "race: reads .* shared memory, which thread .* has written|nobody has written"),
    ("reversed", 3, "out of bounds: writes 4 bytes at byte 1024 of 1024 bytes of shared memory"),
    ("shared_number", 1, "reads byte 0 of shared memory, which nobody has written"),
    ("shared_number", 2, "race: writes byte 0 of shared memory, which thread .* has read|race: reads"),
    ("copied", 1, "out of bounds: reads 4 bytes at byte 512 of a global array of 512"),
    ("copied", 2, "out of bounds: writes 4 bytes at byte -4 of a global array of 512"),
    ("copied", 3, "race: writes byte 0 of a global array, which thread 0 of block . has written"),
    ("copied", 4, "not aligned"),
    ("streamed", 1, "while an asynchronous copy fills it"),
    ("streamed", 2, "while an asynchronous copy fills it"),
    ("streamed", 3, "race: reads|while an asynchronous copy fills it|nobody has written"),
    ("engine", 1, "deadlock: .* wait at barrier_wait|race|while an asynchronous copy fills it|more arrivals"),
    ("engine", 2, "while an asynchronous copy fills it|race|nobody has written"),
    ("engine", 3, "deadlock: .* wait at barrier_wait"),
    ("engine", 4, "race|while an asynchronous copy fills it|more arrivals"),
]


@pytest.mark.parametrize(("name", "bug", "message"), BUGS)
def test_races_are_found_in_any_order_of_threads(name: str, bug: int, message: str) -> None:
    count, results, grid, _ = KERNELS[name]
    for seed in SEEDS:
        with pytest.raises(Failed, match=message):
            run(name, [numbers(count), np.empty(results, np.float32)], bug, grid, seed)


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (1, "deadlock: 32 threads wait at sync_threads, 32 have left the kernel"),
        (2, "deadlock|is at .* while others are at"),
        (3, "deadlock: .*1 threads wait at sync_warp|is at .* while others are at"),
    ],
)
def test_threads_that_do_not_meet_are_a_deadlock(bug: int, message: str) -> None:
    for seed in SEEDS:
        with pytest.raises(Failed, match=message):
            run("parted", [np.empty(64, np.float32)], bug, BLOCK, seed)


CALIBRATION = "\n".join(
    f'namespace of_{kind} {{\n#define Stored {kind}\n#include "calibration.cu"\n#undef Stored\n}}'
    for kind in ("float16", "bfloat16")
)


def calibrate(name: str, values: list[Any], grid: Grid | None = None, seed: int = 0) -> None:
    building.run(
        getattr(building.library('#include "primitives.cuh"\n' + CALIBRATION), name), grid or WARP, values, seed
    )


WARP = Grid((1, 1, 1), (32, 1, 1), 1024)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_pairs_lanes_and_copies_that_bring_zeros(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    bits, stored, t = x.view(np.uint32), asarray(x, dtype), np.arange(32)
    pairs, rounded, most = np.zeros(32, np.uint32), np.zeros(32, np.uint32), np.zeros(32, np.int32)
    found, copied = np.zeros(64, np.uint16), np.full(160, np.nan, np.float32)
    calibrate(f"packed_{dtype}", [x, pairs, rounded, found, most, copied])
    np.testing.assert_array_equal(pairs.view(np.uint16), stored.view(np.uint16))
    np.testing.assert_array_equal(found, stored.view(np.uint16))
    np.testing.assert_array_equal(rounded, (bits[::2] + 0x1000) & 0xFFFFE000)
    assert (most == int((bits[::2] % 1000).max()) * 1000 + 5 + 1).all()
    chunks = np.where((t % 3 > 0)[:, None], x.reshape(16, 4)[t // 2], 0)
    np.testing.assert_array_equal(copied[:128], chunks.ravel())
    np.testing.assert_array_equal(copied[128:], np.where(t % 3 > 0, x[:32], 0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matrix_products_of_16_bit_numbers(dtype: str) -> None:
    rng = np.random.default_rng(1)
    a, b = (asarray(rng.standard_normal(shape), dtype) for shape in ((16, 16), (16, 8)))
    d = np.full((16, 8), np.nan, np.float32)
    calibrate(f"multiplied_{dtype}", [a, b, d])
    np.testing.assert_allclose(d, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-6, atol=1e-6)  # one rounding


def test_matrix_products_of_tf32() -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    d = np.full((16, 8), np.nan, np.float32)
    calibrate("multiplied_tf32_float16", [a.view(np.uint32), b.view(np.uint32), d])
    short_a, short_b = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b))
    np.testing.assert_allclose(d, short_a.astype(np.float64) @ short_b, rtol=1e-6, atol=1e-6)  # one rounding


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_numbers_are_rounded_as_numpy_rounds_them(dtype: str) -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal(3000) * 10.0 ** rng.integers(-9, 6, 3000)).astype(np.float32)
    x[:6] = 0.0, -0.0, np.inf, -np.inf, 65519.0, 65520.0
    rounded, back = asarray(np.zeros(3000), dtype), np.zeros(3000, np.float32)
    calibrate(f"converted_{dtype}", [x, rounded, back, np.int64(3000)])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded, x.astype(rounded.dtype))
    np.testing.assert_array_equal(back, rounded.astype(np.float32))


@pytest.mark.parametrize(("name", "pieces"), [("streamed", 4), ("engine", 6)])
def test_copies_that_run_ahead(name: str, pieces: int) -> None:
    for seed in SEEDS:
        x, out = numbers(64 * pieces), np.full(64 * pieces, np.nan, np.float32)
        calibrate(f"{name}_float16", [x, out], BLOCK, seed)
        np.testing.assert_array_equal(out.reshape(-1, 64), x.reshape(-1, 64)[:, ::-1])
