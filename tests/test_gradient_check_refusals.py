"""gradcheck raises if it compared nothing, and for errors that would hide a wrong gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa

X = np.random.default_rng(0).standard_normal((4, 4))


class Grads(NamedTuple):
    x: Any
    weight: Any


class Square(NamedTuple):
    """x^2, of which parts can be replaced."""

    forward: Callable[[Any], Any] = lambda x: x**2
    backward: Callable[[Any, Any], Any] = lambda dout, x: 2.0 * x * dout

    def __call__(self, x: Any, scale: Any = None) -> Any:
        return self.forward(x)

    def fwd(self, x: Any, scale: Any = None) -> Any:
        return self.forward(x), x.copy()

    def bwd(self, dout: Any, ctx: Any) -> Any:
        grad = self.backward(dout, ctx)
        return grad if isinstance(grad, tuple | float) else Grads(grad, None)


def in_place(x: Any) -> Any:
    x *= 2.0
    return x**2


def spoil_cotangent(dout: Any, x: Any) -> Any:
    dout *= 0.0  # so that all gradients would be 0, and all differences
    return 2.0 * x * dout


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "wrt empty": (lambda: aa.gradcheck(Square(), X, wrt=[]), r"`wrt` is \[\], but gradients were returned for \['x'\]"),
    "no differentiable input": (
        lambda: aa.gradcheck(Square(backward=lambda dout, x: Grads(None, None)), np.arange(3)),
        "no output is a finite floating number|gradients were returned for",
    ),
    "no elements": (
        lambda: aa.gradcheck(aa.linear, np.ones((2, 0)), np.ones((3, 0))),
        r"Nothing was compared: \['x', 'weight'\] have no elements",
    ),
    "no outputs": (lambda: aa.gradcheck(aa.relu, np.ones((0, 3))), "no output is a finite floating number"),
    "integer outputs": (
        lambda: aa.gradcheck(Square(lambda x: np.ones(x.shape, int)), X),
        "no output is a finite floating number",
    ),
    "infinite outputs": (
        lambda: aa.gradcheck(Square(lambda x: x - np.inf), X),
        "no output is a finite floating number",
    ),
    "changes its input": (lambda: aa.gradcheck(Square(in_place), X), "changes its argument `x` in place"),
    "changes the cotangent": (
        lambda: aa.gradcheck(Square(backward=spoil_cotangent), X),
        "bwd changes the cotangent in place",
    ),
    "no NamedTuple": (
        lambda: aa.gradcheck(Square(backward=lambda dout, x: (x,)), X),
        r"expected a NamedTuple with one field for each gradient, named as .* one of \['x'\]",
    ),
    "gradient of nothing": (
        lambda: aa.gradcheck(Square(backward=lambda dout, x: Grads(2.0 * x * dout, x)), X),
        "returns a gradient for `weight`, but no floating array was given by that name",
    ),
    "tolerance 0": (lambda: aa.gradcheck(Square(), X, tolerance=0.0), "`tolerance` is 0.0, expected a finite number"),
    "tolerance NaN": (lambda: aa.gradcheck(Square(), X, tolerance=math.nan), "`tolerance` is nan, expected a finite"),
    "tolerance infinite": (lambda: aa.gradcheck(Square(), X, tolerance=math.inf), "`tolerance` is inf, expected"),
    "step 0": (lambda: aa.gradcheck(Square(), X, step=0.0), "`step` is 0.0, expected a finite number above 0"),
    "step negative": (lambda: aa.gradcheck(Square(), X, step=-1e-3), "`step` is -0.001, expected a finite number"),
    "step lost": (lambda: aa.gradcheck(Square(), 1e15 * X), "`step` is 0.001, which is lost in the rounding of"),
    "no samples": (lambda: aa.gradcheck(Square(), X, max_elements=0), "`max_elements` is 0, expected an integer >= 1"),
}


@pytest.mark.parametrize(("call", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_compared_is_an_error(call: Callable[[], Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        call()


def test_a_leaf_without_a_gradient_is_an_error() -> None:
    layer = aa.layers.Linear(4, 3)

    class Forgetful(NamedTuple):
        missing: Any

        def __call__(self, params: Any, x: Any) -> Any:
            return layer(params, x)

        def fwd(self, params: Any, x: Any) -> Any:
            return layer.fwd(params, x)

        def bwd(self, dout: Any, ctx: Any) -> Any:
            grads = layer.bwd(dout, ctx)
            return grads._replace(params={"weight": grads.params["weight"], **self.missing})

    for missing in ({}, {"bias": None}):
        with pytest.raises(ValueError, match=r"returns no gradient for \['params.bias'\], which were given"):
            aa.gradcheck(Forgetful(missing), layer.init(aa.Philox(0)), X)


def test_an_empty_input_among_others_is_reported() -> None:
    report = aa.gradcheck(aa.linear, np.ones((2, 0)), np.ones((3, 0)), np.ones(3))
    assert report
    assert [(found.name, found.elements) for found in report.inputs] == [("x", 0), ("weight", 0), ("bias", 3)]
    assert [line.endswith("empty, nothing to check") for line in str(report).splitlines()[1:]] == [True, True, False]


def test_samples_are_said_to_be_samples() -> None:
    report = aa.gradcheck(Square(), X, max_elements=5)
    assert "     5 elements of 16  error" in str(report)
    assert (report.inputs[0].elements, report.inputs[0].size) == (5, 16)


def test_an_input_named_twice_is_compared_once() -> None:
    assert len(aa.gradcheck(Square(), X, wrt=["x", "x"]).inputs) == 1


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1.0, 1e6, 1e100])
def test_the_scale_of_the_outputs_does_not_matter(factor: float) -> None:
    right = Square(lambda x: factor * x**2, lambda dout, x: 2.0 * factor * x * dout)
    assert aa.gradcheck(right, X)
    for wrong in (0.0, 1.0 + 1e-6, -1.0):
        assert not aa.gradcheck(right._replace(backward=lambda dout, x, w=wrong: 2.0 * factor * w * x * dout), X)


def test_gradients_that_are_zero_or_unbounded() -> None:
    flat = Square(lambda x: 0.0 * x + 3.0, lambda dout, x: np.zeros_like(x))
    assert aa.gradcheck(flat, X)
    assert aa.gradcheck(Square(), np.zeros(3))
    assert not aa.gradcheck(flat._replace(backward=lambda dout, x: x), X)
    for infinite in (np.nan, np.inf):
        assert not aa.gradcheck(
            Square(backward=lambda dout, x, v=infinite: np.where(x == x[1, 2], v, 2.0 * x * dout)), X
        )


def test_the_error_for_an_incomplete_triple_names_what_is_missing_or_meant() -> None:
    namespace: dict[str, Any] = {"__name__": "no_module"}
    exec("def half(x): return x\ndef half_fwd(x): return x, None", namespace)
    with pytest.raises(TypeError, match=r"same module, but it lacks half_bwd. Give a"):
        aa.vjp(namespace["half"], X)
    with pytest.raises(TypeError, match=r"lacks relu_fwd_fwd and relu_fwd_bwd. Give relu itself"):
        aa.gradcheck(aa.relu_fwd, X)


def test_a_triple_is_found_where_the_function_was_defined() -> None:
    """Notebooks and `exec` run code in a namespace that is no module."""
    namespace: dict[str, Any] = {"__name__": "no_module"}
    exec(
        "def half(x): return x / 2\ndef half_fwd(x): return x / 2, None\ndef half_bwd(dx, _): return dx / 2", namespace
    )
    out, pullback = aa.vjp(namespace["half"], X)
    np.testing.assert_array_equal(out, X / 2)
    np.testing.assert_array_equal(pullback(np.ones_like(X)), np.full_like(X, 0.5))
