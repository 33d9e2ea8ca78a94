"""What `python -m tid.evaluate` computes: the figures of a trained model on a text, and what they are made of."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tid.breakdown import breakdown
from tid.config import ConfigError
from tid.data import Corpus, TokenFile, load_corpus
from tid.device import choose_device, choose_precision, set_up
from tid.disk import refuse_unwritable, unwritable
from tid.load import TEXTS, Loaded, load_model, own_text
from tid.logs import write_csv, write_json
from tid.predictions import Predictions, document_windows, packed_windows, predict, sample_documents
from tid.validation import Figures

NAME_ONE = f"name the one to evaluate on: {TEXTS}"
BATCH_SIZE = 8  # for a model of which nothing is recorded
TABLES = ("by_training_count", "by_position", "by_entropy", "by_confidence")


def evaluate(
    *,
    checkpoint: str,
    data: Any | None,
    protocol: str,
    stride: int | None,
    batch_size: int | None,
    training_gap: bool,
    device: str,
    precision: str | None,
    output: str | None,
    data_dir: str,
    tokenizer_dir: str,
) -> dict:
    """Evaluate, write figures.json and the tables as CSV, and return what figures.json holds, and the folder.

    data: a text source, or None for the run's own; the rest as in conf/evaluate.yaml. Raises ConfigErrors, DataError.
    """
    chosen_device = choose_device(device)
    set_up(chosen_device)
    loaded = load_model(checkpoint, chosen_device)
    how = manner(loaded, protocol, stride, batch_size, precision, chosen_device)
    corpus = load_corpus(data, data_dir, tokenizer_dir) if data else own_text(loaded, data_dir, tokenizer_dir, NAME_ONE)
    what = subject(loaded, corpus)
    folder = Path(output) if output else usual_folder(loaded, what["text"], protocol, how["stride"])
    refuse_unwritable(folder, "output")
    found = read(loaded, corpus.val, label="reading the held-out documents", **how)
    figures = total(found, corpus)
    result = {
        **what,
        **how,
        **asdict(figures),
        "training": gap(loaded, corpus, figures, how) if training_gap and not data else None,
        "training_counts_of": what["text"],
        **breakdown(found, np.bincount(corpus.train.tokens, minlength=len(corpus.token_bytes))),
    }
    write(folder, result, by_document(found, corpus))
    return result | {"folder": str(folder)}


def manner(
    loaded: Loaded, protocol: str, stride: int | None, batch_size: int | None, precision: str | None,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """How the text is read: what is asked for, else as the run that trained the model did it."""
    run = (loaded.record or {}).get("config") or {"precision": "auto", "eval_batch_size": BATCH_SIZE}
    stride = stride or loaded.context
    if stride > loaded.context:
        raise ConfigError(f"stride: wanted at most the model's context ({loaded.context}), got {stride}")
    return {
        "protocol": protocol,
        "stride": stride,
        "batch_size": batch_size or run["eval_batch_size"],
        "precision": choose_precision(precision or run["precision"], device),
    }


def subject(loaded: Loaded, corpus: Corpus) -> dict[str, Any]:
    """Which model is evaluated on which text."""
    return {
        "checkpoint": str(loaded.file),
        "step": (loaded.record or {}).get("step"),
        "text": Path(corpus.manifest["folder"]).name,
        "text_sha256": corpus.manifest["files"]["val.jsonl"]["sha256"],
        "documents": len(corpus.val.doc_starts),
        "context": loaded.context,
    }


def read(
    loaded: Loaded, text: TokenFile, *, label: str, protocol: str, stride: int, batch_size: int, precision: str
) -> Predictions:
    """Every prediction of a text that the protocol counts."""
    size, context = len(text.tokens), loaded.context
    if protocol == "packed":
        windows = packed_windows(size, context, stride)
    else:
        windows = document_windows(size, text.doc_starts, context, stride)
    return predict(
        loaded.model, text.tokens, windows, context=context, batch_size=batch_size, precision=precision, label=label
    )


def total(found: Predictions, corpus: Corpus) -> Figures:
    """Figures of all predictions together."""
    chars, sizes = (int(table[found.target].sum()) for table in (corpus.token_chars, corpus.token_bytes))
    return Figures.of(float(found.nats.sum()), len(found.nats), chars, sizes)


def by_document(found: Predictions, corpus: Corpus) -> list[Figures]:
    """Figures of each held-out document, in the order of the text. The end-of-text token after it, where that is
    predicted, is the document's own."""
    starts = corpus.val.doc_starts
    document = np.searchsorted(starts, found.index + 1, side="left") - 1
    weights = (found.nats, None, corpus.token_chars[found.target], corpus.token_bytes[found.target])
    sums = zip(*(np.bincount(document, w, len(starts)).tolist() for w in weights), strict=True)
    return [Figures.of(nats, int(tokens), int(chars), int(sizes)) for nats, tokens, chars, sizes in sums]


def gap(loaded: Loaded, corpus: Corpus, validation: Figures, how: dict) -> dict:
    """Figures of as many documents of the training text, evenly spaced over it and read in the same way with nothing
    dropped; `gap` is the validation loss minus theirs, in nats per token."""
    text = sample_documents(corpus.train, len(corpus.val.doc_starts))
    found = read(loaded, text, label="reading as much of the training text", **how)
    figures = total(found, corpus)
    return {"documents": len(text.doc_starts), **asdict(figures), "gap": validation.loss - figures.loss}


def usual_folder(loaded: Loaded, text: str, protocol: str, stride: int) -> Path:
    """Where the figures go unless another place is named: one folder for each text and way to read it."""
    kind = "" if protocol == "packed" else f"-{protocol}"
    return loaded.folder / "evaluations" / f"{loaded.name}-{text}{kind}-stride{stride}"


def write(folder: Path, result: dict, documents: list[Figures]) -> None:
    """figures.json, documents.csv, and one CSV for each table. Raises ConfigError when the disk refuses."""
    rows = ([number, *asdict(figures).values()] for number, figures in enumerate(documents))
    try:
        write_csv(folder / "documents.csv", ["document", *asdict(documents[0])], rows)
        for name in TABLES:
            write_csv(folder / f"{name}.csv", list(result[name][0]), (row.values() for row in result[name]))
        write_json(folder / "figures.json", result)
    except OSError as error:
        raise unwritable(folder, error, "output") from None


# ----------------------------------------------------------------------------------------------- report


def report(found: dict) -> str:
    """The figures for a terminal."""
    step = "" if found["step"] is None else f", step {found['step']:,}"
    low, high, training = found["low_entropy"], found["high_entropy"], found["training"]
    lines = [
        f"{found['checkpoint']}{step}, on {found['text']} ({found['documents']:,} documents, "
        f"{found['tokens']:,} tokens, {found['protocol']}, stride {found['stride']}, {found['precision']})",
        f"  loss         {found['loss']:.6f} nats per token",
        f"  perplexity   {found['perplexity']:.4f}",
        f"  bpc          {found['bpc']:.6f} bits per character",
        f"  bpb          {found['bpb']:.6f} bits per UTF-8 byte",
        f"  accuracy     {found['accuracy']:.2%}, calibration error {found['calibration_error']:.4f}",
        f"  entropy      lower half of the predictions: loss {low['loss']:.4f}, upper half: {high['loss']:.4f}",
    ]
    if training:
        lines.append(
            f"  training     {training['loss']:.6f} nats on {training['documents']:,} of its documents: "
            f"validation is {training['gap']:+.4f}"
        )
    lines += table(f"count in {found['training_counts_of']}'s training text", found["by_training_count"])
    lines += table("tokens before", found["by_position"])
    lines += table("entropy, nats", found["by_entropy"])
    return "\n".join([*lines, f"  all of it, with documents.csv and the tables as CSV: {found['folder']}"])


def table(title: str, rows: list[dict]) -> list[str]:
    """Lines of a table: range, tokens, loss, entropy, accuracy."""
    lines = [f"  {title:<44} {'tokens':>10} {'loss':>8} {'entropy':>8} {'accuracy':>8}"]
    for row in rows:
        a, b = (f"{row[edge]:,}" if isinstance(row[edge], int) else f"{row[edge]:.3f}" for edge in ("from", "to"))
        name = a if a == b else f"{a} to {b}"
        figures = f"{row['loss']:>8.4f} {row['entropy']:>8.4f} {row['accuracy']:>8.2%}" if row["tokens"] else ""
        lines.append(f"  {name:>44} {row['tokens']:>10,} {figures}".rstrip())
    return lines
