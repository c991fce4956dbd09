"""The data of the date-translation demo, and its picture."""

import datetime
import sys

import numpy as np
import pytest

from attnarray.demo import dates, picture
from attnarray.demo.dates import FORMATS, LANGUAGES, Vocabulary, make_pairs, write_date

pytest.importorskip("babel")


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(train=600, test=200, seed=3)


def test_pairs_come_from_the_seed_alone(pairs):
    assert make_pairs(train=600, test=200, seed=3) == pairs
    assert make_pairs(train=600, test=200, seed=4) != pairs


def test_test_pairs_do_not_depend_on_the_number_of_training_pairs(pairs):
    assert make_pairs(train=0, test=200, seed=3) == ([], pairs[1])


def test_no_date_is_in_both_parts(pairs):
    targets = [pair.target for part in pairs for pair in part]
    assert [len(part) for part in pairs] == [600, 200]
    assert len(set(targets)) == len(targets)


def test_pairs_cover_the_languages_and_the_years(pairs):
    assert {pair.language for pair in pairs[0]} == set(LANGUAGES)
    assert len(LANGUAGES) == len(set(LANGUAGES)) >= 25
    years = {int(pair.target[:4]) for pair in pairs[0]}
    assert min(years) < 1910
    assert max(years) > 2089


def test_targets_are_the_dates_in_iso_8601():
    assert write_date(datetime.date(2003, 9, 7), "en", "full") == "Sunday, September 7, 2003"
    for pair in make_pairs(train=0, test=50)[1]:
        assert datetime.date.fromisoformat(pair.target).isoformat() == pair.target
        assert pair.target[:4] in pair.source


@pytest.mark.parametrize("year", [1912, 2004])  # a leap year of each century: every day and month occurs
def test_every_string_determines_its_date(year):
    meaning = {}
    for number in range(366):
        day = datetime.date(year, 1, 1) + datetime.timedelta(number)
        for language in LANGUAGES:
            for form in FORMATS:
                text = write_date(day, language, form)
                assert meaning.setdefault(text, day) == day, (text, language, form)


@pytest.mark.parametrize(("train", "test"), [(-1, 5), (5, -1), (73_000, 50)])
def test_impossible_counts_are_refused(train, test):
    with pytest.raises(
        ValueError, match=f"train={train}, test={test}: expected counts >= 0 with a sum of at most 73049"
    ):
        make_pairs(train, test)


def test_missing_babel_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package Babel.*pip install 'attnarray\[demo\]'"):
        make_pairs(train=1, test=0)


def test_vocabulary_round_trip(pairs):
    texts = [pair.source for pair in pairs[0]]
    vocabulary = Vocabulary(texts)
    tokens, lengths = vocabulary.encode(texts)
    assert vocabulary.decode(tokens, lengths) == texts
    assert tokens.shape == (len(texts), max(map(len, texts)))
    assert tokens.dtype == lengths.dtype == np.int64
    assert tokens.max() == len(vocabulary) - 1
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    assert np.array_equal(tokens == dates.PADDING, ~inside)


def test_characters_outside_the_vocabulary_are_unknown():
    tokens, lengths = Vocabulary(["ab"]).encode(["axb", ""])
    assert tokens.tolist() == [[2, dates.UNKNOWN, 3], [0, 0, 0]]
    assert lengths.tolist() == [3, 0]
    assert Vocabulary([]).encode([])[0].shape == (0, 0)


def test_targets_round_trip(pairs):
    targets = [pair.target for pair in pairs[0]]
    encoded = dates.encode_targets(targets)
    assert encoded.shape == (600, dates.TARGET_LENGTH)
    assert dates.decode_targets(encoded) == targets
    assert dates.encode_targets([]).shape == (0, dates.TARGET_LENGTH)


def test_batches_hold_every_text_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(10, 40, size=1003)
    batches = list(dates.batches_of_similar_length(lengths, 32, np.random.default_rng(1)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert max(map(len, batches)) == 32
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()  # unsorted batches of 32 need about 1.6
    again = dates.batches_of_similar_length(lengths, 32, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize(("size", "pool"), [(0, 1), (1, 0)])
def test_batches_need_a_size(size, pool):
    with pytest.raises(ValueError, match=f"size={size}, pool={pool}: expected at least 1 each"):
        next(dates.batches_of_similar_length(np.ones(3), size, np.random.default_rng(0), pool=pool))


class TestPicture:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    @staticmethod
    def draw(path, sources, **changes):
        rng = np.random.default_rng(0)
        given = {
            "targets": ["2003-09-07"] * len(sources),
            "weights": [rng.dirichlet(np.ones(len(source)), size=10) for source in sources],
            "predictions": ["2003-09-07", "2003-09-01", "2003-08-07"][: len(sources)],
            "title": "A $ title",
        }
        picture.draw_alignments(path, sources, **{**given, **changes})

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("names", [None, ["English", "Japanese", "Greek"]])
    def test_writes_a_png_without_warnings(self, tmp_path, names):
        path = tmp_path / "alignments.png"
        self.draw(path, ["$7 Sep$", "2003年9月7日", "7 Σεπ\u202f2003"], names=names)
        assert path.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.filterwarnings("error")
    def test_one_date_is_enough(self, tmp_path):
        self.draw(tmp_path / "one.png", ["x"])

    def test_samples_have_glyphs_and_languages_that_differ(self, pairs):
        places = picture.pick_samples(pairs[1])
        chosen = [pairs[1][n] for n in places]
        assert len({pair.language for pair in chosen}) == 6
        assert all(picture.drawable(pair.source) == pair.source for pair in chosen)
        assert picture.drawable("9月 sept") == "9· sept"
        assert picture.pick_samples([]) == []

    def test_weights_of_the_wrong_shape_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"'abc' have shape \(10, 5\), expected \(10, 3\)"):
            self.draw(tmp_path / "no.png", ["abc"], weights=[np.ones((10, 5))])
        assert not list(tmp_path.iterdir())

    def test_counts_that_differ_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="There are 1, 1, 1, 0 sources"):
            self.draw(tmp_path / "no.png", ["abc"], predictions=[])

    def test_missing_matplotlib_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ModuleNotFoundError, match=r"package matplotlib.*pip install 'attnarray\[demo\]'"):
            self.draw(tmp_path / "no.png", ["abc"])
