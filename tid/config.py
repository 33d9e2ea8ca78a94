"""The configuration, as plain Python: its schema, its errors by YAML key, and the identity of a run.

Nothing here imports torch or hydra, so that a wrong setting is refused within a fraction of a second.
"""

import hashlib
import importlib
import inspect
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tid.messages import did_you_mean, explain, shown, unexpanded
from tid.options import snake_case
from tid.pin import pins

# Dropped from a run's identity: where it writes, what it says, on what it computes. `device`, `compile` and `kernels`
# change rounding, and with precision=auto the precision: summary.json notes them, a comparison heeds the first two.
NEUTRAL = {
    *("name", "output_dir", "data_dir", "tokenizer_dir", "tracker", "log_every", "checkpoint_every"),
    *("device", "compile", "kernels", "diagnostics", "experiment", "hydra"),
    *("sweeps", "question", "label", "cell", "pruner", "dry_run", "fail_fast", "retry_failed"),
}
DROPPING = ("scorer", "selector", "drop_mode", "drop_schedule", "protect_first")  # no effect if nothing drops
NO_DROP = {"scorer": "tid.scorers.NoScorer", "drop_schedule": "tid.schedules.NoDrop"}
SLUG_CHARACTERS = 100  # a folder name may hold 255 bytes; the hash and suffixes need some


class ConfigError(ValueError):
    """A setting the user can correct. The message names the key, what was wanted, what came, and the fix."""


# ------------------------------------------------------------------------------------------------ schema


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # YAML's true would pass as 1
        raise ValueError(f"wanted a number, got {shown(value)}")
    return value


def _component(node: dict) -> dict:
    if not isinstance(node.get("_target_"), str):
        raise ValueError("wanted one of its options, or a mapping with the key _target_")
    return node


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", name) or ".." in name:
        raise ValueError(f"wanted letters, digits and . _ + - / (it becomes a folder), got {shown(name)}")
    return name


def _folder(path: str) -> str:
    if path.startswith("~/"):
        raise ValueError(unexpanded(path))
    return path


def as_list(value: Any) -> Any:
    """One value as a list of it; for settings that take one or several."""
    return value if isinstance(value, list) else [value]


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Index = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**31)]
Folder = Annotated[str, Field(min_length=1), AfterValidator(_folder)]
Component = Annotated[dict[str, Any], AfterValidator(_component)]


class SweepConfig(BaseModel):
    """What a sweep goes by before it knows its runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    name: Annotated[str, AfterValidator(_folder_name)]
    output_dir: Folder
    question: str
    dry_run: bool
    fail_fast: bool
    retry_failed: bool


class RunConfig(SweepConfig):
    """Top level of conf/train.yaml. Groups stay mappings; `instantiate` checks them as it builds them."""

    model: Component
    scorer: Component
    selector: Component
    drop_mode: Component
    drop_schedule: Component
    data: Component
    optim: Component
    tracker: Component
    pruner: Component

    seed: Index
    context: Annotated[int, BeforeValidator(_number), Field(ge=2)]
    stride: Count
    batch_size: Count
    accumulate_steps: Count
    total_steps: Count
    protect_first: Index
    eval_every: Count
    eval_batch_size: Count
    log_every: Count
    checkpoint_every: Count
    diagnostics: dict[Literal["every", "tokens"], Index | None]
    device: Literal["auto", "cuda", "cpu"]
    compile: bool
    kernels: Literal["auto", "none", "all"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    data_dir: Folder
    tokenizer_dir: Folder
    label: str | None
    cell: str | None

    @model_validator(mode="after")
    def _numbers_agree(self) -> "RunConfig":
        if self.stride > self.context:
            raise ValueError(
                f"stride: wanted at most context ({self.context}), got {self.stride}; "
                "the tokens between two sequences would never be read"
            )
        if self.protect_first >= self.context and not is_baseline(dict(self)):
            raise ValueError(
                f"protect_first: wanted less than context ({self.context}), got {self.protect_first}; "
                "no token could ever be dropped (for a plain run: drop_schedule=none)"
            )
        return self


def check(cfg: dict, schema: type[BaseModel] = RunConfig) -> Any:
    """Hold a resolved configuration to the schema of its entry point, and return it as that.

    Raises ConfigError, one line for each wrong key.
    """
    cfg = {key: value for key, value in cfg.items() if key != "hydra"}
    try:
        return schema(**cfg)
    except ValidationError as error:
        raise ConfigError(explain(error, "", cfg, known=schema.model_fields)) from None


def coerced(cfg: dict) -> dict:
    """A run's configuration with values of its schema's types: in YAML name=2024 is a number and dry_run=no a word.

    Raises ConfigError."""
    return cfg | check(cfg).model_dump()


def doubts(cfg: dict) -> list[str]:
    """Settings that are legal and probably not meant, one line each, for the start of a run."""
    warmup_steps, total_steps = cfg["optim"].get("warmup_steps", 0), cfg["total_steps"]
    if warmup_steps < total_steps:
        return []
    return [
        f"optim.warmup_steps ({warmup_steps}) is not below total_steps ({total_steps}): "
        "the full learning rate is never reached"
    ]


def plain(cfg: DictConfig) -> dict:
    """The composed configuration as plain, resolved Python. Raises ConfigError for a missing value."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if not missing:
            return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    raise ConfigError("\n".join(f"{key}: has no default; give it as {key}=..." for key in missing))


# ---------------------------------------------------------------------------------------------- components


def instantiate(node: dict, path: str) -> Any:
    """Build what `node["_target_"]` names from the node's other keys, innermost components first.

    path: the node's key, for messages, for instance "scorer". Raises ConfigError by YAML key: a target that
    cannot be imported, a missing or unknown key, a value of the wrong type or out of range.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{path}: wanted a mapping with the key _target_, got {shown(node)}")
    arguments = {key: _nested(value, f"{path}.{key}") for key, value in node.items() if key != "_target_"}
    target = _imported(node["_target_"], path)
    _refuse_arguments(target, arguments, path)
    try:
        return target(**arguments)
    except ValidationError as error:
        raise ConfigError(explain(error, path, arguments)) from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def build(cfg: dict) -> dict[str, Any]:
    """Every component of the top level by its key: {"scorer": Entropy(...), ...}. Raises ConfigError."""
    return {key: instantiate(node, key) for key, node in cfg.items() if isinstance(node, dict) and "_target_" in node}


def _nested(value: Any, path: str) -> Any:
    if isinstance(value, dict) and "_target_" in value:
        return instantiate(value, path)
    if isinstance(value, dict):
        return {key: _nested(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_nested(item, f"{path}.{index}") for index, item in enumerate(value)]
    return value


def _imported(dotted: str, path: str) -> Any:
    """The class or function with that dotted name. Raises ConfigError if there is none."""
    module_name, _, name = dotted.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path}._target_: cannot import {dotted!r}: {error}") from error
    if callable(getattr(module, name, None)):
        return getattr(module, name)
    public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise ConfigError(f"{path}._target_: {module_name} has no {name!r}{did_you_mean(name, public)}")


def _refuse_arguments(target: Any, arguments: dict, path: str) -> None:
    parameters = inspect.signature(target).parameters
    names = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    lines = []
    if len(names) == len(parameters):
        unknown = [key for key in arguments if key not in names]
        lines += [f"{path}.{key}: unknown key{did_you_mean(str(key), names, path + '.')}" for key in unknown]
    for name in names:
        if name not in arguments and parameters[name].default is inspect.Parameter.empty:
            lines.append(f"{path}.{name}: missing; give it in the YAML or as {path}.{name}=...")
    if lines:
        raise ConfigError("\n".join(lines[:5]))


# ------------------------------------------------------------------------------------------------ identity


def is_baseline(cfg: dict) -> bool:
    """Does this configuration drop nothing by construction (scorer=none or drop_schedule=none)?"""
    return any(cfg[group]["_target_"] == target for group, target in NO_DROP.items())


def canonical(cfg: dict) -> dict:
    """What determines the result, in one form: no neutral key, no 1.0 beside 1, every baseline alike, files by their
    contents (tid.pin)."""
    kept = {key: value for key, value in cfg.items() if key not in NEUTRAL}
    if is_baseline(cfg):
        kept.update(dict.fromkeys(DROPPING))
    if isinstance(cfg.get("model"), dict):
        kept["model"] = {key: value for key, value in cfg["model"].items() if key != "init_from" or value}
    for group, key, digest in pins(cfg):
        kept[group] = kept[group] | {key: digest or cfg[group][key]}
    return _canonical_value(kept)


def _canonical_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _canonical_value(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_canonical_value(item) for item in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return str(value)  # JSON has no infinity
    # 0.30000000000000004, as sums of steps have it, is 0.3
    return int(value) if value.is_integer() else float(f"{value:.12g}")


def run_hash(cfg: dict) -> str:
    """8 hexadecimal digits of what determines the result; equal for equal `canonical` forms."""
    text = json.dumps(canonical(cfg), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_slug(cfg: dict) -> str:
    """A short name, as "entropy-lowest-zero-linear_decay-seed0"; "no_drop-seed0" for the baseline."""
    if is_baseline(cfg):
        return f"no_drop-seed{cfg['seed']}"
    seed = f"-seed{cfg['seed']}"
    return "-".join(dropping_names(cfg).values())[: SLUG_CHARACTERS - len(seed)] + seed


def run_folder(cfg: dict) -> Path:
    """Where the run of this configuration, a `coerced` one, leaves everything."""
    return Path(cfg["output_dir"]) / cfg["name"] / f"{run_slug(cfg)}-{run_hash(cfg)}"


def dropping_names(cfg: dict) -> dict[str, str]:
    """The chosen scorer, selector, drop mode and schedule in short; of the baseline, which has none, "no_drop"."""
    names = {group: snake_case(cfg[group]["_target_"].rpartition(".")[2]) for group in DROPPING[:4]}
    return dict.fromkeys(names, "no_drop") if is_baseline(cfg) else names
