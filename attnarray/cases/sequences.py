"""Cases of convolution and recurrence over sequences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attnarray.cases.case import Arrays, Case, also, bits, normal

# N sequences of T steps with I features: distinct, also from the hidden sizes 2 and 4 and from the rows of the weights.
X = (3, 5, 7)


def recurrent(
    gates: int, x: tuple[int, ...] = X, hidden: int = 2, biases: str = "", states: str = ""
) -> Callable[[np.random.Generator], Arrays]:
    """The arguments of a recurrent function; `biases` and `states` name those that are given, as in "h0 c0"."""
    rows = gates * hidden
    weights = {"weight_ih": (rows, x[-1]), "weight_hh": (rows, hidden)}
    return normal(
        x=x, **weights, **dict.fromkeys(biases.split(), (rows,)), **dict.fromkeys(states.split(), (*x[:-2], hidden))
    )


def _with_holes(rng: np.random.Generator) -> np.ndarray:
    """A mask of which one sequence ends early, one has holes, and one has no step at all."""
    return np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)


BOTH = "bias_ih bias_hh"

SEQUENCE_CASES: tuple[Case, ...] = (
    Case("conv1d", "same", normal(x=(2, 7, 4), weight=(6, 4, 3), bias=(6,))),
    Case("conv1d", "two batch axes, width 1", normal(x=(2, 3, 5, 4), weight=(6, 4, 1))),
    Case(
        "conv1d", "causal, dilated", normal(x=(7, 3), weight=(4, 3, 2), bias=(4,)), {"padding": "causal", "dilation": 3}
    ),
    Case("conv1d", "valid, even width", normal(x=(2, 7, 3), weight=(5, 3, 4)), {"padding": "valid"}),
    Case("conv1d", "more zeros than taps", normal(x=(2, 5, 3), weight=(6, 3, 4), bias=(6,)), {"padding": 7}),
    Case("conv1d", "stride 2", normal(x=(2, 7, 4), weight=(6, 4, 3), bias=(6,)), {"padding": 1, "stride": 2}),
    Case(
        "conv1d",
        "groups, dilated, stride 3",
        normal(x=(3, 11, 4), weight=(6, 2, 3)),
        {"groups": 2, "dilation": 2, "stride": 3},
    ),
    Case("conv2d", "same", normal(x=(2, 5, 7, 3), weight=(4, 3, 1, 3), bias=(4,))),
    Case("conv2d", "patches", normal(x=(4, 6, 3), weight=(5, 3, 2, 2)), {"padding": "valid", "stride": 2}),
    Case(
        "conv2d",
        "height and width apart, groups",
        normal(x=(2, 1, 7, 9, 4), weight=(6, 2, 3, 5), bias=(6,)),
        {"groups": 2, "stride": (3, 2), "dilation": (1, 2), "padding": (2, "same")},
    ),
    Case("max_over_time", "all steps", normal(x=(2, 5, 3))),
    Case(
        "max_over_time",
        "lengths",
        also(normal(x=(4, 5, 3)), lengths=lambda rng: np.array([5, 2, 0, 1])),
    ),
    Case("causal_conv1d", "width 4", normal(x=(2, 7, 3), weight=(3, 4))),
    Case(
        "causal_conv1d",
        "everything",
        normal(x=(2, 1, 7, 3), weight=(3, 4), bias=(3,), initial_state=(2, 1, 3, 3)),
        {"activation": "silu"},
    ),
    Case("causal_conv1d", "fewer steps than taps", normal(x=(2, 3), weight=(3, 5), initial_state=(4, 3))),
    Case("causal_conv1d", "width 1", normal(x=(5, 3), weight=(3, 1), bias=(3,))),
    Case("rnn", "tanh", recurrent(1, hidden=4, biases=BOTH, states="h0")),
    Case("rnn", "one sequence, reverse", recurrent(1, (5, 7), biases="bias_ih"), {"reverse": True}),
    Case("rnn", "relu, mask", also(recurrent(1, biases=BOTH), mask=bits(3, 5)), {"nonlinearity": "relu"}),
    Case("lstm", "biases and states", recurrent(4, biases=BOTH, states="h0 c0")),
    Case("lstm", "one sequence, no biases", recurrent(4, (5, 7))),
    Case("lstm", "two batch axes, reverse", recurrent(4, (3, 1, 5, 7), states="c0"), {"reverse": True}),
    Case("lstm", "mask", also(recurrent(4, biases=BOTH, states="h0 c0"), mask=_with_holes)),
    Case(
        "lstm", "peephole", also(recurrent(4, biases=BOTH, states="h0 c0"), peephole=lambda rng: rng.standard_normal(6))
    ),
    Case(
        "lstm",
        "peephole, mask, reverse",
        also(recurrent(4), peephole=lambda rng: rng.standard_normal(6), mask=_with_holes),
        {"reverse": True},
    ),
    Case("gru", "reset before the product", recurrent(3, hidden=4, biases=BOTH, states="h0"), {"reset_after": False}),
    Case(
        "gru",
        "reset before the product, mask, reverse",
        also(recurrent(3, biases="bias_ih"), mask=_with_holes),
        {"reset_after": False, "reverse": True},
    ),
    Case("gru", "biases and state", recurrent(3, hidden=4, biases=BOTH, states="h0")),
    Case("gru", "one sequence, one bias", recurrent(3, (5, 7), biases="bias_hh")),
    Case("gru", "two batch axes, reverse", recurrent(3, (3, 1, 5, 7), states="h0"), {"reverse": True}),
    Case(
        "gru", "mask, reverse", also(recurrent(3, biases="bias_ih", states="h0"), mask=_with_holes), {"reverse": True}
    ),
)
