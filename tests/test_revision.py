"""Which code a run was made by."""

import json
import shutil

import pytest
import runs
from test_imports import TREES, reached

from tid import revision


@pytest.fixture
def package(tmp_path):
    """A copy of the package's sources, as pip would install it: no git around it."""
    return shutil.copytree(revision.PACKAGE, tmp_path / "tid", ignore=shutil.ignore_patterns("__pycache__"))


def test_the_checksum_follows_the_contents_alone(package):
    before = revision.hash_of(package)
    assert before == revision.hash_of(revision.PACKAGE)  # no git, another place, other times
    model = package / "model.py"
    model.write_text(model.read_text() + "# one change\n")
    one = revision.hash_of(package)
    model.write_text(model.read_text().replace("# one change", "# another one"))
    assert len({before, one, revision.hash_of(package)}) == 3  # two dirty trees of one commit


def test_a_file_that_git_does_not_know_yet_and_a_new_name_count(package):
    before = revision.hash_of(package)
    (package / "margin.py").write_text("")
    added = revision.hash_of(package)
    (package / "margin.py").rename(package / "data" / "margin.py")
    assert len({before, added, revision.hash_of(package)}) == 3


def test_what_only_looks_at_results_does_not_count(package):
    before = revision.hash_of(package)
    for folder in revision.NO_RESULT:
        assert (package / folder).is_dir()
        (package / folder / "more.py").write_text("")
    (package / "notes.md").write_text("")
    assert revision.hash_of(package) == before


def test_no_step_of_training_is_in_a_folder_that_does_not_count():
    training = {"tid.step", "tid.validation", "tid.checkpoint", "tid.config", "tid.data", "tid.device", "tid.llama"}
    for name in training:
        for module in reached(name):
            assert module.split(".")[1] not in revision.NO_RESULT, (name, module)
    used = {module for module in TREES if module.split(".")[1:2] and module.split(".")[1] in revision.NO_RESULT}
    assert {name.split(".")[1] for name in used} == set(revision.NO_RESULT)


def test_other_code_is_told_by_its_sources_whatever_the_commit(monkeypatch):
    monkeypatch.setattr(revision, "git_sha", lambda: "a" * 40 + "-dirty")
    assert not revision.is_other({"git_sha": "b" * 40, "source": revision.SOURCE})  # a commit of the README
    assert revision.is_other({"git_sha": "a" * 40 + "-dirty", "source": "0" * 12})
    assert not revision.is_other({})


def test_it_is_said_in_words():
    facts = {"git_sha": "c" * 40 + "-dirty", "source": "0123456789ab"}
    assert revision.in_words(facts) == "source 0123456789ab of commit cccccccccc with uncommitted changes"
    assert revision.in_words({"git_sha": "c" * 40}) == "commit cccccccccc"
    assert revision.in_words({"git_sha": None, "source": "0123456789ab"}) == "source 0123456789ab of an unknown commit"


def test_a_run_that_goes_on_with_other_code_is_of_both():
    now = revision.SOURCE
    assert revision.continued(None) == revision.continued({"git_sha": "c" * 40}) == revision.present()
    assert revision.continued({"source": now})["source"] == now
    assert revision.continued({"source": "0" * 12})["source"] == f"{'0' * 12}+{now}"
    both = revision.continued(revision.continued({"source": "0" * 12}))
    assert both["source"] == f"{'0' * 12}+{now}" and revision.is_other(both)


def test_a_resumed_run_records_the_code_of_every_sitting(tmp_path):
    run = runs.train(tmp_path)
    assert runs.read(run, "summary.json")["source"] == revision.SOURCE
    status = runs.read(run, "status.json") | {"state": "preempted", "source": "0" * 12}
    (run / "status.json").write_text(json.dumps(status))
    assert runs.train(tmp_path) == run
    assert runs.read(run, "summary.json")["source"] == f"{'0' * 12}+{revision.SOURCE}"
    assert "warning: this run was begun by other code, and is of both" in (run / "logs/train.log").read_text()
