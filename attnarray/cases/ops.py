"""Cases of the primitive operations."""

from __future__ import annotations

import numpy as np

from attnarray.cases.case import Case, also, bits, normal

OPS_CASES: tuple[Case, ...] = (
    Case("softmax", "last axis", normal(x=(2, 3, 5))),
    Case("softmax", "axis 1", normal(x=(2, 3, 5)), {"axis": 1}),
    Case("softmax", "mask", also(normal(x=(2, 3, 5)), mask=bits(3, 5, keep=0.4))),
    Case("log_softmax", "last axis", normal(x=(2, 3, 5))),
    Case("log_softmax", "mask, axis 0", also(normal(x=(4, 3)), mask=bits(4, 3)), {"axis": 0}),
    Case("linear", "bias", normal(x=(2, 3, 5), weight=(4, 5), bias=(4,))),
    Case("linear", "one vector, no bias", normal(x=(5,), weight=(4, 5))),
    Case(
        "layer_norm",
        "weight and bias",
        also(normal(weight=(5,), bias=(5,)), x=lambda rng: 3.0 * rng.standard_normal((2, 3, 5)) + 1.0),
    ),
    Case("layer_norm", "weight, large eps", normal(x=(3, 5), weight=(5,)), {"eps": 0.5}),
    Case("layer_norm", "bias, one vector", normal(x=(5,), bias=(5,))),
    Case("layer_norm", "no parameters", normal(x=(2, 3, 5))),
    Case("rms_norm", "weight", also(normal(weight=(5,)), x=lambda rng: 3.0 * rng.standard_normal((2, 3, 5)) + 1.0)),
    Case("rms_norm", "no weight, large eps", normal(x=(3, 5)), {"eps": 0.5}),
    Case(
        "relu",
        "away from the kink",
        lambda rng: {"x": rng.choice([-1.0, 1.0], (2, 3, 5)) * rng.uniform(0.1, 3.0, (2, 3, 5))},
    ),
    Case("gelu", "erf", lambda rng: {"x": 2.0 * rng.standard_normal((2, 3, 5))}),
    Case("gelu", "tanh", lambda rng: {"x": 2.0 * rng.standard_normal((2, 3, 5))}, {"approximate": "tanh"}),
    Case("silu", "spread out", lambda rng: {"x": 3.0 * rng.standard_normal((2, 3, 5))}),
    Case("tanh", "spread out", lambda rng: {"x": 2.0 * rng.standard_normal((2, 3, 5))}),
    Case("sigmoid", "spread out", lambda rng: {"x": 3.0 * rng.standard_normal((2, 3, 5))}),
    Case(
        "embedding",
        "repeated indices",
        also(normal(weight=(7, 5)), indices=lambda rng: np.array([[6, 0, 2], [2, 2, 5]])),
    ),
    Case("embedding", "one index", also(normal(weight=(7, 5)), indices=lambda rng: np.array(3))),
    Case(
        "cross_entropy",
        "mean, ignored targets",
        lambda rng: {"logits": 3.0 * rng.standard_normal((2, 3, 5)), "targets": np.array([[4, -100, 0], [1, 1, -100]])},
    ),
    Case(
        "cross_entropy",
        "mean, smoothing, ignored class",
        lambda rng: {"logits": 3.0 * rng.standard_normal((2, 3, 5)), "targets": np.array([[4, 2, 0], [1, 3, 2]])},
        {"label_smoothing": 0.2, "ignore_index": 2},
    ),
    Case(
        "cross_entropy",
        "sum",
        lambda rng: {"logits": 3.0 * rng.standard_normal((4, 7)), "targets": rng.integers(0, 7, 4)},
        {"reduction": "sum"},
    ),
    Case(
        "cross_entropy",
        "none, smoothing, ignored target",
        lambda rng: {"logits": 3.0 * rng.standard_normal((4, 7)), "targets": np.array([6, 1, -100, 3])},
        {"reduction": "none", "label_smoothing": 0.1},
    ),
    Case(
        "cross_entropy",
        "mean, class weights, ignored targets",
        lambda rng: {
            "logits": 3.0 * rng.standard_normal((2, 3, 5)),
            "targets": np.array([[4, -100, 0], [1, 1, -100]]),
            "weight": rng.random(5),
        },
    ),
    Case(
        "cross_entropy",
        "mean, class weights, smoothing",
        lambda rng: {
            "logits": 3.0 * rng.standard_normal((4, 7)),
            "targets": np.array([6, 1, 2, 1]),
            "weight": rng.random(7),
        },
        {"label_smoothing": 0.2, "ignore_index": 2},
    ),
    Case(
        "cross_entropy",
        "none, class weights, smoothing",
        lambda rng: {
            "logits": 3.0 * rng.standard_normal((4, 7)),
            "targets": np.array([6, 1, -100, 3]),
            "weight": rng.random(7),
        },
        {"reduction": "none", "label_smoothing": 0.1},
    ),
    Case("dropout", "rng", normal(x=(2, 3, 5)), {"p": 0.4, "rng": 9}),
    Case("dropout", "mask", also(normal(x=(2, 3, 5)), mask=bits(3, 1)), {"p": 0.25}),
    Case("cross_entropy", "one row", lambda rng: {"logits": 3.0 * rng.standard_normal(7), "targets": np.array(5)}),
)
