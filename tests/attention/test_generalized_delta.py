"""The generalized delta rule: chunks, halves, lengths, the delta rules as cases of it, RWKV-7 in float32, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.naive.generalized_delta_rule import generalized_delta_rule as naive
from tests.support.libraries import assert_close, assert_trees_close
from tests.support.messages import says

ROUNDING = 1e-12  # a few hundred steps of float64
B, H, HKV, DK, DV = 2, 4, 2, 5, 6
DECAYS = {"none": None, "head": (B, HKV), "dim": (B, HKV)}
each_decay = pytest.mark.parametrize("kind", DECAYS)


def arrays(T: int, kind: str, largest: float = 1.0) -> dict[str, Any]:
    """Arguments as RWKV-7 has them: a key of length 1 at which is removed, and a rate for each of its dimensions."""
    rng = np.random.default_rng(0)
    removed = rng.standard_normal((B, HKV, T, DK))
    removed /= np.linalg.norm(removed, axis=-1, keepdims=True)
    given = {
        "query": rng.standard_normal((B, H, T, DK)),
        "key": rng.standard_normal((B, HKV, T, DK)),
        "value": rng.standard_normal((B, HKV, T, DV)),
        "a": -removed,
        "b": removed * rng.random((B, HKV, T, DK)),
        "initial_state": rng.standard_normal((B, HKV, DK, DV)),
    }
    if kind != "none":
        given["decay"] = -largest * rng.random((B, HKV, T, DK) if kind == "dim" else (B, HKV, T)) ** 3
    return given


def run(given: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """The result and the gradients, for a cotangent that changes with the steps, and one of the state."""
    result, ctx = aa.generalized_delta_rule_fwd(**given, **options)
    dout = np.cos(np.arange(result.out.shape[2], dtype=result.out.dtype))[:, None] * np.ones_like(result.out)
    return result, aa.generalized_delta_rule_bwd(dout, ctx, np.ones_like(result.state))


@each_decay
def test_chunks_are_the_recurrence(kind: str) -> None:
    for T in (0, 1, 63, 64, 65, 200):
        given = arrays(T, kind)
        expected, grads = naive(**given), run(given, chunk_size=1)[1]
        for size in (1, 2, 7, 64):
            result, found = run(given, chunk_size=size)
            assert_trees_close(tuple(result), expected, ROUNDING)
            assert_trees_close(found, grads, ROUNDING)


@each_decay
def test_two_halves_are_the_whole(kind: str) -> None:
    given, border = arrays(100, kind), 37
    whole, grads = run(given, chunk_size=16)
    parts = [{n: x if n == "initial_state" else x[:, :, part] for n, x in given.items()}
             for part in (slice(border), slice(border, None))]  # fmt: skip
    first, first_ctx = aa.generalized_delta_rule_fwd(**parts[0])
    rest, ctx = aa.generalized_delta_rule_fwd(**{**parts[1], "initial_state": first.state}, chunk_size=8)
    assert_close(np.concatenate([first.out, rest.out], axis=2), whole.out, ROUNDING)
    assert_close(rest.state, whole.state, ROUNDING)
    dout = np.cos(np.arange(100))[:, None] * np.ones_like(whole.out)
    later = aa.generalized_delta_rule_bwd(dout[:, :, border:], ctx, np.ones_like(rest.state))
    earlier = aa.generalized_delta_rule_bwd(dout[:, :, :border], first_ctx, later.initial_state)
    for name in given:
        pair = [getattr(earlier, name), getattr(later, name)]
        found = pair[0] if name == "initial_state" else np.concatenate(pair, axis=2)
        assert_close(found, getattr(grads, name), ROUNDING, name)


@each_decay
def test_ragged_sequences_are_each_alone(kind: str) -> None:
    given, lengths = arrays(70, kind), [33, 70]
    spoiled = {n: x.copy() for n, x in given.items()}
    for name, x in spoiled.items():
        if name != "initial_state":
            x[0, :, 33:] = np.nan
    result, grads = run(spoiled, lengths=np.array(lengths), chunk_size=16)
    for n, length in enumerate(lengths):
        own = {m: x[n : n + 1] if m == "initial_state" else x[n : n + 1, :, :length] for m, x in given.items()}
        alone, own_grads = run(own)
        assert_close(result.out[n : n + 1, :, :length], alone.out, ROUNDING)
        assert_close(result.state[n : n + 1], alone.state, ROUNDING)
        assert not np.any(result.out[n, :, length:])
        for m in own:
            found = getattr(grads, m)[n : n + 1]
            assert_close(found if m == "initial_state" else found[:, :, :length], getattr(own_grads, m), ROUNDING, m)


@pytest.mark.parametrize("kind", ["head", "dim"])
def test_the_gated_delta_rule_is_a_case_of_it(kind: str) -> None:
    given = arrays(80, kind)
    key, beta, decay = -given["a"], np.random.default_rng(1).random((B, HKV, 80)), given["decay"]
    factor = np.exp(decay if kind == "dim" else decay[..., None])
    other = {"query": given["query"], "value": given["value"], "initial_state": given["initial_state"], "decay": decay}
    expected, ctx = aa.linear_attention_fwd(**other, key=key, beta=beta, rule="gated_delta", scale=1.0)
    wide = beta[..., None]
    other["value"] = given["value"] * wide
    result, own = aa.generalized_delta_rule_fwd(**other, key=key, a=-key * factor, b=wide * key)
    assert_trees_close(tuple(result), tuple(expected), ROUNDING)
    dout = np.cos(np.arange(80))[:, None] * np.ones_like(result.out)
    theirs, ours = aa.linear_attention_bwd(dout, ctx), aa.generalized_delta_rule_bwd(dout, own)
    assert_close(ours.query, theirs.query, ROUNDING)
    assert_close(ours.initial_state, theirs.initial_state, ROUNDING)
    assert_close(ours.value * wide, theirs.value, ROUNDING)
    assert_close(ours.key - factor * ours.a + wide * ours.b, theirs.key, ROUNDING)
    of_factor = ours.a * -key * factor
    assert_close(ours.decay + (of_factor if kind == "dim" else of_factor.sum(axis=-1)), theirs.decay, ROUNDING)


@pytest.mark.parametrize("largest", [0.0, 0.3, 20.0])
def test_float32_and_strong_decays(largest: float) -> None:
    given = {name: x.astype(np.float32) for name, x in arrays(300, "dim", largest).items()}
    exact = run({name: x.astype(np.float64) for name, x in given.items()}, chunk_size=1)
    for size in (1, 64):
        for found, truth in zip([*run(given, chunk_size=size)[0], *run(given, chunk_size=size)[1]],
                                [*exact[0], *exact[1]], strict=True):  # fmt: skip
            assert found.dtype == np.float32
            scale = max(float(np.max(np.abs(truth))), 1e-6)
            assert np.max(np.abs(found - truth)) <= 1e-5 * scale  # a hundred roundings of the largest entry


def test_a_decay_of_minus_infinity_forgets_what_is_not_read() -> None:
    given = arrays(40, "dim")
    given["decay"][:, :, 21] = -np.inf
    assert_trees_close(tuple(aa.generalized_delta_rule(**given, chunk_size=16)), naive(**given), ROUNDING)
    assert all(np.all(np.isfinite(grad)) for grad in run(given, chunk_size=16)[1])


GIVEN = arrays(7, "dim")
WRONG = {
    "positive": ({"decay": -GIVEN["decay"]}, "expected numbers <= 0: the logarithm of the factor"),
    "a": ({"a": GIVEN["a"][:, :1]}, "`a` has shape (2, 1, 7, 5), expected (2, 2, 7, 5): the shape of `key`"),
    "b": ({"b": GIVEN["b"][..., :4]}, "`b` has shape (2, 2, 7, 4), expected (2, 2, 7, 5): the shape of `key`"),
    "state": ({"initial_state": np.zeros((2, 2, 6, 5))}, "(2, 2, 6, 5), expected (2, 2, 5, 6): (*batch, Hkv, Dk"),
    "scale": ({"scale": 0.0}, "`scale` is 0.0, expected a finite number other than 0"),
    "chunk": ({"chunk_size": 0}, "`chunk_size` is 0, expected an integer >= 1"),
    "lengths": ({"lengths": [3, 8]}, "`lengths` goes from 3 to 8, expected integers from 0 to 7"),
}


@pytest.mark.parametrize("name", WRONG)
def test_messages(name: str) -> None:
    changes, expected = WRONG[name]
    says(ValueError, expected, lambda: aa.generalized_delta_rule(**{**GIVEN, **changes}))


def test_messages_of_types_and_cotangents() -> None:
    says(TypeError, "`b` is None", lambda: aa.generalized_delta_rule(**{**GIVEN, "b": None}))
    says(TypeError, "query float64, a float32, b float64. Bring them to one dtype first",
         lambda: aa.generalized_delta_rule(**{**GIVEN, "a": GIVEN["a"].astype("f4")}))  # fmt: skip
    result, ctx = aa.generalized_delta_rule_fwd(**GIVEN)
    says(ValueError, "`dstate` is given, but `dout` is no array",
         lambda: aa.generalized_delta_rule_bwd(result, ctx, result.state))  # fmt: skip
    says(ValueError, "`dout.state` has shape (2, 2, 5, 5), expected (2, 2, 5, 6)",
         lambda: aa.generalized_delta_rule_bwd(result.out, ctx, np.zeros((2, 2, 5, 5))))  # fmt: skip
    says(TypeError, "expected the GeneralizedDeltaContext", lambda: aa.generalized_delta_rule_bwd(result.out, result))
