"""Cells as tasks of a Ray cluster that is running."""

import contextlib
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tid.config import ConfigError
from tid.sweep import cell as child
from tid.sweep.carry import RUNNING, WAITING
from tid.sweep.plan import Cell


def train(frozen: str, console: str, threads: int) -> int:
    """The task: train the cell; returns its exit code."""
    import ray

    child.speak_into(Path(console))
    here = ray.get_runtime_context()
    print(f"Ray node {here.get_node_id()}, worker {here.get_worker_id()}", flush=True)
    return child.outcome(frozen, threads)


def knock(address: str) -> None:
    """Raise OSError when nobody listens at <host>:<port>, which Ray would find out after minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in address:
        with socket.create_connection((host, int(port)), timeout=10):
            pass


class Ray:
    """init: of ray.init; remote: of every task, with max_retries, since a cell goes on where it had saved when its
    worker or its node is lost."""

    look_seconds = 2.0

    def __init__(self, init: dict[str, Any], remote: dict[str, Any]) -> None:
        self.init, self.remote = init, remote
        self.tasks: dict[str, Any] = {}
        self.cells: dict[str, Cell] = {}

    def submit(self, cells: list[Cell]) -> dict[str, Cell]:
        import ray

        try:
            knock(str(self.init.get("address") or ""))
            ray.init(**self.init, ignore_reinit_error=True)
            # a worker for every cell: what a cell has done to its process ends with it
            task = ray.remote(max_calls=1, **self.remote)(train)
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"hydra/launcher=ray_cluster: {error}\n"
                "Is one running? `ray start --head` starts one; hydra.launcher.ray.init.address=<head>:6379 names it"
            ) from None
        threads = max(1, int(self.remote.get("num_cpus") or 1))
        for cell in cells:
            cell.console.unlink(missing_ok=True)
            job = str(len(self.tasks))
            self.tasks[job] = task.remote(str(cell.frozen.resolve()), str(cell.console.resolve()), threads)
            self.cells[job] = cell
        return dict(self.cells)

    def states(self, jobs: Collection[str]) -> dict[str, str]:
        import ray

        tasks = {self.tasks[job]: job for job in jobs}
        ready = {tasks[task] for task in ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0]}
        return {job: self.ending(job) if job in ready else self.progress(job) for job in jobs}

    def progress(self, job: str) -> str:
        return RUNNING if self.cells[job].console.exists() else WAITING

    def ending(self, job: str) -> str:
        import ray

        try:
            return f"exit code {ray.get(self.tasks[job])}"
        except Exception as error:  # of Ray's: the worker died, the task was cancelled
            return " ".join(f"{type(error).__name__}: {error}".split())[:200]

    def cancel(self, jobs: Collection[str]) -> None:
        import ray

        for job in jobs:
            with contextlib.suppress(Exception):  # it has just ended
                ray.cancel(self.tasks[job])
