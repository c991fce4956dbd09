"""Causal convolution with state: parts are the whole, the same as `conv1d`, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.libraries import assert_close
from tests.support.messages import says

ROUNDING = 1e-14  # a few products
RNG = np.random.default_rng(0)
X, WEIGHT, BIAS, STATE = (RNG.standard_normal(shape) for shape in ((2, 9, 3), (3, 4), (3,), (2, 3, 3)))


def test_it_is_conv1d_with_a_diagonal_weight() -> None:
    dense = np.zeros((3, 3, 4))
    dense[np.arange(3), np.arange(3)] = WEIGHT
    assert_close(aa.causal_conv1d(X, WEIGHT, BIAS).out, aa.conv1d(X, dense, BIAS, padding="causal"), ROUNDING)


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 9])
def test_parts_are_the_whole(cut: int) -> None:
    """Outputs, states and gradients, also where a part is shorter than the state."""
    given: Any = {"weight": WEIGHT, "bias": BIAS, "activation": "silu"}
    whole, ctx = aa.causal_conv1d_fwd(X, **given, initial_state=STATE)
    first, first_ctx = aa.causal_conv1d_fwd(X[:, :cut], **given, initial_state=STATE)
    rest, rest_ctx = aa.causal_conv1d_fwd(X[:, cut:], **given, initial_state=first.state)
    assert_close(np.concatenate([first.out, rest.out], axis=1), whole.out, ROUNDING)
    assert_close(rest.state, whole.state, 0.0)
    dout, dstate = np.cos(whole.out), np.sin(whole.state)
    grads = aa.causal_conv1d_bwd(aa.CausalConv1dResult(dout, dstate), ctx)
    later = aa.causal_conv1d_bwd(dout[:, cut:], rest_ctx, dstate)
    earlier = aa.causal_conv1d_bwd(dout[:, :cut], first_ctx, later.initial_state)
    assert_close(np.concatenate([earlier.x, later.x], axis=1), grads.x, ROUNDING)
    assert_close(earlier.weight + later.weight, grads.weight, ROUNDING)
    assert_close(earlier.initial_state, grads.initial_state, ROUNDING)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "channels": ({"weight": WEIGHT[:2]}, ValueError, "Shapes: x (2, 9, 3), weight (2, 4)."),
    "no tap": ({"weight": WEIGHT[:, :0]}, ValueError, "with at least one tap"),
    "bias": ({"bias": BIAS[:2]}, ValueError, "`bias` has shape (2,), expected (3,): one number for each"),
    "state": ({"initial_state": STATE[:, 1:]}, ValueError, "`initial_state` has shape (2, 2, 3), expected (2, 3, 3)"),
    "activation": ({"activation": "gelu"}, ValueError, "`activation` is 'gelu', expected one of None, 'silu'"),
    "dtype": ({"bias": BIAS.astype("f4")}, TypeError, "bias float32. Bring them to one dtype first"),
}


@pytest.mark.parametrize("name", WRONG)
def test_messages(name: str) -> None:
    changes, error, expected = WRONG[name]
    says(error, expected, lambda: aa.causal_conv1d(**{"x": X, "weight": WEIGHT, **changes}))


def test_messages_of_cotangents() -> None:
    result, ctx = aa.causal_conv1d_fwd(X, WEIGHT)
    says(ValueError, "`dout.state` has shape (2, 2, 3), expected (2, 3, 3)",
         lambda: aa.causal_conv1d_bwd(result.out, ctx, STATE[:, 1:]))  # fmt: skip
    says(TypeError, "expected CausalConv1dResult(out, state)", lambda: aa.causal_conv1d_bwd(3, ctx))
    says(ValueError, "`dstate` is given, but `dout` is no array: give CausalConv1dResult(dout, dstate)",
         lambda: aa.causal_conv1d_bwd(aa.CausalConv1dResult(None, None), ctx, np.zeros((2, 3, 3))))  # fmt: skip
