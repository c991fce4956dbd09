"""Generation: the filters against enumerated distributions, sampling, streams, beam search against all texts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.models import GPT, beam_search, draw, generate, keep_top_k, keep_top_p, stream, with_temperature
from tests.support.libraries import Library, assert_close
from tests.support.messages import says

MODEL = GPT(7, 12, 8, 2, 2)
RNG = np.random.default_rng(0)
PARAMS = tree.map(lambda leaf: leaf + 0.5 * RNG.standard_normal(leaf.shape), MODEL.init(aa.Philox(1), "float64"))
PROMPTS = RNG.integers(7, size=(3, 4))
LENGTHS = [4, 2, 1]


def probabilities(logits: Any) -> np.ndarray:
    exps = np.exp(logits - np.max(logits))
    return exps / exps.sum()


def written_on(prompt: list[int], count: int, choose: Any, end: int | None = None) -> list[int]:
    """Generated without cache and batch: each token from the logits of all previous ones."""
    text = list(prompt)
    for n in range(count):
        text.append(int(choose(MODEL(PARAMS, np.array([text]))[0, -1], n)))
        if text[-1] == end:
            break
    return text[len(prompt) :] + [end] * (count - len(text) + len(prompt))  # type: ignore[list-item]


LOGITS = np.log(np.array([0.1, 0.4, 0.25, 0.2, 0.05]))
ALL = {0, 1, 2, 3, 4}
KEPT_BY_P = {0.01: {1}, 0.39: {1}, 0.41: {1, 2}, 0.66: {1, 2, 3}, 0.86: {0, 1, 2, 3}, 0.96: ALL, 1.0: ALL}


@pytest.mark.parametrize("p", KEPT_BY_P)
def test_top_p_keeps_the_fewest_that_reach_the_share(library: Library, p: float) -> None:
    logits = library.array(np.stack([LOGITS + 3, LOGITS[::-1]]))
    kept = aa.to_numpy(keep_top_p(logits, p))
    assert set(np.flatnonzero(np.isfinite(kept[0]))) == KEPT_BY_P[p]
    assert set(4 - np.flatnonzero(np.isfinite(kept[1]))) == KEPT_BY_P[p]
    assert_close(kept[0][np.isfinite(kept[0])], (LOGITS + 3)[sorted(KEPT_BY_P[p])], 0)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_top_k_keeps_the_largest(library: Library, k: int) -> None:
    kept = aa.to_numpy(keep_top_k(library.array(LOGITS[None]), k))[0]
    order = np.argsort(-LOGITS)[:k]
    assert set(np.flatnonzero(np.isfinite(kept))) == set(order)
    assert_close(kept[order], LOGITS[order], 0)


def test_ties_at_the_limit_are_kept() -> None:
    equal = np.array([1.0, 2.0, 1.0, 0.0])
    assert np.isfinite(keep_top_k(equal, 2)).tolist() == [True, True, True, False]
    assert np.isfinite(keep_top_p(equal, 0.6)).tolist() == [True, True, True, False]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
def test_temperature(temperature: float) -> None:
    expected = np.exp(LOGITS) ** (1 / temperature)
    assert_close(probabilities(with_temperature(LOGITS, temperature)), expected / expected.sum(), 1e-14)


FILTERS = [(None, None, 1.0), (3, None, 1.0), (None, 0.6, 0.5), (4, 0.9, 2.0)]


@pytest.mark.parametrize(("top_k", "top_p", "temperature"), FILTERS)
def test_what_is_drawn_has_the_enumerated_distribution(top_k: Any, top_p: Any, temperature: float) -> None:
    scaled = LOGITS / temperature
    order = np.argsort(-scaled)
    kept = list(order[: top_k or len(order)])
    likely = probabilities(scaled[kept])
    kept = kept[: int(np.searchsorted(np.cumsum(likely), top_p or 1.0)) + 1][: len(kept)]
    expected = np.zeros(5)
    expected[kept] = probabilities(scaled[kept])
    logits = with_temperature(LOGITS, temperature)
    logits = keep_top_k(logits, top_k) if top_k else logits
    logits = keep_top_p(logits, top_p) if top_p else logits
    draws = 20_000
    found = np.bincount(draw(np.broadcast_to(logits, (draws, 5)), aa.Philox(11)), minlength=5)
    assert np.all(found[expected == 0] == 0)
    there = expected > 0
    chi_squared = np.sum((found[there] - draws * expected[there]) ** 2 / (draws * expected[there]))
    assert chi_squared < 25  # of at most 4 degrees of freedom: above it once in 20,000 seeds


def test_draws_are_the_same_on_every_library(library: Library) -> None:
    logits = RNG.standard_normal((50, 9))
    expected = draw(logits, aa.Philox(3))
    np.testing.assert_array_equal(aa.to_numpy(draw(library.array(logits), aa.Philox(3))), expected)
    np.testing.assert_array_equal(draw(logits, 3), expected)
    np.testing.assert_array_equal(draw(logits[:7], 3), expected[:7])
    assert np.any(draw(logits, 4) != expected)


def test_greedy_is_the_likeliest_each_time(library: Library) -> None:
    params, prompts = library.moved(PARAMS), library.array(PROMPTS)
    found = aa.to_numpy(generate(MODEL, params, prompts, 8, lengths=library.array(np.array(LENGTHS))))
    for row, prompt, length in zip(found, PROMPTS, LENGTHS, strict=True):
        assert row.tolist() == written_on(prompt[:length], 8, lambda logits, n: np.argmax(logits))
    end = int(found[0, 2])
    cut = aa.to_numpy(generate(MODEL, params, prompts, 8, lengths=LENGTHS, end=end))
    for row, prompt, length in zip(cut, PROMPTS, LENGTHS, strict=True):
        expected = written_on(prompt[:length], 8, lambda logits, n: np.argmax(logits), end)
        assert row.tolist() == expected[: cut.shape[1]]


def test_sampling_is_reproducible_and_of_the_model() -> None:
    options: dict[str, Any] = {"method": "sample", "temperature": 0.8, "top_k": 5, "top_p": 0.9}
    found = generate(MODEL, PARAMS, PROMPTS, 8, rng=aa.Philox(5), lengths=LENGTHS, **options)

    def choose(logits: np.ndarray, n: int) -> int:
        rows = np.broadcast_to(keep_top_p(keep_top_k(with_temperature(logits, 0.8), 5), 0.9), (3, 7))
        return int(draw(rows, aa.Philox(5).fold_in(n))[row])

    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        assert found[row].tolist() == written_on(prompt[:length], 8, choose)
    streamed = list(stream(MODEL, PARAMS, PROMPTS, 8, rng=5, lengths=LENGTHS, **options))
    np.testing.assert_array_equal(np.stack(streamed, axis=1), found)
    again = generate(MODEL, PARAMS, PROMPTS[:1], 8, rng=aa.Philox(5), **options)
    np.testing.assert_array_equal(again, found[:1])
    assert np.any(generate(MODEL, PARAMS, PROMPTS, 8, rng=6, lengths=LENGTHS, **options) != found)


def test_a_stream_gives_each_token_as_soon_as_it_is_there() -> None:
    calls = []

    class Counted:
        """A model that counts its calls."""

        cache = staticmethod(MODEL.cache)

        @staticmethod
        def step(params: Any, tokens: Any, cache: Any, *, last: bool = False) -> Any:
            calls.append(tokens.shape)
            return MODEL.step(params, tokens, cache, last=last)

    tokens = stream(Counted(), PARAMS, PROMPTS, 3)
    assert calls == [(3, 4)]
    assert [next(tokens).shape for _ in range(2)] == [(3,)] * 2
    assert calls == [(3, 4), (3, 1)]
    next(tokens)
    with pytest.raises(StopIteration):
        next(tokens)
    assert calls == [(3, 4), (3, 1), (3, 1)]  # the last token is not used


def every_text(model: GPT, params: Any, prompt: Any, count: int, end: int | None, alpha: float) -> dict[Any, float]:
    """The score of each text of at most `count` tokens: beam search looks for the best one."""
    scores = {}
    for size in range(1, count + 1):
        for text in itertools.product(range(model.vocab_size), repeat=size):
            over = end is not None and text[-1] == end
            if end in text[:-1] or not (over or size == count):
                continue
            rows = model(params, np.array([[*prompt, *text]]))[0, len(prompt) - 1 : -1]
            logp = aa.log_softmax(rows)[np.arange(size), list(text)].sum()
            scores[text] = float(logp) / size**alpha
    return scores


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("end", [None, 0, 2])
def test_beam_search_with_enough_beams_finds_the_best_of_all(end: int | None, alpha: float) -> None:
    model = GPT(3, 8, 8, 1, 2)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        params = model.init(aa.Philox(0), "float64")
        params = tree.map(lambda leaf, r=rng: leaf + 0.6 * r.standard_normal(leaf.shape), params)
        prompts, lengths = rng.integers(3, size=(2, 3)), [3, 2]
        found = beam_search(model, params, prompts, 4, beams=81, length_penalty=alpha, end=end, lengths=lengths)
        for row, score, prompt, length in zip(*found, prompts, lengths, strict=True):
            scores = every_text(model, params, prompt[:length], 4, end, alpha)
            best = max(scores, key=lambda text, s=scores: s[text])
            assert float(score) == pytest.approx(scores[best], abs=1e-12)
            filled = [*best, *[end] * (4 - len(best))]
            assert row.tolist() == filled[: found.tokens.shape[1]]


def test_one_beam_is_greedy_and_more_beams_find_likelier_texts() -> None:
    greedy = generate(MODEL, PARAMS, PROMPTS, 8, lengths=LENGTHS)
    one = generate(MODEL, PARAMS, PROMPTS, 8, method="beam", beams=1, lengths=LENGTHS)
    np.testing.assert_array_equal(one, greedy)
    scores = [beam_search(MODEL, PARAMS, PROMPTS, 6, beams=n, lengths=LENGTHS).scores for n in (1, 3, 400)]
    assert np.all(scores[2] >= scores[1])
    assert np.any(scores[2] > scores[0])


def test_beam_search_on_every_library(library: Library) -> None:
    expected = beam_search(MODEL, PARAMS, PROMPTS, 5, beams=3, end=1, lengths=LENGTHS)
    found = beam_search(MODEL, library.moved(PARAMS), library.array(PROMPTS), 5, beams=3, end=1, lengths=LENGTHS)
    np.testing.assert_array_equal(aa.to_numpy(found.tokens), expected.tokens)
    assert_close(found.scores, expected.scores, 1e-12)


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_nothing_to_write(method: str) -> None:
    options: dict[str, Any] = {"method": method, "rng": 1} if method == "sample" else {"method": method}
    assert generate(MODEL, PARAMS, PROMPTS, 0, **options).shape == (3, 0)
    assert generate(MODEL, PARAMS, PROMPTS[:0], 4, **options).shape[0] == 0


def test_the_last_place_of_the_model_is_used() -> None:
    assert generate(MODEL, PARAMS, PROMPTS, 9).shape == (3, 9)
    says(ValueError, "The cache needs 13 positions, but the model has `max_seq_len` 12", lambda: written(count=10))


def written(**changes: Any) -> Any:
    return generate(**{"model": MODEL, "params": PARAMS, "tokens": PROMPTS, "count": 3, **changes})


BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "temperature": (ValueError, "`temperature` is 0.0, expected a finite number above 0.", {"temperature": 0.0}),
    "negative": (ValueError, "`temperature` is -1, expected a finite number above 0.", {"temperature": -1}),
    "top_p 0": (ValueError, "`top_p` is 0, expected a probability above 0 and up to 1.", {"top_p": 0}),
    "top_p": (ValueError, "`top_p` is 1.1, expected a probability above 0 and up to 1.", {"top_p": 1.1}),
    "top_k": (ValueError, "`top_k` is 0, expected an integer >= 1", {"top_k": 0}),
    "no rng": (ValueError, '`rng` is None, but method="sample" needs a generator. Give rng=attnarray', {"rng": None}),
    "method": (ValueError, "`method` is 'best', expected one of 'greedy', 'sample', 'beam'.", {"method": "best"}),
    "of sampling": (ValueError, "`top_k` is 3, but method='greedy'; it is for method=\"sample\".",
                    {"method": "greedy", "top_k": 3}),
    "of sampling, by beams": (ValueError, "`temperature` is 0.5, but method='beam'",
                              {"method": "beam", "temperature": 0.5}),
    "count": (ValueError, "`count` is -1, expected an integer >= 0: the number of tokens to generate.", {"count": -1}),
    "end": (ValueError, "`end` is 7, expected an integer from 0 to 6: a token of the model.", {"end": 7}),
    "end of beams": (ValueError, "`end` is -1, expected an integer >= 0", {"method": "beam", "end": -1}),
    "beams": (ValueError, "`beams` is 0, expected an integer >= 1", {"method": "beam", "beams": 0}),
    "penalty": (ValueError, "`length_penalty` is -1, expected a finite number >= 0.",
                {"method": "beam", "length_penalty": -1}),
    "huge penalty": (ValueError, "`length_penalty` is 1e+300, expected a number such as 1.0: 3 tokens to its power",
                     {"method": "beam", "length_penalty": 1e300}),
    "early stopping": (ValueError, "`early_stopping` is 'always', expected one of None, False, True, 'never'.",
                       {"method": "beam", "early_stopping": "always"}),
    "of beams": (ValueError, "`early_stopping` is False, but method='greedy'; it is for method=\"beam\".",
                 {"method": "greedy", "early_stopping": False}),
    "params first": (TypeError, "the order is model, params, tokens, count.", {"model": PARAMS}),
    "beams of beams": (ValueError, "`beams` is 8, but method='greedy'; it is for method=\"beam\".",
                       {"method": "greedy", "beams": 8}),
    "penalty of beams": (ValueError, "`length_penalty` is 2, but method='sample'; it is for", {"length_penalty": 2}),
    "no prompt": (ValueError, "`tokens` has no positions, expected prompts of at least one token",
                  {"tokens": PROMPTS[:, :0]}),
    "axes": (ValueError, "`tokens` has shape (4,), expected (B, T)", {"tokens": PROMPTS[0]}),
    "empty prompt": (ValueError, "`lengths` holds 0 at position (1,), expected 1 to 4", {"lengths": [1, 0, 2]}),
    "lengths": (ValueError, "`lengths` has shape (2,), expected (3,)", {"lengths": [1, 2]}),
}  # fmt: skip


@pytest.mark.parametrize(("error", "expected", "changes"), BAD.values(), ids=list(BAD))
def test_bad_input(error: type[Exception], expected: str, changes: dict[str, Any]) -> None:
    of_sampling = {"method": "sample", "rng": aa.Philox(1)} if "method" not in changes else {}
    says(error, expected, lambda: written(**{**of_sampling, **changes}))


def test_a_stream_checks_before_its_first_token() -> None:
    def begun(**options: Any) -> Any:
        return stream(MODEL, PARAMS, PROMPTS, 3, **options)

    says(ValueError, "`top_p` is 2, expected", lambda: begun(method="sample", rng=1, top_p=2))
    says(ValueError, "`method` is 'beam', expected one of 'greedy', 'sample'.", lambda: begun(method="beam"))


def test_drawing_needs_rows_of_logits() -> None:
    says(ValueError, "`logits` has shape (5,), expected (B, V) with V > 0.", lambda: draw(LOGITS, 1))
