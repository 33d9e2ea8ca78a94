"""dry_run=true of one run: it answers as training would, and writes nothing."""

import pytest
import runs
import torch
from composing import composed

from tid import train
from tid.config import ConfigError, coerced
from tid.data.errors import DataError

WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA it trains")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return runs.train(tmp_path_factory.mktemp("finished"))


def would_train(folder, *more: str):
    """What dry_run=true answers, in this process."""
    return train.would_train(coerced(composed(*runs.settings(folder, *more))), list(more))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("protect_first=0", "first position"),
        ("drop_mode=skip drop_mode.last_layers=0 selector=threshold", "only approaches the rate"),
        ("model.vocab_size=1000", "model.vocab_size: wanted at least"),
        ("model.init_from=nofolder", "model.init_from: wanted a folder with config.json"),
        ("kernels=all", "kernels=all needs a CUDA GPU"),
        ("data.train=nofile.jsonl", "nofile.jsonl does not exist"),
        pytest.param("device=cuda", "sees no CUDA device", marks=WITHOUT_CUDA),
    ],
)  # fmt: skip
def test_a_dry_run_refuses_what_training_would(tmp_path, settings, message):
    for ask in (would_train, runs.train):
        with pytest.raises((ConfigError, DataError), match=message):
            ask(tmp_path, *settings.split())
    assert not (tmp_path / "outputs").exists() and not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_made_is_refused_by_a_run_and_a_dry_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for ask in (would_train, runs.train):
        with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\); name a folder: output_dir="):
            ask(tmp_path, f"output_dir={tmp_path / 'file' / 'outputs'}")


def test_a_dry_run_names_the_folder_and_says_what_is_too_slow_here(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert would_train(tmp_path).name == finished.name and capsys.readouterr().err == ""
    slow = ["model.hidden_size=64", "total_steps=1_000_000_000", "device=auto"]
    assert would_train(tmp_path, *slow).parent == tmp_path / "outputs" / "reference"
    said = capsys.readouterr().err
    assert said.startswith("it would be refused: no CUDA device, and on this CPU a run would take about ")
    assert not (tmp_path / "outputs").exists()


def test_a_dry_run_of_a_finished_run_names_it_whatever_this_machine_has(finished, capsys):
    assert would_train(finished.parents[2], "kernels=all") == finished == runs.train(finished.parents[2], "kernels=all")
