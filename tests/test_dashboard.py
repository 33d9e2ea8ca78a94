"""The dashboard as wandb-workspaces would send it, and what is refused. Saving needs W&B's own server."""

import json

import pytest
import yaml
from test_cli import call

pytest.importorskip("wandb_workspaces")

from tid import dashboard
from tid.config import ConfigError

WHERE = {"entity": "me", "project": "tid", "group": "scorers"}


def sent(made) -> str:
    return made._to_model().model_dump_json(by_alias=True)


def test_workspace_holds_the_three_views_of_this_sweep_only():
    spec = json.loads(sent(dashboard.workspace(**WHERE)))["spec"]["section"]
    panels = spec["panelBankConfig"]["sections"][0]["panels"]
    kinds = [panel["viewType"] for panel in panels]
    assert kinds[:3] == ["Scatter Plot", "Parallel Coordinates Plot", "Run History Line Plot"]
    curves = panels[2]["config"]
    assert curves["metrics"] == ["val/bpc"] and curves["groupArea"] == "stddev" and "scorer" in curves["groupBy"]
    assert '"scorers"' in json.dumps(spec["runSets"][0]["filters"])


def test_report_asks_the_sweeps_question():
    """Turning it into what is sent asks W&B who the author is, so it is looked at before."""
    question, grid = dashboard.report(**WHERE, question="Which scorer?").blocks
    assert question.text == "Which scorer?" and len(grid.panels) == len(dashboard.panels())
    assert grid.runsets[0].filters == dashboard.workspace(**WHERE).runset_settings.filters


def test_it_finds_where_the_runs_are_and_refuses_a_sweep_without(tmp_path):
    with pytest.raises(ConfigError, match="tracker=wandb"):
        dashboard.place(tmp_path, None)
    tracker = {"_target_": "tid.tracking.Wandb", "entity": None, "project": "tid"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({"name": "scorers", "tracker": tracker}))
    assert dashboard.place(tmp_path, "me") == WHERE
    done = call(tmp_path, "-m", "tid.dashboard", f"sweep={tmp_path}", "dry_run=true")
    assert done.stdout.splitlines() == ["Workspace: sweep scorers", "Report: Sweep scorers"], done.stderr
