"""Kernels of linear attention against their reference: sizes, rules, chunks, threads, strides, guard pages, NaN."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import attnarray as aa
from attnarray.attention.linear.call import Recurrence
from attnarray.attention.linear.linear_attention import attend_in_chunks, attend_in_chunks_backward
from attnarray.attention.linear.step import advance
from attnarray.dispatch import KernelUnavailableError
from attnarray.kernels.numba.linear import calls
from attnarray.kernels.numba.linear import step as steps
from attnarray.kernels.numba.runtime import threads
from tests.support.guarded_memory import before_a_guard, behind_a_guard, new_arrays
from tests.support.libraries import EPS

Arrays = list[Any]
# B, H, Hkv, T, Dk, Dv: below, at and above whole vectors, tiles and chunks.
SIZES = [
    (2, 4, 2, 70, 5, 6), (1, 2, 2, 64, 64, 64), (1, 3, 1, 37, 33, 17), (1, 1, 1, 1, 3, 3), (1, 2, 2, 140, 40, 130),
]  # fmt: skip
EMPTY = [(0, 2, 1, 3, 4, 5), (2, 0, 0, 3, 4, 5), (2, 2, 1, 0, 4, 5), (2, 2, 1, 3, 0, 5), (2, 2, 1, 3, 4, 0)]
Rule = tuple[str, bool]  # the decays, and whether there is a beta
RULES: list[Rule] = list(itertools.product(("none", "head", "dim"), (False, True)))
DTYPES = ["float32", "float64"]


class Call(NamedTuple):
    """The arguments of both kernels."""

    q: Any
    k: Any
    v: Any
    decay: Any
    beta: Any
    initial: Any
    dout: Any
    dstate: Any
    chunk_size: int = 64

    def map(self, change: Callable[[Any], Any]) -> Call:
        return Call(*(change(x) if isinstance(x, np.ndarray) else x for x in self))

    def run(self, kernels: Any = "numba") -> Arrays:
        """Outputs and states, and the gradients."""
        given = Recurrence(self.decay, self.beta, self.initial, 0.3, self.chunk_size)
        with aa.use_kernels(kernels), np.errstate(all="ignore"):
            found = attend_in_chunks(self.q, self.k, self.v, given, True)
            alone = attend_in_chunks(self.q, self.k, self.v, given, False)
            qkv = self.q, self.k, self.v
            grads = attend_in_chunks_backward(self.dout, self.dstate, *qkv, given, found[2])
        assert alone[2] is None
        np.testing.assert_array_equal(alone[0], found[0])
        return [*found, *grads]


def call(sizes: tuple[int, ...], rule: Rule, dtype: str = "float64", chunk_size: int = 64) -> Call:
    B, H, Hkv, T, Dk, Dv = sizes
    rng = np.random.default_rng(0)
    shapes = {"q": (B, H, T, Dk), "k": (B, Hkv, T, Dk), "v": (B, Hkv, T, Dv), "initial": (B, Hkv, Dk, Dv),
              "dout": (B, H, T, Dv), "dstate": (B, Hkv, Dk, Dv)}  # fmt: skip
    made: dict[str, Any] = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    made["k"] = made["k"] / np.maximum(np.linalg.norm(made["k"], axis=-1, keepdims=True), 1e-3)
    made["decay"] = None if rule[0] == "none" else -3.0 * rng.random((B, Hkv, T, Dk if rule[0] == "dim" else 1)) ** 3
    made["beta"] = rng.random((B, Hkv, T, 1)) if rule[1] else None
    given = Call(**made, chunk_size=chunk_size)
    return given.map(lambda x: x.astype(dtype))


def assert_right(given: Call, found: Arrays | None = None) -> None:
    """As exact as the reference in the same dtype, by the reference in float64."""
    found = given.run() if found is None else found
    other, truth = given.run("reference"), given.map(lambda x: x.astype(np.float64)).run("reference")
    for place, (result, same, exact) in enumerate(zip(found, other, truth, strict=True)):
        if exact is None:
            assert result is None
            continue
        assert result.dtype == given.q.dtype
        assert result.shape == exact.shape
        scale = max(np.max(np.abs(exact), initial=0.0), 1e-3)
        error, of_reference = (np.max(np.abs(x - exact), initial=0.0) for x in (result, same))
        # Sums of a few hundred terms in another order.
        assert error <= 3 * of_reference + 32 * EPS[str(given.q.dtype)] * scale, (place, error, of_reference)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_and_rules(sizes: tuple[int, ...], rule: Rule) -> None:
    for dtype in DTYPES:
        assert_right(call(sizes, rule, dtype))


@pytest.mark.parametrize("rule", RULES)
def test_chunks(rule: Rule) -> None:
    for size, T in itertools.product((1, 2, 8, 16, 32, 64, 128), (0, 1, 63, 64, 65, 200)):
        assert_right(call((1, 2, 1, T, 5, 6), rule, "float32", size))


@pytest.mark.parametrize("rule", RULES[2:])
def test_large_decays_and_minus_infinity(rule: Rule) -> None:
    for dtype in DTYPES:
        given = call((1, 2, 1, 70, 5, 6), rule, dtype)
        assert_right(given._replace(decay=given.decay * 1e4))  # e^-30000 is 0 in both dtypes
        given.decay[:, :, 21] = given.decay[:, :, 40, :1] = -np.inf
        assert_right(given)
        assert all(np.all(np.isfinite(x)) for x in given.run() if x is not None)


@pytest.mark.parametrize("sizes", EMPTY)
def test_empty(sizes: tuple[int, ...]) -> None:
    for rule in RULES:
        assert_right(call(sizes, rule))


@pytest.mark.parametrize("rule", RULES[3::2])
def test_threads(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    given = call((3, 2, 2, 70, 5, 6), rule, "float32")
    expected = given.run()
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    for count in ("2", "3", "5"):
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", count)
        for found, same in zip(given.run(), expected, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("rule", RULES)
def test_fewer_heads_than_threads_are_divided_by_value_columns(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_WORK_PER_THREAD", 1)
    for sizes, count, parts in (
        ((1, 2, 1, 70, 5, 130), 2, 2),  # of 65 columns, which are no whole vectors
        ((2, 2, 1, 70, 5, 195), 7, 3),
        ((1, 1, 1, 9, 5, 131), 2, 1),  # a prime
    ):
        given = call(sizes, rule)
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "1")
        expected = given.run()
        monkeypatch.setenv("ATTNARRAY_NUM_THREADS", str(count))
        assert calls._parts(sizes[0] * sizes[2], sizes[5], 10**6) == parts
        found = given.run()
        for result, same in zip(found[:3], expected, strict=False):
            np.testing.assert_array_equal(result, same)
        assert_right(given, found)


@pytest.mark.parametrize("rule", RULES[3::2])
def test_any_strides_and_read_only(rule: Rule) -> None:
    given = call(SIZES[0], rule, "float32")
    expected = given.run()
    for change in (np.asfortranarray, lambda x: np.repeat(x, 2, axis=-1)[..., ::2]):
        changed = given.map(change)
        changed.map(lambda x: x.setflags(write=False))
        for found, same in zip(changed.run(), expected, strict=True):
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("place", [before_a_guard, behind_a_guard])
def test_nothing_beyond_the_arrays_is_touched(place: Callable[[np.ndarray], np.ndarray]) -> None:
    for sizes in [*SIZES[:4], *EMPTY]:
        for rule in (RULES[0], RULES[3], RULES[5]):
            given = call(sizes, rule, "float32")
            expected = given.run()
            with new_arrays(place, calls):
                found = given.map(place).run()
            for result, same in zip(found, expected, strict=True):
                if same is not None:
                    np.testing.assert_array_equal(result, same)


@pytest.mark.parametrize("rule", RULES)
def test_heads_are_independent_of_nan_in_others(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNARRAY_NUM_THREADS", "1")  # so that all heads share the scratch
    given = call((1, 3, 3, 70, 5, 6), rule)
    expected = given.run()
    for name in ("q", "k", "v", "decay", "beta", "initial", "dout", "dstate"):
        if getattr(given, name) is None:
            continue
        changed = given._replace(**{name: getattr(given, name).copy()})
        getattr(changed, name)[:, 1] = np.nan
        for found, same in zip(changed.run(), expected, strict=True):
            if same is not None:
                np.testing.assert_array_equal(found[:, ::2], same[:, ::2])


def test_what_kernels_decline() -> None:
    given = call((1, 2, 2, 9, 4, 5), ("head", True))
    with pytest.raises(KernelUnavailableError, match="chunks of 1024 steps"):
        given._replace(chunk_size=1024).run()


@pytest.mark.parametrize("dims", [0, 1, 7])
@pytest.mark.parametrize("beta", [False, True])
def test_one_step(dims: int, beta: bool) -> None:
    rng = np.random.default_rng(1)
    steps.warmup("float64")  # as new arrays are those of NumPy while it compiles
    for B, H, heads, width in ((2, 4, 2, 6), (1, 1, 1, 70), (0, 2, 1, 3), (3, 2, 2, 0)):
        shapes = (B, H, 1, 7), (B, heads, 1, 7), (B, heads, 1, width), (B, heads, 7, width)
        arrays = [rng.standard_normal(shape) for shape in shapes]
        decay = -rng.random((B, heads, 1, dims)) if dims else None
        betas = rng.random((B, heads, 1, 1)) if beta else None
        found, expected = [], []
        for kernels, results in (("numba", found), ("reference", expected)):
            given = [x.copy() for x in arrays]
            with aa.use_kernels(kernels), new_arrays(before_a_guard, steps):
                out, state = advance(*given, decay, betas)
            assert state is given[3]
            results += [out, state]
        for result, same in zip(found, expected, strict=True):
            np.testing.assert_allclose(result, same, rtol=0, atol=1e-13)


def test_a_step_leaves_strided_states_to_the_array_code() -> None:
    given = call((1, 2, 2, 9, 4, 5), ("none", False))
    state = np.zeros((1, 2, 4, 10))[..., ::2]
    one = [x[:, :, :1] for x in (given.q, given.k, given.v)]
    with aa.use_kernels("numba"), pytest.raises(KernelUnavailableError, match="not contiguous"):
        advance(*one, state, None, None)
    advance(*one, state, None, None)
    assert np.any(state)
