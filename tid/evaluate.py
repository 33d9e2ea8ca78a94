"""Evaluate a checkpoint: ``python -m tid.evaluate checkpoint=outputs/<name>/<run> [data=...] [stride=...]``.

On the run's own held-out text, with its own batch size and precision, the figures are those that training logged.
"""

from functools import partial
from typing import Literal

from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict

from tid import cli, config


class EvaluateConfig(BaseModel):
    """Schema of conf/evaluate.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    checkpoint: config.Folder
    data: config.Component | None = None
    protocol: Literal["packed", "document"]
    stride: config.Count | None
    batch_size: config.Count | None
    training_gap: bool
    device: Literal["auto", "cuda", "cpu"]
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    output: config.Folder | None
    data_dir: config.Folder
    tokenizer_dir: config.Folder


check = partial(config.check, schema=EvaluateConfig)


@cli.entry("evaluate", check=check)
def main(cfg: DictConfig) -> None:
    from tid.evaluation import evaluate, report

    plain = config.plain(cfg)
    settings = dict(check(plain))
    settings["data"] = plain.get("data") and config.instantiate(plain["data"], "data")
    print(report(evaluate(**settings)))


if __name__ == "__main__":
    main()
