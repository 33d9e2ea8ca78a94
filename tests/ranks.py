"""One of several processes for test_distributed.py, started by torchrun.

    ranks.py steps FILE DEVICE CASE ...          train CASES together; rank 0 writes what became of them
    ranks.py stop STEP SETTING ...               tid.train; after STEP steps rank 1 sends torchrun a SIGTERM
    ranks.py warn STEP SETTING ...               tid.train; after STEP steps rank 1 gets a SIGUSR2
    ranks.py fail STEP SETTING ...               tid.train; after STEP steps rank 1 raises RuntimeError
    ranks.py linger SECONDS SETTING ...          tid.train; the leader takes that long to write the last checkpoint
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from tiny import build, run, tiny_step, tiny_text, weights

from tid import checkpoint, distributed, processes
from tid.flat import flat_update
from tid.pieces import Pieces
from tid.processes import together
from tid.step import TrainStep
from tid.validation import Validation

STEPS = 6
CASES: dict[str, dict] = {
    "no drop": {"scorer": "none"},
    "entropy": {"scorer": "entropy"},
    "cached": {"scorer": build("scorer", "entropy", source="cached"), "text": tiny_text(300)},  # 18 sequences an epoch
    "own rates": {"scorer": "grad_norm", "schedule": "uniform", "selector": "sampled"},
    "mask_aux": {"mode": "mask_aux"},
    "loss_mask": {"mode": "loss_mask", "accumulate_steps": 2},
    "skip": {"mode": "skip", "schedule": 0.5},
    "threshold": {"scorer": "unigram", "selector": "threshold"},
    "fp16": {"precision": "fp16"},
    "muon": {"optim": "muon", "mode": "mask_token"},
    "flat": {"flat": True, "mode": "mask_token", "accumulate_steps": 2},
}


def outcome(device: torch.device, flat: bool = False, **settings: Any) -> dict:
    """Metrics, weights and counters of a few steps, and the nats of a validation text after them.

    On a GPU the steps are captured. flat: on a CPU too, with the update that is meant for a GPU.
    """
    torch._dynamo.reset()
    step = tiny_step(device=device, fast=device.type == "cuda", **settings)
    if flat and device.type == "cpu":
        optim = build("optim", "adamw", lr=3e-3, warmup_steps=2)
        make = flat_update(optim, step.model)
        step.updating = make(step.model, step.learned, optim, "fp32", step.accumulate_steps > 1, Pieces())
    run(step, STEPS)
    nats = validation(device).nats(step.trained)
    found = {
        "metrics": step.metrics[:STEPS].cpu(),
        "weights": {name: tensor.cpu() for name, tensor in weights(step).items()},
        "counts": {"seen": step.token_seen.cpu(), "drops": step.token_drops.cpu()},
        "selector": {name: tensor.cpu() for name, tensor in step.dropout.state.items()},
        "nats": torch.from_numpy(nats),
    }
    step.replays.graphs.release()
    return found


def validation(device: torch.device) -> Validation:
    """Of a text whose last batch is not full, in overlapping windows."""
    text, ones = tiny_text(333, seed=5), torch.ones(101, dtype=torch.int64).numpy()
    how = {"context": 16, "stride": 12, "batch_size": 4, "precision": "fp32", "device": device}
    return Validation(text, (text == 100).nonzero()[0][:-1], ones, ones, **how)


def steps(file: str, device: torch.device, cases: list[str]) -> None:
    with together() as peers:
        peers.connect(device)
        made = {name: outcome(device, **CASES[name]) for name in cases}
        for name, found in made.items():
            distributed.assert_same({f"result of {name}": distributed.checksum(found["weights"].values())}, device)
        if peers.leads:
            torch.save(made, file)


def linger(seconds: float) -> None:
    """Have the leader's last write take that long, with a signal to torchrun after a quarter of it, and as much
    patience with others that should answer, or end."""
    save = checkpoint.save

    def and_wait(state: dict, path: Path) -> None:
        if state["run"]["done"] == 12:
            threading.Timer(seconds / 4, os.kill, (os.getppid(), signal.SIGTERM)).start()
            time.sleep(seconds)
        save(state, path)

    checkpoint.save = and_wait
    processes.ANSWER_SECONDS = processes.LINGER_SECONDS = seconds / 4
    from tid.train import main

    main()


def train(after: int, what: str) -> None:
    take_step = TrainStep.__call__

    def and_then(self: TrainStep, step: int) -> None:
        take_step(self, step)
        if step + 1 == after and distributed.rank() == 1:
            if what == "fail":
                raise RuntimeError("no such luck")
            os.kill(*((os.getpid(), signal.SIGUSR2) if what == "warn" else (os.getppid(), signal.SIGTERM)))
        if step + 1 >= after:
            time.sleep(0.5)  # or a fast machine is done before the signal comes

    TrainStep.__call__ = and_then
    from tid.train import main

    main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, number, *rest = sys.argv[1:]
    if command == "steps":
        steps(number, torch.device(rest[0]), rest[1:])
    else:
        sys.argv[1:] = rest
        linger(float(number)) if command == "linger" else train(int(number), command)
