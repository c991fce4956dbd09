"""Generation with keys and values in pages: the same tokens as with copies, and fewer pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import GPT, beam_search, generate
from tests.support.messages import says

RNG = np.random.default_rng(3)
MODEL = GPT(11, 40, 8, 2, 2)
PARAMS = tree.map(lambda leaf: leaf + 0.5 * RNG.standard_normal(leaf.shape), MODEL.init(aa.Philox(1), "float64"))
SMALL = GPT(11, 40, 8, 1, 2)
SMALL_PARAMS = SMALL.init(aa.Philox(2), "float64")
PROMPTS = np.concatenate([RNG.integers(11, size=(2, 13)), np.full((1, 13), 4)])[[0, 1, 0, 2, 0]]
PAGE, COUNT = 4, 9


class Counting:
    """A model that counts the pages of its caches after each step, and positions of caches without pages."""

    def __init__(self, model: Any, params: Any) -> None:
        self.model, self.params = model, params
        self.pages: list[int] = []
        self.rows: list[int] = []

    def cache(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.cache(*args, **kwargs)

    def step(self, params: Any, tokens: Any, cache: Any, *, last: bool = False) -> Any:
        found = self.model.step(params, tokens, cache, last=last)
        self.pages.append(found[1].pages_in_use)
        self.rows.append(tokens.shape[0])
        return found


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "lengths": {"lengths": [13, 9, 13, 2, 13]},
    "sample": {"method": "sample", "rng": aa.Philox(5), "top_p": 0.9},
    "beam": {"method": "beam", "beams": 3},
    "beam with an end": {"method": "beam", "beams": 4, "end": 2, "early_stopping": False},
    "draft": {"draft": (SMALL, SMALL_PARAMS), "draft_tokens": 3},
    "end": {"end": 3},
}


@pytest.mark.parametrize("page_size", [1, PAGE, 64])
@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_those_without_pages(name: str, page_size: int) -> None:
    expected = generate(MODEL, PARAMS, PROMPTS, COUNT, **OPTIONS[name])
    found = generate(MODEL, PARAMS, PROMPTS, COUNT, page_size=page_size, **OPTIONS[name])
    np.testing.assert_array_equal(found, expected)


def test_a_prepared_model_and_no_prompts() -> None:
    prepared = MODEL.prepare(PARAMS)
    expected = generate(MODEL, PARAMS, PROMPTS, COUNT)
    np.testing.assert_array_equal(generate(prepared, None, PROMPTS, COUNT, page_size=PAGE), expected)
    for options in ({}, {"method": "beam"}):
        assert generate(MODEL, PARAMS, PROMPTS[:0], 3, page_size=PAGE, **options).shape[0] == 0  # type: ignore[arg-type]


def test_beams_share_the_pages_of_their_prompt() -> None:
    counting, beams = Counting(MODEL, PARAMS), 5
    found = beam_search(counting, PARAMS, PROMPTS[:1], COUNT, beams=beams, page_size=PAGE)
    expected = beam_search(MODEL, PARAMS, PROMPTS[:1], COUNT, beams=beams)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-12)
    whole = PROMPTS.shape[1] // PAGE  # pages of the prompt that no beam writes to
    for n, pages in enumerate(counting.pages[1:], 1):
        each = -(-(PROMPTS.shape[1] + n) // PAGE)  # pages of one beam
        assert pages <= 2 * (whole + beams * (each - whole)) < 2 * beams * each
    assert max(counting.pages) < 0.5 * 2 * beams * -(-(PROMPTS.shape[1] + COUNT - 1) // PAGE)


def test_equal_prompts_share_pages_and_are_processed_once() -> None:
    counting = Counting(MODEL, PARAMS)
    options: dict[str, Any] = {"method": "sample", "rng": aa.Philox(0), "page_size": PAGE}
    found = generate(counting, PARAMS, PROMPTS, COUNT, **options)
    assert len({tuple(row) for row in found[[0, 2, 4]].tolist()}) > 1  # they go on differently
    assert counting.rows[0] == 3
    assert set(counting.rows[1:]) == {5}
    assert counting.pages[1] == 2 * (3 * 3 + 5)  # three whole pages of each prompt, and the last of each row


BAD: dict[str, tuple[type[Exception], Any, str]] = {
    "size": (ValueError, lambda: generate(MODEL, PARAMS, PROMPTS, 3, page_size=0), "`page_size` is 0, expected an int"),
    "model": (
        TypeError, lambda: generate(Other(), PARAMS, PROMPTS, 3, page_size=4), "`page_size` is given, but the cache",
    ),
}  # fmt: skip


class Other:
    """A model with a cache of its own kind."""

    def cache(self, *args: Any, **kwargs: Any) -> Any:
        return ()

    def step(self, params: Any, tokens: Any, cache: Any, *, last: bool = False) -> Any:
        return np.zeros((tokens.shape[0], 1, 11)), cache


@pytest.mark.parametrize(("error", "f", "expected"), BAD.values(), ids=list(BAD))
def test_bad_input(error: type[Exception], f: Any, expected: str) -> None:
    says(error, expected, f)
