"""Compare runs: ``python -m tid.compare outputs/<sweep> ['outputs/<more>*'] [at=best] [allow=code]``.

Folders are named without a key. Everything is written to outputs/<sweep>/comparison, the table is also printed.
"""

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tid import cli, config
from tid.disk import unwritable

Views = Annotated[
    list[Literal["final", "best", "flops", "seconds"]],
    BeforeValidator(config.as_list),
    Field(min_length=1, max_length=4),
]
Facts = Annotated[list[Literal["data", "budget", "code", "precision", "device"]], BeforeValidator(config.as_list)]


class CompareConfig(BaseModel):
    """Schema of conf/compare.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: Annotated[list[config.Folder], BeforeValidator(config.as_list), Field(min_length=1)]
    metric: Literal["loss", "bpc", "bpb"]
    at: Views
    confidence: Annotated[float, Field(gt=0, lt=1)]
    correction: Literal["bh", "by"]
    controls: Literal["exact", "tuned"]
    allow: Facts
    output: config.Folder | None


check = partial(config.check, schema=CompareConfig)


@cli.entry("compare", check=check)
def command(cfg: DictConfig) -> None:
    text = compare(check(config.plain(cfg)))
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The command line, whose bare words are folders."""
    sys.argv[1:] = as_hydra(sys.argv[1:])
    if not any(word.startswith(("runs=", "-")) for word in sys.argv[1:]):
        print(
            "error: name the folders to compare: python -m tid.compare outputs/<sweep>; --help says more",
            file=sys.stderr,
        )
        raise SystemExit(2)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an old terminal shows ? for ±
    command()


def as_hydra(arguments: list[str]) -> list[str]:
    """The command line as Hydra takes it: bare words gathered in runs=[...], at=a,b and allow=a,b as lists."""
    folders, rest = cli.bare_words(arguments)
    rest = [cli.listed(word) if word.startswith(("at=", "allow=")) else word for word in rest]
    return [*rest, f"runs=[{','.join(map(cli.quoted, folders))}]"] if folders else rest


def compare(settings: CompareConfig) -> str:
    """Compare, write the files, and return what the terminal shows. Raises ConfigError."""
    from tid.comparison import folders, page, report, tables
    from tid.logs import write_csv, write_text

    runs = folders.read_all(settings.runs)
    views = list(dict.fromkeys(settings.at))
    question = report.Question(
        settings.metric, views, settings.confidence, settings.correction, settings.allow, settings.controls
    )
    found = report.build(runs, question)
    homes = list(dict.fromkeys(run.folder.parent for run in runs))
    output = Path(settings.output) if settings.output else default_output(settings.runs, homes)
    title = "Comparison of " + ", ".join(map(str, homes))
    asked = folders.question(homes)
    call = command_of(settings)
    files = {
        "comparison.html": lambda path: write_text(path, page.html(found, title, asked, call)),
        "comparison.md": lambda path: write_text(path, tables.markdown(found, title, asked)),
        "comparison.csv": lambda path: write_csv(path, *tables.configurations_csv(found)),
        "runs.csv": lambda path: write_csv(path, *tables.runs_csv(found)),
    }
    try:
        for name, write in files.items():
            write(output / name)
    except OSError as error:
        raise unwritable(output, error, "output") from None
    return tables.terminal(found, [f"{output / name}" for name in files])


def command_of(settings: CompareConfig) -> str:
    """The command that makes this comparison again."""
    lists = {"at": settings.at, "allow": settings.allow}
    words = [f"metric={settings.metric}", *(f"{key}={','.join(value)}" for key, value in lists.items() if value)]
    words += [f"{key}={getattr(settings, key)}" for key in ("confidence", "correction", "controls")]
    return f"python -m tid.compare {shlex.join([*settings.runs, *words])}"


def default_output(named: list[str], homes: list[Path]) -> Path:
    """comparison/ in the sweep's folder; of several sweeps, in the folder that holds them all.

    homes: the folders that hold the runs' folders.
    """
    only = Path(named[0])
    if len(named) == 1 and only.is_dir() and all(home == only or only in home.parents for home in homes):
        return only / "comparison"
    together = os.path.commonpath(map(os.path.abspath, homes))
    return Path(together if any(home.is_absolute() for home in homes) else os.path.relpath(together)) / "comparison"


if __name__ == "__main__":
    main()
