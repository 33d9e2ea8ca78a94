"""Runs that wandb logged offline: which of their parts were not uploaded yet, and the command that uploads them.

A run that was resumed has a folder for each sitting, all of one id: `wandb sync` (0.31) uploads those of one id one
after the other, in the order in which they began, and appends; no option is needed. It leaves <id>.wandb.synced beside
what it has uploaded, and skips that the next time.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path

PARTS = "wandb/offline-run-*"


def waiting(run: Path) -> list[Path]:
    """The folders of a run's parts that are not uploaded, oldest first."""
    return sorted(part for part in run.glob(PARTS) if not any(part.glob("*.wandb.synced")))


def sync_command(runs: Iterable[Path]) -> str:
    """One line for a shell that uploads what is waiting of these runs; "" when nothing is.

    It names folders of runs by a pattern, so that it stays short for a sweep of hundreds.
    """
    homes = sorted({run.parent for run in runs if waiting(run)})
    return " ".join(["wandb sync", *(f"{shlex.quote(str(home))}/*/{PARTS}" for home in homes)]) if homes else ""
