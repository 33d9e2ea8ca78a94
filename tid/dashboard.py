"""A W&B workspace and report for a sweep: ``python -m tid.dashboard sweep=outputs/scorers``."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict

from tid import cli, config, config_file
from tid.config import ConfigError
from tid.logs import write_json
from tid.offline import sync_command
from tid.tracking import asking

KNOWN = ".sweep/dashboard.json"


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
    folder = Path(settings.sweep)
    where, question = place(folder, settings.entity), question_of(folder)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("a dashboard needs the package wandb-workspaces: pip install wandb-workspaces")
    if settings.dry_run:
        print(f"Workspace: sweep {where['group']}\nReport: Sweep {where['group']}")
        return
    if upload := sync_command(path.parent for path in folder.glob(f"*/{config_file.FILE}")):
        print(f"warning: it will lack what was logged offline and is not uploaded yet: {upload}", file=sys.stderr)
    save(folder, where, question)


def save(folder: Path, where: dict[str, str], question: str) -> None:
    """Save both, or again what was saved under the addresses that the sweep's `folder` remembers, and print these.

    Raises ConfigError when W&B does not take them."""
    known = read_known(folder)
    with asking() as default_entity:
        where = where | {"entity": where["entity"] or default_entity}
        mine = known.setdefault(f"{where['entity']}/{where['project']}", {})
        for made, again in ((workspace(**where), with_section), (report(**where, question=question), as_it_is)):
            kind = type(made).__name__
            before = found(type(made), mine[kind]) if kind in mine else None
            mine[kind] = (again(before, made) if before else made.save()).url
            print(f"{kind}: {mine[kind]}", flush=True)
            remember(folder, known)


def with_section(before: Any, made: Any) -> Any:
    """The workspace with its section anew, beside what others have added there."""
    others = [section for section in before.sections if section.name != made.sections[0].name]
    before.sections = [*made.sections, *others]
    return before.save()


def as_it_is(before: Any, made: Any) -> Any:
    """The report, in which people write, and whose figures follow the runs by themselves."""
    return before


def remember(folder: Path, known: dict[str, dict[str, str]]) -> None:
    try:
        write_json(folder / KNOWN, known)
    except OSError as error:
        print(f"warning: {folder / KNOWN}: {error.strerror}; the next time will make another", file=sys.stderr)


def read_known(folder: Path) -> dict[str, dict[str, str]]:
    """Addresses by kind, of each entity/project where this sweep has a dashboard. Of a file that holds something else
    nothing is taken, and stderr says so."""
    try:
        known = json.loads((folder / KNOWN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        known = None
    if isinstance(known, dict) and all(isinstance(addresses, dict) for addresses in known.values()):
        return known
    print(f"warning: {folder / KNOWN} holds no addresses; workspace and report are made anew", file=sys.stderr)
    return {}


def found(kind: Any, address: str) -> Any:
    """The workspace or the report of that address; None when it is there no longer, or cannot be read."""
    try:
        return kind.from_url(address)
    except (ValueError, TypeError, AttributeError):  # their ways to say so, the last of what is no text
        print(f"{kind.__name__}: {address} cannot be read or is gone; made anew", file=sys.stderr)
        return None


def place(folder: Path, entity: str | None) -> dict[str, str]:
    """Where the sweep's runs were logged: entity ("" for the default one), project, group."""
    if not folder.is_dir():
        raise ConfigError(f"sweep: wanted the folder of a sweep, as outputs/<name>; {folder} is not there")
    for file in sorted(folder.glob(f"*/{config_file.FILE}")):
        run = config_file.read(file.parent)
        tracker = run["tracker"]
        if tracker["_target_"].endswith(".Wandb") and tracker["mode"] != "disabled":
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

    names = [wr.Config(f"dropping.{group}") for group in ("scorer", "selector", "drop_mode", "drop_schedule")]
    figures = [wr.SummaryMetric(name) for name in ("drop_rate", "seconds", "best/val_bpc", "final/val_bpc")]
    axes = [wr.ParallelCoordinatesPlotColumn(axis) for axis in [*names, wr.Config("drop_schedule.rate"), *figures]]
    lines = partial(wr.LinePlot, x="tokens", groupby_aggfunc="mean", groupby_rangefunc="stddev")
    by_scorer, by_seed = {"groupby": "dropping.scorer"}, {"groupby": "dropping.configuration"}
    return [
        wr.ScatterPlot(title="final bpc against the drop rate", x=figures[0], y=figures[-1]),
        wr.ParallelCoordinatesPlot(columns=axes),
        lines(title="validation bpc by scorer, its runs as a band", y=["val/bpc"], **by_scorer),
        lines(title="validation bpc by configuration, its seeds as a band", y=["val/bpc"], **by_seed),
        lines(title="drop rate by configuration", y=["drop/rate_realised"], **by_seed),
        lines(title="training loss by scorer", y=["train/loss"], **by_scorer),
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
