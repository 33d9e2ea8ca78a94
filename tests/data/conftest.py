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
