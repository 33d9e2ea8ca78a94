"""summary.json: what a finished run reached, what it cost, and what is needed to run it again."""

import platform
import statistics
import sys

import torch

import tid
from tid import distributed
from tid.loop import Run
from tid.revision import present


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture and number of threads; of several processes "2 x" before it."""
    many = f"{distributed.number()} x " if distributed.number() > 1 else ""
    if device.type == "cuda":
        return many + torch.cuda.get_device_name(device)
    return f"{many}{platform.machine()} CPU, {torch.get_num_threads()} threads"


def summarise(run: Run, *, run_hash: str, start_seconds: float) -> dict:
    """summary.json as a dict. Losses in nats; `best` was chosen on the even validation documents, and its
    `val_report_loss` is on the odd ones; `final` is after the last step. Times in ms and seconds, floating-point
    operations as counted by GPT.flops_per_token."""
    step, totals = run.step, run.totals
    return {
        "final": run.final,
        "best": run.best,
        "steps": run.done,
        "tokens": run.done * run.samples_per_step * step.batches.context,
        "epochs": run.done * run.samples_per_step / step.batches.num_sequences,
        "drop_rate": totals["dropped"] / totals["droppable"] if totals["droppable"] else 0.0,
        "step_ms": statistics.median(totals["step_ms"]),
        "score_ms": statistics.median(totals["score_ms"]) if totals["score_ms"] else 0.0,  # of the steps that score
        "seconds": run.seconds,
        "seconds_with_start": run.seconds + start_seconds,
        "train_flops": step.train_flops,
        "score_flops": step.score_flops,
        "parameters": step.model.parameter_count,
        "precision": step.precision,
        "device": device_name(step.device),
        "data": run.data,
        "hash": run_hash,
        **present(),
        "versions": {"tid": tid.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": " ".join(sys.argv),
    }
