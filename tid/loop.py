"""The training loop: step, log, evaluate, checkpoint, resume, stop. `fit` reads top to bottom."""

import functools
import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tid import checkpoint
from tid.config import ConfigError
from tid.logs import NoLog, Progress, RunLog, write_status
from tid.processes import Alone
from tid.signals import StopRequest
from tid.step import COLUMNS, TrainStep
from tid.timing import Stopwatch
from tid.validation import Validation

RESUMED = ("done", "logged", "seconds", "best", "final", "documents", "totals")
TABLE_ROWS = 20  # tokens in the tables of most- and least-dropped tokens
TABLE_MIN_SEEN = 20  # a rarer token's drop rate is noise


class NonFiniteLoss(ConfigError):
    """The loss or its gradient stopped being a number. The weights are those of before that step."""


class Preempted(Exception):
    """The run was asked to stop, and has saved. `signal` is the number of the signal."""

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"stopped by signal {signal} at step {step}; the same command resumes")
        self.signal = signal


@dataclass
class Run:
    """One training run: the parts of `fit`. Counts are in steps."""

    step: TrainStep
    validation: Validation
    log: RunLog | NoLog
    folder: Path
    config: dict
    data: dict  # what the text is: label and sha256 of both parts
    decode: Any  # token id → text
    total_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    should_stop: Callable[[dict], str | None] = lambda row: None  # asked after every evaluation: why, if it should
    peers: Alone = field(default_factory=Alone)  # the processes that train it together
    stopped: str | None = None  # why it was stopped early
    writer: checkpoint.Writer = field(default_factory=checkpoint.Writer)
    tracker: Any = None  # a handle of tid.tracking
    probe: Any = None  # figures about what is dropped, of tid.diagnostics
    done: int = 0  # updates made
    logged: int = 0  # updates whose metrics are written
    seconds: float = 0.0  # training time of all sittings, with evaluation and checkpoints, without compiling the step
    best: dict | None = None  # the best evaluation, chosen on the even validation documents
    final: dict = field(default_factory=dict)
    documents: dict = field(default_factory=dict)  # nats per validation document, at "final" and at "best"
    totals: dict = field(default_factory=lambda: {"dropped": 0.0, "droppable": 0.0, "step_ms": [], "score_ms": []})

    @property
    def samples_per_step(self) -> int:
        return self.step.samples

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def fit(run: Run) -> None:
    """Train until `total_steps`, from where `run.done` stands (see `resume`).

    Raises NonFiniteLoss, and Preempted on one of tid.signals.STOPS after saving: at most one step is finished first, by
    several processes the few that it takes to agree on one. Each of them comes here, and only the leader writes.
    """
    step, watch = run.step, Stopwatch(run.step.device)
    started = time.perf_counter() - run.seconds
    with Progress(run.total_steps, run.done, run.log) as progress, StopRequest() as stop, run.writer:
        while run.done < run.total_steps:
            with watch:
                step(run.done)
            run.done += 1
            row: dict[str, float] = {}

            log_due = run.done % run.log_every == 0 or run.done == run.total_steps
            eval_due = run.done % run.eval_every == 0 or run.done == run.total_steps
            stop_due = run.peers.stopping(stop.signal, run.done)
            save_due = eval_due or run.done % run.checkpoint_every == 0 or stop_due
            if log_due or save_due or step.device.type == "cpu":  # reading bad_step waits for a GPU
                stop_if_broken(run)
            run.writer.check()
            if log_due or eval_due:
                row = write_row(run, watch.read(), eval_due, started)
            progress.update(run.done, loss=row.get("train_loss"), drop_rate=row.get("drop_rate_realised"),
                            val_loss=row.get("val_loss"))  # fmt: skip
            if run.probe and run.done % run.probe.every == 0:
                started += run.probe(run)
            if save_due and run.peers.leads:
                run.seconds = elapsed(run, started)
                save(run)
            if stop_due and run.done < run.total_steps:
                raise Preempted(stop_due, run.done)
            if eval_due and run.done < run.total_steps and (why := run.peers.agree(run.should_stop, row)):
                run.stopped = why
                break
        run.writer.wait()
        run.peers.agree(lambda: None)  # the others are there to answer a signal until the leader has written the end


def write_row(run: Run, step_ms: list[float], evaluates: bool, started: float) -> dict[str, float]:
    """Write a row of metrics, with a validation's if it is time for one, and return it."""
    row = train_row(run, step_ms)
    if evaluates:
        row |= evaluate(run, row)
    run.seconds = row["seconds"] = elapsed(run, started)
    run.log.write(row)
    run.tracker.log(row, run.done)
    return row


def elapsed(run: Run, started: float) -> float:
    """`Run.seconds` now. The first run of a sweep compiles for those after it, which shall not look faster for that."""
    return time.perf_counter() - started - run.step.replays.graphs.seconds


def train_row(run: Run, step_ms: list[float]) -> dict[str, float]:
    """The metrics of the steps since the last row. This is where the host waits for the device."""
    step = run.step
    newest = max(run.logged, run.done - len(step.metrics))  # log_every may have changed between sittings
    window = np.arange(newest, run.done) % len(step.metrics)
    columns = dict(zip(COLUMNS, step.metrics.cpu().double().numpy()[window].T, strict=True))
    dropped, droppable = float(columns["dropped"].sum()), float(columns["droppable"].sum())
    bad_rows = int(columns["bad_rows"].sum())
    if bad_rows:
        run.log.say(f"warning: {bad_rows} sequences since step {run.logged} had a score that is not finite; "
                    "it decided nothing: they were dropped from at random, or not at all")  # fmt: skip
    run.totals["dropped"] += dropped
    run.totals["droppable"] += droppable
    scoring = step.score_watch.read()
    millis = statistics.median(step_ms)
    score_ms = statistics.median(scoring) * step.accumulate_steps if scoring else 0.0
    run.totals["step_ms"].append(millis)
    if scoring:
        run.totals["score_ms"].append(score_ms)
    tokens_per_step = run.samples_per_step * step.batches.context
    row = {
        "step": run.done,
        "epoch": run.done * run.samples_per_step / step.batches.num_sequences,
        "tokens": run.done * tokens_per_step,
        "train_loss": float(columns["train_loss"].mean()),
        "drop_rate_scheduled": float(step.host_bands[run.logged : run.done].mean()),
        "drop_rate_realised": dropped / droppable if droppable else 0.0,
        "nonfinite_score_rows": bad_rows,
        **cache_figures(step, columns),
        "lr": step.optim.lr_at(run.done - 1, run.total_steps),
        "grad_norm": mean_of_finite(columns["grad_norm"]),
        "step_ms": millis,
        "score_ms": score_ms,
        "tokens_per_second": 1000 * tokens_per_step / millis,
        "memory_mib": peak_memory_mib(step.device),
        "flops": step.train_flops + step.score_flops,
    }
    run.logged = run.done
    return row


def mean_of_finite(values: np.ndarray) -> float:
    """Without the steps whose fp16 gradient overflowed, which update nothing; NaN when there is no other."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def cache_figures(step: TrainStep, columns: dict) -> dict[str, float]:
    """With scorer.source=cached: mean age in steps of the scores that decided, and the share of tokens without one."""
    if not step.cache:
        return {}
    where = columns["dropped"] > 0
    droppable, unscored = float(columns["droppable"][where].sum()), float(columns["unscored"][where].sum())
    ages, scored = float(columns["score_ages"][where].sum()), droppable - unscored
    return {"score_age_steps": ages / scored if scored else 0.0, "unscored_share": unscored / max(1.0, droppable)}


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far in MiB: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def evaluate(run: Run, row: dict[str, float]) -> dict[str, float]:
    """Full validation: figures for the metrics row, which has those of training; remembers the best, logs what was
    dropped to the tracker."""
    nats = run.validation.nats(run.step.trained, run.step.replays.graphs)
    figures = run.validation.figures(nats)
    select, report = run.validation.halves(nats)
    if not math.isfinite(figures.loss):
        raise NonFiniteLoss(f"validation loss is {figures.loss} after step {run.done}; {last_good(run)}")
    run.final = {"step": run.done, **figures.row("val"), "val_report_loss": report.loss}
    run.documents["final"] = run.validation.document_nats(nats).tolist()
    if run.best is None or select.loss < run.best["val_select_loss"]:
        run.best = {**run.final, "val_select_loss": select.loss}
        run.documents["best"] = run.documents["final"]
    scores = run.step.last_scores.float().cpu().numpy()
    if row["drop_rate_realised"] and not np.isnan(scores).all():  # NaN: no step of this sitting has dropped yet
        run.tracker.log_histogram("scores", scores, run.done)
    if run.totals["dropped"]:
        for name, rows in drop_tables(run).items():
            run.tracker.log_table(name, ["token", "seen", "drop_rate"], rows, run.done)
    halves = {"val_select_loss": select.loss} | report.row("val_report")
    return figures.row("val") | {name: value for name, value in halves.items() if name != "val_report_perplexity"}


def drop_tables(run: Run) -> dict[str, list[list]]:
    """The most- and the least-dropped tokens of the steps that dropped: text, times seen in them, share dropped."""
    seen, drops = run.step.token_seen.cpu().numpy(), run.step.token_drops.cpu().numpy()
    ids = np.flatnonzero(seen >= TABLE_MIN_SEEN)
    ids = ids[np.argsort(drops[ids] / seen[ids], kind="stable")]
    ends = {"most_dropped": ids[::-1][:TABLE_ROWS], "least_dropped": ids[:TABLE_ROWS]}
    return {
        name: [[run.decode(int(i)), int(seen[i]), float(drops[i] / seen[i])] for i in few] for name, few in ends.items()
    }


def stop_if_broken(run: Run) -> None:
    """Raise NonFiniteLoss, naming step, batch and last good checkpoint, if a step met a loss that is no number."""
    bad = int(run.step.bad_step)
    if bad < 0:
        return
    batch = run.step.batches.sequences(bad * run.samples_per_step, run.samples_per_step)
    values = run.step.metrics[bad % len(run.step.metrics)]
    loss, norm = (float(values[COLUMNS.index(name)]) for name in ("train_loss", "grad_norm"))
    raise NonFiniteLoss(
        f"loss {loss} or gradient norm {norm} is not finite at step {bad}, batch of training sequences "
        f"{batch.tolist()}; the weights are those before that step; {last_good(run)}. Try a lower optim.lr, "
        "a longer optim.warmup_steps or precision=fp32"
    )


def last_good(run: Run) -> str:
    path = run.checkpoints / checkpoint.LAST
    run.writer.wait()
    return f"last good checkpoint: {path}" if path.exists() else "no checkpoint had been written yet"


def save(run: Run) -> None:
    """Write last.pt, and make it best.pt too when its evaluation is the best so far."""
    facts = {name: getattr(run, name) for name in (*RESUMED, "config", "data")}
    state = {"run": facts | {"precision": run.step.precision}, "train": run.step.state_dict()}
    saved = functools.partial(write_status, run.folder, "running", step=run.done, total_steps=run.total_steps)
    last, best = checkpoints_of(run)
    run.writer(state, last, best if is_best(run) else None, then=saved)


def is_best(run: Run) -> bool:
    """Is the evaluation after this step the best so far?"""
    return bool(run.best) and run.best["step"] == run.done


def checkpoints_of(run: Run) -> tuple[Path, Path]:
    """last.pt and best.pt."""
    return run.checkpoints / checkpoint.LAST, run.checkpoints / checkpoint.BEST


def resume(run: Run, state: dict) -> None:
    """Continue from a checkpoint's `state`."""
    for name in RESUMED:
        setattr(run, name, state["run"][name])
    before, now = state["run"]["precision"], run.step.precision
    if before != now:
        run.log.say(f"warning: this run began in {before} and goes on in {now}: precision=auto depends on the device")
    run.step.load_state_dict(state["train"])
    if run.peers.leads and is_best(run) and not checkpoint.is_same(*checkpoints_of(run)):
        save(run)  # it ended between the two
