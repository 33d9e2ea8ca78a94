"""Evaluate a checkpoint: ``python -m tid.evaluate checkpoint=outputs/<name>/<run> [data=...] [stride=...]``.

On the run's own held-out text, with its own batch size and precision, the figures are those that training logged.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict

from tid import cli, config


class EvaluateConfig(BaseModel):
    """Schema of conf/evaluate.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    checkpoint: config.Folder
    data: config.Component | None = None
    stride: config.Count | None
    batch_size: config.Count | None
    device: Literal["auto", "cuda", "cpu"]
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    output: config.Folder | None
    data_dir: config.Folder
    tokenizer_dir: config.Folder


check = partial(config.check, schema=EvaluateConfig)


@cli.entry("evaluate", check=check)
def main(cfg: DictConfig) -> None:
    plain = config.plain(cfg)
    data = plain.get("data") and config.instantiate(plain["data"], "data")
    print(report(evaluate(check(plain), data)))


def checkpoint_file(path: str) -> Path:
    """The checkpoint that `path` names: the file itself, or best.pt of a run's folder."""
    from tid.checkpoint import BEST

    return Path(path) / "checkpoints" / BEST if Path(path).is_dir() else Path(path)


def evaluate(settings: EvaluateConfig, data: Any | None) -> dict:
    """Evaluate, write figures.json and documents.csv, and return what figures.json holds.

    data: a text source, or None for the run's own. Raises CheckpointError, DataError and ConfigError.
    """
    from tid import checkpoint
    from tid.data import load_corpus
    from tid.device import choose_device, choose_precision, set_matmul_precision
    from tid.logs import write_csv, write_json
    from tid.validation import Validation

    file = checkpoint_file(settings.checkpoint)
    state = checkpoint.load(file)
    run = state["run"]["config"]
    device = choose_device(settings.device)
    set_matmul_precision(device)
    model = config.instantiate(run["model"], "model").build(run["seed"]).to(device)
    model.load_state_dict(state["train"]["model"])
    source = data or config.instantiate(run["data"], "data")
    corpus = load_corpus(source, settings.data_dir, settings.tokenizer_dir)
    stride = settings.stride or run["context"]
    if stride > run["context"]:
        raise config.ConfigError(f"stride: wanted at most the run's context ({run['context']}), got {stride}")
    validation = Validation(
        corpus.val.tokens,
        corpus.val.doc_starts,
        corpus.token_chars,
        corpus.token_bytes,
        context=run["context"],
        stride=stride,
        batch_size=settings.batch_size or run["eval_batch_size"],
        precision=choose_precision(settings.precision or run["precision"], device),
        device=device,
    )
    nats = validation.nats(model)
    documents = [asdict(figures) for figures in validation.by_document(nats)]
    text = Path(corpus.manifest["folder"]).name
    found = {
        "checkpoint": str(file),
        "step": state["run"]["done"],
        "text": text,
        "text_sha256": corpus.manifest["files"]["val.jsonl"]["sha256"],
        "documents": len(documents),
        "context": run["context"],
        "stride": stride,
        "precision": validation.precision,
        **asdict(validation.figures(nats)),
    }
    folder = Path(settings.output or file.parent.parent / "evaluations" / f"{file.stem}-{text}-stride{stride}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = ([number, *figures.values()] for number, figures in enumerate(documents))
    write_csv(folder / "documents.csv", ["document", *documents[0]], rows)
    write_json(folder / "figures.json", found)
    return found | {"folder": str(folder)}


def report(found: dict) -> str:
    """The figures for a terminal."""
    return (
        f"{found['checkpoint']}, step {found['step']:,}, on {found['text']} ({found['documents']:,} documents, "
        f"{found['tokens']:,} tokens, stride {found['stride']}, {found['precision']})\n"
        f"  loss        {found['loss']:.6f} nats per token\n"
        f"  perplexity  {found['perplexity']:.4f}\n"
        f"  bpc         {found['bpc']:.6f} bits per character\n"
        f"  bpb         {found['bpb']:.6f} bits per UTF-8 byte\n"
        f"  everything, and each document: {found['folder']}"
    )


if __name__ == "__main__":
    main()
