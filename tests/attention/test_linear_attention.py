"""Linear attention: chunks, halves, steps, lengths, references of PyTorch, decays at the limits, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.naive.linear_attention import linear_attention as naive
from tests.support.frozen import Frozen, frozen
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

REFERENCES = frozen("linear.npz")
ROUNDING = 1e-12  # a few hundred steps of float64
RULES = ("linear", "gated", "gated by dim", "delta", "gated_delta", "gated_delta by dim")
B, H, HKV, DK, DV = 2, 4, 2, 5, 6


def arrays(rule: str, T: int, seed: int = 0, largest: float = 1.0) -> dict[str, Any]:
    """Arguments of a rule, with keys of length 1 and an initial state."""
    rng = np.random.default_rng(seed)
    key = rng.standard_normal((B, HKV, T, DK))
    given = {
        "query": rng.standard_normal((B, H, T, DK)),
        "key": key / np.linalg.norm(key, axis=-1, keepdims=True),
        "value": rng.standard_normal((B, HKV, T, DV)),
        "initial_state": rng.standard_normal((B, HKV, DK, DV)),
    }
    if "gated" in rule:
        given["decay"] = -largest * rng.random((B, HKV, T, DK) if "dim" in rule else (B, HKV, T)) ** 3
    if "delta" in rule:
        given["beta"] = rng.random((B, HKV, T))
    return given


def run(rule: str, given: dict[str, Any], dstate: Any = None, **options: Any) -> tuple[Any, Any]:
    """The result and the gradients, for a cotangent of ones that grow with the steps, and one of the state."""
    result, ctx = aa.linear_attention_fwd(**given, rule=rule.split()[0], **options)
    T = given["query"].shape[2]
    dout = np.cos(np.arange(T, dtype=result.out.dtype))[:, None] * np.ones_like(result.out)
    dstate = np.ones_like(result.state) if dstate is None else dstate
    return result, aa.linear_attention_bwd(aa.LinearAttentionResult(dout, dstate), ctx)


@pytest.mark.parametrize("rule", RULES)
def test_chunks_are_the_recurrence(rule: str) -> None:
    for T in (0, 1, 63, 64, 65, 200):
        given = arrays(rule, T)
        expected = naive(**given, rule=rule.split()[0])
        grads = run(rule, given, chunk_size=1)[1]
        for size in (1, 2, 7, 64):
            result, found = run(rule, given, chunk_size=size)
            assert_trees_close(tuple(result), expected, ROUNDING)
            assert_trees_close(found, grads, ROUNDING)


@pytest.mark.parametrize("rule", RULES)
def test_two_halves_are_the_whole(rule: str) -> None:
    given, border = arrays(rule, 100), 37
    whole, grads = run(rule, given, chunk_size=16)
    steps = [{n: a if n == "initial_state" else a[:, :, part] for n, a in given.items()}
             for part in (slice(border), slice(border, None))]  # fmt: skip
    first, first_ctx = aa.linear_attention_fwd(**steps[0], rule=rule.split()[0], chunk_size=8)
    rest, ctx = aa.linear_attention_fwd(**{**steps[1], "initial_state": first.state}, rule=rule.split()[0])
    assert_close(np.concatenate([first.out, rest.out], axis=2), whole.out, ROUNDING)
    assert_close(rest.state, whole.state, ROUNDING)
    dout = np.cos(np.arange(100))[:, None] * np.ones_like(whole.out)
    later = aa.linear_attention_bwd(dout[:, :, border:], ctx, np.ones_like(rest.state))
    earlier = aa.linear_attention_bwd(dout[:, :, :border], first_ctx, later.initial_state)
    for name in given:
        parts = [getattr(earlier, name), getattr(later, name)]
        found = parts[0] if name == "initial_state" else np.concatenate(parts, axis=2)
        assert_close(found, getattr(grads, name), ROUNDING, name)


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_the_whole(rule: str) -> None:
    given = arrays(rule, 12)
    whole = aa.linear_attention(**given, rule=rule.split()[0])
    state = given.pop("initial_state").copy()
    for t in range(12):
        step = {name: array[:, :, t] for name, array in given.items()}
        out, after = aa.linear_attention_step(**step, state=state, rule=rule.split()[0])
        assert after is state
        assert_close(out, whole.out[:, :, t], ROUNDING)
    assert_close(state, whole.state, ROUNDING)


def test_a_step_has_feature_maps_and_the_normalized_form() -> None:
    given = arrays("gated", 9)
    options = {"feature_map": "elu+1", "normalize": True, "rule": "gated"}
    given["initial_state"] = np.zeros((B, HKV, DK, DV + 1))
    whole = aa.linear_attention(**given, **options)
    state = given.pop("initial_state")
    for t in range(9):
        out, state = aa.linear_attention_step(**{n: a[:, :, t] for n, a in given.items()}, state=state, **options)
    assert_close(out, whole.out[:, :, -1], ROUNDING)
    assert_close(state, whole.state, ROUNDING)


@pytest.mark.parametrize("rule", RULES)
def test_ragged_sequences_are_each_alone(rule: str) -> None:
    given, lengths = arrays(rule, 70), [33, 70]
    result, grads = run(rule, given, lengths=np.array(lengths), chunk_size=16)
    for b, length in enumerate(lengths):
        own = {n: a[b : b + 1] if n == "initial_state" else a[b : b + 1, :, :length] for n, a in given.items()}
        alone, own_grads = run(rule, own)
        assert_close(result.out[b : b + 1, :, :length], alone.out, ROUNDING)
        assert_close(result.state[b : b + 1], alone.state, ROUNDING)
        assert not np.any(result.out[b, :, length:])
        for name in own:
            found = getattr(grads, name)[b : b + 1]
            assert_close(found if name == "initial_state" else found[:, :, :length], getattr(own_grads, name), ROUNDING)
            assert name == "initial_state" or not np.any(found[:, :, length:])


@pytest.mark.parametrize("dim", [False, True])
@pytest.mark.parametrize("largest", [0.0, 0.3, 20.0])
def test_float32_is_as_exact_as_the_recurrence_in_float32(largest: float, dim: bool) -> None:
    rule = "gated_delta by dim" if dim else "gated_delta"
    given = arrays(rule, 300, largest=largest)
    given = {name: array.astype(np.float32) for name, array in given.items()}
    exact = run(rule, {name: array.astype(np.float64) for name, array in given.items()}, chunk_size=1)
    chunked, recurrent = run(rule, given), run(rule, given, chunk_size=1)
    for (path, found), (_, other), (_, truth) in zip(*map(tree.flatten, (chunked, recurrent, exact)), strict=True):
        if truth is None:
            continue
        scale = max(np.max(np.abs(truth)), 1e-6)
        error, of_recurrence = (np.max(np.abs(x - truth)) / scale for x in (found, other))
        # One rounding of the largest entry is allowed on top, as short recurrences may be exact by chance.
        assert error <= 4 * of_recurrence + 2.0**-22, (path, error, of_recurrence)


@pytest.mark.parametrize("rule", ["gated", "gated by dim", "gated_delta", "gated_delta by dim"])
def test_a_decay_of_minus_infinity_forgets_everything(rule: str) -> None:
    given = arrays(rule, 40)
    given["decay"][:, :, 21] = -np.inf
    result, grads = run(rule, given, chunk_size=16)
    rest = {n: np.zeros_like(a) if n == "initial_state" else a[:, :, 21:] for n, a in given.items()}
    rest["decay"] = np.where(rest["decay"] == -np.inf, 0.0, rest["decay"])
    assert_close(result.out[:, :, 21:], aa.linear_attention(**rest, rule=rule.split()[0]).out, ROUNDING)
    assert all(np.all(np.isfinite(grad)) for grad in grads if grad is not None)
    _, ctx = aa.linear_attention_fwd(**given, rule=rule.split()[0])
    of_state = aa.linear_attention_bwd(aa.LinearAttentionResult(None, np.ones_like(result.state)), ctx)
    assert not np.any(of_state.initial_state)


@pytest.mark.parametrize("name", REFERENCES)
def test_results_and_gradients_of_pytorch(name: str) -> None:
    generalized = name.startswith("generalized")
    names = ("query", "key", "value", "decay", "initial_state", *(("a", "b") if generalized else ("beta",)))
    forward, backward = (getattr(aa, f"{'generalized_delta_rule' if generalized else 'linear_attention'}_{direction}")
                         for direction in ("fwd", "bwd"))  # fmt: skip
    for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-5)):  # the rounding of 20 steps
        case: Frozen = REFERENCES[name].in_dtype(dtype)
        inputs = case.given(*names)
        options = dict(case.options)
        learned = next((kind for kind in (aa.FAVOR, aa.Hedgehog) if kind._fields[0] in case.arrays), None)
        if learned is not None:
            options["feature_map"] = learned(*(case.arrays[field] for field in learned._fields))
        result, ctx = forward(**inputs, **options, chunk_size=8)
        grads = backward(case.arrays["dout"], ctx, case.arrays["dstate"])
        assert_close(result.out, case.arrays["out"], tolerance)
        assert_close(result.state, case.arrays["state"], tolerance)
        for field in inputs:
            assert_close(getattr(grads, field), case.arrays[f"grad_{field}"], tolerance, field)
        for field in () if learned is None else learned._fields:
            assert_close(getattr(grads.feature_map, field), case.arrays[f"grad_{field}"], tolerance, field)


def test_random_features_estimate_the_softmax() -> None:
    rng = np.random.default_rng(2)
    query, key, value = 0.5 * rng.standard_normal((3, 1, 2, 30, 8))
    exact = aa.scaled_dot_product_attention(query, key, value, is_causal=True)
    errors = []
    for count in (64, 16384):
        favor = aa.FAVOR.draw(aa.Philox(3), 8, count)
        found = aa.linear_attention(query, key, value, feature_map=favor, normalize=True).out
        errors.append(np.sqrt(np.mean((found - exact) ** 2)))
    assert errors[1] < errors[0] / 8  # 256 times as many features: 16 times smaller, by chance not quite
    again = aa.FAVOR.draw(aa.Philox(3), 8, count).projection
    np.testing.assert_array_equal(again, favor.projection)
    assert np.any(again != aa.FAVOR.draw(aa.Philox(4), 8, count).projection)
    rows = favor.projection[:8]
    products = rows @ rows.T
    np.testing.assert_allclose(products - np.diag(np.diag(products)), 0.0, atol=1e-12)  # orthogonal blocks


def test_the_context_holds_states_at_borders_alone() -> None:
    given = arrays("gated_delta", 512)
    _, ctx = aa.linear_attention_fwd(**given, rule="gated_delta")
    assert ctx.states.shape == (B, HKV, 8, DK, DV)
    held = sum(array.nbytes for array in given.values()) + ctx.states.nbytes
    assert tree.nbytes(ctx) <= 1.3 * held  # the query is counted once as given and once in canonical layout


GIVEN = arrays("gated_delta", 7)
WRONG = {
    "positive": ({"decay": -GIVEN["decay"]}, "expected numbers <= 0: the logarithm of the factor"),
    "no beta": ({"beta": None}, "`beta` is None, but rule='gated_delta' needs it. 'gated' takes `decay`"),
    "no decay": ({"decay": None}, "`decay` is None, but rule='gated_delta' needs it."),
    "beta unused": ({"rule": "gated"}, "`beta` is given, but rule='gated' does not use it."),
    "rule": ({"rule": "gate"}, "`rule` is 'gate', expected one of 'linear', 'gated', 'delta', 'gated_delta'"),
    "decay shape": ({"decay": GIVEN["decay"][..., :5]}, "`decay` has shape (2, 2, 5), expected (2, 2, 7)"),
    "decay dims": ({"decay": np.zeros((2, 2, 7, 4))}, "`decay` has shape (2, 2, 7, 4), expected (2, 2, 7, 5)"),
    "beta shape": ({"beta": np.zeros((2, 4, 7))}, "`beta` has shape (2, 4, 7), expected (2, 2, 7): one number"),
    "state": ({"initial_state": np.zeros((2, 2, 6, 5))}, "(2, 2, 6, 5), expected (2, 2, 5, 6): (*batch, Hkv, Dk"),
    "steps": ({"query": GIVEN["query"][:, :, :6]}, "`key` has 7 steps but `query` has 6; each step of"),
    "heads": ({"query": GIVEN["query"][:, :3]}, "`query` has 3 heads, `key` 2 and `value` 2"),
    "chunk": ({"chunk_size": 0}, "`chunk_size` is 0, expected an integer >= 1: the number of steps of a chunk"),
    "lengths": ({"lengths": [3, 8]}, "`lengths` goes from 3 to 8, expected integers from 0 to 7"),
    "no steps": ({"lengths": -1}, "`lengths` is -1, expected an integer >= 0: the number of steps"),
    "lengths shape": ({"lengths": [3, 4, 5]}, "`lengths` has shape (3,), expected (2,): one integer for all"),
    "normalize": ({"normalize": True}, "`normalize` is True, but rule='gated_delta' replaces values"),
    "map": ({"feature_map": "elu"}, "`feature_map` is 'elu', expected one of 'elu+1', 'relu', 'squared', 'exp'"),
    "FAVOR": ({"feature_map": aa.FAVOR(np.ones((3, 4)))}, "`FAVOR.projection` has shape (3, 4), expected (F, 5)"),
    "Hedgehog": ({"feature_map": aa.Hedgehog(np.ones((2, 3, 5)), np.ones((2, 3, 5)))}, "expected (4, F, 5)"),
    "scale": ({"scale": 0.0}, "`scale` is 0.0, expected a finite number other than 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_messages(name: str) -> None:
    changes, expected = WRONG[name]
    says(ValueError, expected, lambda: aa.linear_attention(**{"rule": "gated_delta", **GIVEN, **changes}))


def test_messages_of_dtypes_and_cotangents() -> None:
    other = GIVEN["initial_state"].astype("f4")
    says(TypeError, "initial_state float32. Bring them to one dtype first",
         lambda: aa.linear_attention(**{**GIVEN, "initial_state": other}, rule="gated_delta"))  # fmt: skip
    result, ctx = aa.linear_attention_fwd(**GIVEN, rule="gated_delta")
    says(ValueError, "`dout.state` has shape (2, 2, 5, 5), expected (2, 2, 5, 6)",
         lambda: aa.linear_attention_bwd(result.out, ctx, np.zeros((2, 2, 5, 5))))  # fmt: skip
    says(TypeError, "expected the LinearAttentionContext", lambda: aa.linear_attention_bwd(result, result))
    step = {name: array[:, :, 0] for name, array in GIVEN.items() if name != "initial_state"}
    says(TypeError, "`state` has dtype float32, expected float64",
         lambda: aa.linear_attention_step(**step, state=other, rule="gated_delta"))  # fmt: skip
    says(ValueError, "`dstate` is given, but `dout` is no array: give LinearAttentionResult(dout, dstate)",
         lambda: aa.linear_attention_bwd(result, ctx, result.state))  # fmt: skip
    says(ValueError, "`state` has shape (2, 2, 6, 5), expected (2, 2, 5, 6): (B, Hkv, Dk, Dv)",
         lambda: aa.linear_attention_step(**step, state=np.zeros((2, 2, 6, 5)), rule="gated_delta"))  # fmt: skip
    fixed = result.state.copy()
    fixed.setflags(write=False)
    says(ValueError, "`state` is read-only, but it is overwritten: give a copy",
         lambda: aa.linear_attention_step(**step, state=fixed, rule="gated_delta"))  # fmt: skip
    says(ValueError, "`dtype` is 'int32', expected one of", lambda: aa.FAVOR.draw(0, 3, 4, "int32"))
    says(ValueError, "`decay` has shape (2, 2, 4), expected (2, 2, 5): (B, Hkv) or (B, Hkv, Dk)",
         lambda: aa.linear_attention_step(**{**step, "decay": np.zeros((2, 2, 4))}, state=result.state,
                                          rule="gated_delta"))  # fmt: skip
    says(ValueError, "`beta` has shape (2, 4), expected (2, 2): one number for each key head",
         lambda: aa.linear_attention_step(**{**step, "beta": np.zeros((2, 4))}, state=result.state,
                                          rule="gated_delta"))  # fmt: skip
    says(ValueError, "expected one step of (B, heads, dim)",
         lambda: aa.linear_attention_step(**{**step, "key": GIVEN["key"]}, state=result.state))  # fmt: skip


def test_beta_beyond_its_range_and_long_keys_are_computed_as_they_are() -> None:
    given = arrays("delta", 9)
    given["beta"], given["key"] = 3.0 * given["beta"] - 1.0, 2.0 * given["key"]
    assert_trees_close(tuple(aa.linear_attention(**given, rule="delta")), naive(**given, rule="delta"), ROUNDING)


def test_16_bit_states_are_taken_and_given_in_float32() -> None:
    half = {name: array.astype(np.float16) for name, array in arrays("gated", 9).items()}
    result = aa.linear_attention(**half, rule="gated")
    assert result.out.dtype == np.float16
    assert result.state.dtype == np.float32
    wide = {**half, "initial_state": half["initial_state"].astype(np.float32)}
    assert_trees_close(aa.linear_attention(**wide, rule="gated"), result, 0.0)
    grads = aa.linear_attention_bwd(result.out, aa.linear_attention_fwd(**wide, rule="gated")[1])
    assert grads.initial_state.dtype == np.float32


FAMILIES = ("retnet", "gla", "delta_net", "gated_delta_net", "kda", "mamba2")


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_a_layer_are_one_call(family: str) -> None:
    layer = getattr(aa.layers.LinearAttention, family)(dim=8, num_heads=2)
    params = layer.init(aa.Philox(0), "float64")
    x = np.random.default_rng(0).standard_normal((2, 9, 8))
    cache, outs = layer.cache(2, dtype="float64"), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        out, cache = layer.step(params, x[:, part], cache)
        outs.append(out)
    assert_close(np.concatenate(outs, axis=1), layer(params, x), ROUNDING)
    assert cache.length == 9
    assert tree.nbytes(cache) == tree.nbytes(layer.cache(2, dtype="float64"))


def test_left_padding_of_a_layer_leaves_its_states_alone() -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 8))
    for family in FAMILIES:
        layer = getattr(aa.layers.LinearAttention, family)(dim=8, num_heads=2)
        params = layer.init(aa.Philox(0), "float64")
        y, ctx = layer.fwd(params, x, starts=[4, 0], lengths=[7, 9])
        assert_close(y[:1, 4:7], layer(params, x[:1, 4:7]), ROUNDING)
        assert not np.any(layer.bwd(np.ones_like(y), ctx).x[0, :4])
        cache = layer.cache(2, dtype="float64")
        for part in (slice(0, 3), slice(3, 5), slice(5, 9)):
            out, cache = layer.step(params, x[:, part], cache, starts=np.array([4, 0]))
        assert_close(out, layer(params, x, starts=[4, 0])[:, 5:], ROUNDING)
        report = aa.gradcheck(layer, params, x, starts=[4, 0], max_elements=3)
        assert report, str(report)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_of_a_layer_may_be_nan(family: str) -> None:
    layer = getattr(aa.layers.LinearAttention, family)(dim=8, num_heads=2)
    params, x = layer.init(aa.Philox(0), "float64"), np.random.default_rng(0).standard_normal((2, 9, 8))
    padding = (np.arange(9) < np.array([[2], [0]])) | (np.arange(9) >= np.array([[6], [9]]))
    spoiled = np.where(padding[..., None], np.nan, x)
    y, ctx = layer.fwd(params, x, starts=[2, 0], lengths=[6, 9])
    dy = np.cos(np.arange(8.0)) * np.ones_like(y)
    found, other = layer.fwd(params, spoiled, starts=[2, 0], lengths=[6, 9])
    np.testing.assert_array_equal(found, y)
    assert not np.any(y[padding])
    assert_trees_close(layer.bwd(dy, other), layer.bwd(dy, ctx), 0.0)


def test_messages_of_the_layer() -> None:
    make = aa.layers.LinearAttention
    says(ValueError, "`decay` is 'none' with rule='gated': the rules", lambda: make(8, 2, rule="gated"))
    says(ValueError, "`step_size` is True with decay='fixed'", lambda: make.retnet(8, 2, step_size=True))
    says(ValueError, "`num_heads` (3) must divide `dim` (8), unless", lambda: make(8, 3))
    layer = make(8, 2)
    params, x = layer.init(aa.Philox(0)), np.ones((2, 3, 8), np.float32)
    says(TypeError, "`cache` is None, expected a LinearCache", lambda: layer.step(params, x, None))
    says(ValueError, "`lengths` is 4, expected an integer from 0 to 3", lambda: layer(params, x, lengths=4))
    says(ValueError, "`cache` is from another LinearAttention: the shapes of its states are {'state': (4, 2, 2)}, "
                     "expected {'state': (2, 4, 4)}.", lambda: layer.step(params, x, make(8, 4).cache(2)))  # fmt: skip
    convolved = make.delta_net(8, 2)
    says(ValueError, "`cache` is from another LinearAttention",
         lambda: convolved.step(convolved.init(aa.Philox(0)), x, layer.cache(2)))  # fmt: skip
    says(ValueError, "the next T positions of the 2 sequences", lambda: layer.step(params, x[:1], layer.cache(2)))
