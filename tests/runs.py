"""Real training runs for tests: composed from conf/ as the command line does, tiny, in a folder of their own."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tid import checkpoint, job
from tid.config import build, check, coerced, plain
from tid.logs import read_metrics

CONF = str(Path(__file__).resolve().parent.parent / "conf")
TINY = [
    "model=gpt_nano", "model.hidden_size=16", "model.num_heads=1", "model.num_layers=2", "model.intermediate_size=32",
    "data=jsonl", "tracker=none", "device=cpu", "context=16", "batch_size=2", "total_steps=12", "eval_every=4",
    "checkpoint_every=3", "log_every=2", "optim.warmup_steps=2", "optim.lr=1e-2",
]  # fmt: skip
TIMES = ("seconds", "step_ms", "score_ms", "tokens_per_second", "memory_mib")


def write_texts(folder: Path) -> list[str]:
    """Settings that name a small text in `folder`: 40 training and 8 validation documents."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "moon", "until", "it", "was", "day", "again"]

    def document(number: int) -> str:
        return " ".join(words[(number * 7 + i * (1 + number % 5)) % len(words)] for i in range(40 + number % 9))

    for split, numbers in (("train", range(40)), ("val", range(100, 108))):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(document(n)) + "\n" for n in numbers))
    return [f"data.train={folder}/train.jsonl", f"data.val={folder}/val.jsonl"]


def settings(folder: Path, *more: str) -> list[str]:
    """The command-line settings of a tiny run whose files all lie in `folder`."""
    shared = [f"{kind}_dir={folder}/{kind}" for kind in ("data", "tokenizer")]
    return [*TINY, *write_texts(folder), *shared, f"output_dir={folder}/outputs", *more]


def train(folder: Path, *more: str) -> Path:
    """Train a tiny run and return its folder."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = coerced(plain(compose("train", settings(folder, *more))))
    return job.train(config, check(config), build(config), overrides=list(more))


def tell_of_another_text(run: Path) -> None:
    """Have the files of a run say that its training text was another."""
    for file in (run / "checkpoints/last.pt", run / "checkpoints/best.pt"):
        state = checkpoint.load(file)
        state["run"]["data"]["train.jsonl"] = "0" * 64
        checkpoint.save({key: value for key, value in state.items() if key != "format"}, file)
    if (run / "summary.json").exists():
        summary = read(run, "summary.json")
        summary["data"]["train.jsonl"] = "0" * 64
        (run / "summary.json").write_text(json.dumps(summary))


def metrics(run: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the clock."""
    rows, torn = read_metrics(run)
    assert not torn
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def read(run: Path, name: str) -> dict:
    """A JSON file of the run."""
    return json.loads((run / name).read_text())


def hash_of(run: Path) -> str:
    return re.fullmatch(r".*-([0-9a-f]{8})", run.name)[1]


def train_and_stop(monkeypatch, stopped_after: int, *run) -> None:
    """Train, and have a signal come after that step."""
    take_step = job.TrainStep.__call__

    def and_ask_to_stop(self, step):
        take_step(self, step)
        if step == stopped_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(job.TrainStep, "__call__", and_ask_to_stop)
        with pytest.raises(SystemExit) as stopped:
            train(*run)
    assert stopped.value.code == 143
