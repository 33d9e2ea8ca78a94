"""What the tests of tid/data share."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class ListSource:
    """A source of given documents, for what does not depend on where text comes from."""

    train: tuple[str, ...] = ("one two three", "four five")
    val: tuple[str, ...] = ("six seven",)
    train_documents: int | None = None
    val_documents: int | None = None

    label = "list"

    def inputs(self) -> dict:
        return {}

    def documents(self, facts: dict) -> Iterator[tuple[str, str]]:
        yield from (("train", text) for text in self.train)
        yield from (("val", text) for text in self.val)


def read_jsonl(path: Path) -> list[str]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def visible(folder: Path) -> list[str]:
    """Names in ``folder`` but for lock files; none when there is no such folder."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock")) if folder.exists() else []
