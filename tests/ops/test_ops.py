"""What primitives promise beyond the contract of all triples: accuracy, extreme inputs, closed forms, messages."""

from __future__ import annotations

import math

import array_api_strict
import numpy as np
import pytest

import attnarray as aa
from attnarray.cases import Case
from attnarray.cases.ops import OPS_CASES
from attnarray.ops.erf import erf
from attnarray.triples import find_triple

X = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -0.5]])
EXTREMES = [-math.inf, -1e300, -1000.0, -0.0, 1000.0, 1e300, math.inf]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erf_is_accurate_everywhere(dtype: str) -> None:
    grid = [np.linspace(-6.5, 6.5, 20001), np.linspace(0.46, 0.48, 2001), np.geomspace(1e-30, 1.0, 2001)]
    x = np.concatenate([*grid, [0.0, -6.0, 6.0, 5.5, -5.9, 40.0, -1e30]]).astype(dtype)
    expected = np.array([math.erf(number) for number in x])
    # A dozen roundings, of which those in the last steps count in full.
    np.testing.assert_allclose(erf(x), expected, rtol=4 * np.finfo(dtype).eps, atol=0)


def test_erf_of_special_numbers() -> None:
    smallest = 5e-324
    out = erf(np.array([0.0, -0.0, smallest, math.inf, -math.inf, math.nan]))
    np.testing.assert_array_equal(out, [0.0, -0.0, smallest, 1.0, -1.0, math.nan])
    assert np.signbit(out[1])


def test_erf_of_no_and_of_one_number() -> None:
    assert erf(np.zeros((0, 3))).shape == (0, 3)
    assert erf(np.array(-7.0)) == -1.0


def test_erf_refuses_integers() -> None:
    with pytest.raises(TypeError, match="`x` has dtype int64"):
        erf(np.array([1]))


@pytest.mark.parametrize(
    ("name", "options", "expected", "slopes"),
    [
        ("relu", {}, [0, 0, 0, 0, 1000.0, 1e300, math.inf], [0, 0, 0, 0, 1, 1, 1]),
        ("gelu", {}, [0, 0, 0, 0, 1000.0, 1e300, math.inf], [0, 0, 0, 0.5, 1, 1, 1]),
        ("gelu", {"approximate": "tanh"}, [0, 0, 0, 0, 1000.0, 1e300, math.inf], [0, 0, 0, 0.5, 1, 1, 1]),
        ("silu", {}, [0, 0, 0, 0, 1000.0, 1e300, math.inf], [0, 0, 0, 0.5, 1, 1, 1]),
        ("tanh", {}, [-1, -1, -1, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0]),
        ("sigmoid", {}, [0, 0, 0, 0.5, 1, 1, 1], [0, 0, 0, 0.25, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_activations_reach_their_limits_without_a_warning(name, options, expected, slopes, dtype) -> None:
    largest = float(np.finfo(dtype).max)
    x = np.clip(EXTREMES, -largest, largest).astype(dtype)
    x[[0, -1]] = -math.inf, math.inf
    out, pullback = aa.vjp(getattr(aa, name), x, **options)
    np.testing.assert_array_equal(
        out, np.minimum(expected, np.where(np.isinf(expected), math.inf, largest)).astype(dtype)
    )
    np.testing.assert_array_equal(pullback(np.ones_like(x)).x, np.asarray(slopes, dtype))


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh", "sigmoid"])
def test_activations_keep_nan_and_single_numbers(name: str) -> None:
    f = getattr(aa, name)
    assert np.isnan(f(np.array([math.nan, 1.0]))).tolist() == [True, False]
    out, pullback = aa.vjp(f, np.array(1.5))
    dx = pullback(np.array(2.0)).x
    assert type(out) is type(dx) is np.ndarray
    assert out.shape == dx.shape == ()


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh", "sigmoid"])
def test_activations_refuse_what_is_not_a_floating_array(name: str) -> None:
    with pytest.raises(TypeError, match="`x` has dtype int64, expected one of float16"):
        getattr(aa, name)(np.array([1, 2]))
    with pytest.raises(TypeError, match="Expected arrays, but got list"):
        getattr(aa, name)([1.0, 2.0])


def test_gated_activations_leave_x_when_their_mirror_image_is_taken_away() -> None:
    x = np.linspace(-5.0, 5.0, 101)
    for out in (aa.gelu(x) - aa.gelu(-x), aa.gelu(x, approximate="tanh") - aa.gelu(-x, approximate="tanh")):
        np.testing.assert_allclose(out, x, atol=1e-15)  # a few roundings of numbers up to 5
    np.testing.assert_allclose(aa.silu(x) - aa.silu(-x), x, atol=1e-15)


def test_gelu_forms_differ_by_the_known_small_amount() -> None:
    x = np.linspace(-6.0, 6.0, 1201)
    apart = np.max(np.abs(aa.gelu(x) - aa.gelu(x, approximate="tanh")))
    assert 4e-4 < apart < 5e-4


def test_gelu_refuses_an_unknown_approximation() -> None:
    with pytest.raises(ValueError, match="`approximate` is 'erf', expected one of 'none', 'tanh'"):
        aa.gelu(X, approximate="erf")


def test_sigmoid_keeps_small_chances() -> None:
    assert aa.sigmoid(np.array(-700.0)) == pytest.approx(math.exp(-700.0), rel=1e-14)


def test_linear_says_which_shapes_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"passed as weight.T. Shapes: x \(2, 3\), weight \(3, 4\)"):
        aa.linear(X, np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"Shapes: x \(\), weight \(4, 3\)"):
        aa.linear(np.array(1.0), np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"`bias` has shape \(3,\), expected \(4,\): .* has shape \(4, 3\)"):
        aa.linear(X, np.ones((4, 3)), np.ones(3))


def test_linear_refuses_mixed_dtypes_and_libraries() -> None:
    with pytest.raises(TypeError, match="different dtypes: x float64, weight float32"):
        aa.linear(X, np.ones((4, 3), np.float32))
    with pytest.raises(TypeError, match="different libraries: array_api_strict, numpy"):
        aa.linear(X, array_api_strict.ones((4, 3)))


def test_linear_of_nothing() -> None:
    np.testing.assert_array_equal(aa.linear(np.zeros((2, 0)), np.zeros((3, 0)), np.arange(3.0)), [[0, 1, 2]] * 2)
    out, pullback = aa.vjp(aa.linear, np.zeros((0, 3)), np.ones((4, 3)))
    np.testing.assert_array_equal(pullback(out).weight, np.zeros((4, 3)))


def test_layer_norm_of_a_constant_vector_is_the_bias() -> None:
    out = aa.layer_norm(np.full((2, 3), 7.0), np.full(3, 5.0), np.arange(3.0))
    np.testing.assert_array_equal(out, [[0.0, 1.0, 2.0]] * 2)


def test_layer_norm_forgets_shift_and_scale() -> None:
    # 1e-12: eps moves the result by its ratio to the variance, here above 1.
    np.testing.assert_allclose(aa.layer_norm(3 * X + 7, eps=1e-13), aa.layer_norm(X, eps=1e-13), atol=1e-12)


def test_layer_norm_gradient_is_free_of_the_directions_that_it_forgets() -> None:
    out, pullback = aa.vjp(aa.layer_norm, X, eps=1e-13)
    dx = pullback(np.array([[1.0, 2.0, -4.0], [0.5, 3.0, 1.0]])).x
    np.testing.assert_allclose(np.sum(dx, axis=-1), 0, atol=1e-12)  # eps again
    np.testing.assert_allclose(np.sum(dx * out, axis=-1), 0, atol=1e-12)


def test_rms_norm_is_layer_norm_without_the_mean() -> None:
    centred = X - np.mean(X, axis=-1, keepdims=True)
    weight = np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(aa.rms_norm(centred, weight, eps=1e-5), aa.layer_norm(X, weight), rtol=1e-14)
    assert aa.rms_norm(np.zeros(4)).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_refuse_bad_input(name: str) -> None:
    f = getattr(aa, name)
    with pytest.raises(ValueError, match=r"`weight` has shape \(2,\), expected \(3,\): .* has shape \(2, 3\)"):
        f(X, np.ones(2))
    with pytest.raises(ValueError, match="`eps` is 0, expected a finite number above 0"):
        f(X, eps=0)
    with pytest.raises(ValueError, match=r"no axis to normalise, expected \(..., E\)"):
        f(np.array(1.0))
    with pytest.raises(TypeError, match="different dtypes: x float64, weight float32"):
        f(X, np.ones(3, np.float32))


def test_layer_norm_names_a_bad_bias() -> None:
    with pytest.raises(ValueError, match=r"`bias` has shape \(4,\), expected \(3,\)"):
        aa.layer_norm(X, bias=np.ones(4))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_norms_of_nothing(shape: tuple[int, ...]) -> None:
    for f in (aa.layer_norm, aa.rms_norm):
        out, pullback = aa.vjp(f, np.zeros(shape), np.ones(shape[-1]))
        grads = pullback(out)
        assert out.shape == grads.x.shape == shape
        np.testing.assert_array_equal(grads.weight, np.zeros(shape[-1]))


def test_embedding_gradient_counts_how_often_a_row_is_used() -> None:
    indices = np.array([[1, 1], [4, 1]], dtype=np.uint8)
    _, pullback = aa.vjp(aa.embedding, indices, np.zeros((5, 2)))
    np.testing.assert_array_equal(pullback(np.ones((2, 2, 2))).weight[:, 0], [0, 3, 0, 0, 1])


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "array_api_strict"])
def test_embedding_names_the_first_bad_index(xp) -> None:
    weight = xp.ones((5, 2))
    with pytest.raises(ValueError, match=r"`indices` holds 5 at position \(1, 0\), expected 0 to 4 .*`weight`: 5\)"):
        aa.embedding(xp.asarray([[0, 4], [5, -1]]), weight)
    with pytest.raises(ValueError, match=r"`indices` holds -1 at position \(2,\), expected 0 to 4"):
        aa.embedding(xp.asarray([0, 1, -1], dtype=xp.int8), weight)
    with pytest.raises(ValueError, match="`indices` holds 9, expected 0 to 4"):
        aa.embedding(xp.asarray(9), weight)


def test_embedding_refuses_bad_input() -> None:
    with pytest.raises(TypeError, match="`indices` has dtype float64, expected an integer dtype"):
        aa.embedding(np.ones(2), np.ones((5, 2)))
    with pytest.raises(TypeError, match="`weight` has dtype int64"):
        aa.embedding(np.array([0]), np.ones((5, 2), int))
    with pytest.raises(ValueError, match=r"`weight` has 1 axes, expected two: \(V, E\)"):
        aa.embedding(np.array([0]), np.ones(5))
    with pytest.raises(ValueError, match=r"holds 0 at position \(0,\), but there is no valid index"):
        aa.embedding(np.array([0]), np.ones((0, 2)))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_number_of_classes(label_smoothing: float) -> None:
    losses = aa.cross_entropy(
        np.full((2, 7), -3.0), np.array([0, 6]), label_smoothing=label_smoothing, reduction="none"
    )
    np.testing.assert_allclose(losses, math.log(7), rtol=1e-15)


def test_cross_entropy_reductions_belong_together() -> None:
    targets = np.array([[2, -100], [0, 1]])
    logits = np.arange(12.0).reshape(2, 2, 3) ** 1.5
    each = aa.cross_entropy(logits, targets, reduction="none")
    total = aa.cross_entropy(logits, targets, reduction="sum")
    mean = aa.cross_entropy(logits, targets)
    assert each.shape == (2, 2)
    assert type(total) is type(mean) is np.ndarray
    assert total.shape == mean.shape == ()
    assert total == pytest.approx(np.sum(each), rel=1e-15)
    assert mean == pytest.approx(np.sum(each) / 3, rel=1e-15)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cross_entropy_of_huge_logits(dtype: str) -> None:
    logits = np.array([[1e4, 0.0, -1e4], [-math.inf, 5e3, 5e3]], dtype)
    loss, pullback = aa.vjp(aa.cross_entropy, logits, np.array([1, 2]), reduction="none")
    np.testing.assert_allclose(loss, [1e4, math.log(2)], rtol=1e-6)  # float32's rounding; exact but for log 2
    np.testing.assert_array_equal(pullback(np.ones(2, dtype)).logits, [[1, -1, 0], [0, 0.5, -0.5]])


def test_cross_entropy_gradient_of_a_row_sums_to_zero() -> None:
    _, pullback = aa.vjp(aa.cross_entropy, X, np.array([2, 0]), label_smoothing=0.1)
    np.testing.assert_allclose(np.sum(pullback(np.array(1.0)).logits, axis=-1), 0, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_does_not_look_at_ignored_rows(reduction: str, label_smoothing: float) -> None:
    options = {"reduction": reduction, "label_smoothing": label_smoothing, "ignore_index": 1}
    targets = np.array([2, 1, 0])
    clean = np.array([[0.5, 1.0, -2.0], [0.0, 0.0, 0.0], [3.0, 1.0, 2.0]])
    dirty = clean.copy()
    dirty[1] = math.nan, math.inf, -math.inf
    dout = np.array([1.0, math.nan, 2.0]) if reduction == "none" else np.array(1.0)
    expected, _ = aa.vjp(aa.cross_entropy, clean, targets, **options)
    out, pullback = aa.vjp(aa.cross_entropy, dirty, targets, **options)
    np.testing.assert_array_equal(out, expected)
    dlogits = pullback(dout).logits
    np.testing.assert_array_equal(dlogits[1], 0)
    assert np.all(np.isfinite(dlogits))


def test_cross_entropy_of_no_target_is_zero() -> None:
    out, pullback = aa.vjp(aa.cross_entropy, X, np.array([-100, -100]))
    assert out == 0
    np.testing.assert_array_equal(pullback(np.array(1.0)).logits, np.zeros_like(X))
    assert aa.cross_entropy(np.zeros((0, 3)), np.zeros(0, int)) == 0


def test_cross_entropy_refuses_bad_input() -> None:
    targets = np.array([0, 2])
    with pytest.raises(
        ValueError, match=r"`targets` holds 3 at position \(1,\), expected 0 to 2 .*or -100 for a place"
    ):
        aa.cross_entropy(X, np.array([0, 3]))
    with pytest.raises(ValueError, match=r"`targets` holds -100 at position \(0,\), expected 0 to 2 .*or -1 for"):
        aa.cross_entropy(X, np.array([-100, -1]), ignore_index=-1)
    with pytest.raises(ValueError, match=r"`targets` has shape \(3,\), expected \(2,\): .* has shape \(2, 3\)"):
        aa.cross_entropy(X, np.array([0, 1, 2]))
    with pytest.raises(TypeError, match="`targets` has dtype float64, expected an integer dtype"):
        aa.cross_entropy(X, np.zeros(2))
    with pytest.raises(TypeError, match="`logits` has dtype int64"):
        aa.cross_entropy(np.zeros((2, 3), int), targets)
    with pytest.raises(TypeError, match=r"`ignore_index` is 0\.5, expected an integer"):
        aa.cross_entropy(X, targets, ignore_index=0.5)
    with pytest.raises(ValueError, match=r"`label_smoothing` is 1\.5, expected a probability"):
        aa.cross_entropy(X, targets, label_smoothing=1.5)
    with pytest.raises(ValueError, match="`reduction` is 'average', expected one of 'mean', 'sum', 'none'"):
        aa.cross_entropy(X, targets, reduction="average")
    with pytest.raises(ValueError, match=r"`logits` has no classes, expected \(..., V\) with V > 0"):
        aa.cross_entropy(np.zeros((2, 0)), targets)


@pytest.mark.parametrize("case", [case for case in OPS_CASES if case.label != "one index"], ids=lambda case: case.name)
def test_a_cotangent_that_does_not_fit_is_refused(case: Case) -> None:
    out, ctx = find_triple(case.f).fwd(**case.arguments())
    bwd = find_triple(case.f).bwd
    with pytest.raises(ValueError, match=r"`dout` has shape \(5,.*the shape of the output"):
        bwd(np.ones((5, *out.shape)), ctx)
    with pytest.raises(TypeError, match="`dout` has dtype int64"):
        bwd(np.ones(out.shape, dtype=np.int64), ctx)
