"""The whole loop: what it adds to a bare PyTorch loop, and what logging, evaluation and checkpoints take of a run."""

import contextlib
import dataclasses
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tid import checkpoint
from tid.benchmark.ceilings import wait_for
from tid.benchmark.race import timed_steps, turn_steps
from tid.benchmark.variants import DOCUMENT_TOKENS, Setup, Variant, train_step
from tid.handle import Handle, RunInfo
from tid.logs import RunLog
from tid.loop import TABLE_MIN_SEEN, Run, evaluate, fit, save, train_row
from tid.step import TrainStep
from tid.validation import Validation

WARM_UP_STEPS = 5
ROWS, SAVES = 20, 3  # timed
CPU_VALIDATION_BATCHES = 4  # timed on a CPU, the rest by proportion


@dataclass(frozen=True)
class Cadence:
    """How often a run does what. `val_tokens` are read at each evaluation."""

    total_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    eval_batch_size: int
    val_tokens: int

    def counts(self) -> dict[str, int]:
        """How many rows, evaluations and checkpoints the run has; see tid.loop.fit."""
        last = self.total_steps
        rows = {*range(self.log_every, last + 1, self.log_every), last}
        evals = {*range(self.eval_every, last + 1, self.eval_every), last}
        saves = {*range(self.checkpoint_every, last + 1, self.checkpoint_every)} | evals
        return {"rows": len(rows | evals), "evaluations": len(evals), "checkpoints": len(saves)}


@dataclass(frozen=True)
class Text:
    """The held-out text: tokens (N,), where its documents begin, characters and bytes of each token id, and `decode`,
    token id → text."""

    tokens: np.ndarray
    doc_starts: np.ndarray
    token_chars: np.ndarray
    token_bytes: np.ndarray
    decode: Callable[[int], str] = str


def made_up_validation(text: np.ndarray, length: int, vocabulary: int) -> Text:
    ones = np.ones(vocabulary, dtype=np.int64)
    tokens = np.resize(text, length)
    return Text(tokens, np.arange(0, length, DOCUMENT_TOKENS), ones, ones)


def new_run(setup: Setup, step: TrainStep, text: Text, cadence: Cadence, folder: Path, total_steps: int) -> Run:
    """A run that logs, evaluates and saves as a real one does, without a tracker."""
    validation = Validation(
        text.tokens, text.doc_starts, text.token_chars, text.token_bytes,
        context=setup.context, stride=setup.context, batch_size=cadence.eval_batch_size,
        precision=setup.precision, device=setup.device, fast=setup.fast,
    )  # fmt: skip
    log = RunLog(folder, resume_step=None)
    info = RunInfo("bench", "bench", "", "bench", (), "bench", {}, folder, False, log.say)
    return Run(
        step, validation, log=log, folder=folder, config={}, data={}, decode=text.decode, total_steps=total_steps,
        log_every=cadence.log_every, eval_every=total_steps, checkpoint_every=total_steps, tracker=Handle(info),
        writer=checkpoint.Writer(background=setup.device.type == "cuda"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ overhead


Times = tuple[float, float]  # milliseconds per step: of the clock, and of this process's processors


class Turns:
    """A step that, called by `fit`, lets another step have its turn before and after every `turn_steps` of its own.
    What `fit` does around the step counts as ours, what it does after the last turn is not timed."""

    def __init__(self, step: TrainStep, other: Callable[[], None], turn_steps: int, turns: int) -> None:
        self.step, self.other, self.turn_steps = step, other, turn_steps
        self.last = WARM_UP_STEPS + turns * turn_steps
        self.ours: list[Times] = []
        self.others: list[Times] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, number: int) -> None:
        since_warm = number - WARM_UP_STEPS
        if since_warm >= 0 and since_warm % self.turn_steps == 0 and number <= self.last:
            mark = self.now()
            if since_warm:
                self.ours.append(self.since(self.mark, mark))
            for _ in range(self.turn_steps):
                self.other()
            self.mark = self.now()
            self.others.append(self.since(mark, self.mark))
        self.step(number)

    def now(self) -> Times:
        wait_for(self.step.device)
        return time.perf_counter(), time.process_time()

    def since(self, before: Times, after: Times) -> Times:
        clock, processor = (1000 * (b - a) / self.turn_steps for a, b in zip(before, after, strict=True))
        return clock, processor


@dataclass(frozen=True)
class Overhead:
    """Our loop's turns and the bare one's: bare, ours, bare, …, ours, bare."""

    ours: list[Times]
    bare: list[Times]
    turn_steps: int

    def ratios(self, index: int = 0) -> list[float]:
        """Ours to the mean of the bare loop's turns before and after it: a drift of the machine cancels. index: 0 by
        the clock, 1 by processor time."""
        around = itertools.pairwise(turn[index] for turn in self.bare)
        return [mine[index] / ((a + b) / 2) for mine, (a, b) in zip(self.ours, around, strict=True)]


def overhead(
    setup: Setup, variant: Variant, bare: Callable[[], None], cadence: Cadence, turns: int, seconds: float, folder: Path
) -> Overhead:
    """`fit`, with its metrics, checks and progress, of a step that drops nothing, in turn with `bare`."""
    for _ in range(WARM_UP_STEPS):
        bare()
    length = turn_steps(timed_steps(bare, 3, setup.device), seconds)
    total = WARM_UP_STEPS + turns * length + 1  # one more, in which the last turn ends
    step = train_step(setup, variant, total_steps=total, window=cadence.log_every)
    both = Turns(step, bare, length, turns)
    text = made_up_validation(setup.text, 2 * setup.context + 1, setup.shape.vocab_size)
    with working_folder(folder) as place, contextlib.redirect_stderr(io.StringIO()):
        fit(new_run(setup, both, text, cadence, place, total))
    return Overhead(both.ours, both.others, length)


@contextlib.contextmanager
def working_folder(parent: Path):
    """A folder for what a timed run writes, on the disk that real runs use; removed afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=parent) as name:
        yield Path(name)


# ------------------------------------------------------------------------------------------------ share


@dataclass(frozen=True)
class Share:
    """Seconds that one of each takes, and a step. first_evaluation: with what capturing it takes once. measured_tokens:
    of the held-out text; evaluation's seconds are for all of `cadence.val_tokens`."""

    cadence: Cadence
    label: str
    step: float
    row: float
    evaluation: float
    first_evaluation: float
    checkpoint: float
    checkpoint_bytes: int
    measured_tokens: int

    def seconds(self) -> dict[str, float]:
        """Of a whole run: of its steps, and of everything else."""
        counts = self.cadence.counts()
        return {
            "steps": self.cadence.total_steps * self.step,
            "rows": counts["rows"] * self.row,
            "evaluations": (counts["evaluations"] - 1) * self.evaluation + self.first_evaluation,
            "checkpoints": counts["checkpoints"] * self.checkpoint,
        }

    def shares(self) -> dict[str, float]:
        """Fractions of the whole run."""
        seconds = self.seconds()
        whole = sum(seconds.values())
        return {name: value / whole for name, value in seconds.items()}


def share_of_run(setup: Setup, variant: Variant, text: Text, cadence: Cadence, seconds: float, folder: Path) -> Share:
    """Time one of each in a run that has made a few steps."""
    device = setup.device
    tokens = text.tokens
    if device.type == "cpu":
        tokens = tokens[: CPU_VALIDATION_BATCHES * cadence.eval_batch_size * setup.context + 1]
    part = dataclasses.replace(text, tokens=tokens, doc_starts=text.doc_starts[text.doc_starts < len(tokens)])
    step = train_step(setup, variant, window=cadence.log_every)
    with working_folder(folder) as place, contextlib.redirect_stderr(io.StringIO()):
        run = new_run(setup, step, part, cadence, place, cadence.total_steps)

        def advance() -> None:
            step(run.done)
            run.done += 1

        for _ in range(WARM_UP_STEPS):
            advance()
        length = turn_steps(timed_steps(advance, 3, device), seconds)
        step_seconds = statistics.median(timed_steps(advance, length, device) / 1000 for _ in range(3))
        row = statistics.median(timed(lambda: write_row(run, advance), device) for _ in range(ROWS))
        step.token_seen += TABLE_MIN_SEEN  # the tables of tokens are then as long as late in a run
        dropping = {"drop_rate_realised": 1.0}  # then the scores' histogram is made, as in a row of a run that drops
        first, again = (timed(lambda: evaluate(run, dropping), device) for _ in range(2))
        saves = [timed(lambda: save_cost(run, advance, step_seconds), device) for _ in range(SAVES)]
        size = (run.checkpoints / "last.pt").stat().st_size
    scale = cadence.val_tokens / len(tokens)
    return Share(
        cadence, variant.label, step_seconds, row, again * scale, first - again + again * scale,
        statistics.median(saves), size, len(tokens),
    )  # fmt: skip


def save_cost(run: Run, advance: Callable[[], None], step_seconds: float) -> float:
    """Seconds by which a checkpoint delays the run: on a GPU it is written while the next steps run."""
    start, steps = time.perf_counter(), 0
    save(run)
    while run.writer.busy:
        advance()
        steps += 1
    wait_for(run.step.device)
    run.writer.wait()
    return time.perf_counter() - start - steps * step_seconds


def timed(call: Callable[[], float | None], device: Any) -> float:
    """Seconds of one call; a call that returns a number has timed itself."""
    wait_for(device)
    start = time.perf_counter()
    own = call()
    wait_for(device)
    return own if isinstance(own, float) else time.perf_counter() - start


def write_row(run: Run, advance: Callable[[], None]) -> float:
    """Seconds of one row of metrics, as `fit` makes it: the device has done its step and waits."""
    advance()
    wait_for(run.step.device)
    start = time.perf_counter()
    row = train_row(run, [1.0])
    row["seconds"] = 0.0
    run.log.write(row)
    run.tracker.log(row, run.done)
    return time.perf_counter() - start
