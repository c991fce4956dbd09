"""Selecting tokens: from logits in 16 bits, without probabilities, with infinities; beams as in transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray.backend import namespace_of
from attnarray.models import beam_search, draw, generate, keep_top_k, keep_top_p, with_temperature
from attnarray.models.generation import sampling
from tests.models.test_generation import LENGTHS, LOGITS, MODEL, PARAMS, PROMPTS
from tests.support.libraries import Library, assert_close
from tests.support.messages import says
from tests.support.paths import REFERENCES


class Fixed:
    """A model whose logits (V,) or (B, V) are its parameters, for any text."""

    def cache(self, *_: Any, **__: Any) -> Fixed:
        return self

    def rows(self, _: Any) -> Fixed:
        return self

    def step(self, params: Any, tokens: Any, cache: Any, *, last: bool = False) -> tuple[Any, Any]:
        rows = np.broadcast_to(params["z"], (len(tokens), params["z"].shape[-1]))
        return rows[:, None, :], cache


def fixed(z: Any, **options: Any) -> list[list[int]]:
    z = np.asarray(z)
    rows = 1 if z.ndim == 1 else len(z)
    found: list[list[int]] = generate(Fixed(), {"z": z}, np.ones((rows, 1), np.int64), 3, **options).tolist()
    return found


SAMPLE: dict[str, Any] = {"method": "sample", "rng": 1}
METHODS = {"greedy": {}, "sample": SAMPLE, "beam": {"method": "beam", "beams": 1}}
SIXTEEN_BITS = ["float16", "bfloat16"]


def array_of(host: Any, dtype: str) -> Any:
    return aa.asarray(np.asarray(host), dtype)


CHOOSING: dict[str, Any] = {
    "draw": lambda z: draw(z, 1),
    "top_k": lambda z: keep_top_k(z, 1),
    "top_p": lambda z: keep_top_p(z, 0.5),
    "every p": lambda z: keep_top_p(z, 1),
    "temperature": lambda z: with_temperature(z, 0.5),
}


@pytest.mark.parametrize("choose", CHOOSING.values(), ids=list(CHOOSING))
def test_logits_that_are_none(choose: Any) -> None:
    says(TypeError, "`logits` has type list, expected an array.", lambda: choose([[1.0, 2.0]]))
    says(ValueError, "`logits` has shape (), expected (", lambda: choose(np.array(1.0)))
    says(ValueError, "`logits` has shape (2, 0), expected (", lambda: choose(np.zeros((2, 0))))
    says(TypeError, "has type MaskedArray", lambda: choose(np.ma.ones((1, 2))))


def test_logits_over_the_range_of_float64_do_not_warn() -> None:
    with np.errstate(all="raise"):
        assert with_temperature(np.array([[1e308, -1e308]]), 0.5).tolist() == [[0.0, -np.inf]]


class Chain(Fixed):
    """A model whose logits (V, V) are those of the token after each token."""

    def step(self, params: Any, tokens: Any, cache: Any, *, last: bool = False) -> tuple[Any, Any]:
        return params["z"][np.asarray(tokens)][:, -1:, :], cache


def test_early_stopping_may_be_1_or_0() -> None:
    table = np.log([[0.306, 0.001, 0.693], [0.229, 0.176, 0.595], [0.392, 0.201, 0.407]])

    def found(early_stopping: Any) -> Any:
        options: dict[str, Any] = {"method": "beam", "beams": 2, "length_penalty": 2.0, "end": 0}
        return generate(Chain(), {"z": table}, np.array([[1]]), 4, early_stopping=early_stopping, **options).tolist()

    assert found(True) == found(1) == found(np.True_) == [[2, 0]]
    assert found(False) == found(0) == found(np.False_) == [[2, 2, 2, 2]]


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_logits_are_widened_once(dtype: str) -> None:
    z = np.zeros(30_000)
    z[7], z[3] = 0.25, 0.246  # which differ in 16 bits, but not less the logarithm of 30,000
    assert fixed(array_of(z, dtype), method="beam", beams=1) == fixed(array_of(z, dtype)) == [[7, 7, 7]]
    assert fixed(array_of(z, dtype), method="beam", beams=2, end=3)[0][0] == 7
    low = array_of([[1.0, 5.0, 9.0, 12.0, 8.0]], dtype)
    for temperature in (1e-3, 1e-4, 1e-30, 1e-300, 5e-324):
        assert draw(with_temperature(low, temperature), aa.Philox(0)).tolist() == [3]
        assert fixed(low[0], temperature=temperature, **SAMPLE) == [[3, 3, 3]]
    many = array_of(np.linspace(-1, 1, 2000), dtype)
    for p in (0.1, 0.5, 0.9):
        kept = np.isfinite(np.asarray(keep_top_p(many, p), np.float64))
        np.testing.assert_array_equal(kept, np.isfinite(keep_top_p(np.asarray(many, np.float64), p)))


def test_temperatures_that_overflow_and_that_level() -> None:
    logits = np.array([[1e300, 1.5e300, -1e308, -np.inf], [1.0, 2.0, 3.0, 4.0]])
    for temperature in (1e-9, 1e-300, 5e-324):
        np.testing.assert_array_equal(probabilities_of(with_temperature(logits, temperature))[0], [0, 1, 0, 0])
        assert draw(with_temperature(logits, temperature), 1).tolist() == [1, 3]
    np.testing.assert_array_equal(probabilities_of(with_temperature(logits[1:], 1e308)), np.full((1, 4), 0.25))
    np.testing.assert_array_equal(with_temperature(logits[1:], 0.5), 2 * logits[1:])


def probabilities_of(logits: Any) -> Any:
    return aa.softmax(logits)


NO_CHOICE = {"NaN": [0.5, np.nan, 1.0], "-inf for every token": [-np.inf] * 3}


@pytest.mark.parametrize("dtype", ["float64", "float32", *SIXTEEN_BITS])
@pytest.mark.parametrize("what", NO_CHOICE)
def test_logits_without_probabilities_are_an_error(what: str, dtype: str) -> None:
    rows = array_of([[0.0, 1.0, 2.0], NO_CHOICE[what]], dtype)
    expected = f"`logits` hold {what} in row 1, expected numbers, of which at least one is above -inf"
    says(ValueError, expected, lambda: draw(rows, 1))
    says(ValueError, expected, lambda: keep_top_k(rows, 2))
    says(ValueError, expected, lambda: keep_top_p(rows, 0.5))
    for options in (*METHODS.values(), {**SAMPLE, "temperature": 0.5, "top_k": 2, "top_p": 0.5}):
        says(ValueError, expected, lambda options=options: fixed(rows, **options))  # type: ignore[misc]


@pytest.mark.parametrize("method", [*METHODS, "beam as in transformers"])
def test_rows_that_have_ended_may_hold_nan(method: str) -> None:
    class Breaking(Fixed):
        """Row 0 ends with token 1, and then has NaN; row 1 continues."""

        calls = 0

        def step(self, params: Any, tokens: Any, cache: Any, *, last: bool = False) -> tuple[Any, Any]:
            self.calls += 1
            rows = np.array([[0.0, 50.0, 0.0], [0.0, 0.0, 50.0]])
            if self.calls > 1:
                rows[0] = np.nan
            return rows[:, None, :], cache

    options = {"method": "beam", "beams": 1, "early_stopping": False} if " " in method else METHODS[method]
    found = generate(Breaking(), {"z": np.zeros(3)}, np.ones((2, 1), np.int64), 3, end=1, **options)  # type: ignore[arg-type]
    assert found.tolist() == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_logits_of_infinity_are_certain(dtype: str) -> None:
    rows = array_of([[0.0, np.inf, 5.0, np.inf, 0.0]] * 64, dtype)
    assert set(draw(rows, 2).tolist()) == {1, 3}
    assert np.isfinite(np.asarray(keep_top_p(rows, 0.4), np.float64)).sum() == 0
    assert set(draw(keep_top_p(rows, 0.4), 2).tolist()) == {1, 3}
    for options in METHODS.values():
        assert set(np.ravel(fixed(rows, **options))) <= {1, 3}
    assert fixed([0.0, np.inf, 5.0], method="beam", beams=2, end=0) == [[1, 1, 1]]


class Level:
    """A generator whose numbers are all the same."""

    def __init__(self, level: float) -> None:
        self.level = level

    def uniform(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        return aa.asarray(np.full(shape, self.level), dtype)


@pytest.mark.parametrize("level", [0.0, 0.3, 1 - 2.0**-32, 1 - 2.0**-53])
@pytest.mark.parametrize("short", [False, True])
def test_no_level_draws_a_token_of_probability_0(library: Library, level: float, short: bool, monkeypatch: Any) -> None:
    if short:  # as JAX is by default
        monkeypatch.setattr(sampling, "_wide", lambda logits: namespace_of(logits).astype(logits, logits.dtype))
    monkeypatch.setattr(sampling, "Philox", Level)
    rng = np.random.default_rng(5)
    logits = 8 * rng.standard_normal((40, 500))
    logits[:, [0, 250, 499]] = -np.inf
    logits[::2, 400:] = -200.0  # whose probabilities are 0 in float32
    host = logits.astype(np.float32 if short else np.float64)
    found = aa.to_numpy(draw(library.array(host), Level(level)))  # type: ignore[arg-type]
    likely = np.take_along_axis(aa.softmax(host), found[:, None], 1)
    assert np.all((found >= 0) & (found < 500))
    assert np.all(likely > 0)


def test_a_narrow_dtype_keeps_a_token_for_any_top_p() -> None:
    assert np.isfinite(keep_top_p(LOGITS, 1e-300)).sum() == 1
    assert np.isfinite(keep_top_p(LOGITS.astype(np.float32), 1e-60)).sum() == 1


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_the_search_of_transformers_without_an_end_is_the_same(early_stopping: bool | str) -> None:
    for beams in (1, 2, 3):
        ours = beam_search(MODEL, PARAMS, PROMPTS, 6, beams=beams, lengths=LENGTHS)
        theirs = beam_search(MODEL, PARAMS, PROMPTS, 6, beams=beams, lengths=LENGTHS, early_stopping=early_stopping)
        np.testing.assert_array_equal(theirs.tokens, ours.tokens)
        assert_close(theirs.scores, ours.scores, 1e-12)
    assert beam_search(MODEL, PARAMS, PROMPTS, 0, early_stopping=early_stopping).tokens.shape == (3, 0)
    assert beam_search(MODEL, PARAMS, PROMPTS[:0], 3, early_stopping=early_stopping).tokens.shape[0] == 0


class Table:
    """The model of tests/references/make_beams.py; its cache is the number of tokens so far."""

    def __init__(self, length: int = 0) -> None:
        self.length = length

    def cache(self, *_: Any, **__: Any) -> Table:
        return self

    def rows(self, _: Any) -> Table:
        return self

    def step(self, params: Any, tokens: Any, cache: Table, *, last: bool = False) -> tuple[Any, Table]:
        logits = params["table"][tokens] + params["step"][cache.length]
        return logits, Table(cache.length + tokens.shape[1])


def searches() -> list[dict[str, Any]]:
    with np.load(REFERENCES / "beams.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    return [dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)]


def search(of: dict[str, Any], **options: Any) -> Any:
    V = int(of["size"])
    params = {"table": of["table"][:V, :V] / 32, "step": of["step"][:, :V] / 1024}
    options = {"end": int(of["end"]), "beams": of["beams"], "length_penalty": float(of["length_penalty"]), **options}
    return beam_search(Table(), params, of["start"][:, None], of["count"], **options)


def test_tokens_are_those_of_transformers() -> None:
    differ = 0
    for of in searches():
        found = search(of, early_stopping=(False, True, "never")[of["early_stopping"]])
        tokens = np.full(of["tokens"].shape, of["end"])
        tokens[:, : found.tokens.shape[1]] = found.tokens
        np.testing.assert_array_equal(tokens, of["tokens"])
        # transformers sums up to 8 log-probabilities of up to 12 in float32
        np.testing.assert_allclose(found.scores, of["scores"], rtol=0, atol=1e-4)
        if of["length_penalty"] >= 0:
            ours = search(of)
            assert np.all(ours.scores >= found.scores - 1e-12)
            differ += bool(np.any(ours.scores > found.scores + 1e-12))
    assert differ > 20  # else both rules would give the same result
