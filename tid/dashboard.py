"""A W&B workspace and report for a sweep: ``python -m tid.dashboard sweep=outputs/scorers``."""

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict

from tid import cli, config
from tid.config import ConfigError
from tid.handle import first_line


class DashboardConfig(BaseModel):
    """Schema of conf/dashboard.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweep: config.Folder
    entity: str | None
    dry_run: bool


check = partial(config.check, schema=DashboardConfig)


@cli.entry("dashboard", check=check)
def main(cfg: DictConfig) -> None:
    settings = check(config.plain(cfg))
    where = place(Path(settings.sweep), settings.entity)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("a dashboard needs the package wandb-workspaces: pip install wandb-workspaces")
    for made in (workspace(**where), report(**where, question=question_of(Path(settings.sweep)))):
        if settings.dry_run:
            print(f"{type(made).__name__}: {getattr(made, 'name', None) or made.title}")
            continue
        try:
            made.save()
        except Exception as error:  # not logged in, no network, no such project
            raise ConfigError(f"W&B did not take it: {first_line(error)}") from None
        print(made.url)


def place(folder: Path, entity: str | None) -> dict[str, str]:
    """Where the sweep's runs were logged: entity ("" for the default one), project, group."""
    for file in sorted(folder.glob("*/config.yaml")):
        run = yaml.safe_load(file.read_text(encoding="utf-8"))
        tracker = run["tracker"]
        if tracker["_target_"].endswith(".Wandb"):
            return {
                "entity": entity or tracker["entity"] or "",
                "project": tracker["project"],
                "group": run["name"],
            }
    raise ConfigError(f"sweep: wanted a folder with runs that were made with tracker=wandb, got {folder}")


def question_of(folder: Path) -> str:
    try:
        return json.loads((folder / ".sweep" / "sweep.json").read_text(encoding="utf-8"))["question"]
    except (OSError, ValueError, KeyError):
        return ""


def panels() -> list[Any]:
    """bpc against drop rate, parallel coordinates, and curves by scorer with the seeds as bands."""
    import wandb_workspaces.reports.v2 as wr

    scorer, rate = wr.Config("scorer._target_"), wr.Config("drop_schedule.rate")
    schedule, mode = wr.Config("drop_schedule._target_"), wr.Config("drop_mode._target_")
    final, best = wr.SummaryMetric("final/val_bpc"), wr.SummaryMetric("best/val_bpc")
    axes = [scorer, schedule, mode, rate, wr.SummaryMetric("drop_rate"), wr.SummaryMetric("seconds"), best, final]
    bands = {"groupby": "scorer._target_", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [
        wr.ScatterPlot(title="final bpc against the drop rate", x=wr.SummaryMetric("drop_rate"), y=final),
        wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(axis) for axis in axes]),
        wr.LinePlot(title="validation bpc by scorer, seeds as bands", x="tokens", y=["val/bpc"], **bands),
        wr.LinePlot(title="drop rate", x="tokens", y=["drop/rate_realised"], **bands),
        wr.LinePlot(title="training loss by scorer", x="tokens", y=["train/loss"], **bands),
    ]


def workspace(entity: str, project: str, group: str) -> Any:
    """The workspace, of the runs of this sweep alone; not yet saved."""
    import wandb_workspaces.workspaces as ws

    only = ws.RunsetSettings(filters=f'Metric("Group") == "{group}"')
    section = ws.Section(name=f"sweep {group}", panels=panels(), is_open=True)
    return ws.Workspace(entity=entity, project=project, name=f"sweep {group}", sections=[section], runset_settings=only)


def report(entity: str, project: str, group: str, question: str) -> Any:
    """The report; not yet saved."""
    import wandb_workspaces.reports.v2 as wr

    runs = wr.Runset(entity=entity, project=project, name=group, filters=f'Metric("Group") == "{group}"')
    blocks = [wr.P(question or "A sweep of TID."), wr.PanelGrid(runsets=[runs], panels=panels())]
    title = f"Sweep {group}"
    return wr.Report(entity=entity, project=project, title=title, description=question, blocks=blocks)


if __name__ == "__main__":
    main()
