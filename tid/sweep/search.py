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

from tid.config import DROPPING, ConfigError, canonical
from tid.config_file import flat
from tid.logs import read_metrics
from tid.messages import did_you_mean
from tid.sweep.grid import Interval
from tid.sweep.plan import Cell, is_locked, read_summary

LOCKED_SECONDS = 60  # how long another worker may take to ask for its trials, and sqlite for a transaction
SAMPLERS = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),  # never asked: see enqueue_grid
}
VALIDATION = ("val_loss", "val_perplexity", "val_bpc", "val_bpb", "val_report_loss")
OBJECTIVES = (
    *(f"{when}/{name}" for when in ("best", "final") for name in VALIDATION),
    *("best/val_select_loss", "drop_rate", "steps", "tokens", "epochs", "parameters", "train_flops", "score_flops"),
    *("step_ms", "score_ms", "seconds", "seconds_with_start"),
)
DIFFERENCES = 5  # are shown


@dataclass
class Search:
    """space: key → list of values, or an interval. objective: the path of a figure in summary.json, lower is better.
    n_trials: of the study in all, those of earlier commands included. common: what else the trials of one study have
    in common, see `what_is_common`."""

    name: str
    folder: Path
    space: dict[str, Interval | list[str]]
    sampler: str
    sampler_seed: int
    n_trials: int
    trials_at_once: int
    objective: str
    common: dict[str, Any]

    @property
    def storage(self) -> str:
        return f"sqlite:///{self.folder / 'study.db'}"

    def open(self, make: bool) -> optuna.Study | None:
        """The study, made if there is none yet; without `make` only the settings are checked. Raises ConfigError for
        what no search can have, and for another search's study."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # enqueue_trial is, since 1.2
        self.refuse_nonsense()
        lists = {key: values for key, values in self.space.items() if isinstance(values, list)}
        if self.sampler == "grid":
            self.n_trials = min(self.n_trials, math.prod(len(values) for values in lists.values()))
        if not make:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock():  # two that make the tables at once would fail
            patient = {"connect_args": {"timeout": LOCKED_SECONDS}}
            storage = optuna.storages.RDBStorage(self.storage, engine_kwargs=patient)
            study = optuna.create_study(study_name=self.name, storage=storage, load_if_exists=True)
            self.refuse_other_search(study)
            if self.sampler == "grid":
                enqueue_grid(study, lists)
        return study

    def refuse_nonsense(self) -> None:
        """Raise ConfigError for what no search can have: Optuna would find some of it only when a trial has begun."""
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"hydra.sweeper.sampler: wanted one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        for name, least in (("n_trials", 1), ("trials_at_once", 1), ("sampler_seed", 0)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise ConfigError(f"hydra.sweeper.{name}: wanted a whole number of at least {least}, got {value!r}")
        if self.objective not in OBJECTIVES:
            raise ConfigError(
                f"hydra.sweeper.objective: wanted a figure of summary.json, got {self.objective!r}"
                f"{did_you_mean(str(self.objective), OBJECTIVES)}\n  it is one of {', '.join(OBJECTIVES)}"
            )
        if not self.space:
            raise ConfigError(
                "nothing to search: give a key an interval or several values, as optim.lr='interval(1e-4,1e-2)'"
            )
        for key, axis in self.space.items():
            if isinstance(axis, list):
                continue
            if self.sampler == "grid":
                raise ConfigError(f"{key}: a grid needs values, not an interval; give them: {key}=0.1,0.3")
            if axis.low > axis.high or (axis.log and axis.low <= 0):
                wanted = "the lower number first" + (", and both above 0" if axis.log else "")
                raise ConfigError(f"{key}: wanted {wanted}, got {axis}")

    def refuse_other_search(self, study: optuna.Study) -> None:
        """Raise ConfigError unless the study is this search's: one without trials becomes it."""
        axes = {key: ",".join(axis) if isinstance(axis, list) else str(axis) for key, axis in self.space.items()}
        mine = self.common | axes | {"objective": self.objective}
        theirs = study.user_attrs.get("search")
        if theirs is None and not study.trials:
            study.set_user_attr("search", mine)
        elif theirs is None:
            raise ConfigError(
                f"name={self.name}: the study in {self.folder} is of a version that did not note a search's settings: "
                "its trials may be of other ones\nGive this search another name: name=..."
            )
        elif differences := [key for key in theirs | mine if theirs.get(key) != mine.get(key)]:
            lines = [f"  {key}: {theirs.get(key)} there, {mine.get(key)} here" for key in differences[:DIFFERENCES]]
            more = [f"  and {len(differences) - DIFFERENCES} more"] if len(differences) > DIFFERENCES else []
            raise ConfigError(
                f"name={self.name}: the study in {self.folder} is another search's; the two cannot be compared:\n"
                + "\n".join([*lines, *more, "Give this search another name: name=..."])
            )

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


def what_is_common(config: dict, seeds: list[str]) -> dict[str, Any]:
    """Besides its space and its objective, what the trials of a study have in common, by dotted key.

    config: of the first value of every key that is searched, so that those of equal spaces can be compared. Settings
    that change no result are left out.
    """
    kept = canonical(config) | {key: config[key] for key in DROPPING}  # of a baseline it forgets these
    found = flat(kept) | {"seed": ",".join(sorted(word.partition("=")[2] for word in seeds))}
    return json.loads(json.dumps(found))  # as it is read back from the study


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
    """A figure of the run's summary, one of OBJECTIVES; nan when it is not finite."""
    node: Any = read_summary(cell.folder)
    for part in path.split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    return math.nan if node is None else float(node)


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
