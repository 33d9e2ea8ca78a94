"""Trials of a real study, over runs that only seem to be: what becomes of each, and which are asked for again."""

import json
from collections.abc import Callable

import pytest
from optuna.trial import TrialState

from sweeps import search as search_in
from tid.config import ConfigError
from tid.sweep import grid
from tid.sweep.plan import Cell
from tid.sweep.search import HOPELESS
from tid.sweep.trials import report


def test_pruned_and_failed_trials_are_told_as_that_and_not_ranked(tmp_path):
    """Of two seeds: the second pruned; one not finite; one failed; one that went on, the worst."""
    search = search_in(tmp_path, space={"x": ["1", "2", "3", "4"]}, sampler="grid")
    ends = {"1": ("done", "pruned"), "2": ("done", "done"), "3": ("done", "failed"), "4": ("done", "done")}

    def cells_of(words: list[str]) -> list[Cell]:
        return [Cell({}, None, "", tmp_path / f"{words[0]}-seed{seed}") for seed in (0, 1)]

    def end(cells: list[Cell]) -> int:
        for seed, cell in enumerate(cells):
            x = cell.name[2]
            cell.state, cell.reason = ends[x][seed], "it lost" if ends[x][seed] == "pruned" else "out of memory"
            rows = [{"step": step, "val_select_loss": 3.0 - seed - step / 100} for step in (10, 20)[: 2 - seed]]
            (cell.folder / "logs").mkdir(parents=True)
            (cell.folder / "logs/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if cell.state == "done":
                value = float("nan") if (x, seed) == ("2", 1) else float(x)
                (cell.folder / "summary.json").write_text(json.dumps({"best": {"val_select_loss": value}}))
        return 0

    study = search.open(make=True)
    assert search.run(study, cells_of, end, print) == 0
    trials = {trial.params["x"]: trial for trial in study.trials}
    assert trials["1"].state == TrialState.PRUNED and trials["1"].user_attrs["reason"] == "it lost"
    assert trials["1"].intermediate_values == {10: pytest.approx(2.4)}  # the last that both seeds reached
    assert trials["2"].state == TrialState.FAIL and "not finite" in trials["2"].user_attrs["reason"]
    assert trials["3"].state == TrialState.FAIL and trials["3"].user_attrs["reason"] == "out of memory"
    assert trials["4"].state == TrialState.COMPLETE and study.best_trial.params == {"x": "4"}
    said = report(study, search.objective).splitlines()
    assert said[1] == '4.0000  trial 3: {"x": "4"}' and said[-1] == "4 trials: 1 complete, 1 pruned, 2 fail"
    assert 'FAILED  trial 2: {"x": "3"}: out of memory' in said


def cells_in(folder) -> Callable[[list[str]], list[Cell]]:
    """Trials with one run each, called as its settings are; one of x=bad is impossible."""

    def cells_of(words: list[str]) -> list[Cell]:
        if "x=bad" in words:
            raise ConfigError("x: wanted none that is bad\n  in the run x=bad")
        return [Cell({}, None, "", folder / " ".join(words))]

    return cells_of


def ends_as(state: str) -> Callable[[list[Cell]], int]:
    """What brings cells to such an end."""

    def launch(cells: list[Cell]) -> int:
        for cell in cells:
            cell.state, cell.reason = state, "it was to be"
            cell.folder.mkdir(exist_ok=True)
            (cell.folder / "summary.json").write_text(json.dumps({"best": {"val_select_loss": 1.0}}))
        return 0

    return launch


def test_a_failed_run_ends_the_search_when_asked(tmp_path):
    values = {"x": ["1", "2", "3"]}
    search = search_in(tmp_path, space=values, sampler="grid", fail_fast=True)
    study = search.open(make=True)
    assert search.run(study, cells_in(tmp_path), ends_as("failed"), print) == 0 and search.gave_up
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING, TrialState.WAITING]
    goes_on = search_in(tmp_path, space=values, sampler="grid", fail_fast=True)
    goes_on.run(goes_on.open(make=True), cells_in(tmp_path), ends_as("done"), print)
    assert not goes_on.gave_up and [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_what_failed_is_tried_again_once_for_each_time_that_it_is_asked_for(tmp_path):
    def go(state: str, **changes) -> tuple[list[str], str]:
        search = search_in(tmp_path, space={"x": ["1", "2"]}, sampler="grid", n_trials=2, **changes)
        study = search.open(make=True)
        search.run(study, cells_in(tmp_path), ends_as(state), print)
        return [f"{trial.params['x']} {trial.state.name}" for trial in study.trials], report(study, "x")

    failed = ["1 FAIL", "2 FAIL"]
    assert go("failed")[0] == failed
    assert go("done")[0] == failed  # they have ended
    assert go("failed", retry_failed=True)[0] == failed * 2
    trials, said = go("done", retry_failed=True)
    assert trials == [*failed * 2, "1 COMPLETE", "2 COMPLETE"] and said.endswith("2 trials: 2 complete")
    assert go("done", retry_failed=True)[0] == trials and "FAILED" not in said


def test_an_impossible_combination_fails_its_trial_and_the_search_goes_on(tmp_path):
    search = search_in(tmp_path, space={"x": ["1", "bad", "3"]}, sampler="grid")
    study, said = search.open(make=True), []
    assert search.run(study, cells_in(tmp_path), ends_as("done"), said.append) == 0
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert said == ["trial 1 cannot be run: x: wanted none that is bad (x=bad)"]
    assert 'FAILED  trial 1: {"x": "bad"}: x: wanted none that is bad' in report(study, "x").splitlines()


@pytest.mark.parametrize("trials_at_once", [1, 4])
def test_a_search_of_which_nothing_can_be_run_ends_with_the_reason(tmp_path, trials_at_once):
    space = {"x": ["bad"], "y": grid.Interval(0.0, 1.0, False)}
    search = search_in(tmp_path, space=space, n_trials=99, trials_at_once=trials_at_once)
    study = search.open(make=True)
    with pytest.raises(ConfigError, match="wanted none that is bad"):
        search.run(study, cells_in(tmp_path), None, print)
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}
    assert HOPELESS <= len(study.trials) < HOPELESS + trials_at_once
