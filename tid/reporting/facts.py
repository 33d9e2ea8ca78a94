"""What a run's folder says about it, and that in words and tables."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tid import config_file
from tid.checkpoint import LAST, load
from tid.config import NEUTRAL, ConfigError, is_baseline, run_slug
from tid.inspection.tables import Table, percent
from tid.load import read_json
from tid.logs import read_metrics, read_status
from tid.messages import quantity

UNITS = {"val_loss": "loss, nats per token", "val_perplexity": "perplexity", "val_bpc": "bits per character",
         "val_bpb": "bits per UTF-8 byte"}  # fmt: skip
ONE_DOCUMENT = "The text is one document, on which the best evaluation was chosen, too: it reads too low."
SEVERAL_DOCUMENTS = (
    "The best evaluation was chosen on the even documents; the odd ones had no say: tid.compare's best is of them."
)
WITHOUT_EFFECT = "without effect on the result"
OVERFIT = 1.005  # a final loss this much above the best is worth a word


@dataclass(frozen=True)
class Facts:
    """config: resolved; summary: None unless the run is done; rows: of metrics.jsonl; diagnostics: of
    diagnostics/step-*.json in order; evaluations: of evaluations/*/figures.json."""

    folder: Path
    config: dict
    status: dict
    summary: dict | None
    rows: list[dict]
    diagnostics: list[dict]
    evaluations: list[dict]

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the rows that have `name`."""
        found = [(row["step"], row[name]) for row in self.rows if isinstance(row.get(name), int | float)]
        return np.array([step for step, _ in found]), np.array([value for _, value in found], dtype=float)

    @property
    def title(self) -> str:
        return f"{self.config['name']}: {run_slug(self.config)}"

    @property
    def is_baseline(self) -> bool:
        return is_baseline(self.config)


def read(folder: Path) -> Facts:
    """Raises ConfigError for a folder that is no run's, for one without a single row of metrics, and for one whose
    config.yaml was edited."""
    if not (folder / config_file.FILE).is_file():
        found = sorted(str(path.parent) for path in folder.glob(f"*/{config_file.FILE}"))
        hint = f"; did you mean {found[0]}?" if found else ""
        raise ConfigError(f"{folder}: no run's folder: it has no {config_file.FILE}{hint}")
    rows, _ = read_metrics(folder)
    if not rows:
        raise ConfigError(f"{folder}: this run has logged nothing yet; there is nothing to report")
    if config_file.edits(folder):
        config_file.refuse_edited(folder, made_with(folder))
    paths = (folder / "diagnostics").glob("step-*.json")
    diagnostics = sorted(filter(None, map(read_json, paths)), key=lambda found: found["step"])
    return Facts(
        folder,
        config_file.read(folder),
        read_status(folder) or {"state": "unknown"},
        read_json(folder / "summary.json"),
        rows,
        diagnostics,
        list(filter(None, map(read_json, sorted((folder / "evaluations").glob("*/figures.json"))))),
    )


def made_with(folder: Path) -> dict | None:
    """The run's configuration as its last checkpoint has it; None without one that can be read."""
    try:
        return load(folder / "checkpoints" / LAST)["run"]["config"]
    except ConfigError:
        return None


def counts(facts: Facts) -> str:
    """One line: state, progress, identity."""
    status, summary = facts.status, facts.summary or {}
    total = facts.config["total_steps"]
    parts = [status["state"], f"step {facts.rows[-1]['step']:,} of {total:,}", f"seed {facts.config['seed']}"]
    parts += [summary.get("device"), summary.get("precision"), summary.get("data", {}).get("text")]
    if status.get("reason"):
        parts.append(str(status["reason"]).splitlines()[0][:200])
    return " · ".join(filter(None, parts))


def answer(facts: Facts) -> list[str]:
    """What came out, in sentences."""
    said = []
    if facts.summary:
        final, best = facts.summary["final"], facts.summary["best"]
        said.append(
            f"Validation after the last step: {final['val_bpc']:.4f} bits per character, {final['val_loss']:.4f} nats "
            f"per token; at its best, step {best['step']:,}: {best['val_bpc']:.4f} and {best['val_loss']:.4f}."
        )
        if final["val_loss"] > OVERFIT * best["val_loss"]:
            said.append(f"It over-fits: from step {best['step']:,} on the validation loss rises.")
    else:
        said.append(f"The run is not finished ({facts.status['state']}): these are its figures so far.")
    dropped = drop_rate(facts)
    if facts.is_baseline or not dropped:
        said.append("Nothing was dropped: a baseline.")
    else:
        said.append(f"{percent(dropped)} of the droppable tokens were dropped on average. {_scoring(facts)}")
    bad = int(sum(row.get("nonfinite_score_rows") or 0 for row in facts.rows))
    if bad:
        said.append(f"{bad:,} sequences had a score that was not finite; what they dropped was chosen at random.")
    return said


def drop_rate(facts: Facts) -> float:
    if facts.summary:
        return facts.summary["drop_rate"]
    values = facts.column("drop_rate_realised")[1]
    return float(values.mean()) if len(values) else 0.0


def _scoring(facts: Facts) -> str:
    _, step_ms = facts.column("step_ms")
    _, score_ms = facts.column("score_ms")
    share = np.median(score_ms) / np.median(step_ms) if len(step_ms) and len(score_ms) else 0.0
    return f"Scoring took {percent(float(share))} of a step's time." if share else "Scoring took no time to speak of."


# ------------------------------------------------------------------------------------------------ tables


def results(facts: Facts) -> Table | None:
    if not facts.summary:
        return None
    moments = {"after the last step": facts.summary["final"], "at the best evaluation": facts.summary["best"]}
    alone = held_out_documents(facts.folder) == 1
    columns = UNITS if alone else UNITS | {"val_report_loss": "loss, odd documents only"}
    header = ["", "step", *columns.values()]
    rows = [[name, f"{m['step']:,}", *(f"{m[unit]:.4f}" for unit in columns)] for name, m in moments.items()]
    return Table("Validation, all documents", ONE_DOCUMENT if alone else SEVERAL_DOCUMENTS, header, rows)


def held_out_documents(folder: Path) -> int:
    """How many a done run's folder lists, 0 where the list is gone."""
    file = folder / "documents.csv"
    return file.read_text(encoding="utf-8").count("\n") - 1 if file.is_file() else 0


def evaluations(facts: Facts) -> Table | None:
    rows = [
        [f"{Path(e['checkpoint']).name} on {e['text']}", f"{e['stride']:,}", *(f"{e[unit[4:]]:.4f}" for unit in UNITS)]
        for e in facts.evaluations
        if {"checkpoint", "text", "stride", *(unit[4:] for unit in UNITS)} <= e.keys()
    ]
    return Table("Evaluations", "", ["checkpoint", "stride", *UNITS.values()], rows) if rows else None


def cost(facts: Facts) -> Table:
    rows, last, summary = facts.rows, facts.rows[-1], facts.summary
    entries = [
        ("training time", duration(last.get("seconds"))),
        ("tokens read", quantity(last.get("tokens"))),
        ("epochs", _number(last.get("epoch"), ".2f")),
        ("a step, median", _with_unit(median(rows, "step_ms"), "ms")),
        ("of it scoring", _with_unit(median(rows, "score_ms"), "ms")),
        ("tokens per second, median", quantity(median(rows, "tokens_per_second"))),
        ("memory at most", _with_unit(max((row.get("memory_mib") or 0) for row in rows), "MiB")),
    ]
    if summary:
        flops = summary["train_flops"] + summary["score_flops"]
        entries += [
            ("parameters", quantity(summary["parameters"])),
            ("floating-point operations", quantity(flops)),
            ("of them scoring", percent(summary["score_flops"] / flops) if flops else "-"),
            ("achieved, FLOP/s", quantity(flops / summary["seconds"]) if summary["seconds"] else "-"),
        ]
    return Table("Cost", "", ["", "value"], [list(entry) for entry in entries])


def settings(facts: Facts) -> list[Table]:
    """The configuration, a table for what decides the result and for each group, and one for the rest."""
    tables, top, neutral = [], [], []
    for key, value in facts.config.items():
        if isinstance(value, dict) and "_target_" in value and key not in NEUTRAL:
            inner = [[name, shown(item)] for name, item in value.items() if name != "_target_"]
            tables.append(Table(f"{key}: {value['_target_'].rpartition('.')[2]}", "", ["", "value"], inner))
        else:
            (neutral if key in NEUTRAL else top).append([key, shown(value)])
    ends = [Table(title, "", ["", "value"], rows) for title, rows in (("training", top), (WITHOUT_EFFECT, neutral))]
    return [ends[0], *tables, ends[1]]


def provenance(facts: Facts) -> list[list[str]]:
    summary = facts.summary or {}
    entries = {
        "folder": str(facts.folder), "hash": summary.get("hash"), "commit": summary.get("git_sha"),
        "command": summary.get("command"), "started": facts.status.get("started"), "ended": facts.status.get("updated"),
        "host": facts.status.get("host"),
    }  # fmt: skip
    entries |= {f"sha256 of {k}": v for k, v in summary.get("data", {}).items() if k != "text"}
    entries |= summary.get("versions", {})
    return [[key, str(value)] for key, value in entries.items() if value]


def shown(value: Any) -> str:
    if isinstance(value, dict):
        inner = [f"{key}={shown(item)}" for key, item in value.items() if key != "_target_"]
        return ", ".join([*filter(None, [value.get("_target_", "").rpartition(".")[2]]), *inner])
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def median(rows: list[dict], name: str) -> float:
    values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
    return float(np.median(values)) if values else math.nan


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _with_unit(value: float, unit: str) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f} {unit}"
