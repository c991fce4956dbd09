"""The gradient checker accepts correct gradients and rejects many wrong ones; `vjp` computes gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.gradient_check import GradcheckReport
from attnarray.ops import activations
from attnarray.triples import find_triple
from tests.support.libraries import Library

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 4))  # equal sizes, so that a transposed gradient has the right shape
WEIGHT = RNG.standard_normal((4, 4))


class Grads(NamedTuple):
    x: Any
    weight: Any


class Wave(NamedTuple):
    """A custom layer: x W^T + sin(x W^T); anything with `fwd` and `bwd` is a layer."""

    spoil: Callable[[Grads], Grads] = lambda grads: grads

    def __call__(self, x: Any, weight: Any) -> Any:
        return self.fwd(x, weight)[0]

    def fwd(self, x: Any, weight: Any) -> Any:
        scores = x @ weight.T
        return scores + np.sin(scores), (x, weight, scores)

    def bwd(self, dout: Any, ctx: Any) -> Grads:
        x, weight, scores = ctx
        dscores = dout * (1.0 + np.cos(scores))
        return self.spoil(Grads(dscores @ weight, dscores.T @ x))


def square(x: Any, *, power: float = 2.0) -> Any:
    return x**power


def square_fwd(x: Any, *, power: float = 2.0) -> Any:
    return x**power, (x, power)


def square_bwd(dout: Any, ctx: Any) -> Any:
    x, power = ctx
    return SquareGrads(power * x ** (power - 1.0) * dout)


class SquareGrads(NamedTuple):
    x: Any


def without_cosine(grads: Grads) -> Grads:
    """The gradient without the second term of the sum."""
    return Grads(np.ones((4, 4)) @ WEIGHT, grads.weight)


def one_wrong(grads: Grads) -> Grads:
    weight = grads.weight.copy()
    weight[7, 3] += 1e-5 * np.max(np.abs(weight))
    return grads._replace(weight=weight)


MISTAKES = {
    "factor": ("x", lambda grads: grads._replace(x=1.0001 * grads.x)),
    "factor of two": ("weight", lambda grads: grads._replace(weight=2.0 * grads.weight)),
    "transposed": ("weight", lambda grads: grads._replace(weight=grads.weight.T)),
    "sign": ("x", lambda grads: grads._replace(x=-grads.x)),
    "missing term": ("x", without_cosine),
    "zero": ("x", lambda grads: grads._replace(x=0.0 * grads.x)),
    "mean instead of sum": ("weight", lambda grads: grads._replace(weight=grads.weight / 4)),
    "rows reversed": ("x", lambda grads: grads._replace(x=grads.x[::-1])),
    "swapped": ("x", lambda grads: Grads(grads.weight, grads.x)),
    "NaN": ("weight", lambda grads: grads._replace(weight=np.where(grads.weight == grads.weight[2, 1], np.nan, 0.0))),
    "a little": ("x", lambda grads: grads._replace(x=grads.x * (1 + 1e-6))),
}


def verdicts(report: GradcheckReport) -> dict[str, bool]:
    return {check.name: check.ok for check in report.inputs}


def test_right_gradients_are_accepted() -> None:
    report = aa.gradcheck(Wave(), X, WEIGHT)
    assert report
    assert report.ok
    assert report.function == "Wave"
    assert [(check.name, check.elements) for check in report.inputs] == [("x", 16), ("weight", 16)]
    assert all(check.error < 1e-10 for check in report.inputs)  # what the fourth-order differences resolve


@pytest.mark.parametrize(("where", "spoil"), MISTAKES.values(), ids=list(MISTAKES))
def test_mutations_are_found(where: str, spoil: Callable[[Grads], Grads]) -> None:
    report = aa.gradcheck(Wave(spoil), X, WEIGHT)
    assert not report
    assert not verdicts(report)[where]
    other = {"x": "weight", "weight": "x"}[where]
    assert verdicts(report)[other] == (spoil is not MISTAKES["swapped"][1])
    assert not aa.gradcheck(Wave(spoil), X, WEIGHT, wrt=[where])


def test_one_wrong_entry_of_five_hundred_is_found() -> None:
    x, weight = RNG.standard_normal((3, 25)), RNG.standard_normal((20, 25))
    assert aa.gradcheck(Wave(), x, weight)
    report = aa.gradcheck(Wave(one_wrong), x, weight)
    assert verdicts(report) == {"x": True, "weight": False}
    assert report.inputs[1].elements == 500
    assert report.inputs[1].error == pytest.approx(1e-5, rel=1e-3)
    assert aa.gradcheck(Wave(one_wrong), x, weight, tolerance=2e-5)


@pytest.mark.parametrize("name", ["query", "key", "value", "bias", "sinks"])
def test_mistakes_in_attention_are_found(name: str) -> None:
    shapes = {"query": (2, 4, 3, 5), "key": (2, 2, 6, 5), "value": (2, 2, 6, 3), "bias": (4, 1, 6), "sinks": (4,)}
    given = {key: 1.5 * RNG.standard_normal(shape) for key, shape in shapes.items()}
    right = find_triple(aa.scaled_dot_product_attention)

    class Attention:
        fwd = staticmethod(right.fwd)

        def __call__(self, query: Any, key: Any, value: Any, **options: Any) -> Any:
            return right.f(query, key, value, **options)

        def bwd(self, dout: Any, ctx: Any) -> Any:
            grads = right.bwd(dout, ctx)
            return grads._replace(**{name: np.flip(getattr(grads, name), axis=-1)})

    assert verdicts(aa.gradcheck(Attention(), **given, softcap=3.0)) == {key: key != name for key in shapes}


def test_chosen_inputs_alone_are_checked() -> None:
    report = aa.gradcheck(Wave(MISTAKES["sign"][1]), X, WEIGHT, wrt=["weight"])
    assert report
    assert verdicts(report) == {"weight": True}
    assert verdicts(aa.gradcheck(Wave(), X, WEIGHT, wrt="weight")) == {"weight": True}
    with pytest.raises(ValueError, match=r"`wrt` names \['bias'\], but gradients were returned for \['x', 'weight'\]"):
        aa.gradcheck(Wave(), X, WEIGHT, wrt=["x", "bias"])
    with pytest.raises(ValueError, match=r"`wrt` names \['bias'\].* \['query', 'key', 'value'\]"):
        aa.gradcheck(aa.scaled_dot_product_attention, X, X, X, wrt=["bias"])


def test_gradients_of_another_shape_and_missing_gradients_are_no_gradients() -> None:
    for wrong in (lambda dx: dx[:2], lambda dx: dx.reshape(-1), lambda dx: np.stack([dx, dx]), lambda dx: dx[None]):
        with pytest.raises(ValueError, match=r"The gradient of `x` has shape \(.*\), expected \(4, 4\)"):
            aa.gradcheck(Wave(lambda grads, w=wrong: grads._replace(x=w(grads.x))), X, WEIGHT)
    with pytest.raises(ValueError, match=r"returns no gradient for \['weight'\], which were given"):
        aa.gradcheck(Wave(lambda grads: grads._replace(weight=None)), X, WEIGHT)


def test_gradients_of_another_dtype_or_library_are_no_gradients() -> None:
    for change, said in (
        (lambda dx: dx.astype(np.float32), "has dtype float32, expected float64, that of the input"),
        (lambda dx: np.ones(dx.shape, int), "has dtype int64, expected float64"),
        (lambda dx: dx + 0j, "has dtype complex128, expected float64"),
        (array_api_strict.asarray, "is of .*array_api_strict.*, expected an array of numpy"),
        (np.ndarray.tolist, "is a gradient for `x.0.0`|returns no gradient for"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            aa.gradcheck(Wave(lambda grads, change=change: grads._replace(x=change(grads.x))), X, WEIGHT)


def test_nan_in_the_output_is_no_agreement() -> None:
    assert not aa.gradcheck(square, np.array([1.0, np.nan]))


def test_the_report_reads_as_a_table() -> None:
    lines = str(aa.gradcheck(Wave(MISTAKES["sign"][1]), X, WEIGHT, tolerance=1e-8)).splitlines()
    assert lines[0] == "Wave: gradients against central differences (tolerance 1e-08)"
    assert [line.split()[:2] for line in lines[1:]] == [["x", "16"], ["weight", "16"]]
    assert lines[1].endswith("WRONG")
    assert lines[2].endswith("ok")
    assert len({line.index("elements") for line in lines[1:]}) == 1


def test_large_inputs_are_sampled() -> None:
    x = RNG.standard_normal((40, 50))
    report = aa.gradcheck(square, x, max_elements=30)
    assert report
    assert report.inputs[0].elements == 30
    assert aa.gradcheck(square, x, max_elements=30) == report
    assert aa.gradcheck(square, x, max_elements=30, seed=1) != report


def test_options_reach_the_function_and_arguments_stay_as_they_are() -> None:
    x = RNG.uniform(0.5, 2.0, (3, 5)).astype(np.float32)
    before = x.copy()
    assert aa.gradcheck(square, x, power=3.5)
    assert aa.gradcheck(square, x=x, power=-1.0, step=1e-4)
    np.testing.assert_array_equal(x, before)
    x.flags.writeable = False
    assert aa.gradcheck(square, x)


def test_short_floats_are_checked_in_float64() -> None:
    given = {name: RNG.standard_normal((2, 3, 4)).astype(np.float16) for name in ("query", "key", "value")}
    assert aa.gradcheck(aa.scaled_dot_product_attention, **given, is_causal=True)


def test_integers_are_no_inputs_to_differentiate() -> None:
    report = aa.gradcheck(aa.embedding, np.array([[2, 0], [2, 2]]), RNG.standard_normal((3, 5)))
    assert report
    assert list(verdicts(report)) == ["weight"]


def project(params: Any, x: Any) -> Any:
    return project_fwd(params, x)[0]


def project_fwd(params: Any, x: Any) -> Any:
    return x @ params["weight"].T + params["biases"][0] * params["scale"], (params, x)


def project_bwd(dout: Any, ctx: Any) -> Any:
    params, x = ctx
    dbias = np.sum(dout, axis=0)
    grads = {"weight": dout.T @ x, "biases": [dbias * params["scale"], None], "scale": dbias @ params["biases"][0]}
    return ProjectGrads(grads, dout @ params["weight"])


class ProjectGrads(NamedTuple):
    params: Any
    x: Any


PARAMS = {"weight": RNG.standard_normal((3, 5)), "biases": [RNG.standard_normal(3), None], "scale": np.array(1.5)}


def test_trees_of_parameters_are_checked_leaf_by_leaf() -> None:
    report = aa.gradcheck(project, PARAMS, RNG.standard_normal((2, 5)))
    assert verdicts(report) == {"params.weight": True, "params.biases.0": True, "params.scale": True, "x": True}
    assert [check.elements for check in report.inputs] == [15, 3, 1, 10]


def test_outputs_may_be_several() -> None:
    shapes = {"query": (1, 2, 3, 4), "key": (1, 2, 5, 4), "value": (1, 2, 5, 6)}
    given = {name: RNG.standard_normal(shape) for name, shape in shapes.items()}
    assert aa.gradcheck(aa.attention_partial, **given, attn_mask=np.arange(5) > 1)  # out and lse
    parts = [aa.attention_partial(**given), aa.attention_partial(**given, is_causal=True)]
    report = aa.gradcheck(aa.merge_partials, parts)
    assert list(verdicts(report)) == ["partials.0.out", "partials.0.lse", "partials.1.out", "partials.1.lse"]
    assert report


def test_gradients_of_every_library_are_checked(library: Library) -> None:
    x = library.array(X)
    assert aa.gradcheck(aa.softmax, x, 0, mask=x > -1.0)
    assert aa.gradcheck(aa.scaled_dot_product_attention, x, x, x, window=(1, 0), softcap=2.0)


def test_a_kink_within_the_first_step_is_outside_the_second() -> None:
    # As the docstring of gradcheck says: within two steps of 0 the differences of ReLU include both slopes.
    assert "kink" in aa.gradcheck.__doc__
    assert aa.gradcheck(aa.relu, np.array([1e-3, 1.0]))
    assert not aa.gradcheck(aa.relu, np.array([1e-5, 1.0]))
    assert aa.gradcheck(aa.relu, np.array([1e-5, 1.0]), step=1e-4)


def test_a_second_step_does_not_accept_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.array([1e-3, 1.0, -2.0])
    for wrong in (1.0 + 1e-5, 0.5):
        with monkeypatch.context() as patch:
            right = activations.relu_bwd
            patch.setattr(activations, "relu_bwd", lambda d, c, f=right, w=wrong: activations.ReLUGrads(w * f(d, c).x))
            assert not aa.gradcheck(aa.relu, x)


@pytest.mark.parametrize("function", [np.sin, lambda x: x, len, 3, aa.asarray, aa.Philox])
def test_what_has_no_backward_is_refused(function: Any) -> None:
    for check in (aa.gradcheck, aa.vjp):
        with pytest.raises(
            TypeError,
            match=r"has no backward: expected \S.*_fwd and .*_bwd in the same module, but it lacks .*_bwd. Give a",
        ):
            check(function, X)


def test_a_triple_is_found_by_name_or_on_a_layer() -> None:
    assert find_triple(square) == (square, square_fwd, square_bwd)
    wave = Wave()
    assert find_triple(wave) == (wave, wave.fwd, wave.bwd)
    assert find_triple(aa.gelu).bwd is aa.gelu_bwd
    assert find_triple(square).fwd is sys.modules[__name__].square_fwd


def test_vjp_gives_the_output_and_a_pullback_for_any_number_of_cotangents() -> None:
    out, pullback = aa.vjp(Wave(), X, weight=WEIGHT)
    np.testing.assert_array_equal(out, Wave()(X, WEIGHT))
    first, second = pullback(np.ones((4, 4))), pullback(np.full((4, 4), 2.0))
    np.testing.assert_allclose(second.x, 2.0 * first.x, rtol=1e-15)  # exact but for the order of rounding
    np.testing.assert_array_equal(pullback(np.ones((4, 4))).weight, first.weight)
    grads = aa.vjp(project, PARAMS, X[:2, [0, 1, 2, 3, 0]])[1](np.ones((2, 3)))
    assert [path for path, _ in tree.flatten(grads.params)] == [path for path, _ in tree.flatten(PARAMS)]


def test_vjp_passes_further_cotangents_on() -> None:
    out, pullback = aa.vjp(aa.scaled_dot_product_attention, X, X, X)
    with_lse = pullback(np.zeros_like(out), dlse=np.ones(4))
    weights = aa.softmax(X @ X.T / 2.0)  # the gradient of the lse with respect to the scores; 1 / sqrt(D) = 1 / 2
    np.testing.assert_allclose(with_lse.query, weights @ X / 2.0, rtol=1e-12)  # a few sums of four
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        pullback(out, dloss=1.0)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((X,), {"eps": 1e-6}, "softmax() does not take these arguments: got an unexpected keyword argument 'eps'."),
        ((), {}, "softmax() does not take these arguments: missing a required argument: 'x'."),
    ],
)
def test_arguments_that_the_function_does_not_take_are_named(args: Any, options: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        aa.gradcheck(aa.softmax, *args, **options)
    assert str(caught.value) == message
