"""Attention on tensor cores through NVIDIA's compiler, as compiled by calls: registers and shared memory."""

from __future__ import annotations

import itertools

import pytest

from attnarray.kernels import Declined
from attnarray.kernels.cuda import attention_plan as plan
from attnarray.kernels.cuda import loader, nvrtc
from attnarray.kernels.cuda.attention_problem import IN_TILES, LIGHT, SWITCHES, compile_constants
from tests.support.tiers import first

# Shared memory of a block: of data centers' GPUs from 8.0 and from 9.0 on, and of all others.
MOST_SHARED = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_90": 227 * 1024, "sm_90a": 227 * 1024, "sm_120": 99 * 1024}
MANY_ROWS = 10**6

# Each kind, dim and dtype somewhere, each architecture with some; all together would take minutes.
PLAIN_CALLS = [
    ("forward", 128, "bfloat16", "sm_90"), ("forward", 64, "float16", "sm_80"), ("forward", 64, "float32", "sm_120"),
    ("forward", 256, "float32", "sm_86"), ("queries", 128, "bfloat16", "sm_90"), ("queries", 64, "float16", "sm_86"),
    ("queries", 128, "float32", "sm_80"), ("keys", 128, "bfloat16", "sm_90"), ("keys", 64, "bfloat16", "sm_90a"),
    ("keys", 192, "float16", "sm_80"), ("keys", 64, "float32", "sm_120"), ("keys", 128, "float32", "sm_90"),
]  # fmt: skip
# Bias and mask in tiles (1) or read by number (2).
OTHER_CALLS = [
    ("forward", 64, "bfloat16", "BIAS=1"), ("forward", 128, "float16", "BIAS=1"), ("forward", 64, "float16", "MASK=1"),
    ("forward", 128, "bfloat16", "MASK=1"), ("queries", 64, "float16", "BIAS=1"), ("queries", 64, "bfloat16", "MASK=1"),
    ("queries", 128, "bfloat16", "BIAS=1"), ("queries", 128, "float16", "MASK=1"), ("keys", 64, "bfloat16", "BIAS=1"),
    ("keys", 128, "float16", "BIAS=1"), ("keys", 64, "float16", "MASK=1"), ("keys", 128, "bfloat16", "MASK=1"),
    ("bias", 64, "bfloat16", "BIAS=1"), ("bias", 128, "float16", "BIAS=1"), ("bias", 64, "float32", "BIAS=1"),
    ("forward", 128, "float32", "BIAS=1"), ("queries", 128, "float32", "MASK=1"), ("keys", 128, "float32", "BIAS=1"),
    ("forward", 64, "bfloat16", "DROPOUT=1"), ("forward", 128, "float16", "BIAS=2 MASK=2 SOFTCAP=1 DROPOUT=1"),
    ("queries", 64, "bfloat16", "BIAS=1 MASK=1 SOFTCAP=1 DROPOUT=1"), ("queries", 128, "float16", "DROPOUT=2"),
    ("keys", 64, "float16", "DROPOUT=1"), ("keys", 128, "bfloat16", "BIAS=1 MASK=1 SOFTCAP=1 DROPOUT=1"),
    ("bias", 128, "float16", "BIAS=2 MASK=2 SOFTCAP=1 DROPOUT=1"),
]  # fmt: skip
# Bytes that a kernel may spill: the gradient of a bias in float32, whose loops over heads need too many registers;
# that of keys and values of 128 in float32, and some with a bias or mask in 16 bits, a few registers per iteration of
# hundreds of instructions; and a few on architectures other than 9.0, for which the tiles were chosen.
SPILLED = {
    ("bias", "float32"): 100, ("keys", "float32"): 160, "sm_80": 32, "sm_86": 32,
    ("queries", 64, "float16", "BIAS=1"): 12, ("queries", 128, "bfloat16", "BIAS=1"): 20,
    ("queries", 128, "float16", "MASK=1"): 52, ("keys", 64, "float16", "MASK=1"): 20,
}  # fmt: skip


def usage(kind: str, dim: int, dtype: str, architecture: str, switches: str = "") -> list[nvrtc.Usage]:
    itemsize = 4 if dtype == "float32" else 2
    given = dict.fromkeys(SWITCHES, 0) | {
        name: int(value) for name, value in (one.split("=") for one in switches.split())
    }
    larger = tuple(given.values()) in LIGHT and architecture in ("sm_80", "sm_90", "sm_90a")
    in_tiles = given["BIAS"] == IN_TILES, given["MASK"] == IN_TILES
    tiling, _ = plan.choose_tiling(kind, dim, dim, itemsize, MOST_SHARED[architecture], MANY_ROWS, larger, in_tiles)
    listed = tuple(f"{name}={value}" for name, value in given.items())
    found = []
    for more in plan.gradients_of_keys(dim, dim) if kind == "keys" else ({},):
        constants = compile_constants((dim, dim), tiling, listed, **more)
        log = loader.compile_for(f"attention_{kind}.cu", dtype, architecture, constants).log
        found.append(nvrtc.usage(log)[f"attention_{kind}"])
    return found


@pytest.mark.nvrtc
@pytest.mark.parametrize(("kind", "dim", "dtype", "architecture"), first(1, PLAIN_CALLS))
def test_plain_calls_keep_to_registers(kind: str, dim: int, dtype: str, architecture: str) -> None:
    for used in usage(kind, dim, dtype, architecture):
        assert used.spilled <= max(SPILLED.get(why, 0) for why in (architecture, (kind, dtype)))


@pytest.mark.nvrtc
@pytest.mark.parametrize(("kind", "dim", "dtype", "switches"), first(1, OTHER_CALLS))
def test_calls_with_options_keep_to_registers(kind: str, dim: int, dtype: str, switches: str) -> None:
    for used in usage(kind, dim, dtype, "sm_90", switches):
        assert used.spilled <= max(SPILLED.get(why, 0) for why in ((kind, dtype), (kind, dim, dtype, switches)))


@pytest.mark.parametrize("most", sorted(set(MOST_SHARED.values())))
@pytest.mark.parametrize("kind", list(plan.ANY))
def test_every_head_dim_has_a_tiling_that_fits(kind: str, most: int) -> None:
    of_calls = (2, 4), (True, False), (1, MANY_ROWS), itertools.product((True, False), repeat=2)
    for dim, value_dim, itemsize, larger, rows, in_tiles in itertools.product(plan.DIMS, plan.DIMS, *of_calls):
        tiling, shared = plan.choose_tiling(kind, dim, value_dim, itemsize, most, rows, larger, in_tiles)
        assert shared == plan.shared_bytes(kind, tiling, dim, value_dim, itemsize, in_tiles) <= most
        assert tiling.across % 16 == 0
        assert tiling.warps <= 8


def test_larger_heads_are_declined_with_the_reason() -> None:
    with pytest.raises(Declined, match="head dim 257: at most 256"):
        plan.tile_dim(257)
    with pytest.raises(Declined, match="do not fit into 1000 bytes of shared memory"):
        plan.choose_tiling("forward", 64, 64, 2, 1000, MANY_ROWS, True)


def test_blocks_and_parts() -> None:
    tiling, shared = plan.choose_tiling("forward", 128, 128, 2, MOST_SHARED["sm_90"], 8, True)
    grid = plan.plan_tiles(tiling, shared, pairs=8, rows=8)
    assert grid.blocks == (8, 1, 1)
    assert grid.threads == (32, 1, 1)
    parts = plan.count_parts(grid, tiles=128, multiprocessors=132, most=MOST_SHARED["sm_90"])
    assert 8 * parts <= 132 * plan.RESIDENT
    assert 32 <= parts <= 64  # about as many blocks as are resident, each with some tiles
    assert plan.count_parts(grid, tiles=1, multiprocessors=132, most=MOST_SHARED["sm_90"]) == 1
    assert plan.count_parts(grid._replace(blocks=(132, 1, 1)), 128, 132, MOST_SHARED["sm_90"]) == 1
    with pytest.raises(Declined, match="blocks, at most"):
        plan.plan_tiles(tiling, shared, pairs=8, rows=16 * 70000)
