"""Linformer, Nyström and LSH attention: against PyTorch, and where they are exact."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.triples import find_triple
from tests.support.frozen import frozen

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = RNG.standard_normal((3, 2, 3, 24, 8))
FROZEN = frozen("approximate.npz")
ROTATIONS = RNG.standard_normal((3, 8, 2))


@pytest.mark.parametrize("name", FROZEN)
def test_equals_pytorch(name: str) -> None:
    case = FROZEN[name]
    function = find_triple(getattr(aa, name.partition(":")[0]))
    inputs = ("query", "key", "value", "key_projection", "value_projection", "rotations")
    out, ctx = function.fwd(**case.given(*inputs), **case.options)
    grads = function.bwd(case.arrays["dout"], ctx)
    np.testing.assert_allclose(out, case.arrays["out"], rtol=0, atol=1e-12)
    for given, expected in case.below("grad_").items():
        np.testing.assert_allclose(getattr(grads, given), expected, rtol=0, atol=1e-11)  # through six products


def test_landmarks_of_every_position_are_exact() -> None:
    exact = aa.scaled_dot_product_attention(QUERY, KEY, VALUE)
    found = aa.nystrom_attention(QUERY, KEY, VALUE, num_landmarks=24, iterations=40)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)  # A is far from orthogonal: its inverse is large


def test_one_landmark_is_the_mean_of_the_values() -> None:
    found = aa.nystrom_attention(QUERY, np.zeros_like(KEY), VALUE, num_landmarks=1)
    mean = np.broadcast_to(VALUE.mean(axis=2, keepdims=True), VALUE.shape)
    np.testing.assert_allclose(found, mean, rtol=0, atol=1e-14)


def test_one_bucket_is_attention_to_all_others() -> None:
    query = QUERY + 20.0 * np.ones(8) / np.sqrt(8)  # all in one direction, so in one bucket
    keys = query / np.linalg.norm(query, axis=-1, keepdims=True)
    for causal in (False, True):
        exact = aa.scaled_dot_product_attention(query, keys, VALUE, ~np.eye(24, dtype=bool), is_causal=causal)
        if causal:
            exact[:, :, 0] = VALUE[:, :, 0]  # which has no other position than itself
        rotations = np.ones((2, 8, 1))
        # Without causal order a query would not see the chunk after its own.
        found = aa.lsh_attention(query, VALUE, rotations, chunk_size=12 if causal else 24, is_causal=causal)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-13)


def test_a_key_found_by_several_rounds_counts_once() -> None:
    once = aa.lsh_attention(QUERY, VALUE, ROTATIONS, chunk_size=6)
    twice = aa.lsh_attention(QUERY, VALUE, np.concatenate([ROTATIONS, ROTATIONS]), chunk_size=6)
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-13)


def test_queries_of_0_have_a_gradient_of_0_through_their_keys() -> None:
    query = QUERY.copy()
    query[:, :, 5] = 0.0
    out, ctx = aa.lsh_attention_fwd(query, VALUE, ROTATIONS, chunk_size=6)
    grads = aa.lsh_attention_bwd(np.ones_like(out), ctx)
    assert np.all(np.isfinite(out))
    assert all(np.all(np.isfinite(grad)) for grad in grads)


def test_more_rounds_and_landmarks_are_closer_to_exact_attention() -> None:
    rng = np.random.default_rng(1)
    query, value = 3.0 * rng.standard_normal((1, 1, 128, 8)), rng.standard_normal((1, 1, 128, 8))
    keys = query / np.linalg.norm(query, axis=-1, keepdims=True)
    exact = aa.scaled_dot_product_attention(query, keys, value, ~np.eye(128, dtype=bool))
    rotations = rng.standard_normal((16, 8, 4))
    errors = [np.abs(aa.lsh_attention(query, value, rotations[:n], chunk_size=32) - exact).mean() for n in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "`key_projection` has shape (4, 23), expected (N, S) with S = 24 keys, or (Hkv, N, S) with Hkv = 3": (
        "linformer", {"key_projection": np.zeros((4, 23))}),
    "`value_projection` has 5 rows but `key_projection` has 4": (
        "linformer", {"key_projection": np.zeros((4, 24)), "value_projection": np.zeros((5, 24))}),
    "`num_landmarks` is 25, expected an integer from 1 to 24": ("nystrom", {"num_landmarks": 25}),
    "`iterations` is -1, expected an integer >= 0": ("nystrom", {"num_landmarks": 4, "iterations": -1}),
    "`query` has 3 heads but `key` has 1": (
        "nystrom", {"num_landmarks": 4, "key": KEY[:, :1], "value": VALUE[:, :1]}),
    "`chunk_size` (5) must divide the 24 positions": ("lsh", {"rotations": ROTATIONS, "chunk_size": 5}),
    "`rotations` has shape (3, 7, 2), expected (rounds, D, buckets / 2) with D = 8": (
        "lsh", {"rotations": ROTATIONS[:, :7], "chunk_size": 6}),
    "`query` and `value` must be (*batch, H, T, dim) with the same batch, heads and positions": (
        "lsh", {"rotations": ROTATIONS, "chunk_size": 6, "value": VALUE[:, :1]}),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input(message: str) -> None:
    name, changed = WRONG[message]
    arrays = {"query": QUERY, "value": VALUE, **({} if name == "lsh" else {"key": KEY})}
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(aa, f"{name}_attention")(**{**arrays, **changed})
