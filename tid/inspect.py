"""What a trained model would drop: ``python -m tid.inspect checkpoint=outputs/<name>/<run> [text="..."] [scorer=a,b]``.

Writes one HTML page and figures.json, and shows the beginning and the figures in the terminal. Trains nothing.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tid import cli, config
from tid.disk import unwritable
from tid.verbatim import verbatim

NEEDS = (
    "checkpoint: missing. Inspecting shows what a trained model finds important; it trains nothing itself.\n"
    "Give a run's folder or one of its checkpoints: checkpoint=outputs/<name>/<run>{found}\n"
    "No run yet? In minutes, on a CPU: python -m tid.train experiment=quickstart"
)


class InspectConfig(BaseModel):
    """Schema of conf/inspect.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    checkpoint: Annotated[list[config.Folder], BeforeValidator(config.as_list), Field(min_length=1)]
    text: str | None
    file: config.Folder | None
    data: config.Component | None = None
    scorers: dict[str, config.Component]
    selector: config.Component | None = None
    drop_rate: Annotated[float, Field(ge=0, lt=1)] | None
    tokens: config.Count
    device: Literal["auto", "cuda", "cpu"]
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    output: config.Folder | None
    data_dir: config.Folder
    tokenizer_dir: config.Folder

    @model_validator(mode="after")
    def _one_text(self) -> "InspectConfig":
        given = [key for key in ("text", "file", "data") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: wanted one text, got {len(given)}; leave out all but one")
        return self


def check(settings: dict) -> InspectConfig:
    """The settings of a checked configuration. Raises ConfigError."""
    if settings.get("checkpoint") is None:
        newest = cli.newest_run()
        raise config.ConfigError(NEEDS.format(found=f" (the newest here: {newest})" if newest else ""))
    return config.check(settings, schema=InspectConfig)


@verbatim("text", "file")
@cli.entry("inspect", check=check)
def command(cfg: DictConfig) -> None:
    plain = config.plain(cfg)
    print(inspect(check(plain), parts_of(plain), call=CALL))


CALL = "python -m tid.inspect " + shlex.join(sys.argv[1:])


def main() -> None:
    """The command line, where several scorers and several checkpoints are written with commas."""
    try:
        sys.argv[1:] = as_hydra(sys.argv[1:])
    except config.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    command()


def as_hydra(arguments: list[str]) -> list[str]:
    """scorer=a,b as one node of `scorers` each, scorer.key=... as a key of these, checkpoint=a,b as a list.

    Raises ConfigError for a key without a scorer.
    """
    names = [name for a in arguments if a.startswith("scorer=") for name in a[7:].split(",") if name]
    found = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "scorer":
            found += [f"+scorer@scorers.{name}={name}" for name in dict.fromkeys(names)]
        elif key.startswith("scorer."):
            if not names:
                raise config.ConfigError(f"{key}: of which scorer? Name it, too, as in scorer=entropy {argument}")
            found += to_scorers(argument[7:], list(dict.fromkeys(names)))
        elif key == "checkpoint" and not value.startswith("["):
            paths = map(cli.quoted, filter(None, value.split(",")))
            found.append(f"checkpoint=[{','.join(paths)}]" if value else argument)
        else:
            found.append(argument)
    return found


def to_scorers(setting: str, names: list[str]) -> list[str]:
    """key=value for each of the scorers that has the key, which is said where some have not; where none has it for all,
    to be refused by name."""
    key = setting.partition("=")[0]
    having = [name for name in names if key in cli.keys_of_option("scorer", name)]
    if having and (others := [name for name in names if name not in having]):
        print(f"scorer.{key} applies to {', '.join(having)}, not to {', '.join(others)}", file=sys.stderr)
    return [f"scorers.{name}.{setting}" for name in having or names]


def parts_of(plain: dict) -> dict:
    """The components by key; `scorers` by name."""
    parts = {key: plain.get(key) and config.instantiate(plain[key], key) for key in ("data", "selector")}
    return parts | {"scorers": {name: config.instantiate(n, f"scorers.{name}") for name, n in plain["scorers"].items()}}


def inspect(settings: InspectConfig, parts: dict, call: str) -> str:
    """Write the page and figures.json; what the terminal shows. Raises ConfigError, CheckpointError and DataError."""
    from tid.inspection import page, terminal
    from tid.inspection.study import Wish, study
    from tid.logs import write_json, write_text

    found = study(
        Wish(
            checkpoints=settings.checkpoint,
            text=settings.text if settings.file is None else read_text(settings.file),
            source=parts["data"],
            scorers=parts["scorers"],
            selector=parts["selector"],
            rate=settings.drop_rate,
            tokens=settings.tokens,
            device=settings.device,
            precision=settings.precision,
            data_dir=settings.data_dir,
            tokenizer_dir=settings.tokenizer_dir,
        )
    )
    label = Path(settings.file).name if settings.file else found.label
    folder = Path(settings.output or found.loaded.folder / "inspections" / f"{found.loaded.name}-{label}")
    about = page.about(found, label)
    html = page.page(found, title=page.title(found), about=about, call=call)
    try:
        write_text(folder / "inspect.html", html)
        write_json(folder / "figures.json", page.figures_json(found, label))
    except OSError as error:
        raise unwritable(folder, error, "output") from None
    view = terminal.view(found.marks, found.texts, found.found, terminal.coloured())
    return "\n".join([about, "", view, "", *found.said, f"The page: {folder / 'inspect.html'}"])


def read_text(path: str) -> str:
    """The file's text. Raises ConfigError when it cannot be read as UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise config.ConfigError(f"file: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise config.ConfigError(f"file: {path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


if __name__ == "__main__":
    main()
