"""config.yaml in a run's folder: what the run was made with, for people and for other commands to read.

Nothing reads it to train: a run's settings come from the command line. An edit changes no result, and only has other
commands say what is not true of the run. status.json remembers what the file was.
"""

import hashlib
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tid.config import ConfigError, canonical, run_hash
from tid.logs import read_status, write_text
from tid.messages import shown

FILE = "config.yaml"
NAMED = 3  # settings that a message names
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def write(folder: Path, config: dict) -> None:
    write_text(folder / FILE, OmegaConf.to_yaml(OmegaConf.create(config)))


def read(folder: Path) -> Any:
    """What the file holds. As the run wrote it, it is read by the fastest parser; edited, by OmegaConf, to which 6e-3
    is a number. Raises OSError, ValueError and yaml.YAMLError."""
    file = folder / FILE
    written = file.read_bytes()
    if (read_status(folder) or {}).get("config_sha256") in (None, hashlib.sha256(written).hexdigest()):
        return yaml.load(written, Loader)
    try:
        return OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(str(error)) from None


def remembered(folder: Path, config: dict) -> dict:
    """For status.json: the run's identity, and the checksum of the file that was written."""
    return {"hash": run_hash(config), "config_sha256": hashlib.sha256((folder / FILE).read_bytes()).hexdigest()}


def refuse_edited(folder: Path, made_with: dict | None = None) -> None:
    """Raise ConfigError for `edits`, saying what they are and what to do."""
    if found := edits(folder, made_with):
        raise ConfigError(
            f"{folder / FILE} {found}.\nPut the file back as it was, for what is in this folder was made with that. "
            "Settings of a new run are given to tid.train, and it gets a folder of its own."
        )


def edits(folder: Path, made_with: dict | None = None) -> str:
    """What was done to the file since the run wrote it, in words; "" for nothing that is of consequence: comments, and
    settings that have no effect on the result. Also for no file, and for a run of a version that remembered nothing.

    made_with: the run's configuration, if it is known, by which the settings that differ are named.
    """
    file, status = folder / FILE, read_status(folder) or {}
    if "config_sha256" not in status or not file.is_file():
        return ""
    if hashlib.sha256(file.read_bytes()).hexdigest() == status["config_sha256"]:
        return ""
    try:
        found = read(folder)
        if run_hash(found) == status["hash"]:
            return ""
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):  # OSError: OmegaConf, of a word
        return "was edited since the run was made, and holds no run's configuration any more"
    return "was edited since the run was made" + (f": {differences(made_with, found)}" if made_with else "")


def differences(made_with: dict, found: dict) -> str:
    """As "optim.lr was 0.001, is 0.01", of what determines a result."""
    before, now = flat(canonical(made_with)), flat(canonical(found))
    keys = [key for key in before | now if before.get(key, "") != now.get(key, "")]
    said = [f"{key} {how(before, key, 'was')}, {how(now, key, 'is')}" for key in keys[:NAMED]]
    return "; ".join(said) + (f"; and {len(keys) - NAMED} more" if len(keys) > NAMED else "")


def how(settings: dict, key: str, verb: str) -> str:
    return f"{verb} {shown(settings[key])}" if key in settings else f"{verb} absent"


def flat(settings: dict, path: str = "") -> dict:
    """Nested settings by their dotted keys."""
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found
