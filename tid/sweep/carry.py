"""Cells that a cluster runs: handed over, and followed each to its own end."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from tid.logs import read_status, write_status
from tid.sweep.plan import ENDED, Cell, Slot, look
from tid.sweep.screen import Screen
from tid.sweep.stopping import stopped_by

WAITING, RUNNING = "waiting", "running"
TICK_SECONDS = 1.0
SETTLE_SECONDS = 15  # a shared folder may show another node's files this late


class Cluster(Protocol):
    """Where every cell is a job of its own. look_seconds: between two looks, at most."""

    look_seconds: float

    def submit(self, cells: list[Cell]) -> dict[str, Cell]:
        """Hand the cells over; returns them by the names of their jobs. Raises ConfigError when it refuses them."""

    def states(self, jobs: Collection[str]) -> dict[str, str]:
        """WAITING, RUNNING or how it ended, of each job; {} when the cluster does not answer."""

    def cancel(self, jobs: Collection[str]) -> None:
        """End the jobs: those that run are warned, and save."""


@dataclass
class Carrier:
    """`run` brings every cell to an end on the cluster, as tid.sweep.pool.Pool does on this machine."""

    cluster: Cluster
    fail_fast: bool
    screen: Screen
    jobs: dict[str, Cell] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)  # of the jobs that run
    seen: dict[str, str] = field(default_factory=dict)
    before: dict[str, dict | None] = field(default_factory=dict)  # status.json as the job was handed over
    ended: dict[str, float] = field(default_factory=dict)  # jobs that have just ended, and when
    signal: int = 0  # the first of tid.signals.STOPS
    leaving: bool = False
    stopping: bool = False

    def run(self, cells: list[Cell]) -> int:
        """Run the cells; returns 0, or the number of the signal that stopped it. Each cell's `state` then says what
        became of it."""
        self.before = {cell.name: read_status(cell.folder) for cell in cells}
        with stopped_by(self.on_signal, self.on_another):
            self.jobs = self.cluster.submit(cells)
            if self.stopping:  # meanwhile, when there was nothing to cancel yet
                self.stop()
            self.follow()
        return self.signal

    def follow(self) -> None:
        """Until no job is left, or nobody wants to wait for them."""
        began = time.monotonic()
        with self.screen:
            while self.jobs and not self.leaving:
                for job, state in self.cluster.states(list(self.jobs)).items():
                    self.note(job, state)
                pause = min(self.cluster.look_seconds, (time.monotonic() - began) / 10)
                self.wait(0.0 if self.ended or self.stopping else pause)

    def wait(self, seconds: float) -> None:
        """Until the next look at the cluster: sooner when a run's files tell that it has ended, or on a signal."""
        end, stopping = time.monotonic() + seconds, self.stopping
        while True:
            self.screen.refresh(list(self.slots.values()), len(self.jobs) - len(self.slots))
            time.sleep(TICK_SECONDS)
            done = any(self.told(slot.cell) for slot in self.slots.values())
            if done or time.monotonic() >= end or self.stopping != stopping:
                return

    def note(self, job: str, state: str) -> None:
        """Follow one job from state to state."""
        cell, before = self.jobs[job], self.seen.get(job, WAITING)
        self.seen[job] = state
        if state == RUNNING and job not in self.slots:
            cell.state = "running"
            self.slots[job] = Slot(job, None, cell, started=time.monotonic())
            self.screen.started(self.slots[job])
        if state == WAITING and before == RUNNING:
            self.slots.pop(job, None)
            cell.state = "interrupted"
            self.screen.say(f"waits to go on: {cell.label}, job {job}")
        if state in (WAITING, RUNNING):
            self.ended.pop(job, None)
        else:
            first = self.ended.setdefault(job, time.monotonic())
            if self.told(cell) or time.monotonic() - first > SETTLE_SECONDS:
                self.finish(job, state)

    def told(self, cell: Cell) -> bool:
        """Do the cell's files tell how it ended?"""
        status = read_status(cell.folder)
        return status != self.before[cell.name] and (status or {}).get("state") not in (None, "running")

    def finish(self, job: str, how: str) -> None:
        """Note how the cell of a job that is over has ended."""
        cell, slot = self.jobs.pop(job), self.slots.pop(job, None)
        self.ended.pop(job, None)
        look(cell)
        told, status = self.told(cell), read_status(cell.folder) or {}
        seconds = cell.seconds or (time.monotonic() - slot.started if slot else 0.0)
        if cell.state in ENDED or cell.state == "elsewhere":
            self.screen.ended(cell, seconds)
        elif self.stopping or (told and status["state"] == "preempted"):
            if cell.state != "new":  # it has begun
                cell.state = "interrupted"
                self.screen.ended(cell, seconds)
        else:
            if not told:  # it died and could not say why
                cell.reason = f"job {job} ended without a result: {how}"
                if status.get("state") == "running":
                    write_status(cell.folder, "preempted", reason=cell.reason)  # so the next sweep resumes it
            cell.state = "failed"
            self.screen.failed(cell, seconds, again=False)
            if self.fail_fast and not self.stopping:
                self.screen.say("fail_fast=true: the running cells save and stop, no other starts")
                self.stop()

    def on_signal(self, number: int) -> None:
        self.screen.say("stopping: the running cells save (Ctrl-C again: without waiting for them)")
        self.signal = number
        self.stop()

    def on_another(self) -> None:
        if not self.jobs:  # the cluster hangs with them
            raise KeyboardInterrupt
        self.leaving = True

    def stop(self) -> None:
        self.stopping = True
        if self.jobs:
            self.cluster.cancel(list(self.jobs))
