"""Several processes, one run: torchrun starts real ones, over gloo on this machine, over NCCL on GPUs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import runs
import torch

from tid import checkpoint, job
from tid.config import ConfigError
from tid.torchrun import AFTERWARDS, refuse_uneven

pytestmark = pytest.mark.slow  # each starts processes that train

RANKS = str(Path(ranks.__file__))
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
# Adam makes a whole step of the sign of a gradient near zero, and Muon rounds to 16 bits, so weights differ more than
# losses do: what is held to exactness is what was counted and what was chosen.
LOSS, MUON = {"atol": 2e-6, "rtol": 2e-6}, {"atol": 2e-3, "rtol": 2e-3}


def torchrun(*arguments: str, processes: int = 2, seconds: int = 100) -> subprocess.CompletedProcess:
    """Run a script (RANKS) or a module ("-m", ...) in several processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_NVLS_ENABLE": "0"}
    return subprocess.run(
        [*command, *arguments], env=environment, cwd=job.__file__.rpartition("/tid/")[0], timeout=seconds,
        capture_output=True, text=True,
    )  # fmt: skip


def trained_together(folder: Path, device: str, *cases: str) -> dict:
    done = torchrun(RANKS, "steps", str(folder / "made.pt"), device, *cases, seconds=100 if device == "cpu" else 400)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "made.pt")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes made of each case."""
    return trained_together(tmp_path_factory.mktemp("together"), "cpu", *ranks.CASES)


def assert_alike(mine: dict, alone: dict, tolerance: dict) -> None:
    """Every loss, drop count and validation nat of two trainings."""
    for column in (0, 1):
        scale = 1 if column == 0 else 20  # gradient norms add up what losses average
        loose = {name: scale * value for name, value in tolerance.items()}
        torch.testing.assert_close(mine["metrics"][:, column], alone["metrics"][:, column], **loose)
    assert torch.equal(mine["metrics"][:, 2:], alone["metrics"][:, 2:])
    for name, counted in alone["counts"].items():
        assert torch.equal(mine["counts"][name], counted), name
    for name, tensor in alone["selector"].items():
        torch.testing.assert_close(mine["selector"][name], tensor)
    loose = {name: 20 * value for name, value in tolerance.items()}
    torch.testing.assert_close(mine["nats"], alone["nats"], **loose)


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_processes_train_as_one(together, case):
    alone = ranks.outcome(torch.device("cpu"), **ranks.CASES[case])
    tolerance = MUON if case in ("muon", "fp16") else LOSS
    assert_alike(together[case], alone, tolerance)
    assert (alone["metrics"][:, 2] > 0).any() == (case != "no drop")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of one process. Random tokens go: entropies so nearly equal change places when rounded."""
    return runs.train(tmp_path_factory.mktemp("finished"), "scorer=random")


def assert_same_curves(run: Path, other: Path, relative: float) -> None:
    mine, its = runs.metrics(run), runs.metrics(other)
    assert [row["step"] for row in mine] == [row["step"] for row in its]
    for row, same in zip(mine, its, strict=True):
        assert row == pytest.approx(same, rel=relative)


def stopped_and_resumed(folder: Path, monkeypatch, *more: str) -> Path:
    """A run of two processes that torchrun stops, resumed alone and stopped again, finished by two; its folder."""
    stopped = torchrun(RANKS, "stop", "5", *runs.settings(folder, *more), seconds=300)
    assert stopped.returncode != 0
    (run,) = (folder / "outputs" / "reference").iterdir()
    status = runs.read(run, "status.json")
    assert (status["state"], status["reason"].partition(" at")[0]) == ("preempted", "stopped by signal 15"), status
    assert 5 <= status["step"] < 12, stopped.stderr[-3000:]
    assert stopped.stderr.count("stopped by signal 15 at step") == 1

    take_step = job.TrainStep.__call__

    def and_stop(self, step):
        take_step(self, step)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(job.TrainStep, "__call__", and_stop)
        with pytest.raises(SystemExit):
            runs.train(folder, *more)
    reached = status["step"] + 1
    assert checkpoint.load(run / "checkpoints/last.pt")["run"]["done"] == reached
    done = torchrun("-m", "tid.train", *runs.settings(folder, *more), seconds=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(str(run)) == 1 and f"resumes at step {reached}" in done.stderr
    assert list((folder / "outputs" / "reference").iterdir()) == [run]
    return run


@pytest.mark.slow
def test_a_run_is_stopped_and_resumed_by_any_number_of_processes(finished, tmp_path, monkeypatch):
    run = stopped_and_resumed(tmp_path, monkeypatch, "scorer=random", *runs.write_texts(finished.parents[2]))
    assert not torch.distributed.is_initialized()  # in this process, which trained alone
    assert_same_curves(run, finished, 1e-5)
    assert run.name == finished.name  # the number of processes is no part of what a run is
    files, its = ({path.relative_to(folder) for path in folder.rglob("*")} for folder in (run, finished))
    assert not files - its
    assert runs.read(run, "summary.json")["device"].startswith("2 x ")


def test_a_warning_of_the_time_limit_to_one_process_saves_and_stops_all(tmp_path):
    """SIGUSR2, which SLURM sends to every process of a job and torchrun to none unless asked to."""
    warned = torchrun(RANKS, "warn", "3", *runs.settings(tmp_path, "checkpoint_every=12"))
    assert warned.returncode != 0
    (run,) = (tmp_path / "outputs" / "reference").iterdir()
    status = runs.read(run, "status.json")
    assert status["state"] == "preempted" and status["reason"].startswith("stopped by signal 12 at"), status
    assert 3 <= status["step"] < 12 and warned.stderr.count("stopped by signal 12 at step") == 1
    assert checkpoint.load(run / "checkpoints/last.pt")["run"]["done"] == status["step"]


@pytest.mark.slow
def test_a_signal_while_the_leader_writes_the_end_changes_nothing(tmp_path):
    """The others are there to answer until it has."""
    torchrun(RANKS, "linger", "8", *runs.settings(tmp_path))
    (run,) = (tmp_path / "outputs" / "reference").iterdir()
    status = runs.read(run, "status.json")
    assert status["state"] == "done", status
    assert checkpoint.load(run / "checkpoints/last.pt")["run"]["done"] == 12 and (run / "summary.json").exists()


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_and_is_told_once(tmp_path):
    failed = torchrun(RANKS, "fail", "3", *runs.settings(tmp_path))
    assert failed.returncode != 0
    assert failed.stderr.count("RuntimeError: no such luck") == 1
    (run,) = (tmp_path / "outputs" / "reference").iterdir()
    status = runs.read(run, "status.json")
    assert (status["state"], status["reason"]) == ("failed", "rank 1: no such luck")
    log = (run / "logs/train.log").read_text()
    assert "rank 1: no such luck" in log and "in and_then" in log  # its traceback too


def under_torchrun(monkeypatch, processes: int, rank: int = 0) -> None:
    told = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": rank}
    for name, value in (told | {"LOCAL_RANK": rank}).items():
        monkeypatch.setenv(name, str(value))


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    refuse_uneven(7)
    under_torchrun(monkeypatch, 4)
    refuse_uneven(8)
    with pytest.raises(ConfigError, match="multiple of the 4 processes.*got 6.*batch_size=4 or 8"):
        refuse_uneven(6)
    with pytest.raises(ConfigError, match=r"got 2.*batch_size=4,"):
        refuse_uneven(2)


@pytest.mark.parametrize(
    ("module", "settings", "refusal"),
    [("train", ["batch_size=3"], "multiple of the 2 processes"), ("train", ["-m", "seed=0,1"], "without torchrun"),
     ("evaluate", ["checkpoint=x"], "python -m tid.evaluate")],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_once_before_anything_is_written(
    monkeypatch, tmp_path, module, settings, refusal
):
    told = []
    for rank in (0, 1):
        under_torchrun(monkeypatch, 2, rank)
        more = runs.settings(tmp_path) if module == "train" else []
        command = [sys.executable, "-m", f"tid.{module}", *more, *settings]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and not done.stdout
        told.append(done.stderr)
    assert refusal in told[0] and told[0].endswith(f"\n{AFTERWARDS}\n") and not told[1]
    assert {path.name for path in tmp_path.iterdir()} <= {"train.jsonl", "val.jsonl"}


# ------------------------------------------------------------------------------------------ on GPUs


@TWO_GPUS
@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["no drop", "entropy", "cached", "loss_mask", "threshold", "fp16", "muon"])
def test_two_gpus_train_as_one(tmp_path, case):
    """Captured, over NCCL. Products of other sizes round otherwise; Adam's first steps make much of that."""
    together = trained_together(tmp_path, "cuda", case)[case]["metrics"]
    alone = ranks.outcome(torch.device("cuda"), **ranks.CASES[case])["metrics"]
    torch.testing.assert_close(together[:, 0], alone[:, 0], rtol=5e-3, atol=5e-3)
    assert torch.equal(together[:, 3:], alone[:, 3:])


@TWO_GPUS
@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_gpus_are_stopped_and_resumed_in_any_number(tmp_path, monkeypatch):
    for part in ("whole", "parts"):
        (tmp_path / part).mkdir()
    more = ["scorer=random", "device=cuda", "precision=bf16", *runs.write_texts(tmp_path)]
    whole = runs.train(tmp_path / "whole", *more)
    run = stopped_and_resumed(tmp_path / "parts", monkeypatch, *more)
    assert_same_curves(run, whole, 2e-2)
