"""Searches by Optuna: real studies in sqlite, real runs of a fraction of a second."""

import json
import shlex
import subprocess
import sys
import time

import optuna
import pytest
import runs
from hydra import initialize_config_dir
from optuna.trial import TrialState
from runs import CONF

import sweeps
from tid.config import ConfigError
from tid.sweep import grid
from tid.sweep.search import OBJECTIVES, what_is_common

SPACE = ["hydra/sweeper=optuna", "scorer=none", "optim.lr=tag(log,interval(1e-4,1e-2))", "seed=0,1", "name=hunt"]


def study_of(folder, name: str = "hunt") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/outputs/{name}/.sweep/study.db")


def objectives(folder, trial) -> list[float]:
    files = [folder / "outputs/hunt" / name / "summary.json" for name in trial.user_attrs["runs"]]
    return [json.loads(file.read_text())["best"]["val_select_loss"] for file in files]


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
    ("changes", "message"),
    [
        ({"space": {}}, "nothing to search"),
        ({"sampler": "best"}, "hydra.sweeper.sampler: wanted one of tpe, random, grid, got 'best'"),
        ({"sampler": "grid", "space": {"a": grid.Interval(0, 1, False)}}, "a: a grid needs values"),
        ({"space": {"a": grid.Interval(0.0, 1.0, True)}}, "a: .* both above 0, got tag.log,interval.0.0,1.0"),
        ({"space": {"a": grid.Interval(2, 1, False)}}, "a: wanted the lower number first, got interval.2,1"),
        ({"objective": "best/val_bcp"}, r"objective: .* got 'best/val_bcp'; did you mean best/val_bpc\?"),
        ({"objective": "data"}, "objective: wanted a figure of summary.json, got 'data'"),
        ({"n_trials": "many"}, "hydra.sweeper.n_trials: wanted a whole number of at least 1, got 'many'"),
        ({"trials_at_once": 0}, "hydra.sweeper.trials_at_once: wanted a whole number of at least 1, got 0"),
    ],
)
def test_what_no_search_can_have_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        sweeps.search(tmp_path, **changes).open(make=True)
    assert list(tmp_path.iterdir()) == []


def test_every_figure_of_a_summary_can_be_searched_for(tmp_path):
    summary = runs.read(runs.train(tmp_path, "total_steps=2", "eval_every=2"), "summary.json")
    nested = {f"{when}/{name}": value for when in ("best", "final") for name, value in summary[when].items()}
    numbers = {name for name, value in (summary | nested).items() if isinstance(value, int | float)}
    assert set(OBJECTIVES) == numbers - {"best/step", "final/step"}


# ---------------------------------------------------------------------------------------------- another search


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"common": {"context": 128, "seed": "0,1"}}, "context: 64 there, 128 here"),
        ({"common": {"context": 64, "seed": "0"}}, "seed: 0,1 there, 0 here"),
        ({"objective": "final/val_bpc"}, "objective: best/val_select_loss there, final/val_bpc here"),
        ({"space": {"x": ["1", "2", "3"]}}, "x: 1,2 there, 1,2,3 here"),
        ({"space": {"x": ["1", "2"], "y": grid.Interval(0, 1, False)}}, "y: None there, interval(0,1) here"),
    ],
)
def test_a_study_takes_no_trials_of_another_search(tmp_path, changes, said):
    study = sweeps.search(tmp_path).open(make=True)
    study.tell(study.ask(), 1.0)
    again = sweeps.search(tmp_path, n_trials=20, sampler="random", trials_at_once=2).open(make=True)
    assert len(again.trials) == 1  # how it is searched may change
    with pytest.raises(ConfigError) as refusal:
        sweeps.search(tmp_path, **changes).open(make=True)
    assert said in str(refusal.value).splitlines()[1] and "name=..." in str(refusal.value)
    assert [trial.state for trial in again.trials] == [TrialState.COMPLETE]


def test_a_study_that_does_not_say_what_it_searches_is_taken_only_when_it_is_empty(tmp_path):
    """As a version left it that did not note the settings."""
    study = optuna.create_study(study_name="hunt", storage=f"sqlite:///{tmp_path}/study.db")
    sweeps.search(tmp_path).open(make=True)
    assert study.user_attrs["search"]["context"] == 64
    (tmp_path / "old").mkdir()
    old = optuna.create_study(study_name="hunt", storage=f"sqlite:///{tmp_path}/old/study.db")
    old.tell(old.ask(), 1.0)
    with pytest.raises(ConfigError, match="version that did not note a search's settings"):
        sweeps.search(tmp_path / "old").open(make=True)


def common(*settings: str) -> dict:
    space = sweeps.space("scorer=none,entropy", "optim.lr=interval(1e-4,1e-2)", *settings)
    return what_is_common(*space.first(), space.seeds)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (["tracker=none", "name=other", "log_every=7", "pruner=median", "seed=1,0"], True),
        (["optim.weight_decay=1e-1", "batch_size=8.0"], True),  # as it is anyway
        (["seed=0,1,2"], False),
        (["drop_mode=hide"], False),  # though it makes no difference where the first scorer is none
        (["experiment=quickstart"], False),
        (["optim.beta2=0.5"], False),
        (["scorer.of=predicting"], False),  # of which the first scorer knows nothing
    ],
)
def test_trials_are_comparable_whose_fixed_settings_lead_to_the_same_run(settings, same):
    with initialize_config_dir(CONF, version_base="1.3"):
        assert (common(*settings, *([] if "seed" in str(settings) else ["seed=0,1"])) == common("seed=0,1")) == same


@pytest.mark.slow
def test_another_search_of_the_same_name_is_refused_before_anything_is_trained(tmp_path):
    hunt = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "name=2024", "seed=0"]
    first = sweeps.sweep(tmp_path, *hunt, "scorer=none", "optim.lr=1e-2,1e-3")
    assert first.returncode == 0, first.stderr
    for other in (["scorer=random", "optim.lr=1e-2,1e-3"], ["scorer=none", "optim.lr=1e-2,1e-3,1e-4"]):
        refused = sweeps.sweep(tmp_path, *hunt, *other, "hydra.sweeper.n_trials=2")
        assert refused.returncode == 2 and "is another search's" in refused.stderr, refused.stderr
    assert "optim.lr: 0.01,0.001 there, 0.01,0.001,0.0001 here" in refused.stderr
    assert [trial.state for trial in study_of(tmp_path, "2024").trials] == [TrialState.COMPLETE]
    assert len(sweeps.states(tmp_path, "2024")) == 1


# ---------------------------------------------------------------------------------------------- whole searches


@pytest.mark.slow
def test_a_search_averages_over_seeds_and_goes_on_with_new_numbers(tmp_path):
    first = sweeps.sweep(tmp_path, *SPACE, "hydra.sweeper.n_trials=1")
    assert first.returncode == 0, first.stderr
    (trial,) = study_of(tmp_path).trials
    values = objectives(tmp_path, trial)
    assert trial.number == 0 and len(values) == 2 and trial.value == pytest.approx(sum(values) / 2)
    second = sweeps.sweep(tmp_path, *SPACE, "hydra.sweeper.n_trials=2")
    assert second.returncode == 0 and second.stderr.count("started: ") == 2
    later = study_of(tmp_path).trials
    assert [each.number for each in later] == [0, 1] and later[0] == trial
    assert len({each.params["optim.lr"] for each in later}) == 2  # a resumed sampler does not repeat itself
    winner = shlex.split(second.stderr.rpartition("had no part in choosing it: python ")[2])
    best = min(later, key=lambda each: each.value).params["optim.lr"]
    assert winner[-4:] == ["hydra/sweeper=cells", "name=hunt_winner", f"optim.lr={best}", "seed=range(2,7)"]
    listed = subprocess.run(
        [sys.executable, *winner, "dry_run=true"],
        cwd=tmp_path, env=sweeps.environment(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert listed.returncode == 0 and "5 runs: 5 to be run" in listed.stderr, listed.stderr


@pytest.mark.slow
def test_a_trial_that_the_median_rule_stops_is_pruned_in_the_study(tmp_path):
    losing = ["hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.trials_at_once=1", "name=hunt",
              "scorer=entropy", "optim.lr=1e-2,1e-9", "seed=0",
              "pruner=median", "pruner.warmup_steps=8", "pruner.min_siblings=1"]  # fmt: skip
    done = sweeps.sweep(tmp_path, *losing)
    assert done.returncode == 0, done.stderr
    study = study_of(tmp_path)
    good, bad = study.trials
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert study.best_trial == good and "median" in bad.user_attrs["reason"]
    assert list(bad.intermediate_values) == [8]
    assert "2 trials: 1 complete, 1 pruned" in done.stderr


# ---------------------------------------------------------------------------------------------- several workers

TRIALS = 12
WORKER = """
import json, sys
from pathlib import Path
from tid.sweep.grid import Interval
from tid.sweep.plan import Cell
from tid.sweep.search import Search

folder, trials = Path(sys.argv[1]), int(sys.argv[2])

def cells_of(words):
    return [Cell({}, None, "", folder / "runs" / words[0])]

def finish(cells):
    for cell in cells:
        cell.folder.mkdir(parents=True)  # no other trial had it
        value = float(cell.name.partition("=")[2])
        (cell.folder / "summary.json").write_text(json.dumps({"best": {"val_select_loss": value}}))
        cell.state = "done"
    return 0

space = {"x": Interval(0.0, 1.0, False)}
search = Search("hunt", folder, space, "random", 0, trials, 2, "best/val_select_loss", {}, False, False)
search.run(search.open(make=True), cells_of, finish, print)
"""


def test_workers_share_the_trials_of_a_study_and_none_is_asked_for_twice(tmp_path):
    """Of their runs only the summaries are written, each at once."""
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(TRIALS)]
    workers = [subprocess.Popen(command, env=sweeps.environment()) for _ in range(2)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    trials = optuna.load_study(study_name="hunt", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [trial.number for trial in trials] == list(range(TRIALS))  # in all, not each
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({trial.params["x"] for trial in trials}) == TRIALS
    assert all(trial.value == trial.params["x"] for trial in trials)


@pytest.mark.slow
def test_a_search_stops_at_a_failure_and_tries_it_again_when_asked(tmp_path):
    hunt = ["hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.trials_at_once=1", "name=hunt",
            "scorer=none", "optim.warmup_steps=1", "optim.lr=1e30,1e-2", "seed=0"]  # fmt: skip
    stopped = sweeps.sweep(tmp_path, *hunt, "fail_fast=true")
    assert stopped.returncode == 1 and stopped.stderr.count("started: ") == 1, stopped.stderr
    again = sweeps.sweep(tmp_path, *hunt, "retry_failed=true")
    assert again.returncode == 0 and again.stderr.count("started: ") == 2, again.stderr
    assert [t.state.name for t in study_of(tmp_path).trials] == ["FAIL", "COMPLETE", "FAIL"]
    assert "2 trials: 1 complete, 1 fail\n" in again.stderr and "python -m tid.compare outputs/hunt" in again.stderr


@pytest.mark.slow
def test_a_killed_workers_trial_is_taken_over_by_another_and_a_diverged_one_has_failed(tmp_path):
    """Two real workers on three trials; one dies by SIGKILL in the middle of a run."""
    space = ["hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.trials_at_once=1", "name=hunt",
             "scorer=none", "optim.warmup_steps=1", "optim.lr=1e-2,1e-3,1e30", "seed=0", "total_steps=300",
             "eval_every=20", "checkpoint_every=20"]  # fmt: skip
    workers = [sweeps.begin(tmp_path, *space) for _ in range(2)]
    while len(sweeps.steps(tmp_path, "hunt")) < 2:  # each is at a trial of its own
        assert all(worker.poll() is None for worker in workers), tmp_path.joinpath("sweep.out").read_text()
        time.sleep(0.02)
    workers[0].kill()
    workers[0].wait()
    assert workers[1].wait(timeout=90) == 0, tmp_path.joinpath("sweep.out").read_text()
    trials = study_of(tmp_path).trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3] and sum("again" in t.user_attrs for t in trials) == 1
    ended = {trial.params["optim.lr"]: trial for trial in trials if "again" not in trial.user_attrs}
    for rate in ("0.01", "0.001"):
        assert ended[rate].state == TrialState.COMPLETE and [ended[rate].value] == objectives(tmp_path, ended[rate])
    diverged = ended["1e+30"]
    assert diverged.state == TrialState.FAIL and "not finite" in diverged.user_attrs["reason"]
    assert sorted(sweeps.states(tmp_path, "hunt").values()) == ["done", "done", "failed"]
