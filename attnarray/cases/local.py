"""Cases of local attention. No predicted position lies near an integer, where a key enters the window in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnarray.cases.case import Case, also, bits, normal

# B 2, T 3, S 7, D 5, Dv 6; Dk 9 where keys may be wider; A 10, or 4.
DOT = {"query": (2, 3, 5), "key": (2, 7, 5), "value": (2, 7, 6)}
POSITION = {"position_weight": (10, 5), "position_vector": (10,)}
PREDICTED = {**DOT, **POSITION}
GENERAL = {"key": (2, 7, 9), "weight": (5, 9)}
TWO_BATCH_AXES = {
    "query": (2, 3, 4, 5), "key": (2, 3, 7, 5), "value": (2, 3, 7, 6), "position_weight": (4, 5),
    "position_vector": (4,),
}  # fmt: skip
ONE_SEQUENCE = {"query": (3, 5), "key": (7, 5), "value": (7, 6)}

Drawn = Mapping[str, Callable[[np.random.Generator], Any]]


def _local(alignment: str, label: str, shapes: Mapping[str, tuple[int, ...]], drawn: Drawn, **options: Any) -> Case:
    made = also(normal(**shapes), **drawn)
    return Case("local_attention", f"{alignment}: {label}", made, {"alignment": alignment, **options})


def _lengths(*numbers: Any) -> Drawn:
    return {"kv_lengths": lambda rng: np.array(numbers)}


LOCAL_CASES: tuple[Case, ...] = (
    _local("monotonic", "plain", DOT, {}, window=1),
    _local("monotonic", "general, lengths, offset", {**DOT, **GENERAL}, _lengths(7, 4), window=2, q_offset=3,
           scale=0.7),
    _local("monotonic", "everything", {**DOT, "bias": (2, 1, 7)}, {"attn_mask": bits(2, 3, 7)}, window=2,
           is_causal=True, q_offset=2, softcap=2.0, dropout_p=0.3, rng=4),
    _local("predictive", "plain", PREDICTED, {}, window=2),
    _local("predictive", "general, lengths", {**PREDICTED, **GENERAL}, _lengths(7, 4), window=2),
    _local("predictive", "one sequence, sigma", {**ONE_SEQUENCE, **POSITION}, {}, window=3, sigma=0.8, scale=0.7),
    _local("predictive", "two batch axes", TWO_BATCH_AXES, _lengths([3, 7, 0], [5, 2, 6]), window=1),
    _local("predictive", "mask, bias of the keys", {**PREDICTED, "bias": (2, 1, 7)}, {"attn_mask": bits(2, 3, 7)},
           window=2),
    _local("predictive", "window beyond the keys, softcap", PREDICTED, {}, window=20, softcap=2.0),
    _local("predictive", "causal, dropout given", PREDICTED, {"dropout_mask": bits(3, 7)}, window=2, is_causal=True,
           q_offset=2, dropout_p=0.3),
    _local("predictive", "everything", {**PREDICTED, **GENERAL, "bias": (3, 7)}, _lengths(7, 5), window=2, sigma=1.5,
           is_causal=True, q_offset=2, softcap=3.0, dropout_p=0.3, rng=4),
)  # fmt: skip
