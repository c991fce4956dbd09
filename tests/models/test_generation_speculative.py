"""Speculative decoding: greedy tokens are those without a draft, samples have the same distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import GPT, generate, stream
from tests.support.libraries import Library

RNG = np.random.default_rng(0)


def random(model: GPT, seed: int) -> Any:
    return tree.map(lambda leaf: leaf + 0.5 * RNG.standard_normal(leaf.shape), model.init(aa.Philox(seed), "float64"))


MODEL, SMALL = GPT(7, 24, 8, 2, 2), GPT(7, 24, 4, 1, 2)
PARAMS, SMALL_PARAMS = random(MODEL, 1), random(SMALL, 2)
PROMPTS = RNG.integers(7, size=(3, 4))
DRAFTS = {"a small model": (SMALL, SMALL_PARAMS), "the model itself": (MODEL, PARAMS)}
each_draft = pytest.mark.parametrize("name", DRAFTS)


@each_draft
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [1, 3, 30])
@pytest.mark.parametrize("end", [None, 2])
def test_greedy_tokens_are_those_without_a_draft(name: str, rows: int, width: int, end: int | None) -> None:
    for count in (0, 1, 2, 12):
        given = {"end": end, "lengths": [4, 2, 1][:rows]}
        expected = generate(MODEL, PARAMS, PROMPTS[:rows], count, **given)
        found = generate(MODEL, PARAMS, PROMPTS[:rows], count, **given, draft=DRAFTS[name], draft_tokens=width)
        np.testing.assert_array_equal(found, expected)


def test_a_good_draft_saves_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = GPT.step

    def counted(self: GPT, params: Any, tokens: Any, cache: Any, **options: Any) -> Any:
        steps.append(tokens.shape[1] if params is PARAMS else 0)
        return step(self, params, tokens, cache, **options)

    monkeypatch.setattr(GPT, "step", counted)
    generate(MODEL, PARAMS, PROMPTS[:1], 13, draft=(MODEL, dict(PARAMS)), draft_tokens=3)
    assert [n for n in steps if n] == [4, 4, 4, 4]  # the prompt, then three drafted tokens and the one before them


@each_draft
def test_samples_have_the_distribution_of_the_model(name: str) -> None:
    """Of two tokens all 49 frequencies, in 4,000 independent rows; without a draft the same test passes."""
    rows = 4000
    prompts = np.repeat(PROMPTS[:1], rows, axis=0)
    given = {"method": "sample", "temperature": 1.3, "top_k": 5}
    filtered = np.zeros((7, 7))
    first = distribution(PROMPTS[0])
    for a in range(7):
        filtered[a] = first[a] * distribution(np.append(PROMPTS[0], a))
    for draft in (None, DRAFTS[name]):
        tokens = generate(MODEL, PARAMS, prompts, 2, **given, rng=aa.Philox(3), draft=draft, draft_tokens=2)
        counts = np.zeros((7, 7))
        np.add.at(counts, (tokens[:, 0], tokens[:, 1]), 1)
        assert not counts[filtered == 0].any()
        deviation = np.sqrt(rows * filtered * (1 - filtered))
        assert (abs(counts - rows * filtered) <= 4.5 * deviation + 1).all()  # one in 3,000 such tests fails by chance


def distribution(text: Any) -> np.ndarray:
    logits = MODEL(PARAMS, np.array([text]))[0, -1] / 1.3
    logits = np.where(logits >= np.sort(logits)[-5], logits, -np.inf)
    exps = np.exp(logits - logits.max())
    return exps / exps.sum()


def test_samples_of_one_row_depend_on_the_seed_alone() -> None:
    draws = [
        generate(MODEL, PARAMS, PROMPTS[:1], 9, method="sample", rng=seed, draft=DRAFTS["a small model"]).tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_streams_yield_each_token(library: Library) -> None:
    params, small = (tree.map(library.array, p) for p in (PARAMS, SMALL_PARAMS))
    found = list(stream(MODEL, params, library.array(PROMPTS), 5, draft=(SMALL, small)))
    expected = generate(MODEL, PARAMS, PROMPTS, 5)
    np.testing.assert_array_equal(np.stack([aa.to_numpy(token) for token in found], axis=1), expected)


OTHER = GPT(9, 24, 4, 1, 2)
BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "no pair": (TypeError, {"draft": SMALL}, r"expected \(model, params\) of a smaller model"),
    "other tokens": (
        ValueError,
        {"draft": (OTHER, OTHER.init(aa.Philox(0), "float64"))},
        "has 9 tokens, but `model` has 7",
    ),
    "width": (ValueError, {"draft": DRAFTS["a small model"], "draft_tokens": 0}, "`draft_tokens` is 0, expected an"),
    "beams": (ValueError, {"draft": DRAFTS["a small model"], "method": "beam"}, "`draft` is"),
}


@pytest.mark.parametrize(("error", "options", "expected"), BAD.values(), ids=list(BAD))
def test_says_what_is_wrong(error: type[Exception], options: dict[str, Any], expected: str) -> None:
    with pytest.raises(error, match=expected):
        generate(MODEL, PARAMS, PROMPTS, 3, **options)


def test_a_cache_forgets_positions() -> None:
    cache = MODEL.cache(3, dtype="float64")
    _, cache = MODEL.step(PARAMS, PROMPTS, cache)
    expected, _ = MODEL.step(
        PARAMS, PROMPTS[:, 2:3], MODEL.step(PARAMS, PROMPTS[:, :2], MODEL.cache(3, dtype="float64"))[1]
    )
    found, _ = MODEL.step(PARAMS, PROMPTS[:, 2:3], cache.up_to(2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="`length` is 5, expected an integer from 0 to 4"):
        cache.up_to(5)
