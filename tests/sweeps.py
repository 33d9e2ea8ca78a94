"""Sweeps for tests: the command line in a process of its own, over cells that train for a fraction of a second."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runs
from hydra import initialize_config_dir

from tid.sweep import grid
from tid.sweep.plan import Cell, make_cells

ROOT = Path(__file__).resolve().parents[1]


def settings(folder: Path, *more: str) -> list[str]:
    """The settings of a sweep to be started in `folder`. No path in them depends on where that is, so that runs of
    two folders have the same identity."""
    return [text.replace(f"{folder}/", "") for text in runs.settings(folder, *more)]


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tid.train", "-m", *settings(folder, *more)]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def sweep(folder: Path, *more: str, timeout: float = 100) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(folder, *more), cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def begin(folder: Path, *more: str) -> subprocess.Popen:
    """A sweep in a session of its own, still running; its output is in sweep.out."""
    with open(folder / "sweep.out", "a") as out:
        return subprocess.Popen(
            command(folder, *more), cwd=folder, env=environment(), stdout=out, stderr=out, start_new_session=True
        )


def said(folder: Path) -> str:
    """What a sweep that was begun has said so far."""
    return (folder / "sweep.out").read_text()


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def states(folder: Path, name: str = "reference") -> dict[str, str]:
    """The state of every run of the sweep, by its folder's name."""
    files = (folder / "outputs" / name).glob("*/status.json")
    return {file.parent.name: json.loads(file.read_text())["state"] for file in sorted(files)}


def steps(folder: Path, name: str = "reference") -> list[int]:
    """How far the runs are by their logs or, when they have stopped, their status; those with a step behind them."""
    found = []
    for run in sorted((folder / "outputs" / name).glob("*/logs/metrics.jsonl")):
        status = (
            json.loads((run.parents[1] / "status.json").read_text())
            if (run.parents[1] / "status.json").exists()
            else {}
        )
        logged = [json.loads(line)["step"] for line in run.read_text().splitlines()]
        if logged:
            found.append(status["step"] if status["state"] == "preempted" else logged[-1])
    return found


def cells(folder: Path, *more: str) -> list[Cell]:
    """The cells of a sweep to be started in `folder`."""
    with initialize_config_dir(runs.CONF, version_base="1.3"):
        composer = grid.Composer("train")
        meant = grid.combinations(settings(folder, *more))
        return make_cells([composer(words) for words in meant], meant, retry_failed=False)


def space(*settings: str) -> Any:
    """The space of a search, a tid.sweep.space.Space."""
    from tid.sweep.space import Space  # and with it Optuna

    return Space(list(settings), grid.Composer("train"), retry_failed=False)


def search(folder: Path, **changes: Any) -> Any:
    """A small tid.sweep.search.Search in `folder`."""
    from tid.sweep.search import Search

    fields = {"space": {"x": ["1", "2"]}, "sampler": "tpe", "sampler_seed": 0, "n_trials": 9, "trials_at_once": 1,
              "objective": "best/val_select_loss", "common": {"context": 64, "seed": "0,1"}, "fail_fast": False,
              "retry_failed": False}  # fmt: skip
    return Search("hunt", folder, **(fields | changes))


def pids(folder: Path, name: str = "reference") -> dict[str, int]:
    """The processes now at work, by their run's folder's name."""
    found = {}
    for file in (folder / "outputs" / name).glob("*/.owner.json"):
        with contextlib.suppress(OSError, ValueError):  # it is just ending
            pid = json.loads(file.read_text())["pid"]
            os.kill(pid, 0)
            found[file.parent.name] = pid
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def finished_like(run: Path, folder: Path) -> None:
    """Make `folder` a finished run's, by copying one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", ".lock"))
