"""Runs that are stopped, killed or damaged go on where they had saved."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import runs
import torch

from tid import checkpoint, job
from tid.handle import Handle


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run."""
    return runs.train(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("stopped_after", [1, 5, 8])
def test_a_run_stopped_by_a_signal_resumes_to_identical_metrics(finished, tmp_path, monkeypatch, stopped_after):
    runs.train_and_stop(monkeypatch, stopped_after, tmp_path)
    (folder,) = (tmp_path / "outputs" / "reference").iterdir()
    status = runs.read(folder, "status.json")
    assert (status["state"], status["step"]) == ("preempted", stopped_after + 1)

    assert runs.train(tmp_path) == folder
    assert runs.metrics(folder) == runs.metrics(finished)
    resumed, whole = (checkpoint.load(run / "checkpoints/last.pt")["train"] for run in (folder, finished))
    for name, tensor in whole["model"].items():
        assert torch.equal(resumed["model"][name], tensor), name


@pytest.mark.slow
def test_a_killed_process_resumes_from_its_last_checkpoint(tmp_path):
    more = ["total_steps=400", "eval_every=200", "checkpoint_every=5"]
    command = [sys.executable, "-m", "tid.train", *runs.settings(tmp_path, *more)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("outputs/*/*/checkpoints/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    (folder,) = (tmp_path / "outputs" / "reference").iterdir()
    assert runs.read(folder, "status.json")["state"] == "running"
    reached = checkpoint.load(folder / "checkpoints/last.pt")["run"]["done"]
    assert 0 < reached < 400

    assert runs.train(tmp_path, *more) == folder
    assert [row["step"] for row in runs.metrics(folder)] == list(range(2, 401, 2))
    assert f"resumes at step {reached}" in (folder / "logs/train.log").read_text()


@pytest.mark.parametrize("lost", [["last.pt"], ["last.pt", "previous.pt"]])
def test_damaged_checkpoints_are_reported_and_the_newest_intact_one_used(
    lost, finished, tmp_path, monkeypatch
):
    def stop(self, step):
        if step == 10:
            raise RuntimeError("power cut")
        take_step(self, step)

    take_step = job.TrainStep.__call__
    with monkeypatch.context() as patch:
        patch.setattr(job.TrainStep, "__call__", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            runs.train(tmp_path)
    (folder,) = (tmp_path / "outputs" / "reference").iterdir()
    status = runs.read(folder, "status.json")
    assert (status["state"], status["reason"]) == ("failed", "power cut")
    for name in lost:
        path = folder / "checkpoints" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.unlink()  # best.pt may be the same file
        path.write_bytes(data)

    runs.train(tmp_path)
    log = (folder / "logs/train.log").read_text()
    assert log.count("damaged (CRC") == len(lost) and "resumes at step 8" in log
    assert runs.metrics(folder) == runs.metrics(finished)


def test_a_best_checkpoint_that_was_not_made_is_made_on_resuming(tmp_path, monkeypatch):
    real = checkpoint.link

    def full(source, path):
        if path.name == checkpoint.BEST and checkpoint.load(source)["run"]["done"] == 12:
            raise OSError("full")
        real(source, path)

    settings = ("optim.lr=1e-3", "scorer=none")  # it is best at its end
    with monkeypatch.context() as patch, pytest.raises(checkpoint.CheckpointError):
        patch.setattr(checkpoint, "link", full)
        runs.train(tmp_path, *settings)
    folder = runs.train(tmp_path, *settings)
    assert runs.read(folder, "summary.json")["best"]["step"] == 12
    assert checkpoint.load(folder / "checkpoints/best.pt")["run"]["done"] == 12


def test_a_stopped_baseline_goes_on_whatever_the_drop_mode_and_selector(tmp_path, monkeypatch):
    short = ("scorer=none", "total_steps=4", "eval_every=4")
    runs.train_and_stop(monkeypatch, 1, tmp_path, *short, "drop_mode=mask_token", "selector=threshold")
    done = runs.train(tmp_path, *short)
    assert [path.name for path in done.parent.iterdir()] == [done.name]
    assert runs.read(done, "status.json")["state"] == "done"


def test_scores_are_shown_where_tokens_were_dropped_lately(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Handle, "log_histogram", lambda self, name, values, step: shown.append((step, values)))
    settings = ("drop_schedule=early", "drop_schedule.rate=0.5", "drop_schedule.until=0.5", "log_every=4")
    runs.train_and_stop(monkeypatch, 1, tmp_path, *settings)
    runs.train(tmp_path, *settings)
    assert [step for step, _ in shown] == [4, 8]
    assert all(np.isfinite(values).all() for _, values in shown)


def test_log_every_may_change_between_sittings(tmp_path, monkeypatch):
    take_step = job.TrainStep.__call__

    def and_ask_to_stop(self, step):
        take_step(self, step)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(job.TrainStep, "__call__", and_ask_to_stop)
        with pytest.raises(SystemExit):
            runs.train(tmp_path, "log_every=5")
    rows = runs.metrics(runs.train(tmp_path, "log_every=3"))
    assert [row["step"] for row in rows] == [4, 5, 8, 9, 12]
