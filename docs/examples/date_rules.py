"""Dates without learning: the rules that `translation.py` compares its networks with."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from attnarray.demo.dates import Pair

Rule = tuple[int, int, int, int]  # which number is the year, the day, the month; or -1 and the month itself


def date_pattern(source: str) -> str:
    """A date with `#` for each of its numbers."""
    return re.sub(r"\d+", "#", source)


def fitting(pair: Pair) -> list[Rule]:
    """All rules that give the right answer for the numbers in a date."""
    numbers = [int(digits) for digits in re.findall(r"\d+", pair.source)]
    year, month, day = map(int, pair.target.split("-"))
    if len(numbers) < 3:
        return [(y, d, -1, month) for y, d in itertools.permutations(range(len(numbers)), 2)
                if (numbers[y], numbers[d]) == (year, day)]  # fmt: skip
    places = itertools.permutations(range(len(numbers)), 3)
    return [(y, d, m, 0) for y, d, m in places if (numbers[y], numbers[d], numbers[m]) == (year, day, month)]


def answer(source: str, rule: Rule) -> str:
    """The date by a rule, and "" if it does not fit."""
    numbers = [int(digits) for digits in re.findall(r"\d+", source)]
    y, d, m, month = rule
    if max(y, d, m) >= len(numbers):
        return ""
    return f"{numbers[y]:04}-{month if m < 0 else numbers[m]:02}-{numbers[d]:02}"


def ngrams(text: str) -> set[str]:
    """All character trigrams."""
    padded = f"  {text}  "
    return {padded[n : n + 3] for n in range(len(padded) - 2)}


def alike(one: set[str], other: set[str]) -> float:
    """The share of common trigrams."""
    return len(one & other) / len(one | other)


def by_pattern(train: Sequence[Pair], test: Sequence[Pair]) -> list[str]:
    """By the most frequent rule for the pattern of a date; for a new pattern, by that of the most similar one."""
    votes: dict[str, Counter[Rule]] = {}
    for pair in train:
        votes.setdefault(date_pattern(pair.source), Counter()).update(fitting(pair))
    rules = {pattern: counts.most_common(1)[0][0] for pattern, counts in votes.items() if counts}
    known = {pattern: ngrams(pattern) for pattern in rules}
    answers = []
    for pair in test:
        pattern = date_pattern(pair.source)
        if pattern not in rules:
            own = ngrams(pattern)
            pattern = max(known, key=lambda other, own=own: alike(own, known[other]))
        answers.append(answer(pair.source, rules[pattern]))
    return answers
