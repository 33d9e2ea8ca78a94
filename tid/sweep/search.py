"""A search for good settings by Optuna: trials are asked for, run as cells with every seed, and told how they went.

The study is a sqlite file in the sweep's folder, so that the same command goes on where it stopped, numbers going
on too. Started several times at once it is several workers on one study: a lock makes asking for trials one worker's
at a time, and a worker holds a lock of its own as long as it lives, so that the trials of a killed one are asked for
again. A trial's runs are ordinary runs, known by their hash: nothing is overwritten.
"""

import itertools
import json
import math
import os
import socket
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import TrialState

from tid.config import ConfigError
from tid.logs import read_metrics
from tid.sweep.plan import Cell, is_locked, read_summary

LOCKED_SECONDS = 60  # how long another worker may take to ask for its trials, and sqlite for a transaction
SAMPLERS = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),  # never asked: see enqueue_grid
}


@dataclass
class Search:
    """space: key → list of values, or an interval (low, high, log; see tid.sweep.grid). objective: the path of a
    figure in summary.json, lower is better.
    n_trials: of the study in all, those of earlier commands included."""

    name: str
    folder: Path
    space: dict[str, Any]
    sampler: str
    sampler_seed: int
    n_trials: int
    trials_at_once: int
    objective: str

    @property
    def storage(self) -> str:
        return f"sqlite:///{self.folder / 'study.db'}"

    def open(self, make: bool) -> optuna.Study | None:
        """The study, made if there is none yet; without `make` only the settings are checked. Raises ConfigError for
        what no search can have."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # enqueue_trial is, since 1.2
        lists = {key: values for key, values in self.space.items() if isinstance(values, list)}
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"hydra.sweeper.sampler: wanted one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if not self.space:
            raise ConfigError(
                "nothing to search: give a key an interval or several values, as optim.lr='interval(1e-4,1e-2)'"
            )
        if self.sampler == "grid" and lists.keys() != self.space.keys():
            key = next(key for key in self.space if key not in lists)
            raise ConfigError(f"{key}: a grid needs values, not an interval; give them: {key}=0.1,0.3")
        if self.sampler == "grid":
            self.n_trials = min(self.n_trials, math.prod(len(values) for values in lists.values()))
        if not make:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock():  # two that make the tables at once would fail
            patient = {"connect_args": {"timeout": LOCKED_SECONDS}}
            storage = optuna.storages.RDBStorage(self.storage, engine_kwargs=patient)
            study = optuna.create_study(study_name=self.name, storage=storage, load_if_exists=True)
            if self.sampler == "grid":
                enqueue_grid(study, lists)
        return study

    @contextmanager
    def lock(self) -> Iterator[None]:
        """For the ``with`` block no other worker opens the study or asks it for trials."""
        file = self.folder / "study.lock"
        try:
            with FileLock(file, timeout=LOCKED_SECONDS):
                yield
        except Timeout:
            raise ConfigError(f"{file}: held by another process for {LOCKED_SECONDS} s; is a worker stuck?") from None

    def suggest(self, trial: optuna.Trial) -> list[str]:
        """The trial's settings."""
        chosen: dict[str, Any] = {}
        for key, values in self.space.items():
            if isinstance(values, list):
                chosen[key] = trial.suggest_categorical(key, values)
            elif isinstance(values.low, int) and isinstance(values.high, int):
                chosen[key] = trial.suggest_int(key, values.low, values.high, log=values.log)
            else:
                chosen[key] = trial.suggest_float(key, values.low, values.high, log=values.log)
        return [f"{key}={value}" for key, value in chosen.items()]

    def run(
        self, study: optuna.Study, cells_of: Callable[[list[str]], list[Cell]], launch: Callable[[list[Cell]], int]
    ) -> int:
        """Run trials until there are `n_trials`, those that other workers are at included. cells_of: a trial's settings
        → its cells, one per seed. launch: brings cells to an end and returns the number of the signal that stopped it,
        or 0. Returns that. Raises ConfigError for a trial that cannot be run, which then counts as failed."""
        me = f"{socket.gethostname()}-{os.getpid()}"
        (self.folder / "workers").mkdir(exist_ok=True)
        with FileLock(self.folder / "workers" / f"{me}.lock", timeout=LOCKED_SECONDS):
            while asked := self.ask(study, me):
                cells = [self.cells(study, trial, settings, cells_of) for trial, settings in asked]
                unique = {cell.name: cell for mine in cells for cell in mine}
                stopped = launch(list(unique.values()))
                for (trial, _), mine in zip(asked, cells, strict=True):
                    tell(study, trial, [unique[cell.name] for cell in mine], self.objective)
                if stopped:
                    return stopped
        return 0

    def ask(self, study: optuna.Study, me: str) -> list[tuple[optuna.Trial, list[str]]]:
        """The next trials with their settings, at most `trials_at_once`; none when the study has all of its own."""
        asked = []
        with self.lock():
            revive(study, self.folder / "workers", me)
            taken = sum(is_finished(trial) or trial.state == TrialState.RUNNING for trial in study.trials)
            for _ in range(min(self.trials_at_once, self.n_trials - taken)):
                # Seeded anew, or every worker, and every sitting of one, would make the same random choices.
                study.sampler = SAMPLERS[self.sampler](self.sampler_seed + len(study.trials))
                trial = study.ask()
                trial.set_user_attr("worker", me)
                asked.append((trial, self.suggest(trial)))
        return asked

    def cells(self, study: optuna.Study, trial: optuna.Trial, settings: list[str], cells_of: Callable) -> list[Cell]:
        """The trial's cells. Raises ConfigError for settings that make no run; the trial has then failed."""
        try:
            found = cells_of(settings)
        except ConfigError as error:
            trial.set_user_attr("reason", str(error))
            study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("runs", [cell.name for cell in found])
        return found


def enqueue_grid(study: optuna.Study, lists: dict[str, list[str]]) -> None:
    """Queue what the study does not have of the grid. Optuna's own GridSampler cannot be asked for single trials."""
    known = [trial.params or trial.system_attrs.get("fixed_params") for trial in study.trials]
    for values in itertools.product(*lists.values()):
        if (point := dict(zip(lists, values, strict=True))) not in known:
            study.enqueue_trial(point)


def is_finished(trial: optuna.trial.FrozenTrial) -> bool:
    """Did it come to an end of its own? One that was interrupted is asked for again."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return trial.state in ended and not trial.user_attrs.get("again")


def tell(study: optuna.Study, trial: optuna.Trial, cells: list[Cell], objective: str) -> None:
    """Tell the study the mean objective of the trial's runs, or why there is none."""
    states = {cell.state for cell in cells}
    if states == {"done"}:
        values = [figure(cell, objective) for cell in cells]
        if all(math.isfinite(value) for value in values):
            study.tell(trial, statistics.fmean(values))
            return
        trial.set_user_attr("reason", f"{objective} is not finite in {values}")
    elif states <= {"done", "pruned"}:
        for step, value in last_values(cells):
            trial.report(value, step)
        trial.set_user_attr("reason", next(cell.reason for cell in cells if cell.state == "pruned"))
        study.tell(trial, state=TrialState.PRUNED)
        return
    elif "failed" in states:
        trial.set_user_attr("reason", next(cell.reason for cell in cells if cell.state == "failed"))
    else:
        again(study, trial, trial.params)
        return
    study.tell(trial, state=TrialState.FAIL)


def again(study: optuna.Study, trial: Any, params: dict) -> None:
    """Give an interrupted trial up and its settings to the next one, whose runs then resume."""
    study._storage.set_trial_user_attr(trial._trial_id, "again", True)
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(params)


def revive(study: optuna.Study, workers: Path, me: str) -> None:
    """Ask again for the trials whose worker is dead, while no other asks: a killed one leaves its trial running for
    ever. workers: the folder of their locks, which the operating system drops when a process ends in any way."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")  # none: killed while it asked, since asking is one worker's at a time
        if worker != me and not (worker and is_locked(workers / f"{worker}.lock")):
            again(study, trial, trial.params)


def figure(cell: Cell, path: str) -> float:
    """A number of the run's summary by its path, as best/val_bpc. Raises ConfigError for no such number."""
    node: Any = read_summary(cell.folder)
    for part in path.split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    if node is None:
        return math.nan
    if not isinstance(node, int | float):
        raise ConfigError(f"hydra.sweeper.objective: {path} is no number of summary.json, as best/val_bpc is")
    return float(node)


def last_values(cells: list[Cell]) -> list[tuple[int, float]]:
    """The newest validation bpc, averaged over the runs, at the step that all have reached."""
    curves = []
    for cell in cells:
        rows = read_metrics(cell.folder)[0]
        curves.append({row["step"]: row["val_bpc"] for row in rows if row.get("val_bpc") is not None})
    common = set.intersection(*map(set, curves))
    return [(max(common), statistics.fmean(curve[max(common)] for curve in curves))] if common else []


def report(study: optuna.Study, objective: str) -> str:
    """The trials, best first, why others failed, and how many ended in which way. A pruned trial is not ranked."""
    done = sorted((t for t in study.trials if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    lines = [f"{t.value:.4f}  trial {t.number}: {json.dumps(t.params)}" for t in done[:10]]
    failed = [t for t in study.trials if t.state == TrialState.FAIL and not t.user_attrs.get("again")]
    lines += [f"FAILED  trial {t.number}: {json.dumps(t.params)}: {t.user_attrs.get('reason', '')}" for t in failed]
    counts = {state: sum(t.state == state for t in study.trials) for state in TrialState}
    ways = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count)
    return "\n".join([f"{objective}, mean over the seeds:", *lines, f"{len(study.trials)} trials: {ways}"])
