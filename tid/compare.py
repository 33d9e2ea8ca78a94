"""Compare runs: ``python -m tid.compare outputs/<sweep> ['outputs/<more>*'] [at=best] [allow=code]``.

Folders are named without a key. Everything is written to outputs/<sweep>/comparison, the table is also printed.
"""

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tid import cli, config


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Views = Annotated[
    list[Literal["final", "best", "flops", "seconds"]], BeforeValidator(_list), Field(min_length=1, max_length=4)
]
Facts = Annotated[list[Literal["data", "budget", "code", "precision", "device"]], BeforeValidator(_list)]


class CompareConfig(BaseModel):
    """Schema of conf/compare.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: Annotated[list[config.Folder], BeforeValidator(_list), Field(min_length=1)]
    metric: Literal["loss", "bpc", "bpb"]
    at: Views
    confidence: Annotated[float, Field(gt=0, lt=1)]
    correction: Literal["bh", "by"]
    allow: Facts
    output: config.Folder | None


check = partial(config.check, schema=CompareConfig)


@cli.entry("compare", check=check)
def command(cfg: DictConfig) -> None:
    print(compare(check(config.plain(cfg))))


def main() -> None:
    """The command line, whose bare words are folders."""
    sys.argv[1:] = with_folders(sys.argv[1:])
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an old terminal shows ? for ±
    command()


def with_folders(arguments: list[str]) -> list[str]:
    """The command line with its bare words gathered in runs=[...], each quoted as Hydra wants it."""
    folders = [a for a in arguments if not a.startswith("-") and (Path(a).exists() or "=" not in a)]
    if not folders:
        return arguments
    quoted = ",".join('"' + folder.replace("\\", "\\\\").replace('"', '\\"') + '"' for folder in folders)
    return [*(a for a in arguments if a not in folders), f"runs=[{quoted}]"]


def compare(settings: CompareConfig) -> str:
    """Compare, write the files, and return what the terminal shows. Raises ConfigError."""
    from tid.comparison import page, report, runs, tables
    from tid.logs import write_csv, write_text

    folders = runs.find(settings.runs)
    question = report.Question(
        settings.metric, list(dict.fromkeys(settings.at)), settings.confidence, settings.correction, settings.allow
    )
    found = report.build([runs.read(folder) for folder in folders], question)
    output = Path(settings.output) if settings.output else default_output(settings.runs, folders)
    title = "Comparison of " + ", ".join(dict.fromkeys(str(folder.parent) for folder in folders))
    call = "python -m tid.compare " + shlex.join(settings.runs)
    files = {
        "comparison.html": lambda path: write_text(path, page.html(found, title, call)),
        "comparison.md": lambda path: write_text(path, tables.markdown(found, title)),
        "comparison.csv": lambda path: write_csv(path, *tables.configurations_csv(found)),
        "runs.csv": lambda path: write_csv(path, *tables.runs_csv(found)),
    }
    try:
        for name, write in files.items():
            write(output / name)
    except OSError as error:
        raise config.ConfigError(f"{output}: cannot be written ({error.strerror}); name a folder: output=...") from None
    return tables.terminal(found, [f"{output / name}" for name in files])


def default_output(named: list[str], folders: list[Path]) -> Path:
    """comparison/ in the sweep's folder; of several sweeps, in the folder that holds them all."""
    if len(named) == 1 and Path(named[0]).is_dir() and Path(named[0]) not in folders:
        return Path(named[0]) / "comparison"
    return Path(os.path.commonpath([folder.parent for folder in folders])) / "comparison"


if __name__ == "__main__":
    main()
