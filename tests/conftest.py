"""Shared by all tests."""

import shutil
from collections import Counter

import pytest
import torch
from tiny import tiny_model

import sweeps

torch.set_num_threads(1)  # sums in one order, and no contention for tensors this small


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, as each goes to the worker that is free: no long one is left to the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def model():
    """A fresh tiny model."""
    return tiny_model()


@pytest.fixture(scope="module")
def undisturbed(request, tmp_path_factory):
    """A folder with the finished sweep that the module's SWEEP describes, and its text and tokens, to be copied."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = sweeps.sweep(folder, *request.module.SWEEP)
    assert done.returncode == 0, done.stderr
    folder.joinpath("stderr").write_text(done.stderr)
    return folder


@pytest.fixture
def folder(undisturbed, tmp_path):
    """An empty one with the text and tokens of `undisturbed`."""
    for kind in ("data", "tokenizer"):
        shutil.copytree(undisturbed / kind, tmp_path / kind)
    return tmp_path
