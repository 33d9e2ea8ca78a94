"""A study's trials: which are asked for again, how each ended, and what all of them found."""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from tid.logs import read_metrics
from tid.sweep.plan import Cell, is_locked, read_summary

# ------------------------------------------------------------------------------------------------ asked for


def enqueue_grid(study: optuna.Study, lists: dict[str, list[str]]) -> None:
    """Queue what the study does not have of the grid. Optuna's own GridSampler cannot be asked for single trials."""
    known = [trial.params or trial.system_attrs.get("fixed_params") for trial in study.trials]
    for values in itertools.product(*lists.values()):
        if (point := dict(zip(lists, values, strict=True))) not in known:
            study.enqueue_trial(point)


def again(study: optuna.Study, trial: Any, params: dict) -> None:
    """Give an interrupted trial up and its settings to the next one, whose runs then resume."""
    study._storage.set_trial_user_attr(trial._trial_id, "again", True)
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(params)


def retry_failed(study: optuna.Study) -> None:
    """Queue the settings of every failed trial once more. It is the new trial that notes which one it replaces, since
    Optuna changes nothing of a trial that has ended."""
    for trial in standing(study):
        if trial.state == TrialState.FAIL:
            system, mine = {"fixed_params": trial.params}, {"instead_of": trial.number}
            study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=system, user_attrs=mine))


def revive(study: optuna.Study, workers: Path, me: str) -> None:
    """Ask again for the trials whose worker is dead, while no other asks: a killed one leaves its trial running for
    ever. workers: the folder of their locks, which the operating system drops when a process ends in any way."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")  # none: killed while it asked, since asking is one worker's at a time
        if worker != me and not (worker and is_locked(workers / f"{worker}.lock")):
            again(study, trial, trial.params)


def standing(study: optuna.Study) -> list[FrozenTrial]:
    """The trials but for those whose settings went to a later one: interrupted, or failed and tried again."""
    trials = study.trials
    replaced = {trial.user_attrs.get("instead_of") for trial in trials}
    return [trial for trial in trials if not trial.user_attrs.get("again") and trial.number not in replaced]


# ------------------------------------------------------------------------------------------------ ended


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


def figure(cell: Cell, path: str) -> float:
    """A figure of the run's summary, one of tid.sweep.search.OBJECTIVES; nan when it is not finite."""
    node: Any = read_summary(cell.folder)
    for part in path.split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    return math.nan if node is None else float(node)


def last_values(cells: list[Cell]) -> list[tuple[int, float]]:
    """The newest loss on the even validation documents, averaged over the runs, at the step that all have reached."""
    name, curves = "val_select_loss", []
    for cell in cells:
        rows = read_metrics(cell.folder)[0]
        curves.append({row["step"]: row[name] for row in rows if row.get(name) is not None})
    common = set.intersection(*map(set, curves))
    return [(max(common), statistics.fmean(curve[max(common)] for curve in curves))] if common else []


def has_result(study: optuna.Study) -> bool:
    """Did a trial end well? One that was pruned has a value, too: the last it reported."""
    return any(trial.state == TrialState.COMPLETE for trial in study.trials)


def report(study: optuna.Study, objective: str) -> str:
    """The trials, best first, why others failed, and how many ended in which way. A pruned trial is not ranked."""
    trials = standing(study)
    done = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    lines = [f"{t.value:.4f}  trial {t.number}: {json.dumps(t.params)}" for t in done[:10]]
    failed = [t for t in trials if t.state == TrialState.FAIL]
    lines += [f"FAILED  trial {t.number}: {json.dumps(t.params)}: {t.user_attrs.get('reason', '')}" for t in failed]
    counts = {state: sum(t.state == state for t in trials) for state in TrialState}
    ways = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count)
    return "\n".join([f"{objective}, mean over the seeds:", *lines, f"{len(trials)} trials: {ways}"])
