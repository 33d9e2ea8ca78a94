"""Runs cells on this machine: N slots, each cell in a process of its own, so that a cell that dies, dies alone."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import types
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import connection

from tid.logs import read_status, write_status
from tid.signals import STOPPED
from tid.sweep import cell as child
from tid.sweep.plan import ENDED, Cell, Slot, look
from tid.sweep.screen import Screen, last_lines
from tid.sweep.stopping import stopped_by

TICK_SECONDS = 0.5
BUSY_SECONDS = 2.0  # until a cell that another process is at is tried again


@dataclass
class Pool:
    """`run` brings every cell to an end. retries: how often a cell that failed is started again at once."""

    slots: list[Slot]
    threads: int
    retries: int
    fail_fast: bool
    screen: Screen
    queue: deque[Cell] = field(default_factory=deque)
    later: list[tuple[float, Cell]] = field(default_factory=list)  # busy elsewhere, and when to look again
    attempts: dict[str, int] = field(default_factory=dict)
    signal: int = 0  # the first of tid.signals.STOPS
    stopping: bool = False

    def run(self, cells: list[Cell]) -> int:
        """Run the cells in order; returns 0, or the number of the signal that stopped it. Each cell's `state` then
        says what became of it: done, pruned, failed, interrupted or, not having been started, what it was."""
        self.queue = deque(cells)
        context = forkserver()
        with stopped_by(self.on_signal, self.kill), self.no_orphans(), self.screen:
            while self.queue or self.later or self.busy():
                self.queue.extend(c for when, c in self.later if when <= time.monotonic())
                self.later = [(when, c) for when, c in self.later if when > time.monotonic()]
                for slot in self.slots:
                    if slot.process is None and (cell := self.next()):
                        self.start(slot, cell, context)
                if self.busy():
                    connection.wait([slot.process.sentinel for slot in self.busy()], timeout=TICK_SECONDS)
                else:
                    time.sleep(TICK_SECONDS)
                for slot in self.busy():
                    if not slot.process.is_alive():
                        self.finish(slot)
                self.screen.refresh(self.slots, len(self.queue) + len(self.later))
        return self.signal

    def next(self) -> Cell | None:
        """The next cell to start: not one that another process is at, or has brought to its end meanwhile."""
        while self.queue:
            cell = self.queue.popleft()
            if look(cell).state in ENDED:
                self.screen.ended(cell, 0.0)
            elif cell.state == "elsewhere":  # its console is the other's
                self.later.append((time.monotonic() + BUSY_SECONDS, cell))
            else:
                return cell
        return None

    def busy(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.process is not None]

    def start(self, slot: Slot, cell: Cell, context: multiprocessing.context.BaseContext) -> None:
        cell.console.unlink(missing_ok=True)
        arguments = (str(cell.frozen), str(cell.console), slot.gpu, self.threads)
        slot.cell, slot.started = cell, time.monotonic()
        slot.process = context.Process(target=child.run, args=arguments, name=cell.name)
        with empty_main():
            slot.process.start()
        cell.state = "running"
        self.screen.started(slot)

    def finish(self, slot: Slot) -> None:
        """Note how the process in the slot ended, and free the slot."""
        slot.process.join()
        cell, code, seconds = slot.cell, slot.process.exitcode, time.monotonic() - slot.started
        slot.cell = slot.process = None
        if code == child.BUSY:
            cell.state = "elsewhere"
            if not self.stopping:
                self.later.append((time.monotonic() + BUSY_SECONDS, cell))
            return
        look(cell)
        if code == 0:
            self.screen.ended(cell, seconds)
        elif self.stopping or code in STOPPED:
            cell.state = "interrupted"
            self.screen.ended(cell, seconds)
        else:
            self.failed(cell, code, seconds)

    def failed(self, cell: Cell, code: int, seconds: float) -> None:
        if code < 0:
            cell.reason = f"killed by {signal.Signals(-code).name}" + (
                ": out of memory, perhaps" if -code == signal.SIGKILL else ""
            )
            if (read_status(cell.folder) or {}).get("state") == "running":
                write_status(cell.folder, "preempted", reason=cell.reason)  # so the next sweep resumes it
        cell.state = "failed"
        cell.reason = cell.reason or last_lines(cell.console, 1) or f"exit code {code}"
        self.attempts[cell.name] = self.attempts.get(cell.name, 0) + 1
        again = code != child.USER_ERROR and self.attempts[cell.name] <= self.retries
        self.screen.failed(cell, seconds, again)
        if again:
            self.queue.append(cell)
        elif self.fail_fast and not self.stopping:
            self.screen.say("fail_fast=true: the running cells save and stop, no other starts")
            self.stop()

    # ------------------------------------------------------------------------------------------ stopping

    @contextlib.contextmanager
    def no_orphans(self):
        """When an exception ends the ``with`` block, so are the cells."""
        try:
            yield
        finally:
            for slot in self.busy():
                slot.process.terminate()

    def on_signal(self, number: int) -> None:
        self.screen.say("stopping: the running cells save (Ctrl-C again kills them); the same command resumes")
        self.signal = number
        self.stop()

    def kill(self) -> None:
        self.screen.say("killing the running cells")
        for slot in self.busy():
            slot.process.kill()

    def stop(self) -> None:
        self.stopping = True
        self.queue.clear()
        self.later.clear()
        for slot in self.busy():
            slot.process.terminate()


def forkserver() -> multiprocessing.context.BaseContext:
    """Cells are forks of a process that has imported torch and done nothing else: a cell starts in a moment, and
    CUDA, which does not survive a fork, is first touched in the cell."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tid.sweep.cell", "tid.job", "torch._dynamo"])  # the last costs 2 seconds
    return context


@contextlib.contextmanager
def empty_main():
    """For the ``with`` block this program has an empty main module: a new process would import it again."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def make_slots(slots: int | None, slots_per_gpu: int, threads: int, device: str) -> list[Slot]:
    """This machine's slots. device: what the cells ask for."""
    import torch

    gpus = [] if device == "cpu" else visible_gpus(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return assign(gpus, cores // threads, slots, slots_per_gpu)


def assign(gpus: list[str], at_once: int, slots: int | None, slots_per_gpu: int) -> list[Slot]:
    """`slots_per_gpu` slots for each GPU, or without any `at_once`; or `slots` instead, which take the GPUs in turn."""
    count = slots or len(gpus) * slots_per_gpu or max(1, at_once)
    return [Slot(number, gpus[number % len(gpus)] if gpus else None) for number in range(count)]


def visible_gpus(count: int, visible: str | None) -> list[str]:
    """The names of the `count` GPUs that CUDA sees, for the CUDA_VISIBLE_DEVICES of cells; visible: its value here.

    The names may be numbers, UUIDs or MIG devices. CUDA sees none from the first on that does not exist.
    """
    named = [name.strip() for name in visible.split(",")] if visible else map(str, range(count))
    return list(named)[:count]
