"""The command line around Hydra: wrong settings are refused kindly, before anything is written.

    @cli.entry("train", check=config.check)
    def main(cfg: DictConfig) -> None: ...

    if __name__ == "__main__":
        main()

Exit codes: 0 done, 1 a bug (full traceback), 2 something the user can correct (one message; with
HYDRA_FULL_ERROR=1 a traceback and 1), 128 + signal for one that stopped it (130 Ctrl-C, 143 SIGTERM).
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tid import overrides, torchrun
from tid.config import ConfigError, build, plain
from tid.messages import correctable
from tid.options import CONF

FLAGS_WITHOUT_A_RUN = ("help", "hydra_help", "shell_completion", "info", "experimental_rerun")
FLAGS_WITH_A_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--info", "-i", "--experimental-rerun"),
)
HYDRA_NOISE = (
    *("To append to your", "See https://", "Set the environment", "Config search path:", "provider="),
    *("full_key:", "object_type=", "reference_type="),
)
Check = Callable[[dict], Any]


def entry(config_name: str, check: Check | None = None) -> Callable:
    """Decorator of an entry point's `main(cfg)`: Hydra with conf/<config_name>.yaml, and kind errors.

    check: called with the composed, resolved configuration before `main` is; raises ConfigError. It must be
    quick and import no torch, since --cfg runs it too.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], None]:
        with_hydra = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(_guarded(main))

        @functools.wraps(main)
        def command() -> None:
            run(with_hydra, config_name, check)

        return command

    return decorate


def run(main: Callable[[], Any], config_name: str | None = None, check: Check | None = None) -> None:
    """Call `main`, a function under @hydra.main; a user's error becomes one message and exit code 2.

    With config_name the command line's settings are examined before Hydra sees them: see `overrides.examine`.
    """
    os.environ.setdefault("TID_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    Plugins.instance()
    importlib.import_module("hydra_plugins.tid_sweeps").register()
    try:
        flags = _flags_first(config_name)
        if flags.cfg and flags.multirun:
            raise ConfigError(
                "--cfg shows the configuration of one run: leave out -m. The runs of a sweep: -m ... dry_run=true"
            )
        torchrun.refuse_others(config_name or "", flags.multirun)
        if flags.multirun and config_name and config_name != "train":
            raise ConfigError(f"-m: a sweep trains many runs, python -m tid.train -m ...; tid.{config_name} has none")
        if config_name and not any(getattr(flags, name) for name in FLAGS_WITHOUT_A_RUN):
            _examine(flags, config_name, check)
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        _refuse(error)
        raise


def _flags_first(config_name: str | None) -> Any:
    """Hydra's parsed flags. All else goes to the end of sys.argv, in its order: argparse wants it in one place."""
    arguments = _from_written_out(sys.argv[1:], config_name)
    own, rest = [], []
    for before, word in zip(["", *arguments], arguments, strict=False):
        (own if word.startswith("-") or before in FLAGS_WITH_A_VALUE else rest).append(word)
    sys.argv[1:] = own + rest
    flags, unknown = get_args_parser().parse_known_args(sys.argv[1:])
    if unknown:
        bare = unknown[0].lstrip("-")
        if "gpu" in bare or bare.startswith("nproc"):
            raise ConfigError(f"{unknown[0]}: no such flag; on N GPUs: torchrun --nproc_per_node=N -m tid.train ...")
        example = bare if "=" in bare else f"{bare}=..."
        raise ConfigError(f"{unknown[0]}: no such flag; settings are written without dashes: {example}")
    return flags


def _from_written_out(arguments: list[str], config_name: str | None) -> list[str]:
    """`--from FOLDER` as the setting that it is short for: where training starts, or what is looked at."""
    key = "model.init_from" if config_name == "train" else "checkpoint"
    written = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--from" or argument.startswith("--from="):
            folder = argument.partition("=")[2] or next(rest, "")
            if not folder:
                raise ConfigError("--from: wanted a folder, as in --from exported/model")
            argument = f"{key}={folder}"
        written.append(argument)
    return written


def bare_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that are neither flags, nor values of such, nor settings: files and folders, named
    without a key; and the other words."""
    bare, rest = [], []
    for before, word in zip(["", *arguments], arguments, strict=False):
        is_setting = word.startswith("-") or before in FLAGS_WITH_A_VALUE or ("=" in word and not Path(word).exists())
        (rest if is_setting else bare).append(word)
    return bare, rest


def listed(setting: str) -> str:
    """key=a,b as a list, key=[a,b]."""
    key, equals, value = setting.partition("=")
    return f"{key}=[{value}]" if equals and value and not value.startswith("[") else setting


def keys_of_option(group: str, name: str) -> list[str]:
    """Keys of an option's YAML; none if there is no such option."""
    path = CONF / group / f"{name}.yaml"
    return [str(key) for key in OmegaConf.load(path)] if path.is_file() else []


def newest_run() -> Path | None:
    """The folder of the run in outputs/ that was the last to save; None when none has."""
    saved = max(Path("outputs").glob("*/*/checkpoints"), key=lambda folder: folder.stat().st_mtime, default=None)
    return saved and saved.parent


def quoted(text: str) -> str:
    """A text as the value of a setting, whatever characters it has."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _examine(flags: Any, config_name: str, check: Check | None) -> None:
    if flags.config_path or flags.config_dir:  # another search path: Hydra's own checks must do
        return

    name = flags.config_name or config_name
    sweeps = config_name == "train"
    composed, settings = overrides.examine(flags.overrides, str(CONF), name, multirun=flags.multirun, sweeps=sweeps)
    sys.argv[len(sys.argv) - len(settings) :] = settings  # where Hydra will look for them
    if flags.cfg and not sweeps:  # shown as it is, with ??? for what is still to be named
        return
    cfg = plain(composed)
    if check:
        check(cfg)
    if not flags.cfg and not flags.multirun:  # --cfg has no time for torch, a sweep checks all cells
        build(cfg)


def settings() -> list[str]:
    """The settings of the command line that Hydra has read, after the folders of more YAML files that it named."""
    found = HydraConfig.get()
    more = [source.path for source in found.runtime.config_sources if source.provider == "command-line"]
    return [*(f"--config-dir={path}" for path in more), *found.overrides.task]


def _guarded(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """`main`, leaving with SystemExit on a user's error: for others Hydra prints a line of its own."""

    @functools.wraps(main)
    def guarded(cfg: DictConfig) -> Any:
        try:
            return main(cfg)
        except Exception as error:
            if HydraConfig.get().mode != RunMode.MULTIRUN:  # in a sweep the launcher must see it
                _refuse(error)
            raise

    return guarded


def _refuse(error: Exception) -> None:
    """Print a user's error and exit with 2; return for any other error."""
    message = kind_message(error)
    if message is None or os.environ.get("TID_FULL_ERROR") == "1":
        return
    if torchrun.speaks(error):
        print(f"error: {message}", file=sys.stderr)
        if torchrun.processes() > 1:
            print(torchrun.AFTERWARDS, file=sys.stderr)
    raise SystemExit(2) from None


def kind_message(error: BaseException) -> str | None:
    """As `correctable`, for what Hydra finds wrong too."""
    if message := correctable(error):
        return message
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        text = "\n".join([str(error), str(error.__cause__ or "")])
        lines = [line for line in map(str.rstrip, text.splitlines()) if line]
        lines = [line for line in lines if not line.strip().startswith(HYDRA_NOISE)]
        return "\n".join(dict.fromkeys(lines[:8])) or type(error).__name__
    return None
