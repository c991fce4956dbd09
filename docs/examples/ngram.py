"""The n-gram model that docs/examples/language_model.py is compared with: interpolated Kneser-Ney, over bytes."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple


class Order(NamedTuple):
    """The counts of the n-grams of one length, and of their prefixes without the last byte."""

    grams: Counter[bytes]
    discount: float
    totals: Counter[bytes]  # the count of a prefix
    kinds: Counter[bytes]  # the number of its continuations


def kneser_ney(text: bytes, n: int) -> list[Order]:
    r"""The orders 1 to n of a text.

    .. math::
        p(c \mid h) = \frac{\max(N(hc) - d, 0) + d\, |\{c' : N(hc') > 0\}|\; p(c \mid h')}{\sum_{c'} N(hc')}

    where h' is h without its first byte, and N below the highest order counts in how many ways a gram is preceded:
    Kneser and Ney, 1995; Chen and Goodman, 1999.
    """
    grams = Counter(text[i : i + n] for i in range(len(text) - n + 1))
    orders = []
    for _ in range(n):
        once, twice = (sum(count == times for count in grams.values()) for times in (1, 2))
        totals: Counter[bytes] = Counter()
        for gram, count in grams.items():
            totals[gram[:-1]] += count
        kinds = Counter(gram[:-1] for gram in grams)
        orders.append(Order(grams, once / (once + 2 * twice) if once else 0.5, totals, kinds))
        grams = Counter(gram[1:] for gram in grams)
    return orders[::-1]


def probability(orders: list[Order], before: bytes, byte: bytes) -> float:
    """Of one byte after those before it."""
    p = 1 / 256
    for m, order in enumerate(orders):
        beginning = before[len(before) - m :]
        if beginning not in order.totals:
            break
        kept = max(order.grams[beginning + byte] - order.discount, 0)
        p = (kept + order.discount * order.kinds[beginning] * p) / order.totals[beginning]
    return p


def bits_per_byte(orders: list[Order], before: bytes, text: bytes) -> float:
    """The mean of -log2 p over a text, which comes after others."""
    longest = len(orders) - 1
    whole, start = before[-longest:] + text, len(before[-longest:])
    places = range(start, len(whole))
    bits = (-math.log2(probability(orders, whole[max(i - longest, 0) : i], whole[i : i + 1])) for i in places)
    return sum(bits) / len(text)
