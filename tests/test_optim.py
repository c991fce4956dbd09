"""The optimizers against their definitions for single numbers, and invalid arguments."""

from __future__ import annotations

import math
import pickle

import array_api_strict
import numpy as np
import pytest

from attnarray import optim, tree

RNG = np.random.default_rng(0)
PARAMS = {
    "layer": {"weight": RNG.standard_normal((2, 3)), "bias": None},
    "scale": np.array(0.5),
    "blocks": [np.array([-1.5, 2.0])],
}


def gradients(steps: int = 5) -> list:
    rng = np.random.default_rng(1)
    return [tree.map(lambda p: 2.0 * rng.standard_normal(p.shape), PARAMS) for _ in range(steps)]


def numbers(values) -> list[float]:
    return [float(number) for _, leaf in tree.flatten(values) for number in np.ravel(leaf)]


def assert_near(params, expected: list[float]) -> None:
    # A handful of steps on numbers near 1: some ten roundings.
    np.testing.assert_allclose(numbers(params), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0.0, False, 0.0), (0.0, False, 0.3), (0.9, False, 0.3), (0.9, True, 0.0)],
)
def test_sgd_follows_its_definition(momentum: float, nesterov: bool, weight_decay: float) -> None:
    params, state = PARAMS, optim.sgd_init(PARAMS)
    expected = numbers(PARAMS)
    velocity = [0.0] * len(expected)
    for grads in gradients():
        options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        params, state = optim.sgd(params, grads, state, lr=0.1, **options)
        for i, g in enumerate(numbers(grads)):
            velocity[i] = momentum * velocity[i] + g
            direction = g + momentum * velocity[i] if nesterov else velocity[i]
            expected[i] = expected[i] - 0.1 * weight_decay * expected[i] - 0.1 * direction
    assert_near(params, expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_follows_its_definition(weight_decay: float) -> None:
    params, state = PARAMS, optim.adamw_init(PARAMS)
    expected = numbers(PARAMS)
    m, v = [0.0] * len(expected), [0.0] * len(expected)
    for step, grads in enumerate(gradients(), start=1):
        params, state = optim.adamw(
            params, grads, state, lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=weight_decay
        )
        assert state.step == step
        for i, g in enumerate(numbers(grads)):
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.95 * v[i] + 0.05 * g**2
            unbiased_m, unbiased_v = m[i] / (1 - 0.8**step), v[i] / (1 - 0.95**step)
            expected[i] -= 0.1 * weight_decay * expected[i] + 0.1 * unbiased_m / (math.sqrt(unbiased_v) + 1e-3)
    assert_near(params, expected)


def test_the_first_step_of_adam_has_the_size_of_the_learning_rate() -> None:
    params = {"w": np.array([1.0, 1.0, 1.0])}
    grads = {"w": np.array([1e-4, -3.0, 0.0])}
    new, _ = optim.adamw(params, grads, optim.adamw_init(params), lr=0.1, weight_decay=0)
    np.testing.assert_allclose(new["w"], [0.9, 1.1, 1.0], rtol=1e-4)  # eps = 1e-8 with a gradient of 1e-4


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_acts_alone_where_the_gradient_is_zero(name: str) -> None:
    params = {"w": np.array([2.0])}
    state = getattr(optim, f"{name}_init")(params)
    for _ in range(3):
        params, state = getattr(optim, name)(params, {"w": np.zeros(1)}, state, lr=0.1, weight_decay=0.5)
    assert params["w"][0] == pytest.approx(2.0 * 0.95**3, rel=1e-15)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_changes_nothing_in_place_and_keeps_the_structure(name: str) -> None:
    (grads,) = gradients(1)
    state = getattr(optim, f"{name}_init")(PARAMS)
    for _, leaf in tree.flatten((PARAMS, grads, state)):
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False
    options = {"momentum": 0.9} if name == "sgd" else {}
    new, after = getattr(optim, name)(PARAMS, grads, state, lr=0.1, **options)
    assert new["layer"]["bias"] is None
    for (path, leaf), (new_path, new_leaf) in zip(tree.flatten(PARAMS), tree.flatten(new), strict=True):
        assert new_path == path
        assert type(new_leaf) is np.ndarray
        assert new_leaf.shape == leaf.shape
        assert not np.shares_memory(leaf, new_leaf)
    assert all(type(leaf) in (np.ndarray, int) for _, leaf in tree.flatten(after))
    again = getattr(optim, name)(PARAMS, grads, pickle.loads(pickle.dumps(state)), lr=0.1, **options)
    assert numbers(again) == numbers((new, after))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_small_floats_keep_their_dtype_and_have_a_wide_state(name: str) -> None:
    params = {"w": np.ones(3, np.float16)}
    state = getattr(optim, f"{name}_init")(params)
    new, after = getattr(optim, name)(params, params, state, lr=0.1)
    assert new["w"].dtype == np.float16
    assert {leaf.dtype.name for _, leaf in tree.flatten(after) if hasattr(leaf, "dtype")} == {"float32"}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_other_libraries_and_their_devices(name: str) -> None:
    device = array_api_strict.Device("device1")
    (grads,) = gradients(1)
    there = [tree.map(lambda leaf: array_api_strict.asarray(leaf, device=device), t) for t in (PARAMS, grads)]
    new, _ = getattr(optim, name)(*there, getattr(optim, f"{name}_init")(there[0]), lr=0.1)
    clipped, norm = optim.clip_by_global_norm(there[1], 0.5)
    assert norm.device == clipped["scale"].device == new["scale"].device == device
    expected, _ = getattr(optim, name)(PARAMS, grads, getattr(optim, f"{name}_init")(PARAMS), lr=0.1)
    host = array_api_strict.Device("CPU_DEVICE")
    found = numbers(tree.map(lambda leaf: np.asarray(leaf.to_device(host)), new))
    np.testing.assert_allclose(found, numbers(expected), rtol=1e-14)  # the kernel of NumPy arrays rounds otherwise


def test_clipping_scales_all_gradients_together() -> None:
    grads = {"a": np.array([[3.0], [0.0]]), "b": (np.array(4.0), None)}
    clipped, norm = optim.clip_by_global_norm(grads, 1.0)
    assert norm.shape == ()
    assert norm == 5.0
    assert numbers(clipped) == pytest.approx([0.6, 0.0, 0.8], rel=1e-15)
    assert optim.global_norm(clipped) == pytest.approx(1.0, rel=1e-15)
    for enough in (5.0, 7.0):
        unclipped, _ = optim.clip_by_global_norm(grads, enough)
        assert numbers(unclipped) == numbers(grads)


def test_clipping_of_zeros_and_of_empty_trees() -> None:
    assert numbers(optim.clip_by_global_norm({"a": np.zeros(2)}, 1.0)) == [0.0, 0.0, 0.0]
    assert optim.clip_by_global_norm({"a": np.zeros((0, 2))}, 1.0)[1] == 0
    assert optim.global_norm({}) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clipping_does_not_hide_a_broken_gradient(bad: float) -> None:
    grads = {"a": np.array([1.0, bad]), "b": np.array([2.0])}
    clipped, norm = optim.clip_by_global_norm(grads, 1.0)
    assert not np.isfinite(norm)
    assert all(math.isnan(number) for number in numbers(clipped))
    params, _ = optim.adamw(grads, clipped, optim.adamw_init(grads), lr=0.1)
    assert math.isnan(params["b"][0])


def test_clipping_keeps_each_dtype() -> None:
    grads = {"a": np.ones(2, np.float32), "b": np.ones(2), "c": np.ones(2, np.float16)}
    clipped, _ = optim.clip_by_global_norm(grads, 1.0)
    assert [leaf.dtype.name for leaf in clipped.values()] == ["float32", "float64", "float16"]


def test_warmup_cosine_meets_its_end_points() -> None:
    def rate(step: int) -> float:
        return optim.warmup_cosine(step, peak=0.3, warmup=10, total=110, floor=0.01)

    assert [rate(0), rate(5), rate(10), rate(110), rate(1000)] == [0.0, 0.15, 0.3, 0.01, 0.01]
    assert rate(60) == pytest.approx((0.3 + 0.01) / 2, rel=1e-15)
    falling = [rate(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)
    assert optim.warmup_cosine(0, peak=0.3, warmup=0, total=1) == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 10, "total": 10}, "`warmup` is 10 and `total` is 10, expected 0 <= warmup < total"),
        ({"warmup": -1}, "`warmup` is -1"),
        ({"floor": 2.0}, "`floor` is 2.0 and `peak` is 1.0, expected finite rates with 0 <= floor <= peak"),
        ({"peak": math.nan}, "`peak` is nan"),
        ({"step": -1}, "`step` is -1, expected 0 or above"),
    ],
)
def test_warmup_cosine_refuses_bad_values(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.warmup_cosine(**{"step": 0, "peak": 1.0, "warmup": 2, "total": 10, **options})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgd", {"lr": -0.1}, "`lr` is -0.1, expected a finite number, 0 or above"),
        ("sgd", {"lr": "fast"}, "`lr` is 'fast'"),
        ("sgd", {"momentum": 1.0}, "`momentum` is 1.0, expected a number from 0 to below 1"),
        ("sgd", {"nesterov": True}, "`nesterov` looks ahead by `momentum`, which is 0"),
        ("sgd", {"weight_decay": math.inf}, "`weight_decay` is inf"),
        ("adamw", {"lr": math.nan}, "`lr` is nan"),
        ("adamw", {"betas": (0.9, 1.0)}, r"`betas\[1\]` is 1.0, expected a number from 0 to below 1"),
        ("adamw", {"betas": 0.9}, "`betas` is 0.9, expected two numbers"),
        ("adamw", {"eps": 0.0}, "`eps` is 0.0, expected a finite number above 0"),
    ],
)
def test_optimizers_refuse_bad_options(name: str, options: dict, message: str) -> None:
    state = getattr(optim, f"{name}_init")(PARAMS)
    with pytest.raises(ValueError, match=message):
        getattr(optim, name)(PARAMS, gradients(1)[0], state, **{"lr": 0.1, **options})


def test_trees_that_differ_are_named_by_their_path() -> None:
    params = {"layer": {"weight": np.ones((2, 3))}}
    state = optim.adamw_init(params)

    def step(grads, state=state) -> None:
        optim.adamw(params, grads, state, lr=0.1)

    with pytest.raises(ValueError, match=r"`params` and `grads` differ at layer.weight: only `params` has an array"):
        step({"layer": {"weight": None}})
    with pytest.raises(ValueError, match=r"differ at layer.bias: only `grads` has an array there"):
        step({"layer": {"weight": np.ones((2, 3)), "bias": np.ones(2)}})
    with pytest.raises(ValueError, match=r"`grads` has shape \(3, 2\) at layer.weight, expected \(2, 3\)"):
        step({"layer": {"weight": np.ones((3, 2))}})
    with pytest.raises(TypeError, match=r"different dtypes: params.layer.weight float64, grads.layer.weight float32"):
        step({"layer": {"weight": np.ones((2, 3), np.float32)}})
    with pytest.raises(TypeError, match=r"`grads` holds float at layer.weight, expected an array"):
        step({"layer": {"weight": 1.0}})
    with pytest.raises(ValueError, match=r"`params` and `first_moment` differ at layer.weight"):
        step(params, optim.adamw_init({}))
    with pytest.raises(TypeError, match=r"`state` is SGDState, expected AdamWState: take it from adamw_init\(params\)"):
        step(params, optim.sgd_init(params))


def test_clipping_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="`max_norm` is 0, expected a finite number above 0"):
        optim.clip_by_global_norm({"a": np.ones(2)}, 0)
    with pytest.raises(TypeError, match=r"`grads.layer.a` has dtype int64"):
        optim.clip_by_global_norm({"layer": {"a": np.ones(2, int)}}, 1.0)
    with pytest.raises(TypeError, match=r"`grads` holds str at layer.a"):
        optim.global_norm({"layer": {"a": "x"}})
