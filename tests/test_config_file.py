"""A config.yaml that somebody has edited is refused by all that go by it, and named by what loads the model."""

import json
import shutil
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
DIFFER = "batch_size was 2, is 3; optim.lr was 0.01, is 0.02"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return runs.train(tmp_path_factory.mktemp("trained"), *SHORT)


@pytest.fixture
def file(trained):
    path = trained / "config.yaml"
    before = path.read_text()
    yield path
    path.write_text(before)


def made_with(run: Path) -> dict:
    return checkpoint.load(run / "checkpoints/last.pt")["run"]["config"]


def refusals(run: Path) -> list[str]:
    """What the same command, a sweep with this run, and the run's page say; none if they do not mind."""
    said = []
    config = made_with(run)
    for call in (
        lambda: runs.train(run.parents[2], *SHORT),
        lambda: make_cells([config], [[]], retry_failed=False),
        lambda: facts.read(run),
    ):
        try:
            call()
        except ConfigError as error:
            said.append(str(error))
    return said


def test_an_edit_that_would_change_the_result_is_refused_and_the_file_left_as_it_is(trained, file, capsys):
    edited = file.read_text().replace("lr: 0.01\n", "lr: 0.02\n").replace("batch_size: 2\n", "batch_size: 3\n")
    file.write_text(edited)
    said = refusals(trained)
    assert len(said) == 3 and all(f"{file} was edited since the run was made: {DIFFER}.\nPut" in one for one in said)
    compared, planned = read(trained), read(trained, frozen=made_with(trained))
    assert compared.state == planned.state == "unreadable"
    assert compared.reason == "config.yaml was edited since the run was made; put it back as it was"
    assert planned.reason == f"config.yaml was edited since the run was made: {DIFFER}; put it back as it was"
    capsys.readouterr()
    loaded = load_model(trained, torch.device("cpu"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {file} was edited since the run was made: {DIFFER}; what counts here is in the")
    assert loaded.record["config"]["batch_size"] == 2
    assert file.read_text() == edited


def test_without_a_checkpoint_the_page_names_no_settings(trained, file, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (run / "config.yaml").write_text(file.read_text().replace("batch_size: 2\n", "batch_size: 3\n"))
    with pytest.raises(ConfigError, match=r"was edited since the run was made\.\nPut the file back"):
        facts.read(run)


@pytest.mark.parametrize("text", ["a: [", "just words", "seed: 0", "", "- a list", "a: ${b}", "a: 1\na: 2", "\udcff"])
def test_a_file_that_is_no_configuration_any_more_is_refused(trained, file, text, capsys):
    file.write_bytes(text.encode(errors="surrogateescape"))
    said = refusals(trained)
    assert len(said) == 3 and all("holds no run's configuration any more" in words for words in said)
    compared = read(trained)
    assert compared.state == "unreadable" and "holds no run's configuration any more" in compared.reason
    capsys.readouterr()
    load_model(trained, torch.device("cpu"))
    assert "holds no run's configuration any more; what counts here is in the checkpoint" in capsys.readouterr().err


def test_a_comment_and_a_setting_without_effect_may_change(trained, file):
    file.write_text("# the run that we liked\n" + file.read_text().replace("log_every: 2\n", "log_every: 3\n"))
    assert refusals(trained) == [] and read(trained).state == "done"


def test_a_number_may_be_written_in_another_way(trained, file, capsys):
    before = read(trained).hash
    file.write_text(file.read_text().replace("lr: 0.01\n", "lr: 1e-2\n"))
    assert "lr: 1e-2" in file.read_text() and refusals(trained) == []
    assert (read(trained).hash, facts.read(trained).config["optim"]["lr"]) == (before, 0.01)
    capsys.readouterr()
    load_model(trained, torch.device("cpu"))
    assert capsys.readouterr().err == ""
    file.write_text(file.read_text().replace("lr: 1e-2\n", "lr: 2e-2\n"))
    assert all("made: optim.lr was 0.01, is 0.02." in words for words in refusals(trained))


def test_a_run_of_a_version_that_remembered_nothing_is_left_alone(trained, file):
    status = trained / "status.json"
    before = status.read_text()
    status.write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != "config_sha256"}))
    file.write_text(file.read_text().replace("batch_size: 2\n", "batch_size: 3\n"))
    assert refusals(trained) == []
    status.write_text(before)
