"""Stopping runs that are clearly losing: a run is held to its siblings, the other runs in its sweep's folder."""

import statistics
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from tid import config_file
from tid.component import component
from tid.config import is_baseline
from tid.logs import read_metrics

SAME = ("data", "context", "batch_size", "accumulate_steps", "total_steps")  # else curves say nothing of each other
CONTROL = "tid.scorers.Random"


def prunes_nothing(config: dict) -> bool:
    return config["pruner"]["_target_"] == "tid.pruning.NoPruner"


@component
class NoPruner:
    """Every run goes on to its end."""

    def verdict(self, config: dict, folder: Path, row: dict) -> str | None:
        return None


@component
class MedianRule:
    """Stop a run whose best validation loss so far is above the median of its siblings' best so far at that step.

    The loss is that of the even validation documents, which select checkpoints too: the odd ones, which results are
    reported on, decide nothing. warmup_steps: before, nothing is stopped. min_siblings: how many must have come as
    far. Controls (no drop, and random tokens) always go on, since everything is held to them. The rule is that of
    Vizier (Golovin et al. 2017), with the best value instead of the mean.
    """

    warmup_steps: Annotated[int, Field(ge=0)]
    min_siblings: Annotated[int, Field(ge=1)]

    def verdict(self, config: dict, folder: Path, row: dict) -> str | None:
        """Why the run in `folder` should stop after the evaluation in `row`; None if it should not."""
        step = row["step"]
        if step < self.warmup_steps or is_baseline(config) or config["scorer"]["_target_"] == CONTROL:
            return None
        mine = best_until(folder, step)
        others = [best_until(other, step) for other in siblings(config, folder)]
        others = [value for value in others if value is not None]
        if mine is None or len(others) < self.min_siblings or mine <= statistics.median(others):
            return None
        return (
            f"best validation loss {mine:.4f} nats up to step {step} is above the median "
            f"{statistics.median(others):.4f} of {len(others)} siblings, on the even documents"
        )


def siblings(config: dict, folder: Path) -> list[Path]:
    """The other runs of the sweep that were given the same data and budget, but for those whose config.yaml cannot be
    read or was edited."""
    found = []
    for file in sorted(folder.parent.glob(f"*/{config_file.FILE}")):
        if file.parent.resolve() == folder.resolve():
            continue
        try:
            other = config_file.read(file.parent)
            edited = config_file.edits(file.parent)
        except (OSError, ValueError, yaml.YAMLError):  # it is just being written
            continue
        if isinstance(other, dict) and not edited and all(other.get(key) == config[key] for key in SAME):
            found.append(file.parent)
    return found


def best_until(folder: Path, step: int) -> float | None:
    """The lowest validation loss of a run up to `step`, in nats, on the even documents.

    None if it has not come that far, or has a row of a version that did not log this: its best is not known then."""
    rows = [row for row in read_metrics(folder)[0] if row.get("val_loss") is not None]
    reached = [row.get("val_select_loss") for row in rows if row["step"] <= step]
    return min(reached) if reached and None not in reached and rows[-1]["step"] >= step else None
