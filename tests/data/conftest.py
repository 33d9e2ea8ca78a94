from pathlib import Path

import pytest

from tid.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    """A folder with tokenizer.json, made once."""
    folder = tmp_path_factory.mktemp("tokenizer")
    load_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The hub that dies keeps its reader trying for 23 seconds: the other tests run meanwhile."""
    items.sort(key=lambda item: "hub_that_dies" in item.name)
