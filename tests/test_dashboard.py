"""The dashboard as wandb-workspaces would send it, and what is refused. It is saved in test_wandb_sweep.py."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import yaml
from test_cli import call
from track import KEY, clean_environment
from wandb_server import WandbServer

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


def made_with(folder, **tracker):
    """A sweep's folder with one run."""
    tracker = {"_target_": "tid.tracking.Wandb", "entity": None, "project": "tid", "mode": "auto"} | tracker
    (folder / "run").mkdir()
    (folder / "run/config.yaml").write_text(yaml.safe_dump({"name": "scorers", "tracker": tracker}))
    return folder


def test_it_finds_where_the_runs_are_and_refuses_a_sweep_without(tmp_path):
    with pytest.raises(ConfigError, match="no_such_sweep is not there"):
        dashboard.place(tmp_path / "no_such_sweep", None)
    with pytest.raises(ConfigError, match="tracker=wandb"):
        dashboard.place(tmp_path, None)
    made_with(tmp_path)
    assert dashboard.place(tmp_path, "me") == WHERE
    assert dashboard.place(tmp_path, None)["entity"] == ""
    done = call(tmp_path, "-m", "tid.dashboard", f"sweep={tmp_path}", "dry_run=true")
    assert done.stdout.splitlines() == ["Workspace: sweep scorers", "Report: Sweep scorers"], done.stderr


def test_runs_that_were_logged_nowhere_make_no_dashboard(tmp_path):
    with pytest.raises(ConfigError, match="tracker=wandb"):
        dashboard.place(made_with(tmp_path, mode="disabled"), None)


SAVE_AGAIN = """
import sys
from pathlib import Path
from tid import dashboard
for question in ("", "Which scorer?"):
    dashboard.save(Path("scorers"), {"entity": "me", "project": "tid", "group": "scorers"}, question)
"""


def test_a_second_time_the_workspace_is_updated_and_the_report_left_alone(tmp_path):
    with WandbServer() as server:
        env = clean_environment(tmp_path / "home", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        made = call(tmp_path, "-c", SAVE_AGAIN, **env)
        assert made.returncode == 0 and made.stderr == "", made.stderr
        first, again = made.stdout.splitlines()[:2], made.stdout.splitlines()[2:]
        assert first == again and len(server.kept) == 2
        workspace, report, updated = server.views
        assert report["displayName"] == "Sweep scorers" and report["description"] == ""
        assert updated["name"] == workspace["name"] and updated["id"] == next(iter(server.kept))

        mine = json.loads(server.kept[updated["id"]]["spec"])  # somebody adds a section, and deletes the report
        sections = mine["section"]["panelBankConfig"]["sections"]
        mine["section"]["panelBankConfig"]["sections"] = [sections[0] | {"name": "my own"}, *sections]
        server.kept = {updated["id"]: updated | {"spec": json.dumps(mine)}}
        made = call(tmp_path, "-c", SAVE_AGAIN, **env)
        assert made.returncode == 0 and made.stderr.count("cannot be read or is gone; made anew") == 1, made.stderr
        assert len(server.kept) == 2
        spec = json.loads(server.kept[updated["id"]]["spec"])
        names = [section["name"] for section in spec["section"]["panelBankConfig"]["sections"]]
        assert names == ["sweep scorers", "my own"]


@pytest.mark.parametrize("text", ["[]", "7", '{"me/tid": "an address"}', "{"])
def test_addresses_that_are_none_are_said_to_be_none(tmp_path, text, capsys):
    assert dashboard.read_known(tmp_path) == {} and capsys.readouterr().err == ""
    (tmp_path / ".sweep").mkdir()
    (tmp_path / dashboard.KNOWN).write_text(text)
    assert dashboard.read_known(tmp_path) == {}
    assert f"{dashboard.KNOWN} holds no addresses" in capsys.readouterr().err
    (tmp_path / dashboard.KNOWN).write_text('{"me/tid": {"Report": "an address"}}')
    assert dashboard.read_known(tmp_path) == {"me/tid": {"Report": "an address"}}


@pytest.mark.parametrize("address", [7, None, "an address"])
def test_an_address_that_cannot_be_used_is_named(address, capsys):
    for kind in (type(dashboard.workspace(**WHERE)), type(dashboard.report(**WHERE, question=""))):
        assert dashboard.found(kind, address) is None
        assert f"{kind.__name__}: {address} cannot be read or is gone; made anew" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- trouble

WORDS = {
    "no login": "no API key for https://", "unknown key": "returned error 401", "read only": "permission denied",
    "silent": "no answer within 3 s",
}  # fmt: skip


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """All at once, since most of it is waiting: what each kind of trouble makes of the command."""
    folder = made_with(tmp_path_factory.mktemp("trouble"))
    (folder / "run/wandb/offline-run-1-x").mkdir(parents=True)
    with ExitStack() as stack, ThreadPoolExecutor(5) as pool:
        kinds = {"unknown key": 401, "read only": "readonly", "silent": "silent"}
        urls = {name: stack.enter_context(WandbServer(trouble)).url for name, trouble in kinds.items()}

        def go(name: str):
            where = {"WANDB_BASE_URL": urls[name], "WANDB_API_KEY": KEY} if name in urls else {}
            env = clean_environment(folder / "home", WANDB_HTTP_TIMEOUT="3", **where)
            return call(folder, "-m", "tid.dashboard", f"sweep={folder}", **env)

        yield dict(zip(WORDS, pool.map(go, WORDS), strict=True))


@pytest.mark.parametrize("name", WORDS)
def test_trouble_is_said_in_one_line_and_nothing_hangs(refused, name):
    done = refused[name]
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == "", done.stderr
    warning, error = done.stderr.splitlines()
    assert error.startswith("error: ") and WORDS[name] in error, error
    assert warning.startswith("warning: it will lack what was logged offline") and "wandb sync " in warning
