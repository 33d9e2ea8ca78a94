"""Searches by Optuna: real studies in sqlite, real runs of a fraction of a second."""

import json
import signal
import time

import optuna
import pytest
from hydra import initialize_config_dir
from runs import CONF

import sweeps
from tid.sweep import grid
from tid.sweep.search import Search

SPACE = ["hydra/sweeper=optuna", "scorer=none", "optim.lr=tag(log,interval(1e-4,1e-2))", "seed=0,1", "name=hunt"]


def study_of(folder) -> optuna.Study:
    return optuna.load_study(study_name="hunt", storage=f"sqlite:///{folder}/outputs/hunt/.sweep/study.db")


def objectives(folder, trial) -> list[float]:
    files = [folder / "outputs/hunt" / name / "summary.json" for name in trial.user_attrs["runs"]]
    return [json.loads(file.read_text())["best"]["val_bpc"] for file in files]


def test_settings_become_a_space():
    with initialize_config_dir(CONF, version_base="1.3"):
        fixed, space, seeds = grid.search_space(
            [
                "context=64",
                "scorer=entropy,random",
                "optim.lr=tag(log,interval(1e-4,1e-2))",
                "batch_size=interval(2,8)",
                "seed=range(2)",
            ]
        )
    assert fixed == ["context=64"] and seeds == ["seed=0", "seed=1"]
    assert space == {
        "scorer": ["entropy", "random"],
        "optim.lr": grid.Interval(1e-4, 1e-2, log=True),
        "batch_size": grid.Interval(2, 8, log=False),
    }


@pytest.mark.parametrize(
    ("space", "sampler", "message"),
    [
        ({}, "tpe", "nothing to search"),
        ({"a": ["1"]}, "best", "hydra.sweeper.sampler: wanted one of tpe, random, grid, got 'best'"),
        ({"a": grid.Interval(0, 1, False)}, "grid", "a: a grid needs values"),
    ],
)
def test_what_no_search_can_have_is_refused(tmp_path, space, sampler, message):
    with pytest.raises(ValueError, match=message):
        Search("x", tmp_path, space, sampler, 0, 1, 1, "best/val_bpc").open(make=True)


def test_a_search_averages_over_seeds_and_goes_on_with_new_numbers(tmp_path):
    first = sweeps.sweep(tmp_path, *SPACE, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    trials = study_of(tmp_path).trials
    assert [trial.number for trial in trials] == [0, 1]
    for trial in trials:
        values = objectives(tmp_path, trial)
        assert len(values) == 2 and trial.value == pytest.approx(sum(values) / 2)
    second = sweeps.sweep(tmp_path, *SPACE, "hydra.sweeper.n_trials=3")
    assert second.returncode == 0 and second.stderr.count("started: ") == 2
    later = study_of(tmp_path).trials
    assert [trial.number for trial in later] == [0, 1, 2] and later[:2] == trials
    assert len({trial.params["optim.lr"] for trial in later}) == 3  # a resumed sampler does not repeat itself


def test_diverged_trials_fail_and_killed_ones_are_asked_for_again(tmp_path):
    wild = ["hydra/sweeper=optuna", "scorer=none", "optim.warmup_steps=1", "optim.lr=1e30,1e-2", "name=hunt",
            "hydra.sweeper.sampler=grid", "hydra.sweeper.trials_at_once=1"]  # fmt: skip
    process = sweeps.begin(tmp_path, *wild, "total_steps=200")
    while not sweeps.pids(tmp_path, "hunt") and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = sweeps.sweep(tmp_path, *wild, "total_steps=200")
    assert again.returncode == 0, again.stderr
    trials = study_of(tmp_path).trials
    states = {trial.params["optim.lr"]: trial for trial in trials if not trial.user_attrs.get("again")}
    assert (
        states["1e+30"].state == optuna.trial.TrialState.FAIL and "not finite" in states["1e+30"].user_attrs["reason"]
    )
    assert states["0.01"].state == optuna.trial.TrialState.COMPLETE
    assert not [trial for trial in trials if trial.state == optuna.trial.TrialState.RUNNING]
