"""The folder of the YAML files, and what its options are called."""

import functools
import re
from pathlib import Path

from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # a wheel has it inside tid


@functools.cache
def _options(group: str) -> dict[str, list[str]]:
    """Names of a group's options in conf/, by the class that they choose."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.glob(f"{group}/*.yaml")):
        found.setdefault(str(OmegaConf.load(path).get("_target_")), []).append(path.stem)
    return found


def option_name(group: str, target: str) -> str:
    """What chooses the class `target` in a group, as "adamw" of optim: the option that does so alone, else the class's
    own name."""
    names = _options(group).get(target, [])
    return names[0] if len(names) == 1 else snake_case(target.rpartition(".")[2])


def snake_case(name: str) -> str:
    """GradXInput → grad_x_input."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
