"""Supported NumPy arrays: subclasses that override arithmetic are refused everywhere, unusual memory is not."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import checkpoints, layers, models, optim, tree, use_kernels
from attnarray.cases import CASES, Case
from attnarray.checks import is_array
from attnarray.triples import find_triple
from tests.support.layouts import unaligned
from tests.support.libraries import NUMPY, assert_trees_close, is_floating

RNG = np.random.default_rng(0)
TOLERANCE = 1e-13  # other strides may change the order of summation
CASES_OF = {name: [case for case in CASES if case.function == name] for name in aa.TRIPLES}
each_function = pytest.mark.parametrize("cases", CASES_OF.values(), ids=list(CASES_OF))


class Quantity(np.ndarray):
    """A subclass that overrides arithmetic: here the sign of all results is reversed."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Quantity) else x for x in inputs]
        options.pop("out", None)
        return -np.asarray(getattr(ufunc, method)(*plain, **options))


def masked(array: np.ndarray) -> Any:
    return np.ma.masked_array(array, np.zeros(array.shape, bool))


def matrix(array: np.ndarray) -> Any:
    return array.view(np.matrix) if array.ndim == 2 else masked(array)  # a matrix always has two axes


REFUSED = {
    "MaskedArray": masked,
    "matrix": matrix,
    "recarray": lambda array: array.view(np.recarray),
    "subclass": lambda array: array.view(Quantity),
}
RULES = "which overrides arithmetic, expected a plain array. Convert it: "


def refusal(call: Callable[[], Any]) -> str:
    """The conversion of the array that the error of the call recommends, with x for the name of the array."""
    with pytest.raises(TypeError, match=RULES) as caught:
        call()
    found = re.search(r"Convert it: (numpy\.asarray\(.*\)|.*\.filled\(0\))\.", str(caught.value))
    assert found
    return re.sub(r"(?<=asarray\().*(?=\))|^.*(?=\.filled)", "x", found[1])


def one_by_one(case: Case, change: Callable[[Any], Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The changed array and all arguments, with one array of the case after the other changed."""
    arguments = case.arguments()
    for _, leaf in tree.flatten(arguments):
        if is_array(leaf):
            changed = change(leaf)
            yield changed, tree.map(lambda other, this=leaf, new=changed: new if other is this else other, arguments)


@pytest.mark.parametrize("change", REFUSED.values(), ids=list(REFUSED))
@each_function
def test_subclasses_with_other_arithmetic_are_refused(cases: list[Case], change: Callable[..., Any]) -> None:
    for case in cases:
        f, fwd, bwd = find_triple(case.f)
        for changed, given in one_by_one(case, change):
            for function in (f, fwd):
                hint = refusal(lambda function=function, given=given: function(**given))
            followed = eval(hint, {"numpy": np, "x": changed})
            assert type(followed) is np.ndarray
            f(**tree.map(lambda leaf, new=followed, old=changed: new if leaf is old else leaf, given))
        out, ctx = fwd(**case.arguments())
        cotangent = NUMPY.cotangent(out)
        for _, leaf in tree.flatten(cotangent):
            dout = tree.map(lambda other, this=leaf: change(other) if other is this else other, cotangent)
            refusal(lambda dout=dout, bwd=bwd, ctx=ctx: bwd(dout, ctx))


X, WEIGHT, INTEGERS = RNG.standard_normal((2, 5, 4)), RNG.standard_normal((3, 4)), np.array([1, 2])
LINEAR, SMALL_GPT = layers.Linear(4, 3), models.GPT(11, 8, 8, 1, 2)
PARAMS = LINEAR.init(aa.Philox(0), "float64")
ADAM = optim.adamw_init({"weight": WEIGHT})
ELSEWHERE: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "namespace_of": lambda new: aa.namespace_of(new(X)),
    "sinusoidal": lambda new: aa.sinusoidal(new(INTEGERS), 4),
    "add_self_loops": lambda new: aa.add_self_loops(new(np.array([[0, 2], [1, 1]])), 3),
    "Dense": lambda new: aa.Dense(new(np.ones((3, 3), bool))),
    "Padding": lambda new: aa.Padding(new(INTEGERS)),
    "Documents": lambda new: aa.Documents(INTEGERS, new(INTEGERS)),
    "reinforce_cotangent": lambda new: aa.reinforce_cotangent(
        aa.hard_attention(X, X, X, rng=aa.Philox(1)), new(np.ones((2, 5)))
    ),
    "gradcheck": lambda new: aa.gradcheck(aa.relu, new(X)),
    "gradcheck of a layer": lambda new: aa.gradcheck(LINEAR, {**PARAMS, "weight": new(WEIGHT)}, X),
    "vjp": lambda new: aa.vjp(aa.relu, new(X)),
    "adamw_init": lambda new: optim.adamw_init({"weight": new(WEIGHT)}),
    "adamw": lambda new: optim.adamw({"weight": new(WEIGHT)}, {"weight": WEIGHT}, ADAM, lr=0.1),
    "adamw, gradient": lambda new: optim.adamw({"weight": WEIGHT}, {"weight": new(WEIGHT)}, ADAM, lr=0.1),
    "sgd": lambda new: optim.sgd({"w": new(WEIGHT)}, {"w": WEIGHT}, optim.sgd_init({"w": WEIGHT}), lr=0.1),
    "global_norm": lambda new: optim.global_norm({"a": X, "b": new(WEIGHT)}),
    "clip_by_global_norm": lambda new: optim.clip_by_global_norm({"a": X, "b": new(WEIGHT)}, 1.0),
    "a layer": lambda new: LINEAR(PARAMS, new(X)),
    "its parameters": lambda new: LINEAR({**PARAMS, "bias": new(np.zeros(3))}, X),
    "its gradient": lambda new: LINEAR.bwd(new(np.ones((2, 5, 3))), LINEAR.fwd(PARAMS, X)[1]),
    "a model": lambda new: SMALL_GPT(SMALL_GPT.init(aa.Philox(0)), new(INTEGERS[None, :])),
    "generate": lambda new: models.generate(SMALL_GPT, SMALL_GPT.init(aa.Philox(0)), new(INTEGERS[None, :]), 2),
}


@pytest.mark.parametrize("call", ELSEWHERE.values(), ids=list(ELSEWHERE))
@pytest.mark.parametrize("change", REFUSED.values(), ids=list(REFUSED))
def test_they_are_refused_everywhere_else(
    change: Callable[[Any], Any], call: Callable[[Callable[[Any], Any]], Any]
) -> None:
    call(lambda array: array)
    refusal(lambda: call(change))


def test_a_mask_is_never_lost_in_a_conversion(tmp_path: Path) -> None:
    for call in (
        lambda: aa.asarray(masked(X)),
        lambda: aa.asarray([masked(WEIGHT), masked(WEIGHT)]),
        lambda: aa.asarray([[WEIGHT], (masked(WEIGHT),)]),
        lambda: aa.to_numpy(masked(X)),
        lambda: aa.scaled_dot_product_attention(X, X, X, kv_lengths=[masked(np.array(2)), 3]),
        lambda: checkpoints.save_state(tmp_path / "state.safetensors", {"weight": masked(WEIGHT)}),
    ):
        refusal(call)
    assert not list(tmp_path.iterdir())


def test_asarray_makes_plain_arrays_of_subclasses_and_numbers() -> None:
    for given in (WEIGHT.view(np.matrix), WEIGHT.view(np.recarray), WEIGHT.view(Quantity), WEIGHT):
        made = aa.asarray(given)
        assert type(made) is np.ndarray
        assert np.shares_memory(made, given)
        aa.relu(made)
    assert type(aa.asarray(np.float64(2.0))) is np.ndarray


HINTS = {
    "a list": (lambda x: aa.softmax(x), [1.0, 2.0], "attnarray.asarray(x)"),
    "a named list": (lambda x: aa.scaled_dot_product_attention(x, X, X), X.tolist(), "attnarray.asarray"),
    "integers": (lambda x: aa.softmax(x), np.array([1, 2]), 'attnarray.asarray(x, dtype="float32")'),
    "a mask of integers": (lambda x: aa.softmax(X, mask=x), np.ones(4, int), "x != 0"),
    "a mask of numbers": (lambda x: aa.scaled_dot_product_attention(X, X, X, x), np.ones((5, 5), int), "x != 0"),
}


@pytest.mark.parametrize(("call", "given", "hint"), HINTS.values(), ids=list(HINTS))
def test_what_errors_say_helps(call: Callable[[Any], Any], given: Any, hint: str) -> None:
    with pytest.raises(TypeError) as caught:
        call(given)
    said = re.sub(r"(?<=[ (])(mask|attn_mask)(?= != 0)", "x", str(caught.value))
    assert hint in said
    call(eval(hint if "x" in hint else f"{hint}(x)", {"attnarray": aa, "x": given}))


def memmap(array: np.ndarray, folder: Path) -> np.ndarray:
    found = np.memmap(folder / "array", array.dtype, "w+", shape=array.shape or (1,))
    found[...] = array
    return found.reshape(array.shape)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@each_function
def test_files_byte_orders_and_unaligned_memory_are_accepted(cases: list[Case], kernels: str, tmp_path: Path) -> None:
    kinds = itertools.count()

    def mapped(array: np.ndarray) -> np.ndarray:
        folder = tmp_path / str(next(kinds))
        folder.mkdir()
        return memmap(array, folder)

    def swapped(array: np.ndarray) -> np.ndarray:
        return array.astype(array.dtype.newbyteorder())

    for case in cases:
        with use_kernels(kernels):
            out, ctx = find_triple(case.f).fwd(**case.arguments())
            expected = out, find_triple(case.f).bwd(NUMPY.cotangent(out), ctx)
            for change in (mapped, swapped, unaligned):
                given = tree.map(lambda leaf, new=change: new(leaf) if is_array(leaf) else leaf, case.arguments())
                found, ctx = find_triple(case.f).fwd(**given)
                grads = find_triple(case.f).bwd(tree.map(change, NUMPY.cotangent(out)), ctx)
                assert_trees_close((found, grads), expected, TOLERANCE)


DTYPES = {
    "object": lambda array: array.astype(object),
    "longdouble": lambda array: array.astype(np.longdouble),
    "complex": lambda array: array.astype(np.complex64),
    "text": lambda array: array.astype(str),
    "structured": lambda array: array.astype([("number", np.float64)]),
}


@pytest.mark.parametrize("change", DTYPES.values(), ids=list(DTYPES))
@each_function
def test_other_dtypes_are_refused_by_name(cases: list[Case], change: Callable[[Any], Any]) -> None:
    if np.dtype(np.longdouble).itemsize == 8 and change is DTYPES["longdouble"]:
        pytest.skip("here longdouble is float64")
    for case in cases:
        out, ctx = find_triple(case.f).fwd(**case.arguments())
        for changed, given in one_by_one(case, lambda leaf: change(leaf) if is_floating(leaf) else leaf):
            if not is_floating(changed):
                continue
            with pytest.raises(TypeError, match=re.escape(changed.dtype.name)):
                case.f(**given)
        with pytest.raises(TypeError, match="has dtype"):
            find_triple(case.f).bwd(tree.map(change, NUMPY.cotangent(out)), ctx)
