"""A whole sweep on Weights & Biases: logged offline, interrupted, resumed, uploaded by the line that its end prints to
a server on loopback, and made into a dashboard there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import call
from track import KEY, clean_environment, records
from wandb_server import WandbServer

import sweeps
from tid.offline import sync_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
QUESTION = "What does a rate of learning do?"
CELLS = [
    "scorer=none,entropy", "optim.lr=1e-2,1e30", "optim.warmup_steps=1", "name=rates", f"question='{QUESTION}'",
    "tracker=wandb", "tracker.mode=offline", "pruner=median", "pruner.warmup_steps=40", "pruner.min_siblings=1",
    "drop_schedule=constant", "drop_schedule.rate=0.9",  # so that it loses
    "total_steps=80", "eval_every=40", "log_every=2", "hydra.launcher.slots=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Its folder, and what the second sitting of the sweep said; the first was stopped in its first cell."""
    folder = tmp_path_factory.mktemp("a sweep")
    process = sweeps.begin(folder, *CELLS)
    while not sweeps.steps(folder, "rates"):
        assert process.poll() is None, folder.joinpath("sweep.out").read_text()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130, folder.joinpath("sweep.out").read_text()
    return folder, sweeps.sweep(folder, *CELLS).stderr


@pytest.fixture(scope="module")
def uploaded(ended):
    """The server after the printed command, and what the dashboard's command printed there."""
    folder, said = ended
    (command,) = re.findall(r"^upload what was logged offline: (wandb sync .*)$", said, flags=re.MULTILINE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with WandbServer() as server:
        env = clean_environment(folder / "home", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url, PATH=path)
        done = subprocess.run(
            command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        made = call(
            folder,
            "-m",
            "tid.dashboard",
            "sweep=outputs/rates",
            **{key: env[key] for key in ("WANDB_API_KEY", "WANDB_BASE_URL", "HOME", "WANDB_CONFIG_DIR")},
        )
        yield server, made


def by_name(server) -> dict[str, dict]:
    """What the server was told last of each run, by the name shown."""
    return {upsert["displayName"]: upsert for upsert in server.upserts if upsert.get("displayName")}


def test_all_runs_arrive_with_their_names_group_and_description(ended, uploaded):
    runs = by_name(uploaded[0])
    assert set(runs) == {
        "no_drop optim.lr=0.01 seed=0", "no_drop optim.lr=1e+30 seed=0",
        "scorer=entropy optim.lr=0.01 seed=0", "scorer=entropy optim.lr=1e+30 seed=0",
    }  # fmt: skip
    hashes = {folder.rpartition("-")[2] for folder in sweeps.states(ended[0], "rates")}
    assert {run["name"] for run in runs.values()} == {f"rates-{known}" for known in hashes}
    for label, run in runs.items():
        drops = not label.startswith("no_drop")
        assert (run["groupName"], run["notes"], run["project"]) == ("rates", QUESTION, "tid")
        assert run["jobType"] == ("dropout" if drops else "baseline")
        assert run["tags"] == (["entropy", "lowest", "zero", "constant"] if drops else ["no_drop"])


def test_a_resumed_run_arrives_whole_under_one_id(ended, uploaded):
    folder, _ = ended
    parts = [list(run.glob("wandb/offline-run-*")) for run in (folder / "outputs/rates").glob("no_drop-*")]
    (resumed,) = [found for found in parts if len(found) == 2]
    run_id = resumed[0].name.partition("rates-")[2]
    rows = uploaded[0].rows[f"rates-{run_id}"]
    assert [row["_step"] for row in rows] == list(range(2, 82, 2))
    assert [row["step"] for row in rows if "val/bpc" in row] == [40, 80]


def test_it_can_be_read_back_with_wandbs_own_tool(ended):
    files = (ended[0] / "outputs/rates").glob("entropy-*/config.yaml")
    (run,) = [file.parent for file in files if "\n  lr: 0.01\n" in file.read_text()]
    run_id = f"rates-{run.name.rpartition('-')[2]}"
    told = records(run, "run", run_id)[0]
    assert (told["display_name"], told["run_group"], told["notes"]) == (
        "scorer=entropy optim.lr=0.01 seed=0", "rates", QUESTION,
    )  # fmt: skip
    rows = [record["item"] for record in records(run, "history", run_id)]
    logged = [json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in rows] == [row["train_loss"] for row in logged]


def test_how_each_run_ended_can_be_told(ended, uploaded):
    server = uploaded[0]
    assert sorted(sweeps.states(ended[0], "rates").values()) == ["done", "failed", "failed", "pruned"]
    assert sorted(server.exits) == [0, 0, 1, 1, 143]  # the first sitting of one run: SIGTERM
    states = [summary["state"] for summary in server.summaries.values() if "state" in summary]
    assert sorted(states) == ["done", "pruned"]
    assert max(row["step"] for row in server.rows[run_of(server, "scorer=entropy optim.lr=0.01 seed=0")]) == 40


def run_of(server, label: str) -> str:
    return by_name(server)[label]["name"]


def test_nothing_is_left_to_be_uploaded(ended, uploaded):
    found = list((ended[0] / "outputs/rates").glob("*-seed0-*"))
    assert len(found) == 4 and sync_command(found) == ""
    (found[0] / "wandb/offline-run-later").mkdir()
    assert sync_command(found) == f"wandb sync '{found[0].parent}'/*/wandb/offline-run-*"


def test_one_run_says_at_its_end_too_how_it_is_uploaded(ended):
    folder, _ = ended
    for log in (folder / "outputs/rates/.sweep/logs").glob("*.log"):
        (line,) = re.findall(r"wandb: logged offline; upload it with: wandb sync (.*)", log.read_text())
        assert list(folder.glob(line)), line


# ---------------------------------------------------------------------------------------------- the dashboard


def test_the_dashboard_is_saved_and_its_addresses_are_said(uploaded):
    server, made = uploaded
    assert made.returncode == 0 and made.stderr == "", made.stderr
    workspace, report = server.views
    address = workspace["name"].removeprefix("nw-").removesuffix("-v")
    assert made.stdout.splitlines() == [
        f"Workspace: {server.url}/me/tid?nw={address}",
        f"Report: {server.url}/me/tid/reports/Sweep-rates--Vmlldzo2",
    ]
    assert (workspace["entityName"], workspace["projectName"], workspace["type"]) == ("me", "tid", "project-view")
    assert (report["entityName"], report["projectName"], report["type"]) == ("me", "tid", "runs")
    assert (workspace["displayName"], report["displayName"]) == ("sweep rates", "Sweep rates")
    assert report["description"] == QUESTION and QUESTION in report["spec"]


def panels(server) -> list[list[dict]]:
    """The panels of the workspace and those of the report, as the server was sent them."""
    workspace, report = (json.loads(view["spec"]) for view in server.views)
    (grid,) = [block for block in report["blocks"] if block["type"] == "panel-grid"]
    (section,) = workspace["section"]["panelBankConfig"]["sections"]
    return [section["panels"], grid["metadata"]["panelBankSectionConfig"]["panels"]]


def test_both_hold_the_three_views_of_this_sweep_alone(uploaded):
    server, _ = uploaded
    for found in panels(server):
        scatter, parallel, curves, *_ = (panel["config"] for panel in found)
        assert [panel["viewType"] for panel in found[:3]] == [
            "Scatter Plot", "Parallel Coordinates Plot", "Run History Line Plot",
        ]  # fmt: skip
        assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:drop_rate", "summary:final/val_bpc")
        assert len(parallel["columns"]) == 9
        assert (curves["metrics"], curves["groupBy"]) == (["val/bpc"], "dropping.value.scorer")
        assert (curves["groupAgg"], curves["groupArea"], curves["xAxis"]) == ("mean", "stddev", "tokens")
    for view in server.views:
        assert '"value":"rates"' in view["spec"].replace(" ", "") and '"name":"group"' in view["spec"].replace(" ", "")


def test_every_key_of_the_panels_is_one_that_the_runs_logged(uploaded):
    server, _ = uploaded
    logged = run_of(server, "scorer=entropy optim.lr=0.01 seed=0")
    config = json.loads(by_name(server)["scorer=entropy optim.lr=0.01 seed=0"]["config"])
    history = set().union(*server.rows[logged])
    for panel in (panel["config"] for found in panels(server) for panel in found):
        axes = [panel[key] for key in ("xAxis", "yAxis") if key in panel and "metrics" not in panel]
        axes += [column["accessor"] for column in panel.get("columns", ())]
        assert axes or panel["metrics"]
        for kind, _, path in (axis.partition(":") for axis in axes):
            assert path in server.summaries[logged] if kind == "summary" else within(config, path), path
        if "metrics" in panel:
            assert {*panel["metrics"], panel["xAxis"]} <= history
            assert within(config, panel["groupBy"]), panel["groupBy"]


def within(node: dict, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
