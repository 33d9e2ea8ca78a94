"""Reading folders in every state, and the figures taken from them."""

import json
import math
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import synthetic

from tid.comparison.folders import find, plan, question, read_all
from tid.comparison.runs import DROP_POINTS, RunRecord, at_budget, measured, read, read_metrics
from tid.config import ConfigError


def written(root, **how):
    keys = {"seed": how.pop("seed", 0), "name": how.pop("name", "s")}
    keys |= {key: how.pop(key) for key in ("scorer", "drop_schedule", "drop_mode", "total_steps") if key in how}
    return synthetic.write_run(root, synthetic.settings(**keys), **how)


def test_a_finished_run(tmp_path):
    run = read(written(tmp_path, loss=4.0, best=3.9, score_share=0.5))
    assert (run.state, run.step, run.total_steps) == ("done", 200, 200)
    assert run.evaluations["step"].tolist() == list(range(20, 201, 20))
    assert measured(run, "final", "loss") == pytest.approx(4.0)
    assert measured(run, "best", "bpc") == run.summary["best"]["val_bpc"]
    assert run.evaluations["flops"][-1] == run.summary["train_flops"] + run.summary["score_flops"]


def test_the_reported_best_is_of_the_odd_documents(tmp_path):
    run = read(written(tmp_path, loss=4.0, best=3.9, noise=0.5))
    assert measured(run, "report", "loss") == pytest.approx(run.summary["best"]["val_report_loss"], rel=1e-12)
    tokens, characters, size, _, nats = run.documents[1::2].sum(0)
    assert measured(run, "report", "bpc") == pytest.approx(nats / math.log(2) / characters)
    assert measured(run, "report", "bpb") == pytest.approx(nats / math.log(2) / size)
    assert measured(run, "report", "loss") != pytest.approx(measured(run, "best", "loss"), rel=1e-4)


def test_a_curve_is_read_between_evaluations_and_never_beyond_them(tmp_path):
    run = read(written(tmp_path, loss=4.2, best=4.0))
    spent, loss = run.evaluations["flops"], run.evaluations["report_loss"]

    def at(budget):
        return at_budget(run, "flops", budget, "report_loss")

    assert at(spent[1]) == pytest.approx(loss[1])
    assert at((spent[1] + spent[2]) / 2) == pytest.approx((loss[1] + loss[2]) / 2)
    assert math.isnan(at(spent[0] * 0.99)) and math.isnan(at(spent[-1] * 1.01))
    assert at(spent[-1]) == pytest.approx(loss.min())  # the lowest so far, not the last
    assert loss.min() < loss[-1] - 0.1


def test_the_place_is_chosen_on_the_even_documents_and_the_odd_ones_are_reported(tmp_path):
    even, odd = [5.0, 3.0, 4.0, 2.0], [6.0, 7.0, 1.0, 8.0]
    curves = {"flops": [10.0, 20.0, 30.0, 40.0], "select_loss": even, "report_loss": odd, "loss": [5.5, 5.0, 2.5, 5.0]}
    run = RunRecord(tmp_path, {}, "done", evaluations={name: np.array(values) for name, values in curves.items()})
    assert at_budget(run, "flops", 30, "report_loss") == 7.0  # best on the even at 20, whatever the odd say
    assert at_budget(run, "flops", 40, "report_loss") == 8.0
    assert at_budget(run, "flops", 38, "report_loss") == pytest.approx(1 + 0.8 * 7)  # 2.4 on the even, there
    assert at_budget(run, "flops", 32, "report_loss") == 7.0  # 3.6 on the even: not better than 3.0


@pytest.mark.parametrize(("steps", "log_every"), [(48, 10), (40 * DROP_POINTS, 4)])
def test_a_drop_rate_stands_in_the_middle_of_the_steps_that_it_is_the_mean_of(tmp_path, steps, log_every):
    """A linear schedule is a straight line, with rows of validation in between and rows left out."""
    scheduled = 0.3 * (1 - np.arange(steps) / steps)
    ends = sorted({*range(log_every, steps, log_every), *range(16, steps, 16), steps})
    means = [scheduled[begin:end].mean() for begin, end in zip([0, *ends], ends, strict=False)]
    rows = [{"step": e, "drop_rate_scheduled": r, "drop_rate_realised": r} for e, r in zip(ends, means, strict=True)]
    for row in rows:
        row |= {} if row["step"] % 16 else {"val_loss": 4.0}
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drops = read_metrics(tmp_path)["drops"]
    assert len(drops["step"]) == min(len(rows), len(range(0, len(rows), len(rows) // DROP_POINTS or 1)))
    slope = np.diff(drops["realised"]) / np.diff(drops["middle"])
    assert slope == pytest.approx(-0.3 / steps)


def test_a_run_that_says_running_without_a_process_is_killed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = {"host": socket.gethostname()}
    killed = read(written(tmp_path, state="running", until=60, status={**here, "pid": ended.pid}))
    alive = read(written(tmp_path, seed=1, state="running", until=60, status={**here, "pid": os.getpid()}))
    far = read(written(tmp_path, seed=2, state="running", until=60, status={"pid": ended.pid}))
    assert [run.state for run in (killed, alive, far)] == ["killed", "running", "running"]
    assert "resumes" in killed.reason and not killed.summary


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("summary.json", None, "summary.json is missing"),
        ("summary.json", "{", "JSONDecodeError"),
        ("documents.csv", None, "documents.csv is missing"),
        ("documents.csv", "a,b\n1,2\n", "wanted the columns document, tokens"),
        ("config.yaml", None, "config.yaml is missing"),
        ("config.yaml", "seed: [", "ParserError"),
        ("config.yaml", "seed: 0\n", "KeyError"),
        ("status.json", None, "status.json is missing"),
    ],
)
def test_a_broken_run_says_what_is_wrong(tmp_path, name, text, words):
    folder = written(tmp_path)
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    run = read(folder)
    assert run.state == "unreadable" and words in run.reason and not run.summary
    assert "\n" not in run.reason and len(run.reason) <= 160


def test_a_run_that_failed_before_its_configuration_was_written_keeps_its_reason(tmp_path):
    folder = written(tmp_path, state="failed", reason="CUDA out of memory\nTried to allocate", until=0)
    (folder / "config.yaml").unlink()
    run = read(folder)
    assert (run.state, run.reason, run.config) == ("failed", "CUDA out of memory Tried to allocate", {})


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = written(tmp_path, state="failed", reason="x", until=100)
    with open(folder / "logs/metrics.jsonl", "a") as file:
        file.write('{"step": 120, "val_loss": 3.')
    assert read(folder).evaluations["step"][-1] == 100


def test_a_long_run_keeps_every_evaluation_and_a_thinned_drop_curve(tmp_path):
    run = synthetic.settings(total_steps=20_000, eval_every=1000, log_every=10, name="s", drop_schedule="linear_decay")
    found = read(synthetic.write_run(tmp_path, run))
    assert found.evaluations["step"].tolist() == list(range(1000, 20_001, 1000))
    assert 100 <= len(found.drops["step"]) <= 250
    assert np.all(np.diff(found.drops["realised"]) < 0)


# ------------------------------------------------------------------------------------------------- folders


def test_folders_globs_and_single_runs_are_found_once(tmp_path, monkeypatch):
    one, two = written(tmp_path, name="a"), written(tmp_path, name="b/c")
    (tmp_path / "a/comparison").mkdir()
    (tmp_path / "a/.trash").mkdir()
    (tmp_path / "a/.trash/status.json").write_text("{}")
    assert find([str(tmp_path)]) == sorted([one, two])
    assert find([str(tmp_path / "*"), str(one), f"{tmp_path}/b/../a"]) == sorted([one, two])
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find(["a"])] == [f"a/{one.name}"]


def test_what_is_not_there_is_said_with_what_is(tmp_path):
    written(tmp_path, name="smoke")
    with pytest.raises(ConfigError, match=r"smok: no such folder; .* has smoke"):
        find([str(tmp_path / "smok")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: holds no run"):
        find([str(tmp_path / "empty")])


def planned(root, runs):
    home = root / runs[0]["name"]
    for run in runs:
        name = f"{synthetic.config.run_slug(run)}-{synthetic.config.run_hash(run)}"
        synthetic.write_json(home / ".sweep/cells" / f"{name}.json", {"config": run, "overrides": []})
    names = {path.stem: "" for path in (home / ".sweep/cells").iterdir()}
    synthetic.write_json(home / ".sweep/sweep.json", {"cells": names, "question": "Which scorer?", "commands": []})
    return home


def test_cells_that_a_sweep_planned_and_never_started_are_named(tmp_path):
    cells = [synthetic.settings(seed=seed, name="s") for seed in range(3)]
    home = planned(tmp_path, cells)
    synthetic.write_run(tmp_path, cells[0])
    failed = synthetic.write_run(tmp_path, cells[1], state="failed", reason="out of memory", until=0)
    (failed / "config.yaml").unlink()  # it failed before it wrote that
    by_seed = {run.config["seed"]: run for run in read_all([str(home)])}
    assert {seed: run.state for seed, run in by_seed.items()} == {0: "done", 1: "failed", 2: "missing"}
    assert all(run.planned for run in by_seed.values())
    assert question([home]) == ["Which scorer?"]
    one = home / next(path.name for path in home.iterdir() if "seed0" in path.name)
    assert [run.state for run in read_all([str(one)])] == ["done"]  # asked about one run, not about the sweep


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": 3}'])
def test_a_plan_that_cannot_be_read_is_no_plan(tmp_path, text):
    (tmp_path / ".sweep").mkdir()
    (tmp_path / ".sweep/sweep.json").write_text(text)
    assert plan(tmp_path) is None
    assert question([tmp_path]) == []


def test_json_written_by_the_generator_is_what_it_reads(tmp_path):
    folder = written(tmp_path, loss=4.0)
    assert json.loads((folder / "summary.json").read_text())["final"]["val_loss"] == pytest.approx(4.0)
