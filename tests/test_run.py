"""Whole runs: what they leave, that they resume, stop, and fail as they promise."""

import os
import sys

import pytest
import runs

from tid import checkpoint, revision
from tid.config import ConfigError
from tid.loop import NonFiniteLoss
from tid.optim import AdamW
from tid.step import TrainStep


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run."""
    return runs.train(tmp_path_factory.mktemp("finished"))


def test_a_run_leaves_its_folder_as_promised(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml", "status.json", "summary.json", "documents.csv", "logs/metrics.jsonl", "logs/metrics.csv",
        "logs/train.log", "checkpoints/last.pt", "checkpoints/best.pt",
    }  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    status, summary = runs.read(finished, "status.json"), runs.read(finished, "summary.json")
    assert (status["state"], status["step"], status["total_steps"]) == ("done", 12, 12)
    assert summary["steps"] == 12 and summary["tokens"] == 12 * 2 * 16
    assert summary["hash"] == runs.hash_of(finished) and summary["final"]["step"] == 12
    assert summary["train_flops"] > summary["score_flops"] > 0
    assert 0.1 < summary["drop_rate"] < 0.2  # linear decay from 0.3 to 0


def test_metrics_have_a_row_per_log_step_and_validation_where_due(finished):
    rows = runs.metrics(finished)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8, 12]
    assert rows[-1]["val_loss"] < rows[1]["val_loss"]
    scheduled = [row["drop_rate_scheduled"] for row in rows]
    assert scheduled[0] == pytest.approx((0.3 + 0.3 * 11 / 12) / 2)
    assert scheduled == sorted(scheduled, reverse=True)


def test_best_is_the_lowest_on_the_selecting_half_and_its_checkpoint_evaluates_to_it(finished):
    best = runs.read(finished, "summary.json")["best"]
    run = checkpoint.load(finished / "checkpoints/best.pt")["run"]
    assert run["done"] == best["step"] and run["best"] == best


def test_the_same_command_leaves_a_finished_run_alone(finished, monkeypatch, capsys):
    before = (finished / "logs/metrics.jsonl").stat().st_mtime_ns
    assert runs.train(finished.parents[2]) == finished
    assert (finished / "logs/metrics.jsonl").stat().st_mtime_ns == before
    said = capsys.readouterr().err
    assert "done already" in said and "other code" not in said
    monkeypatch.setattr(revision, "SOURCE", "0123456789ab")
    runs.train(finished.parents[2])
    assert "warning: other code made it (source" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished, tmp_path):
    assert runs.metrics(runs.train(tmp_path)) == runs.metrics(finished)
    other = runs.train(tmp_path, "seed=1")
    assert runs.metrics(other) != runs.metrics(finished)


def test_compiling_the_step_is_no_training_time(tmp_path, monkeypatch):
    real = TrainStep.__call__

    def first_compiled(step, number):
        step.replays.graphs.seconds = 1000.0
        real(step, number)

    monkeypatch.setattr(TrainStep, "__call__", first_compiled)
    folder = runs.train(tmp_path, "total_steps=2", "eval_every=2")
    summary = runs.read(folder, "summary.json")
    assert -1000 < summary["seconds"] < 0 < summary["seconds_with_start"] < 1000


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_batch_and_checkpoint(tmp_path, monkeypatch):
    lr_at = AdamW.lr_at
    monkeypatch.setattr(AdamW, "lr_at", lambda self, step, total: 1e30 if step == 6 else lr_at(self, step, total))
    with pytest.raises(NonFiniteLoss, match=r"step 7, batch of training sequences \[\d+, \d+\].*last\.pt"):
        runs.train(tmp_path)
    (folder,) = (tmp_path / "outputs" / "reference").iterdir()
    status = runs.read(folder, "status.json")
    assert status["state"] == "failed" and "not finite at step 7" in status["reason"] and status["diverged"]
    assert checkpoint.load(folder / "checkpoints/last.pt")["run"]["done"] == 6


def test_two_processes_never_train_in_one_folder(tmp_path, monkeypatch):
    from tid.lock import RunLock, RunLocked

    folder = runs.train(tmp_path, "total_steps=2", "eval_every=2")
    (folder / "status.json").unlink()
    with RunLock(folder), pytest.raises(RunLocked, match=str(os.getpid())):
        runs.train(tmp_path, "total_steps=2", "eval_every=2")


def test_the_baseline_is_one_run_whatever_the_scorer(tmp_path):
    plain = runs.train(tmp_path, "drop_schedule=none", "total_steps=2", "eval_every=2")
    same = runs.train(tmp_path, "scorer=none", "drop_mode=hide", "total_steps=2", "eval_every=2")
    assert plain == same and plain.name.startswith("no_drop-seed0-")
    assert runs.read(plain, "summary.json")["drop_rate"] == 0


def test_impossible_combinations_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="threshold|Threshold"):
        runs.train(tmp_path, "drop_mode=skip", "drop_mode.last_layers=0", "selector=threshold")
    with pytest.raises(ConfigError, match="first position"):
        runs.train(tmp_path, "protect_first=0")
    with pytest.raises(ConfigError, match="no layer to skip"):
        runs.train(tmp_path, "drop_mode=skip")
    with pytest.raises(ConfigError, match="low must be at most rate"):
        runs.train(tmp_path, "drop_schedule=uniform", "drop_schedule.low=0.9")
    with pytest.raises(ConfigError, match="model.vocab_size: wanted at least the tokenizer's 50,257, got 1,000"):
        runs.train(tmp_path, "model.vocab_size=1000")
    assert not (tmp_path / "outputs").exists() and not (tmp_path / "data").exists()


def test_an_optimizer_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)  # as if it were missing
    with pytest.raises(ConfigError, match=r"AdamW8bit needs torchao, .*: pip install 'tid\[lowbit\]'"):
        runs.train(tmp_path, "optim=adamw_8bit")
    assert not (tmp_path / "outputs").exists() and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [("batch_size=500", "batch_size: an update reads 500 sequences"), ("context=5000", "context: the training text")],
)
def test_a_text_too_short_for_the_settings_is_refused_before_the_run_has_a_folder(tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        runs.train(tmp_path, setting)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("options", [["optim=muon"], ["precision=bf16"], ["accumulate_steps=2", "stride=8"]])
def test_other_optimizers_precisions_and_batches_train(tmp_path, options):
    rows = runs.metrics(runs.train(tmp_path, *options))
    assert rows[-1]["val_loss"] < rows[1]["val_loss"]


def test_the_drop_rate_is_that_of_all_steps_not_of_those_that_drop(tmp_path):
    early = ["drop_schedule=early", "drop_schedule.rate=0.5", "drop_schedule.until=0.25", "scorer=random"]
    run = runs.train(tmp_path, *early)
    rows = runs.metrics(run)
    assert [round(row["drop_rate_scheduled"], 2) for row in rows] == [0.5, 0.25, 0, 0, 0, 0]
    assert rows[1]["drop_rate_realised"] == pytest.approx(0.25, abs=0.05)
    assert runs.read(run, "summary.json")["drop_rate"] == pytest.approx(0.125, abs=0.02)


def test_a_text_that_moves_is_the_same_run_and_one_that_changes_another(tmp_path, monkeypatch, capsys):
    short = ["total_steps=2", "eval_every=2"]
    folder = runs.train(tmp_path, *short)
    assert f"train: {tmp_path}/train.jsonl@sha256:" in (folder / "config.yaml").read_text()
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((tmp_path / "train.jsonl").read_bytes())
    assert runs.train(tmp_path, *short, f"data.train={moved}") == folder and "done already" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert runs.train(tmp_path, *short, "data.train=moved.jsonl") == folder
    moved.write_text(moved.read_text() + '"one more line"\n')
    other = runs.train(tmp_path, *short, f"data.train={moved}")
    sums = [runs.read(run, "summary.json")["data"]["train.jsonl"] for run in (folder, other)]
    assert other != folder and sums[0] != sums[1]


def test_another_text_under_the_same_identity_is_refused_done_or_not(tmp_path):
    """As when a package holds other text in another version."""
    short = ["total_steps=2", "eval_every=2"]
    folder = runs.train(tmp_path, *short)
    runs.tell_of_another_text(folder)
    with pytest.raises(ConfigError, match="train.jsonl changed since"):
        runs.train(tmp_path, *short)
    (folder / "status.json").unlink()
    with pytest.raises(ConfigError, match="train.jsonl changed since"):
        runs.train(tmp_path, *short)
