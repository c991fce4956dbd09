"""Blocks and tiles of attention on tensor cores: plain arithmetic, without a GPU.

A block has some warps, a warp some panels of 16 rows (of queries, or of keys), and the block loops over tiles of rows
of the other side, two of them in shared memory.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any, NamedTuple

from attnarray.kernels import Declined
from attnarray.kernels.cuda.grid import MOST_BLOCKS, MOST_BLOCKS_ALONG_Y, WARP, Grid, ceil_div

DIMS = (32, 64, 128, 192, 256)  # of a head, as tiles hold them
PANEL = 16
MASK_COLUMNS = 32  # a tile of a mask has a multiple of this: two chunks of 16 bytes are swizzled
MOST_PARTS = 128
RESIDENT = 8  # maximum blocks of a multiprocessor when the keys are split
FEW_TILES = 2  # of keys: a part has at least so many


class Tiling(NamedTuple):
    """Warps of a block, panels of 16 rows of a warp, and rows of the tiles that the block loops over."""

    warps: int
    panels: int
    across: int

    @property
    def rows(self) -> int:
        return self.warps * self.panels * PANEL

    def constants(self) -> dict[str, int]:
        """The compile-time constants of the sources."""
        return {name.upper(): value for name, value in self._asdict().items()}


# Tilings are tried in this order until one fits into shared memory: by the bytes of a number, then the largest dim.
# Plain calls, and those with tiles of a bias or mask, have registers for larger tiles, on data center GPUs.
LARGE = (80, 90)
Tilings = dict[int, dict[int, tuple[Tiling, ...]]]
LARGER: dict[str, Tilings] = {
    "forward": {2: {64: (Tiling(4, 2, 96),), 128: (Tiling(4, 2, 48),)}},
    "queries": {2: {64: (Tiling(4, 2, 64),), 128: (Tiling(4, 2, 32),)}},
    "keys": {2: {64: (Tiling(4, 2, 32),), 128: (Tiling(8, 1, 64),)}, 4: {128: (Tiling(4, 1, 32),)}},
}
LARGER_WITH_TABLES: dict[str, Tilings] = {
    "forward": {2: {64: (Tiling(4, 2, 64),), 128: (Tiling(4, 2, 32),)}},
    "bias": {2: {128: (Tiling(4, 1, 128),)}},
}
ANY: dict[str, Tilings] = {
    "forward": {
        2: {64: (Tiling(4, 1, 64),), 256: (Tiling(4, 1, 32),)},
        4: {64: (Tiling(4, 1, 64),), 128: (Tiling(4, 1, 32),), 256: (Tiling(4, 1, 16),)},
    },
    "queries": {
        2: {128: (Tiling(4, 1, 32),), 256: (Tiling(4, 1, 16),)},
        4: {128: (Tiling(4, 1, 32),), 256: (Tiling(4, 1, 16),)},
    },
    "keys": {
        2: {256: (Tiling(4, 1, 32),)},
        4: {256: (Tiling(4, 1, 16),)},
    },
    "bias": {
        2: {128: (Tiling(4, 1, 64),), 256: (Tiling(4, 1, 32),)},
        4: {64: (Tiling(4, 1, 32),), 128: (Tiling(4, 1, 16),), 256: (Tiling(2, 1, 16),)},
    },
}
SMALLER = tuple(
    Tiling(*sizes) for sizes in ((4, 1, 32), (2, 1, 32), (4, 1, 16), (2, 1, 16), (1, 1, 16))
)  # where these do not fit
FEW_ROWS = (Tiling(1, 1, 64), Tiling(1, 1, 32), Tiling(1, 1, 16))  # of queries, as in decoding
MOST_FEW_ROWS = PANEL
# wgmma multiplies from shared memory (sm_90a): plain calls. By the bytes of a number, then the larger dim of a head.
WARPGROUPS = {
    "forward": {2: {64: Tiling(8, 1, 128), 128: Tiling(8, 1, 128)}, 4: {64: Tiling(8, 1, 128), 128: Tiling(8, 1, 64)}},
    "queries": {2: {64: Tiling(8, 1, 64), 128: Tiling(8, 1, 64)}, 4: {64: Tiling(8, 1, 64), 128: Tiling(8, 1, 32)}},
    "keys": {2: {64: Tiling(8, 1, 64), 128: Tiling(8, 1, 64)}, 4: {64: Tiling(8, 1, 32), 128: Tiling(8, 1, 32)}},
}
WARPGROUP_DIMS = (64, 128)
HOPPER = 90


def listing() -> list[dict[str, Any]]:
    """The tilings that kernels are compiled for, as values to show, with their dims and number sizes."""
    rows = []
    uses_wgmma: dict[str, Tilings] = {
        kernel: {size: {dim: (tiling,) for dim, tiling in dims.items()} for size, dims in sizes.items()}
        for kernel, sizes in WARPGROUPS.items()
    }
    tables: list[tuple[str, dict[str, Tilings]]] = [
        ("warpgroups", uses_wgmma),
        ("plain", LARGER),
        ("bias or mask", LARGER_WITH_TABLES),
        ("any", ANY),
    ]
    for calls, table in tables:
        for kernel, sizes in table.items():
            for itemsize, dims in sizes.items():
                for dim, tilings in dims.items():
                    for tiling in tilings:
                        shape = f"{tiling.rows} rows by {tiling.across}, {tiling.warps} warps"
                        rows.append({"kernel": kernel, "calls": calls, "bytes": itemsize, "dim": dim, "tiles": shape})
    return rows


@functools.cache
def tile_dim(size: int) -> int:
    """The row length of a tile: the head dim padded with zeros."""
    for dim in DIMS:
        if size <= dim:
            return dim
    raise Declined(f"head dim {size}: at most {DIMS[-1]}")


def gradients_of_keys(dim: int, value_dim: int, has_halves: bool = False) -> tuple[dict[str, int], ...]:
    """The gradients of each launch, of keys, of values or both: separate launches where registers are few."""
    if dim + value_dim <= (128 if has_halves else 256):
        return ({"WANTS_DK": 1, "WANTS_DV": 1},)
    return {"WANTS_DK": 1, "WANTS_DV": 0}, {"WANTS_DK": 0, "WANTS_DV": 1}


@functools.lru_cache(maxsize=256)
def choose_tiling(
    kind: str,
    dim: int,
    value_dim: int,
    itemsize: int,
    most: int,
    rows: int,
    larger: bool,
    in_tiles: tuple[bool, bool] = (False, False),
) -> tuple[Tiling, int]:
    """The tiling of a kernel, "forward", "queries", "keys" or "bias", and its bytes of shared memory, of `most`.

    `dim` and `value_dim` are those of tiles; `rows` are the queries of heads that share keys. `larger` allows tiles
    that not all calls and GPUs have registers for. `in_tiles` says whether tiles of a bias and of a mask are held.
    """
    larger_dim = max(dim, value_dim)
    large = LARGER | LARGER_WITH_TABLES if any(in_tiles) else LARGER
    tables = (large.get(kind, {}), ANY[kind]) if larger else (ANY[kind],)
    found = (next((few for size, few in table.get(itemsize, {}).items() if larger_dim <= size), ()) for table in tables)
    tilings = tuple(itertools.chain(*found))
    if kind == "forward" and rows <= MOST_FEW_ROWS:
        tilings = (*(few for few in FEW_ROWS if few.across <= tilings[0].across), *tilings)
    smaller = (one for one in SMALLER if one.across <= tilings[-1].across and one.rows <= tilings[-1].rows)
    for tiling in (*tilings, *smaller):
        shared = shared_bytes(kind, tiling, dim, value_dim, itemsize, in_tiles)
        if shared <= most:
            return tiling, shared
    raise Declined(f"head dims {dim} and {value_dim}: their tiles do not fit into {most} bytes of shared memory")


def has_wgmma(capability: int) -> bool:
    """Whether wgmma kernels are to be used: on request, as no GPU has run them yet."""
    return capability == HOPPER and os.environ.get("ATTNARRAY_WARPGROUPS", "0") not in ("", "0")


def wgmma_tiling(kind: str, dim: int, value_dim: int, itemsize: int, rows: int) -> tuple[Tiling, int] | None:
    """The tiling of the wgmma kernel, and its shared memory; None where there is none or rows are too few."""
    if kind not in WARPGROUPS or not {dim, value_dim} <= set(WARPGROUP_DIMS):
        return None
    tiling = WARPGROUPS[kind][itemsize][max(dim, value_dim)]
    if rows < tiling.rows:
        return None
    both = (dim + value_dim) * itemsize
    if kind == "forward":  # two tiles of keys, two of values
        return tiling, tiling.rows * dim * itemsize + 2 * tiling.across * both
    numbers = 8 * tiling.across if kind == "keys" else 0
    return tiling, tiling.rows * both + 3 * (tiling.across * both + numbers)


def shared_bytes(
    kind: str, tiling: Tiling, dim: int, value_dim: int, itemsize: int, in_tiles: tuple[bool, bool] = (False, False)
) -> int:
    """Shared memory of a block: what it holds, and two tiles that it loops over (one for the gradient of a bias)."""
    has_bias, has_mask = in_tiles
    keys = tiling.rows if kind == "keys" else tiling.across
    scores = tiling.rows * tiling.across * (itemsize * has_bias + (has_mask and keys % MASK_COLUMNS == 0))
    both = (dim + value_dim) * itemsize
    held = tiling.rows * (dim * itemsize if kind == "forward" else both)
    held += ceil_div(8 * tiling.rows, 128) * 128 if kind == "queries" else 0  # a shift and a delta for each
    numbers = ceil_div(8 * tiling.across, 128) * 128 if kind == "keys" else 0
    return held + (1 if kind == "bias" else 2) * (tiling.across * both + numbers + scores)


def plan_tiles(tiling: Tiling, shared: int, pairs: int, rows: int) -> Grid:
    """A block for each tile of `rows`, queries or keys, of each of the `pairs` of a batch and a head of keys."""
    return _checked(Grid((pairs, ceil_div(rows, tiling.rows), 1), (WARP * tiling.warps, 1, 1), shared))


def plan_bias(tiling: Tiling, shared: int, shape: tuple[int, ...]) -> Grid:
    """A block for each tile of a bias (B|1, H|1, T|1, S|1)."""
    batches, heads, queries, keys = shape
    blocks = batches * heads, ceil_div(queries, tiling.rows), ceil_div(keys, tiling.across)
    return _checked(Grid(blocks, (WARP * tiling.warps, 1, 1), shared))


def count_parts(grid: Grid, tiles: int, multiprocessors: int, most: int) -> int:
    """How many blocks split the `tiles` of keys of a block of queries, so that all multiprocessors have work."""
    resident = max(1, min(RESIDENT, most // max(grid.shared, 1)))
    blocks = grid.blocks[0] * grid.blocks[1]
    if not blocks or blocks >= multiprocessors:
        return 1
    return max(1, min(multiprocessors * resident // blocks, tiles // FEW_TILES, MOST_PARTS))


def _checked(grid: Grid) -> Grid:
    if grid.blocks[0] > MOST_BLOCKS or max(grid.blocks[1:]) > MOST_BLOCKS_ALONG_Y:
        raise Declined(f"{grid.blocks} blocks, at most {(MOST_BLOCKS, MOST_BLOCKS_ALONG_Y, MOST_BLOCKS_ALONG_Y)}")
    return grid
