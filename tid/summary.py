"""summary.json: what a finished run reached, what it cost, and what is needed to run it again."""

import platform
import statistics
from collections.abc import Sequence

import torch

import tid
from tid import distributed
from tid.loop import Run
from tid.messages import train_command


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture and number of threads; of several processes "2 x" before it."""
    many = f"{distributed.number()} x " if distributed.number() > 1 else ""
    if device.type == "cuda":
        return many + torch.cuda.get_device_name(device)
    return f"{many}{platform.machine()} CPU, {torch.get_num_threads()} threads"


def command(overrides: Sequence[str]) -> str:
    """The command that makes a run again from the settings that it was started with. For a cell of a sweep: the sweep,
    with one value for each key; where it was launched, and what a search did to find the values, is left out."""
    gone = ("hydra.", "hydra/", "dry_run=", "fail_fast=", "retry_failed=")
    kept = [word for word in overrides if not word.lstrip("+~").startswith(gone)]
    of_sweep = any(word.startswith("sweeps=") for word in kept)
    return train_command(*(["-m", "hydra/sweeper=cells"] if of_sweep else []), *kept)


def summarise(run: Run, *, run_hash: str, start_seconds: float, code: dict, overrides: Sequence[str]) -> dict:
    """summary.json as a dict. code: as from tid.revision; overrides: the settings that the run was started with.

    Losses in nats; `best` was chosen on the even validation documents, and its
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
        "seconds_with_start": run.seconds + start_seconds + step.replays.graphs.seconds,
        "train_flops": step.train_flops,
        "score_flops": step.score_flops,
        "parameters": step.model.parameter_count,
        "precision": step.precision,
        "kernels_by_hand": list(step.updating.by_hand),
        "device": device_name(step.device),
        "data": run.data,
        "hash": run_hash,
        **code,
        "versions": {"tid": tid.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": command(overrides),
    }


def flat(summary: dict) -> dict:
    """The numbers of a summary, nested keys joined: {"best/val_loss": ...}."""
    nested = {f"{key}/{name}": v for key, part in summary.items() if isinstance(part, dict) for name, v in part.items()}
    return {key: v for key, v in (summary | nested).items() if isinstance(v, int | float)}
