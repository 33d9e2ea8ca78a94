"""Writing checkpoints beside the training."""

import errno
import subprocess
import sys
import threading

import pytest
import torch

from tid import checkpoint
from tid.checkpoint import BEST, LAST, PREVIOUS, CheckpointError, Writer, load, load_newest


def state(value: float) -> dict:
    return {"weights": {"a": torch.full((3,), value), "shared": [torch.zeros(2)]}, "run": {"done": int(value)}}


@pytest.fixture
def held_back(monkeypatch):
    """Writes begin only when the event is set."""
    go, real = threading.Event(), checkpoint.save

    def save(*arguments):
        assert go.wait(timeout=20)
        real(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    yield go
    go.set()


def test_what_is_handed_over_may_change_while_it_is_written(tmp_path, held_back):
    given = state(1.0)
    with Writer(background=True) as writer:
        writer(given, tmp_path / LAST, tmp_path / BEST)
        given["weights"]["a"].fill_(9.0)
        given["run"]["done"] = 9
        assert writer.busy and not list(tmp_path.iterdir())
        held_back.set()
    assert not writer.busy
    for name in (LAST, BEST):
        found = load(tmp_path / name)
        assert found["run"] == {"done": 1} and found["weights"]["a"].tolist() == [1.0] * 3


def test_writes_come_in_their_order_and_the_last_one_counts(tmp_path, held_back):
    held_back.set()
    writer = Writer(background=True)
    for value in (1.0, 2.0, 3.0):
        writer(state(value), tmp_path / LAST)
    writer.wait()
    assert [load(tmp_path / name)["run"]["done"] for name in (LAST, PREVIOUS)] == [3, 2]


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, held_back, background):
    held_back.set()
    (tmp_path / "file").write_text("in the way")
    writer = Writer(background)
    said = []
    with pytest.raises(CheckpointError, match="last.pt: cannot be written .*make room, and the same command resumes"):
        writer(state(1.0), tmp_path / "file" / LAST, then=lambda: said.append("saved"))
        writer.wait()
    assert not said
    writer.wait()  # it is told once
    writer(state(2.0), tmp_path / LAST, then=lambda: said.append("saved"))
    writer.wait()
    assert load(tmp_path / LAST)["run"]["done"] == 2 and said == ["saved"]


def test_a_best_that_cannot_be_linked_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "link", raise_no_space)
    with pytest.raises(CheckpointError, match="best.pt: cannot be made the same as last.pt .*No space left.*resumes"):
        Writer()(state(1.0), tmp_path / LAST, tmp_path / BEST)
    assert load(tmp_path / LAST)["run"]["done"] == 1


def raise_no_space(*paths):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_whoever_waits_no_longer_is_let_go(tmp_path, held_back):
    said = []
    with pytest.raises(KeyboardInterrupt), Writer(background=True) as writer:
        writer(state(1.0), tmp_path / LAST, then=lambda: said.append("saved"))
        raise KeyboardInterrupt
    assert writer.busy
    held_back.set()
    writer.wait()
    assert not said  # the run has another status by then


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / "last.123.tmp").write_text("half")
    assert load_newest(tmp_path) == (None, [])
    assert not list(tmp_path.iterdir())


READ = """
import sys
from pathlib import Path
from tid import checkpoint
if "without" in sys.argv:
    sys.modules["torchao.optim.subclass_4bit"] = None
print(type(checkpoint.load(Path(sys.argv[1]))["optimizer"]).__name__)
"""


def test_a_new_process_reads_the_state_of_low_bit_optimizers(tmp_path):
    """One that has not trained, and so has not imported torchao."""
    subclass_4bit = pytest.importorskip("torchao.optim.subclass_4bit")
    moments = subclass_4bit.OptimState4bit.zeros((4096,), True, 128, torch.device("cpu"))
    checkpoint.save({"optimizer": moments}, tmp_path / LAST)

    def read(*more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", READ, tmp_path / LAST, *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    assert read().stdout.strip() == "OptimState4bit"
    missing = read("without").stderr
    assert "ConfigError" in missing and "pip install torchao" in missing and "damaged" not in missing
