"""A search for good settings by Optuna: trials are asked for, run as cells with every seed, and told how they went.

The study is a sqlite file in the sweep's folder, so that the same command goes on where it stopped, numbers going
on too. Started several times at once it is several workers on one study: a lock makes asking for trials one worker's
at a time, and a worker holds a lock of its own as long as it lives, so that the trials of a killed one are asked for
again. A trial's runs are ordinary runs, known by their hash: nothing is overwritten.
"""

import json
import math
import os
import socket
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
from tid.messages import did_you_mean
from tid.sweep.grid import Interval
from tid.sweep.plan import Cell
from tid.sweep.trials import enqueue_grid, retry_failed, revive, standing, tell

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
HOPELESS = 10  # trials that cannot be run, and none that can: then it is not a matter of the combination


@dataclass
class Search:
    """space: key → list of values, or an interval. objective: the path of a figure in summary.json, lower is better.
    n_trials: of the study in all, those of earlier commands included. common: what else the trials of one study have
    in common, see `what_is_common`. fail_fast: a run that fails ends the search, which `gave_up` then tells.
    retry_failed: what failed is asked for once more."""

    name: str
    folder: Path
    space: dict[str, Interval | list[str]]
    sampler: str
    sampler_seed: int
    n_trials: int
    trials_at_once: int
    objective: str
    common: dict[str, Any]
    fail_fast: bool
    retry_failed: bool
    gave_up: bool = False

    @property
    def storage(self) -> str:
        return f"sqlite:///{self.folder / 'study.db'}"

    def introduction(self, seeds: int) -> str:
        return f"search of {', '.join(self.space)}: {self.n_trials} trials of {seeds} seeds by {self.sampler}"

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
            if self.retry_failed:
                retry_failed(study)
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
        self,
        study: optuna.Study,
        cells_of: Callable[[list[str]], list[Cell]],
        launch: Callable[[list[Cell]], int],
        say: Callable[[str], None],
    ) -> int:
        """Run trials until there are `n_trials`, those that other workers are at included. cells_of: a trial's settings
        → its cells, one per seed; ConfigError for what cannot be run: the trial has then failed. launch: brings cells
        to an end and returns the number of the signal that stopped it, or 0. Returns that.

        Raises ConfigError when HOPELESS trials cannot be run, and none can."""
        me = f"{socket.gethostname()}-{os.getpid()}"
        (self.folder / "workers").mkdir(exist_ok=True)
        possible = refused = 0
        with FileLock(self.folder / "workers" / f"{me}.lock", timeout=LOCKED_SECONDS):
            while asked := self.ask(study, me):
                made = []
                for trial, settings in asked:
                    try:
                        made.append((trial, cells_of(settings)))
                    except ConfigError as error:
                        last, refused = error, refused + 1
                        tell_impossible(study, trial, settings, error, say)
                possible += len(made)
                if refused >= HOPELESS and not possible:
                    raise last
                if made and (stopped := self.run_trials(study, made, launch)):
                    return stopped
                if self.gave_up:
                    break
        return 0

    def run_trials(
        self, study: optuna.Study, trials: list[tuple[optuna.Trial, list[Cell]]], launch: Callable[[list[Cell]], int]
    ) -> int:
        """Bring the cells of these trials to an end, and tell the study; returns what `launch` does."""
        unique = {cell.name: cell for _, cells in trials for cell in cells}
        todo = [cell for cell in unique.values() if cell.to_run]
        for trial, cells in trials:
            trial.set_user_attr("runs", [cell.name for cell in cells])
        stopped = launch(list(unique.values()))
        for trial, cells in trials:
            tell(study, trial, [unique[cell.name] for cell in cells], self.objective)
        self.gave_up = self.fail_fast and any(cell.state == "failed" for cell in todo)
        return stopped

    def ask(self, study: optuna.Study, me: str) -> list[tuple[optuna.Trial, list[str]]]:
        """The next trials with their settings, at most `trials_at_once`; none when the study has all of its own."""
        asked = []
        with self.lock():
            revive(study, self.folder / "workers", me)
            taken = sum(trial.state != TrialState.WAITING for trial in standing(study))
            for _ in range(min(self.trials_at_once, self.n_trials - taken)):
                # Seeded anew, or every worker, and every sitting of one, would make the same random choices.
                study.sampler = SAMPLERS[self.sampler](self.sampler_seed + len(study.trials))
                trial = study.ask()
                trial.set_user_attr("worker", me)
                asked.append((trial, self.suggest(trial)))
        return asked


def tell_impossible(
    study: optuna.Study, trial: optuna.Trial, settings: list[str], error: ConfigError, say: Callable[[str], None]
) -> None:
    """Tell the study that a trial cannot be run, and say why."""
    reason = str(error).splitlines()[0]
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=TrialState.FAIL)
    say(f"trial {trial.number} cannot be run: {reason} ({' '.join(settings)})")


def what_is_common(config: dict, others: list[str], seeds: list[str]) -> dict[str, Any]:
    """Besides its space and its objective, what the trials of a study have in common, by dotted key.

    config: of the first value of every key that is searched, so that those of equal spaces can be compared. others:
    settings that apply only to other values. Settings that change no result are left out.
    """
    kept = canonical(config) | {key: config[key] for key in DROPPING}  # of a baseline it forgets these
    found = flat(kept) | dict(text.split("=", 1) for text in others)
    found["seed"] = ",".join(sorted(word.partition("=")[2] for word in seeds))
    return json.loads(json.dumps(found))  # as it is read back from the study
