"""Pairs for date translation: dates as people of many languages write them, and the same dates in ISO 8601.

The wording comes from Unicode CLDR through Babel: the medium, long and full format of each language in `LANGUAGES`, in
the Gregorian calendar (Thai with years of the common era) and the digits 0 to 9. Languages to which CLDR gives digits
of their own (Persian, Bengali, Marathi, Nepali, Burmese) are left out: Babel writes 0 to 9 for them too.

Each string determines its date. Years have four digits everywhere; the purely numerical formats of these languages
write either day, month, year (Czech, German, Finnish, Bulgarian) or year, month, day (Japanese, Chinese, Korean); where
an abbreviated month name means different months (lis is October in Croatian, November in Polish), the punctuation
around it differs. So no format had to be left out: of the 6,136,116 strings for all days, languages and formats, no two
that are equal have different dates. The short formats are not used: they contradict each other.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

LANGUAGES = (
    *("en", "de", "nl", "sv", "fr", "es", "it", "pt", "pl", "cs", "hr", "fi", "hu", "tr", "eu", "vi"),  # Latin script
    *("ru", "uk", "bg"),  # Cyrillic
    *("el", "hy", "ka", "he", "hi", "th"),  # Greek, Armenian, Georgian, Hebrew, Devanagari, Thai
    *("ja", "zh", "ko"),  # Japanese, Chinese, Korean
)
FORMATS = ("medium", "long", "full")
FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
TARGET_CHARACTERS = "0123456789-"
TARGET_LENGTH = len("YYYY-MM-DD")
PADDING, UNKNOWN = 0, 1


class Pair(NamedTuple):
    """One date: as written in `language` (a CLDR code such as "el"), and as ISO 8601."""

    source: str
    target: str
    language: str


def make_pairs(train: int, test: int, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Draw pairs for training and for testing: uniform over the dates from 1900 to 2099, the languages and the formats.

    No date occurs twice, so the test dates are never seen in training, in whatever language.

    Parameters
    ----------
    train, test : int
        How many pairs of each. Together at most the 73,049 days from `FIRST` to `LAST`.
    seed : int
        The same seed gives the same pairs; the first test pairs do not depend on how many training pairs are drawn.

    Returns
    -------
    tuple of two lists of Pair
        The training pairs and the test pairs.

    Raises
    ------
    ValueError
        If a count is negative, or more dates are asked for than there are.
    ModuleNotFoundError
        If Babel is not installed.

    Examples
    --------
    >>> train, test = make_pairs(train=1000, test=100)
    >>> train[0].target in {pair.target for pair in test}
    False
    """
    days = (LAST - FIRST).days + 1
    if train < 0 or test < 0 or train + test > days:
        raise ValueError(
            f"train={train}, test={test}: expected counts >= 0 with a sum of at most {days}, one per date."
        )
    rng = np.random.default_rng(seed)
    ordinals = FIRST.toordinal() + rng.permutation(days)
    languages, formats = rng.integers(len(LANGUAGES), size=days), rng.integers(len(FORMATS), size=days)
    pairs = []
    for n in range(test + train):
        day, language = datetime.date.fromordinal(int(ordinals[n])), LANGUAGES[languages[n]]
        pairs.append(Pair(write_date(day, language, FORMATS[formats[n]]), day.isoformat(), language))
    return pairs[test:], pairs[:test]


def write_date(day: datetime.date, language: str, form: str) -> str:
    """`day` in the "medium", "long" or "full" format that CLDR has for `language`.

    Examples
    --------
    >>> write_date(datetime.date(2003, 9, 7), "el", "long")
    '7 Σεπτεμβρίου 2003'
    """
    return str(_babel().dates.format_date(day, form, locale=language))


def language_name(language: str) -> str:
    """The English name of a CLDR language code.

    Examples
    --------
    >>> language_name("el")
    'Greek'
    """
    return str(_babel().Locale.parse(language).get_language_name("en"))


def _babel() -> Any:
    try:
        import babel
        import babel.dates
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The date-translation demo needs the package Babel, which has the names of months and days of Unicode "
            "CLDR. Install it: pip install 'attnarray[demo]'.",
            name=error.name,
        ) from error
    return babel


class Vocabulary:
    """The characters of some texts, numbered from 2 in order of their code points; 0 is padding, 1 any other character.

    Examples
    --------
    >>> vocabulary = Vocabulary(["7 May", "May 7"])
    >>> tokens, lengths = vocabulary.encode(["May", "7 Mai"])
    >>> vocabulary.decode(tokens, lengths)
    ['May', '7 Ma\N{REPLACEMENT CHARACTER}']
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.characters = "".join(sorted(set().union(*texts)))
        self._numbers = {character: n for n, character in enumerate(self.characters, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        """The number of rows that an embedding of the tokens needs."""
        return len(self.characters) + UNKNOWN + 1

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The texts as tokens (N, S), padded at the end to the longest, and their lengths (N,); both int64."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64)  # (N,)
        tokens = np.full((len(texts), int(lengths.max(initial=0))), PADDING, dtype=np.int64)  # (N, S)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = [self._numbers.get(character, UNKNOWN) for character in text]
        return tokens, lengths

    def decode(self, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
        """The texts that `encode` was given, with U+FFFD for characters that are not in the vocabulary."""
        symbols = ["", "\N{REPLACEMENT CHARACTER}", *self.characters]
        return ["".join(symbols[int(token)] for token in row[: int(n)]) for row, n in zip(tokens, lengths, strict=True)]


def encode_targets(targets: Sequence[str]) -> np.ndarray:
    """ISO 8601 dates as indices into `TARGET_CHARACTERS`, (N, 10) int64.

    Examples
    --------
    >>> encode_targets(["2003-09-07"]).tolist()
    [[2, 0, 0, 3, 10, 0, 9, 10, 0, 7]]
    """
    indices = [[TARGET_CHARACTERS.index(character) for character in target] for target in targets]
    return np.array(indices, dtype=np.int64).reshape(len(targets), TARGET_LENGTH)


def decode_targets(tokens: np.ndarray) -> list[str]:
    """The inverse of `encode_targets`: the strings of `tokens` (N, 10)."""
    return ["".join(TARGET_CHARACTERS[int(token)] for token in row) for row in tokens]


def batches_of_similar_length(
    lengths: np.ndarray, size: int, rng: np.random.Generator, *, pool: int = 16
) -> Iterator[np.ndarray]:
    """Shuffle and cut into batches whose texts have similar lengths, so that little of a batch is padding.

    Parameters
    ----------
    lengths : (N,) int
        The length of each text.
    size : int
        Texts per batch; the last one has what is left.
    rng : numpy.random.Generator
        Draws a new order for each pass over the data.
    pool : int
        Texts are sorted by length among `pool` batches drawn at random, not among all: the batches stay different.

    Yields
    ------
    (size,) int array
        The indices of the texts of one batch.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> [batch.tolist() for batch in batches_of_similar_length(np.array([9, 3, 8, 2]), 2, rng)]
    [[2, 0], [3, 1]]
    """
    if size < 1 or pool < 1:
        raise ValueError(f"size={size}, pool={pool}: expected at least 1 each.")
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), size * pool):
        part = order[start : start + size * pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[n : n + size] for n in range(0, len(part), size)]
    yield from (batches[n] for n in rng.permutation(len(batches)))
