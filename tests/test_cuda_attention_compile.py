"""Attention on tensor cores through NVIDIA's compiler, as calls have it compiled: registers and shared memory."""

from __future__ import annotations

import itertools

import pytest

from attnarray.kernels import Declined
from attnarray.kernels.cuda import attention_plan as plan
from attnarray.kernels.cuda import loader, nvrtc
from attnarray.kernels.cuda.attention_problem import SWITCHES, constants_of

needs_nvrtc = pytest.mark.skipif(nvrtc.find() is None, reason=nvrtc.MISSING)

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
OTHER_CALLS = [
    ("forward", 64, "bfloat16", "DROPOUT"), ("forward", 128, "float16", "BIAS MASK SOFTCAP DROPOUT"),
    ("forward", 128, "float32", "BIAS"), ("queries", 64, "bfloat16", "BIAS MASK SOFTCAP DROPOUT"),
    ("queries", 128, "float16", "DROPOUT"), ("queries", 128, "float32", "MASK"), ("keys", 64, "float16", "DROPOUT"),
    ("keys", 128, "bfloat16", "BIAS MASK SOFTCAP DROPOUT"), ("keys", 128, "float32", "BIAS"),
    ("bias", 64, "bfloat16", "BIAS"), ("bias", 128, "float16", "BIAS MASK SOFTCAP DROPOUT"),
    ("bias", 64, "float32", "BIAS"),
]  # fmt: skip
# Bytes that a kernel may spill: the gradient of a bias in float32, whose loops over heads hold more than there is room
# for; that of keys and values of 128, a few registers in a round of thousands of instructions; and a little of what the
# compiler makes of other architectures than 9.0, for which the tiles were chosen.
SPILLED = {("bias", "float32"): 160, ("keys", "float32"): 160, "sm_80": 32, "sm_86": 32}


def usage(kind: str, dim: int, dtype: str, architecture: str, switches: str = "") -> list[nvrtc.Usage]:
    itemsize = 4 if dtype == "float32" else 2
    larger = not switches and architecture in ("sm_80", "sm_90", "sm_90a")
    tiling, _ = plan.tiling_of(kind, dim, dim, itemsize, MOST_SHARED[architecture], MANY_ROWS, larger)
    listed = tuple(f"{name}={int(name in switches.split())}" for name in SWITCHES)
    found = []
    for more in plan.gradients_of_keys(dim, dim) if kind == "keys" else ({},):
        constants = constants_of((dim, dim), tiling, listed, **more)
        log = loader.compile_for(f"attention_{kind}.cu", dtype, architecture, constants).log
        found.append(nvrtc.usage(log)[f"attention_{kind}"])
    return found


@needs_nvrtc
@pytest.mark.parametrize(("kind", "dim", "dtype", "architecture"), PLAIN_CALLS)
def test_plain_calls_keep_to_registers(kind: str, dim: int, dtype: str, architecture: str) -> None:
    for used in usage(kind, dim, dtype, architecture):
        assert used.spilled <= max(SPILLED.get(architecture, 0), SPILLED.get((kind, dtype), 0))


@needs_nvrtc
@pytest.mark.parametrize(("kind", "dim", "dtype", "switches"), OTHER_CALLS)
def test_calls_with_options_keep_to_registers(kind: str, dim: int, dtype: str, switches: str) -> None:
    for used in usage(kind, dim, dtype, "sm_90", switches):
        assert used.spilled <= SPILLED.get((kind, dtype), 0)


@pytest.mark.parametrize("most", sorted(set(MOST_SHARED.values())))
@pytest.mark.parametrize("kind", list(plan.ANY))
def test_every_head_dim_has_a_tiling_that_fits(kind: str, most: int) -> None:
    for dim, value_dim, itemsize, larger in itertools.product(plan.DIMS, plan.DIMS, (2, 4), (True, False)):
        for rows in (1, MANY_ROWS):
            tiling, shared = plan.tiling_of(kind, dim, value_dim, itemsize, most, rows, larger)
            assert shared == plan.shared_bytes(kind, tiling, dim, value_dim, itemsize) <= most
            assert tiling.across % 16 == 0
            assert tiling.warps <= 8


def test_larger_heads_are_declined_with_the_reason() -> None:
    with pytest.raises(Declined, match="head dim 257: at most 256"):
        plan.held_dim(257)
    with pytest.raises(Declined, match="do not fit into 1000 bytes of shared memory"):
        plan.tiling_of("forward", 64, 64, 2, 1000, MANY_ROWS, True)


def test_blocks_and_parts() -> None:
    tiling, shared = plan.tiling_of("forward", 128, 128, 2, MOST_SHARED["sm_90"], 8, True)
    grid = plan.plan_rows_of_queries(tiling, shared, pairs=8, rows=8)
    assert grid.blocks == (8, 1, 1)
    assert grid.threads == (32, 1, 1)
    parts = plan.parts_of(grid, tiles=128, multiprocessors=132, most=MOST_SHARED["sm_90"])
    assert 8 * parts <= 132 * plan.RESIDENT
    assert 32 <= parts <= 64  # about as many blocks as find room at a time, each with some tiles
    assert plan.parts_of(grid, tiles=1, multiprocessors=132, most=MOST_SHARED["sm_90"]) == 1
    assert plan.parts_of(grid._replace(blocks=(132, 1, 1)), 128, 132, MOST_SHARED["sm_90"]) == 1
    with pytest.raises(Declined, match="blocks, at most"):
        plan.plan_rows_of_queries(tiling, shared, pairs=8, rows=16 * 70000)
