"""A config.yaml that somebody has edited is noticed by all that would go by it."""

import json
from pathlib import Path

import pytest
import runs
import torch

from tid import checkpoint
from tid.comparison.runs import read
from tid.config import ConfigError
from tid.load import load_model
from tid.reporting import facts
from tid.sweep.plan import make_cells

SHORT = ("total_steps=2", "eval_every=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return runs.train(tmp_path_factory.mktemp("trained"), *SHORT)


@pytest.fixture
def file(trained):
    path = trained / "config.yaml"
    before = path.read_text()
    yield path
    path.write_text(before)


def refusals(run: Path) -> list[str]:
    """What the same command, a sweep with this run, a command that loads the model, and the run's page say; none if
    they do not mind."""
    said = []
    config = checkpoint.load(run / "checkpoints/last.pt")["run"]["config"]
    for call in (
        lambda: runs.train(run.parents[2], *SHORT),
        lambda: make_cells([config], [[]], retry_failed=False),
        lambda: load_model(run, torch.device("cpu")),
        lambda: facts.read(run),
    ):
        try:
            call()
        except ConfigError as error:
            said.append(str(error))
    return said


def test_an_edit_that_would_change_the_result_is_refused_and_the_file_left_as_it_is(trained, file):
    edited = file.read_text().replace("lr: 0.01\n", "lr: 0.02\n").replace("batch_size: 2\n", "batch_size: 3\n")
    file.write_text(edited)
    said = refusals(trained)
    assert len(said) == 4 and all(f"{file} was edited since the run was made" in words for words in said)
    for words in said[:3]:  # these know the settings from elsewhere
        assert "made: batch_size was 2, is 3; optim.lr was 0.01, is 0.02.\nPut the file back" in words
    assert said[3].endswith(f"Which settings differ: python -m tid.evaluate checkpoint={trained}")
    compared = read(trained)
    assert compared.state == "unreadable" and compared.reason.startswith("config.yaml was edited since")
    assert file.read_text() == edited


@pytest.mark.parametrize("text", ["a: [", "just words", "seed: 0"])
def test_a_file_that_is_no_configuration_any_more_is_refused(trained, file, text):
    file.write_text(text)
    said = refusals(trained)
    assert len(said) == 4 and all("holds no run's configuration any more" in words for words in said)
    assert read(trained).state == "unreadable"


def test_a_comment_and_a_setting_without_effect_may_change(trained, file):
    file.write_text("# the run that we liked\n" + file.read_text().replace("log_every: 2\n", "log_every: 3\n"))
    assert refusals(trained) == [] and read(trained).state == "done"


def test_a_run_of_a_version_that_remembered_nothing_is_left_alone(trained, file):
    status = trained / "status.json"
    before = status.read_text()
    status.write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != "config_sha256"}))
    file.write_text(file.read_text().replace("batch_size: 2\n", "batch_size: 3\n"))
    assert refusals(trained) == []
    status.write_text(before)
