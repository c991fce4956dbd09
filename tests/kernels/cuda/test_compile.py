"""Every CUDA source through NVIDIA's compiler, for each architecture and without a GPU: no spills, few registers."""

from __future__ import annotations

import functools

import pytest

from attnarray.kernels.cuda import cache, loader, nvrtc
from tests.cuda_emulation.building import FLOAT32_ONLY, HERE, WIDE_ONLY
from tests.support.tiers import first

pytestmark = pytest.mark.nvrtc

# Except those that need the constants of a call.
SOURCES = sorted(path.name for path in cache.SOURCES.glob("*.cu") if '#include "attention' not in path.read_text())
DTYPES = {
    "sm_80": ["float32"],
    "sm_86": ["float64"],
    "sm_90": ["float32", "bfloat16"],
    "sm_90a": ["float16"],
    "sm_120": ["float32"],
}
ARCHITECTURES = tuple(DTYPES)
MOST_REGISTERS = {"float64": 160, "float32": 128, "float16": 128, "bfloat16": 128}
MOST_OF_TILES = 255  # where a thread holds a tile of sums, and blocks are small
TILES = {"additive_slopes", "additive_scores"}


def dtypes_of(source: str, architecture: str) -> list[str]:
    """Each dtype on some architecture, to save time."""
    known = [dtype for dtype in DTYPES[architecture] if not (source in WIDE_ONLY and "16" in dtype)]
    known = [] if source in FLOAT32_ONLY else known
    return known or ["float32"]


@functools.cache
def usage_of(source: str, dtype: str, architecture: str) -> dict[str, nvrtc.Usage]:
    return nvrtc.usage(loader.compile_for(source, dtype, architecture).log)


@pytest.mark.parametrize("architecture", first(1, ARCHITECTURES))
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_without_spills(source: str, architecture: str) -> None:
    for dtype in dtypes_of(source, architecture):
        found = usage_of(source, dtype, architecture)
        assert found
        for kernel, used in found.items():
            assert (used.spilled, used.stack) == (0, 0), f"{kernel} of {dtype} spills"
            most = MOST_OF_TILES if kernel in TILES else MOST_REGISTERS[dtype]
            assert 0 < used.registers <= most, f"{kernel} of {dtype} takes {used.registers} registers"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_primitive_compiles(architecture: str) -> None:
    text, headers = (HERE / "calibration.cu").read_text(), {"primitives.cuh": cache.source_text("primitives.cuh")}
    for kind in ("float16", "bfloat16"):
        options = (*loader.OPTIONS, f"-DStored={kind}")
        found = nvrtc.usage(nvrtc.compile_source(text, "calibration.cu", headers, options, architecture).log)
        assert len(found) == (6 if architecture < "sm_90" and architecture != "sm_120" else 7)


def test_the_log_is_read() -> None:
    log = """ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 21 registers, used 0 barriers
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers"""
    assert nvrtc.usage(log) == {"one": nvrtc.Usage(21, 16, 8), "two": nvrtc.Usage(255, 0, 0)}
