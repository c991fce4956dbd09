"""Options that the compute dtype does not hold are an error, never infinity times 0; others are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import optim, tree
from tests.support.messages import says

RNG = np.random.default_rng(0)
WIDE = {name: RNG.standard_normal(shape) for name, shape in {
    "q": (2, 2, 5, 4), "x": (2, 5, 4), "nodes": (5, 1, 4), "vector": (1, 4), "w": (4, 4), "v": (4,)
}.items()}  # fmt: skip
EDGES = np.array([[0, 1, 2], [1, 0, 0]])
Given = dict[str, np.ndarray]


def step(function: str, grads: Any, **options: Any) -> Any:
    params = {"a": np.ones(3, grads.dtype)}
    state = getattr(optim, f"{function}_init")(params)
    return getattr(optim, function)(params, {"a": grads}, state, **{"lr": 0.1, **options})[0]["a"]


def local(a: Given, **options: Any) -> Any:
    return aa.local_attention(a["x"], a["x"], a["x"], a["w"], a["v"], window=2, alignment="predictive", **options)


def graph(a: Given, **options: Any) -> Any:
    return aa.graph_attention(a["nodes"], a["nodes"], a["nodes"], a["vector"], EDGES, **options)


def hard(a: Given, **options: Any) -> Any:
    return aa.hard_attention(a["q"], a["q"], a["q"], estimator="gumbel", rng=1, **options).out


# The name of a number, and a call with it.
LARGE: dict[str, Callable[[Given, float], Any]] = {
    "scale": lambda a, n: aa.scaled_dot_product_attention(a["q"], a["q"], a["q"], scale=n),
    "scale ": lambda a, n: aa.scaled_dot_product_attention(a["q"], a["q"], a["q"], scale=-n, window=(1, 0)),
    "softcap": lambda a, n: aa.scaled_dot_product_attention(a["q"], a["q"], a["q"], softcap=n),
    "softcap ": lambda a, n: aa.additive_attention(a["x"], a["x"], a["x"], a["w"][0], softcap=n),
    "score_scale": lambda a, n: aa.scaled_attention(a["x"], a["x"], a["x"], score_scale=n),
    "inverse_temperature": lambda a, n: aa.scaled_attention(a["x"], a["x"], a["x"], inverse_temperature=n),
    "gate": lambda a, n: aa.scaled_attention(a["x"], a["x"], a["x"], n),
    "temperature": lambda a, n: hard(a, temperature=n),
    "negative_slope": lambda a, n: graph(a, negative_slope=n),
    "sigma": lambda a, n: local(a, sigma=n),
    "eps": lambda a, n: aa.layer_norm(a["x"], eps=n),
    "eps ": lambda a, n: aa.rms_norm(a["x"], eps=n),
    "eps  ": lambda a, n: step("adamw", a["v"][:3], eps=n),
    "lr": lambda a, n: step("adamw", a["v"][:3], lr=n),
    "lr ": lambda a, n: step("sgd", a["v"][:3], lr=n),
    "weight_decay": lambda a, n: step("sgd", a["v"][:3], weight_decay=n * 10),
    "entropy_weight": lambda a, n: aa.reinforce_cotangent(
        aa.hard_attention(a["q"], a["q"], a["q"], rng=1), 1.0, 0.0, entropy_weight=n
    ),
    "cost": lambda a, n: aa.reinforce_cotangent(aa.hard_attention(a["q"], a["q"], a["q"], rng=1), n, 0.0),
    "baseline": lambda a, n: aa.reinforce_cotangent(aa.hard_attention(a["q"], a["q"], a["q"], rng=1), 1.0, n),
}  # fmt: skip
# For these a small number is no error: it correctly counts as 0.
VANISH = ("scale", "gate", "negative_slope", "lr", "weight_decay", "entropy_weight", "cost", "baseline")


def in_dtype(dtype: str) -> Given:
    return {name: aa.asarray(array, dtype) for name, array in WIDE.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", LARGE)
def test_numbers_that_float32_does_not_hold(name: str, dtype: str) -> None:
    given, called = in_dtype(dtype), name.strip()
    says(ValueError, f"`{called}` is ", lambda: LARGE[name](given, 1e39))
    if called in VANISH:
        found = LARGE[name](given, 1e-50)
        if called not in ("entropy_weight", "cost", "baseline"):
            assert np.all(np.isfinite(np.asarray(found, np.float64)))
    else:
        says(ValueError, f"`{called}` is 1e-50, expected a number of a size from ", lambda: LARGE[name](given, 1e-50))


def test_float64_holds_them() -> None:
    for name in ("softcap", "softcap ", "gate", "score_scale", "inverse_temperature", "sigma", "negative_slope"):
        assert np.all(np.isfinite(LARGE[name](WIDE, 1e39))), name
        assert np.all(np.isfinite(LARGE[name](WIDE, 1e-50))), name


@pytest.mark.parametrize("mode", ["reference", "auto"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_near_the_limits_are_right(dtype: str, mode: str) -> None:
    given = in_dtype(dtype)
    q, bound = given["q"], 1e-6 if dtype == "float32" else 1e-12
    plain, ctx = aa.scaled_dot_product_attention_fwd(q, q, q)
    even = np.broadcast_to(np.mean(q, axis=2, keepdims=True), q.shape)
    best = np.take_along_axis(q, np.argmax(q @ q.mT, axis=-1)[..., None], 2)
    with aa.use_kernels(mode):
        for softcap in (1e25, 1e36):
            out, capped = aa.scaled_dot_product_attention_fwd(q, q, q, softcap=softcap)
            np.testing.assert_allclose(out, plain, rtol=0, atol=20 * bound)
            for a, b in zip(*(aa.scaled_dot_product_attention_bwd(q, c)[:3] for c in (capped, ctx)), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=100 * bound)
        for options in ({"softcap": 1e-30}, {"scale": 1e-30}, {"scale": 1e-45}):
            out, of_out = aa.scaled_dot_product_attention_fwd(q, q, q, **options)
            np.testing.assert_allclose(out, even, rtol=0, atol=bound)
            assert all(np.all(np.isfinite(g)) for g in aa.scaled_dot_product_attention_bwd(q, of_out)[:3])
        out = aa.scaled_dot_product_attention(q, q, q, scale=1e30)
        np.testing.assert_allclose(out, best, rtol=0, atol=bound)
        for temperature in (1e-6, 1e-20, 1e-37):
            noise = np.zeros((1, 1, 1, 5), dtype)
            result, of_result = aa.hard_attention_fwd(q, q, q, estimator="gumbel", temperature=temperature, noise=noise)
            np.testing.assert_allclose(result.out, best, rtol=0, atol=bound)
            zero = np.zeros_like(result.log_prob)
            grads = aa.hard_attention_bwd(type(result)(np.ones_like(q), zero, zero), of_result)
            assert all(g is None or np.all(np.isfinite(g)) for g in grads)


def test_a_base_that_is_stretched_beyond_any_number() -> None:
    x = WIDE["q"]
    for factor in (1e300, 1e200):
        expected = f"`factor` is {factor:g}, which makes the base"
        says(ValueError, expected, lambda f=factor: aa.rotary(x, scaling="ntk", factor=f))  # type: ignore[misc]


def test_segments_without_entries_cost_no_memory() -> None:
    x = RNG.standard_normal((4, 3))
    few, many = np.array([2, 0, 2, 1]), np.array([10**9 - 1, 7, 10**9 - 1, 1000])
    for mode in ("reference", "auto"):
        with aa.use_kernels(mode):
            (expected, before), (found, after) = (
                aa.segment_softmax_fwd(x, few, 3),
                aa.segment_softmax_fwd(x, many, 10**9),
            )
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(aa.segment_softmax_bwd(x, after).x, aa.segment_softmax_bwd(x, before).x)
    assert after.segment_count == 3


ARRAYS = ("score_scale", "inverse_temperature", "gate", "cost", "baseline")  # which scalars of NumPy are, too
NUMBERS: dict[str, Callable[[Given, Any], Any]] = {
    **{name: call for name, call in LARGE.items() if name not in ARRAYS},
    "label_smoothing": lambda a, n: aa.vjp(aa.cross_entropy, a["w"], np.array([0, 1, 2, 3]), label_smoothing=n)[1](
        np.ones((), a["w"].dtype)
    ),
    "the states of adamw": lambda a, n: two_steps("adamw", a, lr=n, betas=(n, n), eps=n, weight_decay=n),
    "the states of sgd": lambda a, n: two_steps("sgd", a, lr=n, momentum=n, weight_decay=n),
    "warmup_cosine": lambda a, n: np.array(optim.warmup_cosine(3, peak=n * 512 * 256, warmup=9, total=10, floor=n)),
    "clip_by_global_norm": lambda a, n: optim.clip_by_global_norm(a, n),
    "gradcheck": lambda a, n: gradcheck_error(aa.linear, a["x"], a["w"], step=n, tolerance=n),
    "an option of what is checked": lambda a, n: gradcheck_error(
        aa.scaled_dot_product_attention, a["q"], a["q"], a["q"], scale=n
    ),
}


def two_steps(function: str, grads: Given, **options: Any) -> Any:
    """Two steps, so that states are not 0."""
    take, state = getattr(optim, function), getattr(optim, f"{function}_init")(grads)
    params, state = take(grads, grads, state, **options)
    return take(params, grads, state, **options)


def gradcheck_error(*args: Any, **options: Any) -> Any:
    report = aa.gradcheck(*args, **options)
    return np.array([check.error for check in report.inputs])


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("scalar", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_may_be_scalars_of_numpy(name: str, scalar: Any, kernels: str) -> None:
    """A narrow one does not make the computation narrow, a wide one does not change the dtype of results."""
    for dtype in ("float32", "float64"):
        given = {key: array.astype(dtype) for key, array in WIDE.items()}
        with aa.use_kernels(kernels):
            expected, found = (tree.flatten(NUMBERS[name](given, number)) for number in (0.3125, scalar(0.3125)))
        for (path, a), (_, b) in zip(expected, found, strict=True):
            assert np.asarray(a).dtype == np.asarray(b).dtype, path
            np.testing.assert_array_equal(a, b)


def test_the_count_of_steps_does_not_wrap() -> None:
    state = optim.adamw_init({"a": WIDE["v"]})._replace(step=np.int8(127))
    assert optim.adamw({"a": WIDE["v"]}, {"a": WIDE["v"]}, state, lr=0.1)[1].step == 128
