"""Sweeps as a user meets them: real processes, killed in every way, over runs of a fraction of a second."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest
import runs

import sweeps
from sweeps import until

CLOCK = ("seconds", "step_ms", "score_ms")
SWEEP = ["scorer=entropy,none", "seed=range(4)"]


def results(folder) -> dict:
    """What the runs of a folder's sweep reached, the clock left out."""
    found = {}
    for file in (folder / "outputs" / "reference").glob("*/summary.json"):
        summary = json.loads(file.read_text())
        found[file.parent.name] = (summary["final"], summary["best"], runs.metrics(file.parent))
    return found


def compared(folder) -> dict[str, list[dict]]:
    """The files that `tid.compare` makes of a folder's sweep, row by row, the clock left out."""
    command = [sys.executable, "-m", "tid.compare", "outputs/reference", "at=[final,best,flops]"]
    done = subprocess.run(
        command, cwd=folder, env=sweeps.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for name in ("comparison.csv", "runs.csv"):
        with open(folder / "outputs/reference/comparison" / name) as file:
            rows = list(csv.DictReader(file))
        found[name] = [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]
    return found


# ------------------------------------------------------------------------------------------------ undisturbed


def test_a_sweep_lists_its_cells_runs_each_and_says_how_to_compare(undisturbed):
    said = undisturbed.joinpath("stderr").read_text()
    assert "8 runs: 8 to be run" in said and said.rstrip().endswith("python -m tid.compare outputs/reference")
    assert list(sweeps.states(undisturbed).values()) == ["done"] * 8
    assert re.search(r"done: no_drop seed=3, 0:00:\d\d, \d\.\d{4} bpc", said)
    record = json.loads((undisturbed / "outputs/reference/.sweep/sweep.json").read_text())
    assert record["cells"].keys() == sweeps.states(undisturbed).keys() and len(record["commands"]) == 1


def test_it_runs_only_what_is_new(undisturbed, folder):
    shutil.copytree(undisturbed / "outputs", folder / "outputs")
    before = results(folder)
    done = sweeps.sweep(folder, "scorer=entropy,none", "seed=range(5)")
    assert done.returncode == 0 and done.stderr.count("started: ") == 2, done.stderr
    assert "10 runs: 8 done, 2 to be run" in done.stderr and "2 to run, about 0:00:0" in done.stderr
    assert before.items() <= results(folder).items() and len(results(folder)) == 10


def test_a_dry_run_lists_and_writes_nothing(folder):
    done = sweeps.sweep(folder, *SWEEP, "dry_run=true")
    assert done.returncode == 0 and "8 runs: 8 to be run" in done.stderr
    assert not (folder / "outputs").exists()


def test_what_is_doubtful_and_what_does_not_apply_is_listed_once(folder):
    applies = ["scorer=entropy,random", "scorer.source=cached", "seed=0,1"]
    done = sweeps.sweep(folder, *applies, "optim.warmup_steps=12", "dry_run=true")
    assert done.returncode == 0 and "4 runs: 4 to be run" in done.stderr, done.stderr
    assert done.stderr.count("warning: optim.warmup_steps (12) is not below total_steps (12)") == 1
    assert done.stderr.count("scorer.source applies to entropy, not to random\n") == 1


def test_a_key_that_one_of_several_options_has_may_be_set(folder):
    done = sweeps.sweep(folder, "drop_schedule=none,constant", "drop_schedule.rate=0.1", "dry_run=true")
    assert done.returncode == 0 and "2 runs: 2 to be run" in done.stderr, done.stderr
    assert "drop_schedule.rate applies to constant, not to none" in done.stderr
    wrong = sweeps.sweep(folder, "drop_schedule=constant,none", "drop_schedule.rat=0.1", "dry_run=true")
    assert wrong.returncode == 2 and "error: drop_schedule.rat: unknown key" in wrong.stderr


def test_a_sweep_over_experiments_leaves_only_their_folders(folder):
    done = sweeps.sweep(folder, "experiment=entrodrop,importance_mir", "protect_first=1")
    assert done.returncode == 0 and "2 runs: 2 done" in done.stderr, done.stderr
    assert sorted(path.name for path in (folder / "outputs").iterdir()) == ["entrodrop", "importance_mir"]


def test_a_tracker_that_cannot_work_is_refused_before_anything_starts(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offlin")
    done = sweeps.sweep(folder, "tracker=wandb", "seed=0,1")
    assert done.returncode == 2 and "error: WANDB_MODE: wanted online, offline or disabled" in done.stderr
    assert not (folder / "outputs").exists()


def test_a_sweep_s_settings_have_the_types_of_the_schema(folder):
    """In YAML the name is a number, and "no" a word."""
    done = sweeps.sweep(folder, "scorer=none", "name=2024", "question=7", "dry_run=no", "fail_fast=no")
    assert done.returncode == 0, done.stderr
    assert list(sweeps.states(folder, "2024").values()) == ["done"]
    assert json.loads((folder / "outputs/2024/.sweep/sweep.json").read_text())["question"] == "7"


def test_a_sweep_that_is_not_there_is_an_error(tmp_path):
    done = sweeps.sweep(tmp_path, "sweeps=scorer")
    assert done.returncode == 2 and "sweeps=scorer: no such option; did you mean sweeps=scorers?" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_nothing_starts_when_one_cell_is_wrong(folder):
    done = sweeps.sweep(folder, "drop_schedule=constant", "drop_schedule.rate=0.1,1.5")
    assert done.returncode == 2 and "drop_schedule.rate: wanted a value less than 1, got 1.5" in done.stderr
    assert "in the run drop_schedule.rate=1.5 seed=0" in done.stderr and not (folder / "outputs").exists()


def test_results_of_other_code_are_marked(undisturbed, folder):
    shutil.copytree(undisturbed / "outputs", folder / "outputs")
    file = next((folder / "outputs/reference").glob("no_drop-seed0-*/summary.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"source": "f" * 12}))
    done = sweeps.sweep(folder, *SWEEP, "dry_run=true")
    assert done.stderr.count("other code: ffffffffffff") == 1
    assert re.search(r"warning: .* made or begun by other code \(.*source ffffffffffff of ", done.stderr)


def test_200_finished_cells_are_skipped_at_once(undisturbed, folder, monkeypatch):
    run = next((undisturbed / "outputs/reference").glob("entropy-*-seed0-*"))
    wide = [
        "scorer=entropy,surprisal,random,unigram",
        "drop_schedule=constant,linear_decay,early,late,step",
        "seed=range(10)",
    ]
    monkeypatch.chdir(folder)
    cells = sweeps.cells(folder, *wide)
    assert [cell.to_run for cell in cells] == [True] * 200
    for cell in cells:
        sweeps.finished_like(run, cell.folder)
    assert "200 runs: 200 done" in sweeps.sweep(folder, *wide).stderr
    again = sweeps.sweep(folder, *wide)
    assert again.returncode == 0 and "200 runs: 200 done" in again.stderr and "started: " not in again.stderr


# ------------------------------------------------------------------------------------------------ disturbed


@pytest.mark.slow
def test_a_cell_that_is_killed_dies_alone_and_is_all_that_runs_again(undisturbed, folder):
    process = sweeps.begin(folder, *SWEEP)
    until(lambda: any("entropy" in name for name in sweeps.pids(folder)))
    victim, pid = next((name, pid) for name, pid in sweeps.pids(folder).items() if "entropy" in name)
    sweeps.kill(pid)
    assert process.wait(timeout=90) == 1
    said = folder.joinpath("sweep.out").read_text()
    assert (
        said.count("killed by SIGKILL") == 2 and "8 runs: 7 done, 1 failed" in said
    )  # when it happens, and at the end
    others = {name: state for name, state in sweeps.states(folder).items() if name != victim}
    assert list(others.values()) == ["done"] * 7
    again = sweeps.sweep(folder, *SWEEP)
    assert again.returncode == 0 and again.stderr.count("started: ") == 1, again.stderr
    assert results(folder) == results(undisturbed)


@pytest.mark.slow
def test_a_failure_is_shown_with_its_last_lines_and_runs_again_only_on_request(folder):
    bad = ["optim.lr=1e-2,1e30", "optim.warmup_steps=1", "scorer=none"]
    done = sweeps.sweep(folder, *bad)
    assert done.returncode == 1 and "2 runs: 1 done, 1 failed" in done.stderr
    assert done.stderr.count("FAILED") == 2 and done.stderr.count("is not finite at step") >= 2
    assert "Traceback" not in done.stderr
    again = sweeps.sweep(folder, *bad)
    assert again.returncode == 1 and "started: " not in again.stderr and "failed before" in again.stderr
    request = sweeps.sweep(folder, *bad, "retry_failed=true", "hydra.launcher.retries=1")
    assert request.returncode == 1 and request.stderr.count("started: ") == 2 and "tried once more" in request.stderr


def test_fail_fast_stops_the_others(folder):
    done = sweeps.sweep(
        folder,
        "scorer=none",
        "optim.warmup_steps=1",
        "optim.lr=1e30,1e-3,2e-3",
        "hydra.launcher.slots=1",
        "fail_fast=true",
    )
    assert done.returncode == 1 and done.stderr.count("started: ") == 1 and "3 runs: 1 failed, 2 new" in done.stderr


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_resumes(undisturbed, folder):
    long = ["scorer=entropy,random", "total_steps=400", "eval_every=400", "checkpoint_every=400"]
    process = sweeps.begin(folder, *long)
    until(lambda: len(sweeps.steps(folder)) == 2)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert list(sweeps.states(folder).values()) == ["preempted"] * 2 and not sweeps.pids(folder)
    saved = sweeps.steps(folder)
    listed = sweeps.sweep(folder, *long, "dry_run=true")
    assert listed.stderr.count("resumes at step ") == 2 and all(
        f"step {step} of 400" in listed.stderr for step in saved
    )
    assert "goes on where it stopped" in folder.joinpath("sweep.out").read_text()


@pytest.mark.slow
def test_a_batch_system_s_warning_saves_whoever_gets_it(folder):
    """SIGUSR2, first for one cell, then for the sweep."""
    long = ["scorer=entropy,random", "total_steps=4000", "eval_every=4000", "checkpoint_every=4000"]
    process = sweeps.begin(folder, *long, "hydra.launcher.slots=2")
    until(lambda: len(sweeps.steps(folder)) == 2)
    os.kill(next(iter(sweeps.pids(folder).values())), signal.SIGUSR2)
    until(lambda: "interrupted: " in sweeps.said(folder))
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=30) == 140
    assert list(sweeps.states(folder).values()) == ["preempted"] * 2
    assert "2 runs: 2 interrupted" in sweeps.said(folder) and "FAILED" not in sweeps.said(folder)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sweep_killed_six_times_at_random_moments_ends_as_if_undisturbed(undisturbed, folder):
    """SIGKILL for the sweep, and every other time for its cells too."""
    moments = random.Random(0)
    for turn in range(6):
        process = sweeps.begin(folder, *SWEEP)
        try:
            process.wait(timeout=moments.uniform(0.5, 7))
        except Exception:
            process.kill()
            process.wait()
        for pid in sweeps.pids(folder).values() if turn % 2 else []:
            sweeps.kill(pid)
    done = sweeps.sweep(folder, *SWEEP)
    assert done.returncode == 0, done.stderr
    assert results(folder) == results(undisturbed)
    disturbed, reference = compared(folder), compared(undisturbed)
    assert disturbed == reference
    rows = reference["comparison.csv"]
    assert len(reference["runs.csv"]) == 8 and [row["n"] for row in rows] == ["4", "4"]
    (entropy,) = [row for row in rows if not row["role"]]
    assert all(float(entropy[f"{view}_vs_no_drop_p"]) > 0 for view in ("final", "best"))  # it says something
