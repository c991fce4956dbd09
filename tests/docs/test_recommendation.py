"""The recommendation of docs/examples runs, with right gradients; its data and measures are what it states."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnarray import gradcheck
from tests.support.example_programs import EXAMPLES, as_layer, example


@pytest.fixture
def recommendation(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    return example("recommendation")


def made_up(movies: Any) -> Any:
    """Three users; the second rates in the middle of the others."""
    times = np.array([1, 2, 3, 20, 5, 6, 7, 8, 9, 17, 18, 19])
    return movies.Ratings(
        np.array([1] * 4 + [2] * 5 + [3] * 3),
        np.array([1, 2, 3, 4, 2, 3, 1, 5, 4, 5, 1, 2]),
        times,
        ["", "A", "B", "C", "D", "E"],
    )


@pytest.mark.skipif(importlib.util.find_spec("recbole") is None, reason="recbole brings the ratings")
def test_recommendation(recommendation: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = recommendation.main(["--quick", "--output", str(tmp_path)])
    assert found["click"]["matrix factorization"] > 0.75  # a guess: 0.5
    assert found["next"]["movies rated together"] > 0.04  # a guess: 0.003
    assert (tmp_path / "recommendation.png").stat().st_size > 20_000
    written = {task: json.loads((tmp_path / f"recommendation-{task}.json").read_text())["methods"] for task in found}
    assert written == found
    printed = capsys.readouterr().out
    for row in ("popularity", "matrix factorization", "movies rated together", "SASRec", "DIN"):
        assert re.search(rf"{row}.* 0\.\d\d\d", printed), printed


def test_what_is_asked_for_is_later_than_training(recommendation: Any) -> None:
    movies = recommendation.movies
    data = made_up(movies)
    train, choose, test = movies.split(data)
    assert data.times[train].max() < data.times[choose.rows].min() < data.times[test.rows].min()
    assert 9 not in choose.rows  # the first rating of its user
    indices, lengths = test.history(2)
    for row, known, length in zip(test.rows, indices, lengths, strict=True):
        assert (data.users[known[:length]] == data.users[row]).all()
        assert (data.times[known[:length]] < data.times[row]).all()


def test_ndcg_counts_unrated_movies_alone(recommendation: Any) -> None:
    movies = recommendation.movies
    data = made_up(movies)
    given = movies.asked(data, np.array([3, 7]))  # movie 4 after 1, 2 and 3; movie 5 after 2, 3 and 1
    scores = np.array([[9.0, 8, 7, 6, 3, 5], [0.0, 0, 0, 0, 1, 2]])
    assert movies.ndcg(data, given, scores) == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert movies.ndcg(data, given, 0 * scores) == pytest.approx(1 / np.log2(2.5))  # the middle of two equal ones


def test_candidates_are_the_right_movie_and_unrated_ones(recommendation: Any) -> None:
    movies = recommendation.movies
    data = made_up(movies)
    given = movies.asked(data, np.array([2, 6, 10]))
    found = movies.with_negatives(data, given, 40, np.random.default_rng(0))
    np.testing.assert_array_equal(found[:, 0], data.movies[given.rows])
    assert [set(row) for row in found[:, 1:]] == [{4, 5}, {4, 5}, {2, 3, 4}]
    assert movies.auc(np.array([[2.0, 1, 3, 2]])) == 0.5
    assert movies.auc(np.array([[2.0, 1, 1], [0, 0, 0]])) == 0.75


def test_ratings_say_what_package_brings_them(recommendation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation.movies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps recbole"):
        recommendation.movies.load()


def test_the_gradient_of_din(recommendation: Any) -> None:
    model, movies = recommendation.DIN(6), recommendation.movies
    data = made_up(movies)
    given = movies.asked(data, np.array([2, 6, 7, 10]))
    candidates = movies.with_negatives(data, given, 2, np.random.default_rng(0))
    batch = next(recommendation.batches(data, given, candidates, 4))
    params = model.init(recommendation.aa.Philox(0), "float64")
    params["out"]["weight"] += 0.3  # begins as 0, where most gradients are 0
    network = as_layer(lambda p: model.fwd(p, batch.given(), recommendation.aa.Philox(1)), model.bwd)
    report = gradcheck(network, params, max_elements=6)
    assert report, str(report)


def test_stretches_hold_every_step_between_two_movies(recommendation: Any) -> None:
    movies = recommendation.movies
    data = movies.Ratings(np.repeat([1, 2], [120, 3]), np.arange(1, 124), np.arange(123), [])
    found = recommendation.windows(data, np.arange(123), np.random.default_rng(0))
    pairs = {(a, b) for row in found for a, b in itertools.pairwise(row) if b}
    assert pairs == {(n, n + 1) for n in range(1, 123)} - {(120, 121)}
