"""Trackers with the real libraries: what a run sends is read back by wandb's reader, from a server or from
trackio's database."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
from hydra.utils import instantiate
from PIL import Image
from pydantic import ValidationError
from track import CONFIG, KEY, Tracked, clean_environment, options, records
from wandb_server import WandbServer

from tid.config import ConfigError
from tid.handle import exit_code
from tid.tracking import RunInfo

# ---------------------------------------------------------------------------------------- wandb


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Tracked:
    """Seven runs in one process, nobody logged in: the first fails, the second resumes it."""
    folder = tmp_path_factory.mktemp("offline dir")  # a folder that a shell must quote
    return Tracked(
        folder, options("wandb"), {"steps": [1, 2, 4], "tables": True, "end": "error"},
        {"steps": [5, 6], "resumed": True}, {"steps": [1], "run_id": "stopped", "end": "stopped"},
        {"steps": [1], "run_id": "killed", "end": "interrupt"},
        {"steps": [1], "run_id": "exit3", "end": "exit 3"},
        {"steps": [1], "run_id": "exit0", "end": "exit 0"},
        {"steps": [1], "run_id": "warned", "end": "warned"},
    )  # fmt: skip


def test_an_offline_run_holds_everything_under_the_runs_folder(offline):
    run = offline.records("run")[0]
    assert (run["project"], run["run_group"], run["job_type"]) == ("tid", "g", "train")
    assert (run["display_name"], run["run_id"], run["tags"]) == ("my-slug", "abcd1234", ["a", "b" * 64])
    assert {key: value for key, value in run["config"]["update"].items() if key != "_wandb"} == CONFIG

    rows = [record["item"] for record in offline.records("history")]
    assert [row["_step"] for row in rows] == [row["step"] for row in rows] == [1, 2, 4]
    assert [row["tokens"] for row in rows] == [8, 16, 32]
    assert [row["train/loss"] for row in rows] == [1, 0.5, 0.25]
    assert [row["drop/rate_scheduled"] for row in rows] == [0.25] * 3
    assert rows[0]["scores._type"] == "histogram" and sum(rows[0]["scores.values"]) == 2  # of 1.0 and 2.0
    assert rows[0]["scores.bins"][0] == 1 and rows[0]["scores.bins"][-1] == 2
    table = next(offline.folder.glob("wandb/offline-run-*-abcd1234*/files/" + rows[0]["most_dropped.path"]))
    assert json.loads(table.read_text()) == {"columns": ["token", "seen"], "data": [["a", 1], ["b", 2]]}
    image = next(offline.folder.glob("wandb/offline-run-*-abcd1234*/files/" + rows[0]["picture.path"]))
    assert np.array(Image.open(image)).tolist() == np.full((2, 3, 3), 9).tolist()
    assert not (offline.folder.parent / "home" / ".local").exists()
    assert offline.errors == ""


def test_charts_are_against_tokens_and_the_least_validation_loss_is_kept(offline):
    metrics = {metric.get("glob_name", metric.get("name")): metric for metric in offline.records("metric")}
    assert metrics.keys() == {"tokens", "train/*", "val/*", "drop/*", "optim/*", "speed/*"}
    assert all(metric["step_metric"] == "tokens" for name, metric in metrics.items() if name != "tokens")
    assert metrics["val/*"]["summary"] == {"min": True}
    updates = [record["update"] for record in offline.records("summary")]
    assert [update["val/loss"]["min"] for update in updates if "val/loss" in update][-1] == 1  # of 2, 1, 1
    assert [update["best/step"] for update in updates if "best/step" in update][-1] == 3


def test_a_run_whose_name_is_a_number_is_tracked_under_it(tmp_path):
    more = ["name=2024", "question=7", "dry_run=no", "scorer=none", "total_steps=2", "eval_every=2", "tracker=wandb"]
    command = [sys.executable, "-m", "tid.train", *runs.settings(tmp_path, *more, "tracker.mode=offline")]
    env = clean_environment(tmp_path / "home")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "2024").iterdir()
    record = records(run, "run", f"2024-{runs.hash_of(run)}")[0]
    assert (record["run_group"], record["notes"]) == ("2024", "7")


@pytest.mark.parametrize(
    ("run_id", "start", "code", "preempted"),
    [("abcd1234", 0, 1, 0), ("abcd1234", 1, 0, 0), ("stopped", 0, 143, 1), ("killed", 0, 255, 0),
     ("exit3", 0, 3, 0), ("exit0", 0, 0, 0), ("warned", 0, 140, 1)],
)  # fmt: skip
def test_how_a_run_ended_is_recorded(offline, run_id, start, code, preempted):
    assert offline.records("exit", run_id, start)[0].get("exit_code", 0) == code
    assert len(offline.records("preempting", run_id, start)) == preempted


def test_a_resumed_run_goes_on_under_its_id(offline):
    first, second = offline.records("run")[0], offline.records("run", start=1)[0]
    assert first["run_id"] == second["run_id"] == "abcd1234" and second["resume"]
    assert [record["step"]["num"] for record in offline.records("history", start=1)] == [5, 6]


def test_offline_is_said_in_one_line_with_a_command_that_uploads(offline):
    first, last = offline.runs[3]["said"]
    assert "no API key" in first and "\n" not in first and last.startswith("wandb: logged offline; ")
    command = first.partition("upload it with: ")[2]
    assert command == last.partition("upload it with: ")[2]
    assert shlex.split(command)[:2] == ["wandb", "sync"] and command.endswith("-killed")
    with WandbServer() as server:
        env = clean_environment(
            offline.folder.parent / "other home", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url
        )
        command = command.replace("wandb", str(Path(sys.executable).with_name("wandb")), 1)
        done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [row["tokens"] for row in server.history] == [8] and server.upserts[0]["name"] == "killed"


def test_an_online_run_reaches_the_server_and_ends_there(tmp_path):
    runs = {"steps": [1, 2, 3, 4], "tables": True, "end": "error"}, {"steps": [4, 5], "resumed": True}
    with WandbServer() as server:
        env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
        tracked = Tracked(tmp_path, options("wandb", x_axis="step"), *runs, **env)
    assert [run["said"] for run in tracked.runs] == [[f"wandb: {server.url}/me/tid/runs/abcd1234"]] * 2
    assert server.exits == [1, 0] and tracked.errors == ""
    first = server.upserts[0]
    assert (first["name"], first["project"], first["groupName"]) == ("abcd1234", "tid", "g")
    assert (first["jobType"], first["displayName"], first["tags"]) == ("train", "my-slug", ["a", "b" * 64])
    assert json.loads(first["config"])["model"]["value"]["layers"] == 2
    assert {upsert["name"] for upsert in server.upserts} == {"abcd1234"}
    steps = [row["_step"] for row in server.history]
    assert steps[:4] == [1, 2, 3, 4] and steps[-1] == 5
    assert server.history[3]["val/loss"] == 1 and math.isnan(server.history[3]["optim/lr"])
    tables = [body for name, body in server.files.items() if name.startswith("media/table/most_dropped_")]
    assert len(tables) == len(server.artifacts) == 4
    assert json.loads(tables[0]) == {"columns": ["token", "seen"], "data": [["a", 1], ["b", 2]]}


# ---------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("mode", "environment", "chosen"),
    [("auto", None, "online"), ("auto", "", "online"), ("auto", "offline", "offline"),
     ("auto", "dryrun", "offline"), ("auto", "disabled", "disabled"),
     ("offline", "online", "offline"), ("online", "offline", "online")],
)  # fmt: skip
def test_which_mode_is_used(monkeypatch, mode, environment, chosen):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert instantiate(options("wandb", mode=mode)).chosen_mode() == chosen


def info(folder: Path) -> RunInfo:
    return RunInfo("my-slug", "g", "train", (), "abcd1234", {}, folder, resumed=False)


def test_a_wrong_wandb_mode_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match="WANDB_MODE: wanted online, offline or disabled, got 'ofline'"):
        instantiate(options("wandb")).check()
    instantiate(options("wandb", mode="offline")).check()  # does not heed it


def test_a_run_with_a_wrong_wandb_mode_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="WANDB_MODE"):
        runs.train(tmp_path, "tracker=wandb")
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl"}  # the texts that were given


@pytest.mark.parametrize("tracker", [options("none"), options("wandb", mode="disabled")])
def test_no_tracker_takes_everything_and_writes_nothing(tmp_path, tracker):
    instantiate(tracker).check()
    with instantiate(tracker).start(info(tmp_path)) as handle:
        handle.log({"step": 1, "train_loss": 2.0}, 1)
        handle.log_histogram("scores", np.ones(3), 1)
        handle.log_table("most_dropped", ["token"], [["a"]], 1)
        handle.log_image("picture", np.zeros((2, 2, 3), np.uint8), 1)
        handle.summary({"best/step": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "ofline"}, {"timeout_seconds": 60}, {"timeout_seconds": 0}, {"x_axis": "epoch"},
     {"project": ""}, {"projekt": "x"}],
)  # fmt: skip
def test_a_wrong_option_is_refused(wrong):
    with pytest.raises(Exception, match="validation error") as refusal:
        instantiate(options("wandb", **wrong))
    assert isinstance(refusal.value.__cause__, ValidationError)


def test_exit_codes():
    class Stopped(Exception):
        signal = 2

    errors = ValueError(), SystemExit(), SystemExit(0), SystemExit(2), SystemExit("no"), Stopped()
    assert [exit_code(error) for error in errors] == [1, 0, 0, 2, 1, 130]


# ---------------------------------------------------------------------------------------- trackio

READ = """
import json
from trackio.sqlite_storage import SQLiteStorage as S
def read(name, id):
    config, alerts = S.get_run_config("tid", name, run_id=id), S.get_alerts("tid", name)
    return name, S.get_logs("tid", name, run_id=id), config, alerts
print(json.dumps([read(run["name"], run["id"]) for run in S.get_run_records("tid")]))
"""


def test_trackio_keeps_runs_on_this_machine_and_resumes_them(tmp_path):
    """With a hub token, a hub that never answers and a remote dashboard in the environment: none is asked."""
    pytest.importorskip("trackio")
    folder = tmp_path / "outputs" / "trackio"
    runs = (
        {"steps": [1, 2, 3], "tables": True, "end": "error"}, {"steps": [3, 4], "resumed": True},
        {"steps": [1], "run_id": "other"},
    )  # fmt: skip
    with WandbServer("silent") as hub:
        env = {"HF_TOKEN": "hf_x", "HF_ENDPOINT": hub.url, "TRACKIO_SERVER_URL": f"{hub.url}?write_token=x"}
        tracked = Tracked(tmp_path, options("trackio", dir=str(folder)), *runs, **env)
    assert tracked.said == [f"trackio: see the curves with: TRACKIO_DIR={folder} trackio show --project tid"]
    assert tracked.errors == ""
    assert all(run["start"] < 10 and run["slowest"] < 0.1 and run["end"] < 5 for run in tracked.runs)

    env = clean_environment(tmp_path / "home", TRACKIO_DIR=str(folder))
    out = subprocess.run(
        [sys.executable, "-c", READ], env=env, capture_output=True, text=True, check=True
    ).stdout
    (name, rows, config, alerts), (other, other_rows, *_) = json.loads(out)
    assert (name, other) == ("my-slug-abcd1234", "my-slug-other")
    losses = [(row["step"], row["val/loss"]) for row in rows if "val/loss" in row]
    assert losses == [(1, 2.0), (2, 1.0), (3, 0.0), (4, 1.0)]  # step 3 once
    assert [row["step"] for row in other_rows if "val/loss" in row] == [1]
    tables = [row["most_dropped"]["_value"] for row in rows if "most_dropped" in row]
    assert tables == [[{"token": "a", "seen": 1}, {"token": "b", "seen": 2}]] * 3
    assert [row["picture"]["_type"] for row in rows if "picture" in row] == ["trackio.image"] * 3
    assert [sum(row["scores"]["values"]) for row in rows if "scores" in row] == [2, 2, 2, 2]
    assert [(row["step"], row["summary/best/step"]) for row in rows if "summary/best/step" in row] == [
        (3, 3),
        (4, 3),
    ]
    assert (config["key"], config["model"]["layers"], config["_Group"]) == ("a value", 2, "g")
    assert [alert["title"] for alert in alerts] == ["the run ended with exit code 1"]


def test_without_the_package_trackio_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="pip install trackio"):
        instantiate(options("trackio")).check()
