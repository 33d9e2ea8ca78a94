"""What a sweep has to do: its cells, each once, what became of them so far, and how long the rest may take."""

import functools
import json
import os
import statistics
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock, Timeout

from tid.config import RunConfig, SweepConfig, check, coerced, run_folder, run_hash
from tid.config_file import refuse_edited
from tid.logs import now, read_status, write_text
from tid.pin import pin
from tid.pruning import prunes_nothing
from tid.sweep.labels import labels

ENDED = ("done", "pruned")
LOCK_SECONDS = 5
MEANING = {
    "new": "to be run",
    "interrupted": "resumes",
    "failed": "failed before; retry_failed=true runs it again",
    "retry": "failed before, runs again",
    "elsewhere": "another process is at it; waited for",
    "done": "done",
    "pruned": "stopped early, as a loser",
}


@dataclass
class Cell:
    """One run of a sweep. state: a key of MEANING; step of total_steps updates are made."""

    config: dict
    settings: RunConfig
    label: str
    folder: Path
    state: str = "new"
    step: int = 0
    reason: str = ""
    code: dict = field(default_factory=dict)  # which code it was made by: see tid.revision
    seconds: float | None = None  # that a finished run took
    meant: list[str] = field(default_factory=list)  # the command line's settings, for messages

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def total_steps(self) -> int:
        return self.settings.total_steps

    @functools.cached_property
    def size(self) -> str:
        """What decides how long it takes, but for its way of dropping."""
        keys = ("model", "context", "batch_size", "accumulate_steps", "total_steps", "eval_every", "data")
        return json.dumps({key: self.config[key] for key in keys}, sort_keys=True)

    @property
    def to_run(self) -> bool:
        return self.state in ("new", "interrupted", "retry", "elsewhere")

    @property
    def home(self) -> Path:
        """Where the sweep keeps what is about this cell, and not the cell's result."""
        return sweep_folder(self.settings) / ".sweep"

    @property
    def frozen(self) -> Path:
        return self.home / "cells" / f"{self.name}.json"

    @property
    def console(self) -> Path:
        """All that the cell's process said."""
        return self.home / "logs" / f"{self.name}.log"


@dataclass
class Slot:
    """Where one cell at a time runs. number: or, on a cluster, its job's name; gpu: what CUDA_VISIBLE_DEVICES is there;
    None: not touched."""

    number: int | str
    gpu: str | None
    cell: Cell | None = None
    process: BaseProcess | None = None
    started: float = 0.0


def sweep_folder(settings: SweepConfig) -> Path:
    return Path(settings.output_dir) / settings.name


def make_cells(configs: list[dict], meant: list[list[str]], retry_failed: bool) -> list[Cell]:
    """The sweep's cells in order, those of equal results once (every baseline is one). Raises ConfigError."""
    unique: dict[tuple[str, str], tuple[dict, list[str]]] = {}
    for config, words in zip(map(coerced, configs), meant, strict=True):
        unique.setdefault((config["name"], run_hash(config)), (config, words))
    configs = [config for config, _ in unique.values()]
    cells = []
    for (config, words), label in zip(unique.values(), labels(configs), strict=True):
        config = pin(config) | {"label": config.get("label") or label, "dry_run": False, "retry_failed": False}
        cell = Cell(config, check(config), config["label"], run_folder(config), meant=words)
        refuse_edited(cell.folder, config)
        cells.append(look(cell, retry_failed))
    return cells


def look(cell: Cell, retry_failed: bool = False) -> Cell:
    """Set what the cell's folder says about it."""
    status = read_status(cell.folder) or {}
    state = status.get("state")
    cell.step, cell.reason = status.get("step") or 0, status.get("reason") or ""
    cell.code = code_of(status)
    if state in ENDED:
        cell.state = "interrupted" if state == "pruned" and prunes_nothing(cell.config) else state
        summary = read_summary(cell.folder)
        cell.code, cell.seconds = code_of(summary) or cell.code, summary.get("seconds_with_start")
    elif state == "failed":
        cell.state = "retry" if retry_failed else "failed"
    elif state == "running":
        cell.state = "elsewhere" if is_locked(cell.folder / ".lock") else "interrupted"
    else:
        cell.state = "interrupted" if state else "new"
    return cell


def code_of(facts: dict) -> dict:
    """What status.json or summary.json says about the code that made the run."""
    return {key: facts[key] for key in ("git_sha", "source", "own_source") if facts.get(key)}


def read_summary(folder: Path) -> dict:
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_locked(file: Path) -> bool:
    """Does a living process hold the lock `file`, as one that is at work in a run's folder holds its .lock?"""
    try:
        with FileLock(file).acquire(timeout=0):
            return False
    except (Timeout, OSError):
        return True


def expected_seconds(cell: Cell, cells: list[Cell]) -> float | None:
    """How long what is left of `cell` may take, from its finished siblings of the same size; None without any."""
    took = [c.seconds for c in cells if c.state == "done" and c.seconds and c.size == cell.size]
    return statistics.median(took) * (1 - cell.step / cell.total_steps) if took else None


def freeze(cell: Cell) -> None:
    """Write down the configuration that will be run, whatever happens to the YAML files before its turn comes. Weights
    that it starts from are in it by their checksum: should they change, the cell is refused."""
    write_text(cell.frozen, json.dumps({"config": cell.config, "overrides": cell.meant, "cwd": os.getcwd()}, indent=1))


def thaw(file: Path) -> tuple[dict, list[str], str]:
    """What `freeze` wrote: the configuration, the settings that it came from, the folder its paths start from."""
    frozen = json.loads(Path(file).read_text(encoding="utf-8"))
    return frozen["config"], frozen["overrides"], frozen["cwd"]


def record(cells: list[Cell], question: str, command: str) -> None:
    """sweep.json in the sweep's folder: its question, its commands, and every cell that it ever had."""
    for folder in {sweep_folder(cell.settings) for cell in cells}:
        file = folder / ".sweep" / "sweep.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=LOCK_SECONDS):
            try:
                known = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                known = {"cells": {}, "commands": []}
            mine = {cell.name: cell.label for cell in cells if sweep_folder(cell.settings) == folder}
            known["cells"] |= mine
            known["question"] = question
            known["commands"] = [*known["commands"], {"time": now(), "pid": os.getpid(), "command": command}]
            write_text(file, json.dumps(known, indent=1))
