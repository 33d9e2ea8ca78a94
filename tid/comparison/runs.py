"""Read a run's folder: how the run ended, what it reached, its curve.

A run that is broken is no error here: it becomes a RunRecord whose state and reason say what is wrong with it.
"""

import json
import os
import re
import socket
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tid import config_file
from tid.config import ConfigError, run_hash
from tid.logs import METRICS, read_status

UNITS = ("loss", "bpc", "bpb")  # nats per token, bits per character, bits per UTF-8 byte
DOCUMENT_COLUMNS = ("document", "tokens", "characters", "bytes", "final_nats", "best_nats")
DROP_POINTS = 200  # of the drop-rate curve; the rows between are not even parsed
STEP = re.compile(rb'"step": ?(\d+)')
REASON_CHARACTERS = 160


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run's folder.

    state: done, running, failed, preempted or pruned as the run said; killed (it said running, and its process is
    gone); missing (its sweep planned it, and it never started); unreadable. reason: why, one line. planned: is it in
    the plan of a sweep, which names every cell? diverged: did it fail because its loss was no number any more?
    summary: summary.json, {} unless done. evaluations: arrays (E,) step, tokens, seconds, flops (scoring included),
    loss, bpc, bpb of the evaluations so far, select_loss on the even documents and report_loss, report_bpc, report_bpb
    on the odd. drops: arrays step, middle (of the steps since the row before, over which rates are means), scheduled,
    realised. documents: (D, 5) float64 of a done run: tokens, characters, bytes, final and best nats of each document.
    """

    folder: Path
    config: dict
    state: str
    reason: str = ""
    step: int = 0
    total_steps: int = 0
    planned: bool = False
    diverged: bool = False
    summary: dict = field(default_factory=dict)
    evaluations: dict[str, np.ndarray] = field(default_factory=dict)
    drops: dict[str, np.ndarray] = field(default_factory=dict)
    documents: np.ndarray = field(default_factory=lambda: np.zeros((0, len(DOCUMENT_COLUMNS) - 1)))

    @property
    def is_censored(self) -> bool:
        """Is it missing because of how it did? Then those that are left of its configuration are a selection."""
        return self.state == "pruned" or self.diverged

    @cached_property
    def hash(self) -> str:
        """Of what determines the result, the seed included. Empty when the configuration could not be read."""
        return run_hash(self.config) if self.config else ""

    def last(self, unit: str) -> str:
        """The newest validation figure in words; empty when there is none yet."""
        values = self.evaluations.get(unit, ())
        return f"validation {unit} {values[-1]:.4f} at step {self.evaluations['step'][-1]:.0f}" if len(values) else ""


# --------------------------------------------------------------------------------------------------- a run


def read(folder: Path, frozen: dict | None = None) -> RunRecord:
    """The run in `folder`, whatever state it is in. frozen: its configuration in its sweep's plan; {} in a plan
    that does not have it, None without a plan."""
    status = read_status(folder) or {}
    state, reason = _state(status)
    facts: dict[str, Any] = {"step": status.get("step") or 0, "total_steps": status.get("total_steps") or 0}
    facts |= {"planned": frozen is not None, "diverged": state == "failed" and bool(status.get("diverged"))}
    try:
        facts |= read_metrics(folder)
        if edited := config_file.edits(folder, frozen):
            raise ConfigError(f"{config_file.FILE} {edited}; put it back as it was")
        config = _config(folder)
        if state == "done":
            facts["summary"] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            facts["documents"] = _documents(folder / "documents.csv")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = f"{Path(error.filename).name} is missing" if missing else f"{type(error).__name__}: {error}"
        why = str(error) if isinstance(error, ConfigError) else why
        if state not in ("done", "running"):  # its own reason says more
            return RunRecord(folder, frozen or {}, state, reason, **facts)
        facts["summary"] = {}
        return RunRecord(folder, frozen or {}, "unreadable", _one_line(why), **facts)
    return RunRecord(folder, config, state, reason, **facts)


def _state(status: dict) -> tuple[str, str]:
    state, reason = status.get("state"), _one_line(str(status.get("reason") or ""))
    if state is None:
        return "unreadable", "status.json is missing or torn: it never started, or was copied in part"
    if state == "running" and _is_gone(status):
        return "killed", f"process {status['pid']} is gone; the same command resumes it"
    return state, reason


def _is_gone(status: dict) -> bool:
    """Has the process of a run that says it is running ended? Told for this machine's processes only."""
    if status.get("host") != socket.gethostname() or not isinstance(status.get("pid"), int):
        return False
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= REASON_CHARACTERS else line[: REASON_CHARACTERS - 1] + "…"


def _config(folder: Path) -> dict:
    config = config_file.read(folder)
    if not isinstance(config, dict) or type(config.get("seed")) is not int:
        raise ValueError(f"{config_file.FILE} holds no run's configuration")
    run_hash(config)  # KeyError when a group is missing
    return config


def _documents(path: Path) -> np.ndarray:
    with open(path, encoding="utf-8") as file:
        header = tuple(file.readline().strip().split(","))
        if header != DOCUMENT_COLUMNS:
            wanted = ", ".join(DOCUMENT_COLUMNS)
            raise ValueError(f"documents.csv: wanted the columns {wanted}, got {', '.join(header)}")
        return np.loadtxt(file, delimiter=",", ndmin=2)[:, 1:]


# ------------------------------------------------------------------------------------------------- curves


def read_metrics(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """`evaluations` and `drops` of a RunRecord. A long run has thousands of rows: those of no use are not parsed."""
    path = folder / METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    every = max(1, len(lines) // DROP_POINTS)
    validated, thinned = [], []
    for number, line in enumerate(lines):
        is_evaluation = b'"val_loss"' in line
        if not is_evaluation and number % every:
            continue
        try:
            row = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if is_evaluation:
            validated.append(row)
        if number % every == 0:
            before = STEP.search(lines[number - 1]) if number else None
            thinned.append(row | {"middle": (row["step"] + int(before[1] if before else 0)) / 2})
    evaluations = {name: _column(validated, name) for name in ("step", "tokens", "seconds", "flops")}
    figures = (*UNITS, "select_loss", *(f"report_{unit}" for unit in UNITS))
    evaluations |= {name: _column(validated, f"val_{name}") for name in figures}
    drops = {name: _column(thinned, f"drop_rate_{name}") for name in ("scheduled", "realised")}
    return {"evaluations": evaluations, "drops": {key: _column(thinned, key) for key in ("step", "middle")} | drops}


def _column(rows: list[dict], key: str) -> np.ndarray:
    """Values (N,) float64; NaN where a row has none or it was not finite."""
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def reporting(documents: np.ndarray) -> np.ndarray:
    """The odd ones, which had no say in choosing; of a text of one document that one, which had."""
    return documents[1::2] if len(documents) > 1 else documents


def measured(run: RunRecord, when: str, unit: str) -> float:
    """A done run's validation figure: `final`, `best` (chosen on the even documents) or `report` (the same weights
    as best, on the odd documents, which had no say in choosing them)."""
    if when != "report":
        return run.summary[when][f"val_{unit}"]
    odd = reporting(run.documents)
    size = odd[:, UNITS.index(unit)].sum()
    nats = odd[:, DOCUMENT_COLUMNS.index("best_nats") - 1].sum()
    return float(nats / size / (1 if unit == "loss" else np.log(2))) if size else float("nan")


def at_budget(run: RunRecord, cost: str, budget: float, curve: str) -> float:
    """The best that validation came to within `budget` of `cost` (flops or seconds), on straight lines between
    evaluations; NaN where that would be before the first or beyond the last of them. The place is chosen on the even
    documents; curve: the figure there, select_loss of the same documents, or report_loss, report_bpc or report_bpb of
    the odd ones, which had no say.

    Best, not last: where runs over-fit, a run that is cut short would otherwise win by having over-fitted less.
    """
    spent = run.evaluations[cost]
    if not (len(spent) and spent[0] <= budget <= spent[-1]):
        return float("nan")
    places = np.append(spent[spent < budget], budget)
    best = places[np.argmin(np.interp(places, spent, run.evaluations["select_loss"]))]
    return float(np.interp(best, spent, run.evaluations[curve]))
