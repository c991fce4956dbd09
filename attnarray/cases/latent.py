"""Cases of latent attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attnarray.cases.case import Case, also, bits, normal

# B 2, H 3, T 5, S 7, D = 4 + 2, C 8, Dv 9
SHAPES = {"query": (2, 3, 5, 6), "latent": (2, 7, 10), "key_up": (3, 4, 8), "value_up": (3, 9, 8)}


def _case(label: str, drawn: dict[str, Callable[[np.random.Generator], Any]] | None = None, **options: Any) -> Case:
    extra = {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    return Case("latent_attention", label, also(normal(**SHAPES, **extra), **(drawn or {})), options)


LATENT_CASES: tuple[Case, ...] = (
    _case("projected, causal", absorb=False, is_causal=True, q_offset=2, bias=(3, 1, 7), sinks=(3,)),
    _case("absorbed, causal", absorb=True, is_causal=True, q_offset=2, bias=(3, 1, 7), sinks=(3,)),
    _case("absorbed, dropout, lengths", {"dropout_mask": bits(2, 3, 5, 7), "kv_lengths": lambda rng: np.array([7, 4])},
          absorb=True, dropout_p=0.3, softcap=2.0),
    _case("projected, mask, lengths", {"attn_mask": bits(2, 1, 5, 7), "kv_lengths": lambda rng: np.array([7, 4])},
          absorb=False, scale=0.4),
    Case("latent_attention", "no rotated features, one sequence",
         normal(query=(3, 2, 4), latent=(7, 5), key_up=(3, 4, 5), value_up=(3, 6, 5)), {"window": (1, 1)}),
)  # fmt: skip
