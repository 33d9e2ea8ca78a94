"""How fast is a step, and against what: ``python -m tid.bench [scorer=a,b] [optim=a,b] [batch_size=8,128]``.

Measures in one process, in turns, what the device can do, our steps, and transformers' Llama. Tables and JSON.
"""

import contextlib
import itertools
import re
import shlex
import sys
from typing import Annotated, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tid import cli, config
from tid.options import CONF

SEVERAL = {"scorer": "scorers", "drop_mode": "drop_modes", "optim": "optims"}  # groups that take several options
LISTS = ("measure", "batch_size", "peers", "kernels")


Components = Annotated[dict[str, config.Component], Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BenchConfig(BaseModel):
    """Schema of conf/bench.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: config.Component
    cpu_model: config.Component
    scorers: Components
    drop_modes: Components
    optims: Components
    plain_optim: config.Component
    selector: config.Component
    drop_schedule: config.Component
    data: config.Component | None = None

    measure: Annotated[
        list[Literal["steps", "loop", "run", "start", "memory"]], BeforeValidator(config.as_list), Field(min_length=1)
    ]
    batch_size: Annotated[list[config.Count], BeforeValidator(config.as_list), Field(min_length=1)]
    peers: Annotated[list[Literal["eager", "compiled", "gpt2"]], BeforeValidator(config.as_list)]
    kernels: Annotated[
        list[Literal["auto", "none", "all", "attention", "swiglu_gradient", "cross_entropy", "norm_gradient",
                     "row_gradient"]],
        BeforeValidator(config.as_list),
        Field(min_length=1),
    ]
    repeats: Annotated[int, Field(ge=1, le=50)]
    block_seconds: Seconds
    cold: bool

    made_up_tokens: config.Count
    context: Annotated[int, Field(ge=2)]
    protect_first: config.Index
    seed: config.Index
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    device: Literal["auto", "cuda", "cpu"]
    compile: bool

    total_steps: config.Count
    log_every: config.Count
    eval_every: config.Count
    checkpoint_every: config.Count
    eval_batch_size: config.Count
    val_tokens: Annotated[int, Field(ge=2)]
    memory_gib: Seconds
    memory_models: list[Annotated[list[config.Count], Field(min_length=3, max_length=3)]]

    output_dir: config.Folder
    data_dir: config.Folder
    tokenizer_dir: config.Folder

    @model_validator(mode="after")
    def _no_list_twice(self) -> "BenchConfig":
        for key in LISTS:
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: the same value is there twice")
        return self


def check(settings: dict) -> BenchConfig:
    """The settings of a checked configuration. Raises ConfigError."""
    return config.check(settings, schema=BenchConfig)


def main() -> None:
    """The command line, where several options of a group are written with commas."""
    call = "python -m tid.bench " + shlex.join(sys.argv[1:])

    @cli.entry("bench", check=check)
    def command(cfg: DictConfig) -> None:
        settings = check(config.plain(cfg)).model_dump()

        from tid.benchmark.conduct import conduct
        from tid.benchmark.start import empty_cache

        with empty_cache() if settings["cold"] else contextlib.nullcontext():
            for block in filter(None, conduct(settings, call)):
                print(block, flush=True)

    sys.argv[1:] = as_hydra(sys.argv[1:])
    command()


# ------------------------------------------------------------------------------------------- command line


def as_hydra(arguments: list[str]) -> list[str]:
    """The command line as Hydra takes it: scorer=a,b as one node of `scorers` each in place of the YAML's own,
    batch_size=8,128 as a list, model=x also for cpu_model; scorer.key=a,b as a node for each value."""
    found = list(itertools.chain.from_iterable(nodes(arguments, group) for group in SEVERAL))
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in SEVERAL or key.partition(".")[0] in SEVERAL:
            continue
        if key in LISTS:
            found.append(cli.listed(argument))
        elif key == "model" and equals:
            found += [argument, f"model@cpu_model={value}"]
        elif key.startswith("model."):
            found += [argument, f"cpu_{argument}"]
        else:
            found.append(argument)
    return found


def nodes(arguments: list[str], group: str) -> list[str]:
    """What a group's own arguments, as scorer=a,b and scorer.key=x,y, mean for Hydra."""
    chosen = [name for a in arguments if a.startswith(f"{group}=") for name in a.partition("=")[2].split(",") if name]
    values = {key[len(group) + 1 :]: value.split(",") for key, _, value in (a.partition("=") for a in arguments)
              if key.startswith(f"{group}.")}  # fmt: skip
    if not chosen and not values:
        return []
    default = defaults(group)
    names = list(dict.fromkeys(chosen)) or default
    found, labels = [], []
    known = {name: set(cli.keys_of_option(group, name)) for name in names}
    for name in names:
        own = {key: v for key, v in values.items() if key in known[name]}
        for combination in itertools.product(*own.values()):
            pairs = list(zip(own, combination, strict=True))
            label = "_".join([name, *(re.sub(r"\W", "_", value) for key, value in pairs if len(own[key]) > 1)])
            labels.append(label)
            found.append(f"{'' if label in default else '+'}{group}@{SEVERAL[group]}.{label}={name}")
            found += [f"{SEVERAL[group]}.{label}.{key}={value}" for key, value in pairs]
    for key in values.keys() - set().union(*known.values()):  # to be refused by name
        found.append(f"{SEVERAL[group]}.{labels[0]}.{key}={values[key][0]}")
    return found + [f"~{group}@{SEVERAL[group]}.{label}" for label in default if label not in labels]


def defaults(group: str) -> list[str]:
    """Names of the nodes of a group that conf/bench.yaml fills in."""
    prefix = f"{group}@{SEVERAL[group]}."
    listed = OmegaConf.load(CONF / "bench.yaml").defaults
    keys = [key for entry in listed if OmegaConf.is_dict(entry) for key in entry]
    return [key[len(prefix) :] for key in keys if key.startswith(prefix)]


if __name__ == "__main__":
    main()
