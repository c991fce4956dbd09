"""A kernel in plain loops.

Kernels for a CPU or GPU are loops over numbers, and write into memory that is given to them, where anything may
stand. Without a single NumPy product you see every multiplication of attention; Numba would compile these loops
as they are.

    for each query i:
        score_j = q_i · k_j / sqrt(D)      for all keys j
        w_j = exp(score_j - largest score)
        out_ie = sum_j w_j v_je / sum_j w_j
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnarray.learn.exercise import Exercise, Mistake


def attention_kernel(q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
    """Write the output of attention to `out`, and return nothing.

    q, k, v: (T, D), (S, D), (S, E)
    out: (T, E), to be filled; what stands in it before has no meaning
    """
    scale = 1 / q.shape[1] ** 0.5
    scores = np.empty(k.shape[0])
    for i in range(q.shape[0]):
        largest = -np.inf
        for j in range(k.shape[0]):
            total = 0.0
            for d in range(q.shape[1]):
                total += q[i, d] * k[j, d]
            scores[j] = scale * total
            largest = max(largest, scores[j])
        row_sum = 0.0
        for e in range(v.shape[1]):
            out[i, e] = 0.0
        for j in range(k.shape[0]):
            weight = np.exp(scores[j] - largest)
            row_sum += weight
            for e in range(v.shape[1]):
                out[i, e] += weight * v[j, e]
        for e in range(v.shape[1]):
            out[i, e] /= row_sum


def _draw(rng: np.random.Generator, regime: int, T: int, S: int, D: int, E: int) -> dict[str, Any]:
    q, k, v = rng.standard_normal((T, D)), rng.standard_normal((S, D)), rng.standard_normal((S, E))
    return {"q": (1, 3, 5000)[regime] * q, "k": k, "v": v, "out": np.full((T, E), 7.0)}


EXERCISE = Exercise(
    attention_kernel,
    "kernel",
    "TSDE",
    _draw,
    ("out",),
    writes=("out",),
    hints=(
        (
            "Loop over the queries outside. Inside, first all scores of one query and the largest of "
            "them, then the weighted sum."
        ),
        ("Set out[i, e] to 0 before you add to it, and divide by the sum of the weights after the loop over the keys."),
        (
            "for i: { scores of all j, and largest; out[i, :] = 0, row_sum = 0; for j: { w = "
            "np.exp(scores[j] - largest); row_sum += w; for e: out[i, e] += w * v[j, e] }; for e: "
            "out[i, e] /= row_sum }."
        ),
    ),
    mistakes=(
        Mistake(
            "not-cleared",
            "`out` is not set to 0 first: what stood in it is added to the result.",
            {"out[i, e] = 0.0": "pass"},
        ),
        Mistake("no-scale", "the scores are not divided by sqrt(D).", {"scale * total": "total"}),
        Mistake(
            "no-division", "the output is not divided by the sum of the weights.", {"out[i, e] /= row_sum": "pass"}
        ),
        Mistake(
            "sum-not-cleared",
            "the sum of the weights is not set to 0 for each query.",
            {
                "        row_sum = 0.0\n": "",
                "scores = np.empty(k.shape[0])": "scores = np.empty(k.shape[0])\n    row_sum = 0.0",
            },
        ),
        Mistake(
            "no-shift", "the largest score is not subtracted: exp overflows.", {"scores[j] - largest": "scores[j]"}
        ),
        Mistake(
            "dot-not-cleared",
            "the sum of the dot product is not set to 0 for each key.",
            {
                "            total = 0.0\n": "",
                "        largest = -np.inf": "        largest = -np.inf\n        total = 0.0",
            },
        ),
        Mistake(
            "last-key-left-out",
            "the last key is left out of the weighted sum.",
            {
                "        for j in range(k.shape[0]):\n            weight": (
                    "        for j in range(k.shape[0] - 1):\n            weight"
                )
            },
        ),
        Mistake(
            "overwritten",
            "`out` is overwritten by each key instead of added to.",
            {"out[i, e] += weight": "out[i, e] = weight"},
        ),
        Mistake("last-query-left-out", "the last query is left out.", {"range(q.shape[0])": "range(q.shape[0] - 1)"}),
    ),
)
