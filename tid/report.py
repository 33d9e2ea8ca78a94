"""A run's own page: ``python -m tid.report outputs/<name>/<run>``. Writes report.html into the run's folder."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict, Field

from tid import cli, config
from tid.disk import unwritable

NO_RUN = "No run yet? In minutes, on a CPU: python -m tid.train experiment=quickstart"


class ReportConfig(BaseModel):
    """Schema of conf/report.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    run: config.Folder
    samples: config.Index
    max_new_tokens: config.Count
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    top_k: config.Count | None
    seed: config.Index
    tokens: config.Count
    device: Literal["auto", "cuda", "cpu"]
    output: config.Folder | None
    data_dir: config.Folder
    tokenizer_dir: config.Folder


def check(settings: dict) -> ReportConfig:
    """The settings of a checked configuration. Raises ConfigError."""
    if settings.get("run") is None:
        newest = cli.newest_run()
        hint = f"The newest here: python -m tid.report {shlex.quote(str(newest))}" if newest else NO_RUN
        raise config.ConfigError(f"name a run's folder: python -m tid.report outputs/<name>/<run>\n{hint}")
    return config.check(settings, schema=ReportConfig)


@cli.entry("report", check=check)
def command(cfg: DictConfig) -> None:
    print(report(check(config.plain(cfg))))


def main() -> None:
    """The command line, whose bare word is the run's folder."""
    sys.argv[1:] = with_run(sys.argv[1:])
    command()


def with_run(arguments: list[str]) -> list[str]:
    """The command line with its bare word as run=..., quoted as Hydra wants it. Exits with 2 for two of them."""
    folders, rest = cli.bare_words(arguments)
    if len(folders) > 1:
        print(f"error: wanted one run's folder, got {len(folders)}; several: python -m tid.compare", file=sys.stderr)
        raise SystemExit(2)
    return [*rest, *(f"run={cli.quoted(folder)}" for folder in folders)]


def report(settings: ReportConfig) -> str:
    """Write the page; what the terminal shows. Raises ConfigError."""
    from tid.logs import write_text
    from tid.reporting.page import Looks, page
    from tid.reporting.samples import Sampling

    sampling = Sampling(settings.samples, settings.max_new_tokens, settings.temperature, settings.top_k, settings.seed)
    folder = Path(settings.run)
    looks = Looks(sampling, settings.tokens, settings.device, settings.data_dir, settings.tokenizer_dir)
    html, left_out = page(folder, looks, f"python -m tid.report {shlex.quote(settings.run)}")
    path = Path(settings.output or folder) / "report.html"
    try:
        write_text(path, html)
    except OSError as error:
        raise unwritable(path, error, "output") from None
    return "\n".join([*(f"left out {reason}" for reason in left_out), f"The page: {path}"])


if __name__ == "__main__":
    main()
