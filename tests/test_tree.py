"""Trees: nested dicts, lists, tuples and NamedTuples; for parameters, gradients and contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from tests.support.libraries import Library


class Pair(NamedTuple):
    first: Any
    second: Any


LEAVES = {
    "layer": {"weight": 1.0, "bias": None},
    "blocks": [2.0, {"scale": 3.0}, ()],
    "pair": Pair(4.0, (5.0, None, [6.0])),
    "nothing": {},
}
PATHS = [
    (("layer", "weight"), 1.0),
    (("blocks", 0), 2.0),
    (("blocks", 1, "scale"), 3.0),
    (("pair", "first"), 4.0),
    (("pair", "second", 0), 5.0),
    (("pair", "second", 2, 0), 6.0),
]


def test_map_keeps_the_structure_and_what_is_not_given() -> None:
    mapped = tree.map(lambda leaf: -leaf, LEAVES)
    assert mapped == {
        "layer": {"weight": -1.0, "bias": None},
        "blocks": [-2.0, {"scale": -3.0}, ()],
        "pair": Pair(-4.0, (-5.0, None, [-6.0])),
        "nothing": {},
    }
    assert type(mapped["pair"]) is Pair
    assert type(mapped["pair"].second) is tuple
    assert LEAVES["layer"]["weight"] == 1.0


def test_map_of_a_single_leaf() -> None:
    assert tree.map(lambda leaf: leaf + 1, 2) == 3
    assert tree.map(lambda leaf: leaf + 1, None) is None
    assert tree.map(lambda a, b, c: a + b + c, 1, 2, 3) == 6


def test_map_goes_through_several_trees_at_once() -> None:
    summed = tree.map(lambda a, b, c: a + 10 * b + 100 * c, LEAVES, LEAVES, LEAVES)
    assert [leaf for _, leaf in tree.flatten(summed)] == [111.0 * leaf for _, leaf in PATHS]


def test_map_gives_back_leaves_of_any_kind() -> None:
    assert tree.map(lambda leaf: {"new": leaf}, [1, 2]) == [{"new": 1}, {"new": 2}]
    assert tree.map(type, {"x": np.ones(2)}) == {"x": np.ndarray}


def test_flatten_and_get_go_together() -> None:
    assert tree.flatten(LEAVES) == PATHS
    for path, leaf in PATHS:
        assert tree.get(LEAVES, path) == leaf
    assert tree.get(LEAVES, ()) is LEAVES
    assert tree.get(LEAVES, ("blocks", 1)) == {"scale": 3.0}
    assert tree.flatten(None) == tree.flatten({}) == tree.flatten([{}, (), None]) == []
    assert tree.flatten(7) == [((), 7)]


def test_paths_are_written_with_dots() -> None:
    assert [tree.format_path(path) for path, _ in PATHS] == [
        "layer.weight",
        "blocks.0",
        "blocks.1.scale",
        "pair.first",
        "pair.second.0",
        "pair.second.2.0",
    ]
    assert tree.format_path(()) == "the root"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1}, {"b": 1}, r"differ at the root: dict with a against dict with b\."),
        ({"a": {"w": 1}}, {"a": {"w": 1, "b": 2}}, r"differ at a: dict with w against dict with w, b\."),
        ({"a": {"w": 1}}, {"a": 2}, r"differ at a: dict with w against a leaf\."),
        ({"a": 1}, {"a": {"w": 1}}, r"differ at a: one has a leaf where another has a branch\."),
        ({"a": [1, 2]}, {"a": [1]}, r"differ at a: list with 0, 1 against list with 0\."),
        ({"a": [{"w": {}}]}, {"a": [{"w": {"x": 1}}]}, r"differ at a\.0\.w: dict with nothing against dict with x\."),
        (Pair(1, [2]), Pair(1, [2, 3]), r"differ at second: list with 0 against list with 0, 1\."),
        ({"a": {"w": None}}, {"a": {"w": 1}}, r"differ at a\.w: one has nothing where another has a leaf\."),
        ({"a": 1}, {"a": None}, r"differ at a: one has nothing where another has a leaf\."),
        (Pair(1, 2), {"first": 1}, r"differ at the root: Pair with first, second against dict with first\."),
    ],
)
def test_trees_that_differ_are_refused_with_the_path(first: Any, second: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"The trees {message}"):
        tree.add(first, second)
    with pytest.raises(ValueError, match=f"The trees {message}"):
        tree.map(lambda a, b, c: a, first, first, second)


def test_add_sums_leaf_by_leaf_and_changes_nothing(library: Library) -> None:
    first = {"w": library.array(np.ones((2, 3))), "tied": [library.array(np.zeros(4)), None]}
    second = {"w": library.array(np.full((2, 3), 2.0)), "tied": [library.array(np.arange(4.0)), None]}
    total = tree.add(first, second)
    np.testing.assert_array_equal(aa.to_numpy(total["w"]), np.full((2, 3), 3.0))
    np.testing.assert_array_equal(aa.to_numpy(total["tied"][0]), np.arange(4.0))
    assert total["tied"][1] is None
    assert tree.add({"a": 1, "b": 2}, {"b": 20, "a": 10}) == {"a": 11, "b": 22}
    np.testing.assert_array_equal(aa.to_numpy(first["w"]), np.ones((2, 3)))


def test_nbytes_counts_each_array_once_whatever_holds_it() -> None:
    @dataclass(frozen=True)
    class Holder:
        array: Any
        name: str = "x"

    x, y = np.zeros((2, 3)), np.zeros(5, np.float16)
    assert tree.nbytes({"x": x, "again": [x, (x,)], "y": y}) == 48 + 10
    assert tree.nbytes(Pair(x, Holder(y))) == 58
    assert tree.nbytes(Holder(Pair(x, x))) == 48
    assert tree.nbytes({"lr": 0.1, "name": "adam", "none": None, "kind": Holder}) == 0
    assert tree.nbytes(x) == 48


@pytest.mark.parametrize(("dtype", "size"), [("float64", 8), ("float32", 4), ("int32", 4), ("bool", 1)])
def test_nbytes_on_every_library(library: Library, dtype: str, size: int) -> None:
    assert tree.nbytes([library.array(np.zeros((3, 7)), dtype)]) == 21 * size


def test_a_context_of_attention_holds_no_array_over_queries_and_keys() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 4, 256, 16), dtype=np.float32)  # T = S = 256
    options = {"is_causal": True, "softcap": 5.0, "dropout_p": 0.1, "rng": 3, "sinks": np.zeros(4, np.float32)}
    _, ctx = aa.scaled_dot_product_attention_fwd(q, k, v, **options)
    arrays = [leaf for _, leaf in tree.flatten(ctx) if isinstance(leaf, np.ndarray)]
    assert all(array.shape[-2:] != (256, 256) for array in arrays)
    held = 4 * q.nbytes + 4 * 256 * 4 + 4 * 4  # query, key, value, out; lse; sinks
    assert tree.nbytes(ctx) == held
    assert held < 256 * 256 * 4 * 4 / 3  # a third of the weights alone
    bias = np.zeros((4, 1, 256), np.float32)
    _, with_bias = aa.scaled_dot_product_attention_fwd(q, k, v, **options, bias=bias)
    assert tree.nbytes(with_bias) == held + bias.nbytes
    _, with_mask = aa.scaled_dot_product_attention_fwd(q, k, v, **options, attn_mask=aa.Window(7, 7))
    assert tree.nbytes(with_mask) == held  # a band is two numbers


def test_contexts_are_trees() -> None:
    _, ctx = aa.softmax_fwd(np.ones((2, 3)))
    assert [tree.format_path(path) for path, _ in tree.flatten(ctx)] == ["out", "axis"]
    assert tree.nbytes(ctx) == 48
