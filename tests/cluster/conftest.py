"""Shared by the tests of clusters."""

import shutil

import pytest

import sweeps


@pytest.fixture(scope="module")
def undisturbed(request, tmp_path_factory):
    """The run that the module's LONG describes, made on this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = sweeps.sweep(folder, *request.module.LONG)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(undisturbed, tmp_path):
    for kind in ("data", "tokenizer"):
        shutil.copytree(undisturbed / kind, tmp_path / kind)
    return tmp_path
