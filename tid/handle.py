"""The border between a run and the tracker that it logs to: `Handle`, and the thread behind it.

A tracker never ends a run and never holds it up. All that its library does happens in a thread of its own;
the methods of `Handle` only queue. (wandb 0.31, measured: logging a table to a server that has stopped
answering takes 19 seconds.) A start and an end are waited for, but not long. What goes wrong is said in a
line; the logs in the run's folder are complete in any case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from tid.logs import say

if TYPE_CHECKING:
    import numpy as np

START_SECONDS = 8.0  # how long a start is waited for; and at the end:
OPEN_SECONDS = 6.0  # a start that is still not over
DRAIN_SECONDS = 3.0  # what is still queued
FINISH_SECONDS = 9.0  # the library's own end
HISTOGRAM_BINS = 64

# Charts are grouped by what stands before the slash. A key that is not here keeps its name.
CHARTS = {
    "train_loss": "train/loss", "val_loss": "val/loss", "val_perplexity": "val/perplexity",
    "val_bpc": "val/bpc", "val_bpb": "val/bpb", "val_select_loss": "val/select_loss",
    "val_report_loss": "val/report_loss", "val_report_bpc": "val/report_bpc", "val_report_bpb": "val/report_bpb",
    "drop_rate_scheduled": "drop/rate_scheduled",
    "drop_rate_realised": "drop/rate_realised", "nonfinite_score_rows": "drop/nonfinite_score_rows",
    "lr": "optim/lr", "grad_norm": "optim/grad_norm", "step_ms": "speed/step_ms",
    "score_ms": "speed/score_ms", "tokens_per_second": "speed/tokens_per_second",
    "memory_mib": "speed/memory_mib", "seconds": "speed/seconds",
}  # fmt: skip


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run. `run_id` names the run when it is resumed too, `config` is the whole
    configuration, `folder` the run's, `say` shows a line to the user."""

    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    run_id: str
    config: dict
    folder: Path
    resumed: bool
    say: Callable[[str], None] = say
    notes: str = ""


class Worker:
    """A daemon thread that does what it is given, in order. The first call that fails is reported."""

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        self.report = report
        self.calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self.work, name="tracker", daemon=True).start()

    def work(self) -> None:
        failed = False
        while True:
            call = self.calls.get()
            try:
                call()
            except BaseException as error:  # even SystemExit: wandb's teardown calls sys.exit
                if not failed:
                    self.report(error)
                failed = True

    def done(self, call: Callable[[], None], seconds: float) -> bool:
        """Do `call` after what is queued. False when `seconds` did not suffice; it is not given up then."""
        over = threading.Event()

        def then() -> None:
            try:
                call()
            finally:
                over.set()

        self.calls.put(then)
        return over.wait(seconds)


class Handle:
    """What the loop logs to. Every method returns at once. This one logs nowhere."""

    title = "tracker"

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.worker: Worker | None = None
        self.library: Any = None  # the module; wandb and trackio name their types alike
        self.session: Any = None  # its run, once it is open

    def log(self, row: dict[str, float], step: int) -> None:
        """Log a row of metrics, under the names of metrics.csv."""
        values = {CHARTS.get(name, name): value for name, value in row.items()}
        self.queue(lambda: self.send(values, step))

    def log_histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Log how `values`, of any shape, are distributed. Those that are not finite are left out."""
        if self.worker is not None:
            values = values.copy()  # the caller may write over it
            self.queue(lambda: self.send_histogram(name, values, step))

    def log_table(self, name: str, columns: list[str], rows: list[list], step: int) -> None:
        """Log a table. A column holds values of one type."""
        rows = [list(row) for row in rows]
        self.queue(lambda: self.send({name: self.library.Table(columns=list(columns), data=rows)}, step))

    def log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log an image, (H, W, 3) uint8."""
        self.queue(lambda: self.send({name: self.library.Image(pixels)}, step))

    def summary(self, values: dict[str, Any]) -> None:
        """Set what stands in the run's overview, beside the best validation figures."""
        values = dict(values)
        self.queue(lambda: self.summarise(values))

    def queue(self, call: Callable[[], None]) -> None:
        if self.worker is not None:
            self.worker.calls.put(lambda: call() if self.session is not None else None)

    def report(self, error: BaseException) -> None:
        self.run.say(f"{self.title}: {first_line(error)}; the run goes on, its own logs are complete")

    # What follows is called in the worker's thread only.

    def open(self) -> None:
        """Set `library` and `session`."""

    def send(self, values: dict[str, Any], step: int) -> None:
        self.session.log(values, step=step)

    def send_histogram(self, name: str, values: np.ndarray, step: int) -> None:
        import numpy as np

        values = values[np.isfinite(values)].astype(np.float64)
        if values.size:
            counts = np.histogram(values, bins=HISTOGRAM_BINS)
            self.send({name: self.library.Histogram(np_histogram=counts)}, step)

    def summarise(self, values: dict[str, Any]) -> None: ...

    def finish(self, code: int) -> None: ...

    def abandon(self) -> None:
        """`finish` did not come back in time: see that the process can end."""


@contextmanager
def tracking(handle: Handle) -> Iterator[Handle]:
    """Open `handle`, and close it with the exit code that the end of the ``with`` block stands for."""
    handle.worker = Worker(handle.report)
    # once it has a session it says where it logs, which may come first
    if not handle.worker.done(handle.open, START_SECONDS) and handle.session is None:
        handle.run.say(f"{handle.title}: not ready after {START_SECONDS:.0f} s; the run does not wait for it")
    code = 0
    try:
        yield handle
    except BaseException as error:
        code = exit_code(error)
        raise
    finally:
        close(handle, code)


def close(handle: Handle, code: int) -> None:
    worker = handle.worker
    seconds = DRAIN_SECONDS if handle.session is not None else OPEN_SECONDS
    if not worker.done(lambda: None, seconds):  # stuck in a call: a run can be finished beside it
        worker.report = lambda error: None  # of its own end
        worker = Worker(handle.report)
    if not worker.done(lambda: handle.session and handle.finish(code), FINISH_SECONDS):
        handle.run.say(f"{handle.title}: does not finish; no longer waited for")
        Worker(handle.report).done(handle.abandon, 1.0)


def exit_code(error: BaseException) -> int:
    """The exit code that the exception `error` stands for. One with a `signal` (a number) is a run that was
    asked to stop and has saved: 128 + signal, as a shell has it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 255  # wandb's own code for it: the run is shown as killed
    signal = getattr(error, "signal", None)
    return 128 + signal if isinstance(signal, int) else 1


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
