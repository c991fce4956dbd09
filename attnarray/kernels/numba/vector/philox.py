"""The keep-mask of attention dropout, the same bits as `attnarray.random.attention_keep_mask`.

Philox-4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
"""

from __future__ import annotations

from typing import NamedTuple

from attnarray.kernels.numba.vector.lanes import Lanes, where
from attnarray.kernels.numba.vector.panel import FourthRow, Index, Lane, Scalar, panel_pass

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


class Draw(NamedTuple):
    """The options of a batch: words below `threshold` drop their weights, `kept` multiplies the others."""

    batch: Scalar
    seed_low: Scalar
    seed_high: Scalar
    threshold: Scalar
    kept: Scalar


@panel_pass
def draw_factors(
    factor_0: FourthRow, factor_1: FourthRow, factor_2: FourthRow, factor_3: FourthRow, block: Index, query: Lane,
    head: Lane, draw: Draw,
) -> dict[str, Lanes]:  # fmt: skip
    """For each block of four keys: `kept` where a weight is kept, 0 where it is dropped."""
    words = (block, query, head, draw.batch)
    low, high = draw.seed_low, draw.seed_high
    for _ in range(ROUNDS):
        first, second = words[0].times_wide(MULTIPLIERS[0]), words[2].times_wide(MULTIPLIERS[1])
        words = (second[0] ^ words[1] ^ low, second[1], first[0] ^ words[3] ^ high, first[1])
        low, high = low + WEYL[0], high + WEYL[1]
    factors = [where(word.at_least_unsigned(draw.threshold), draw.kept, 0.0) for word in words]
    return dict(zip(("factor_0", "factor_1", "factor_2", "factor_3"), factors, strict=True))
