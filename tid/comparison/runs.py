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
from tid.comparison.summary import AGAIN, read_summary
from tid.config import ConfigError, run_hash
from tid.logs import METRICS, STATES, read_status
from tid.messages import shown

UNITS = ("loss", "bpc", "bpb")  # nats per token, bits per character, bits per UTF-8 byte
DOCUMENT_COLUMNS = ("document", "tokens", "characters", "bytes", "final_nats", "best_nats")
DOCUMENTS = "documents.csv"
DROP_POINTS = 200  # of the drop-rate curve; the rows between are not even parsed
STEP = re.compile(rb'"step": ?(\d+)')
REASON_CHARACTERS = 160
SAME = 1e-6  # relative: sums of the same nats in another order differ by less, a document left out by more


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
    counts = {key: status.get(key) for key in ("step", "total_steps")}
    facts: dict[str, Any] = {key: value if type(value) is int else 0 for key, value in counts.items()}
    facts |= {"planned": frozen is not None, "diverged": state == "failed" and bool(status.get("diverged"))}
    config = frozen or {}
    try:
        facts |= read_metrics(folder)
        if edited := config_file.edits(folder, frozen):
            raise ConfigError(f"{config_file.FILE} {edited}; put it back as it was")
        config = _config(folder)
        if state == "done":
            summary, documents = read_summary(folder), _documents(folder / DOCUMENTS)
            _insist_whole(summary, facts["evaluations"], documents)
            facts |= {"summary": summary, "documents": documents}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = f"{Path(error.filename).name} is missing" if missing else f"{type(error).__name__}: {error}"
        why = str(error) if isinstance(error, ConfigError) else why
        if state not in ("done", "running"):  # its own reason says more
            return RunRecord(folder, config, state, reason, **facts)
        return RunRecord(folder, config, "unreadable", _one_line(why), **facts)
    return RunRecord(folder, config, state, reason, **facts)


def _state(status: dict) -> tuple[str, str]:
    state, reason = status.get("state"), _one_line(str(status.get("reason") or ""))
    if state is None:
        return "unreadable", "status.json is missing or torn: it never started, or was copied in part"
    if state not in STATES:
        return "unreadable", _one_line(f"status.json: state: wanted one of {', '.join(STATES)}, got {shown(state)}")
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
    """The `documents` of a RunRecord. Raises ConfigError for what is no table of finite numbers, or has no document."""
    with open(path, encoding="utf-8") as file:
        header, lines = tuple(file.readline().strip().split(",")), file.read().split()
    if header != DOCUMENT_COLUMNS:
        wanted = ", ".join(DOCUMENT_COLUMNS)
        raise ConfigError(f"{DOCUMENTS}: wanted the columns {wanted}, got {', '.join(header)}")
    if not lines:
        raise ConfigError(f"{DOCUMENTS} holds no document; {AGAIN}")
    try:
        table = np.loadtxt(lines, delimiter=",", ndmin=2).reshape(len(lines), len(DOCUMENT_COLUMNS))
    except ValueError:
        table = np.full((1, len(DOCUMENT_COLUMNS)), np.nan)
    if not np.isfinite(table).all():
        raise ConfigError(f"{DOCUMENTS}: wanted {len(DOCUMENT_COLUMNS)} finite numbers in each line; {AGAIN}")
    return table[:, 1:]


def _insist_whole(summary: dict, evaluations: dict[str, np.ndarray], documents: np.ndarray) -> None:
    """Raises ConfigError unless the curve comes to the summary's last step and the documents add up to its losses. A
    file that was cut would lower the budget of every run, or be a figure of other documents."""
    steps = evaluations["step"]
    if not len(steps):
        raise ConfigError(f"{METRICS} is missing or holds no evaluation; {AGAIN}")
    if steps[-1] != summary["steps"]:
        where = f"its last evaluation at step {steps[-1]:.0f} of {summary['steps']}"
        raise ConfigError(f"{METRICS} has {where}: it was cut, or is another run's; {AGAIN}")
    for when, key, part in (("final", "val_loss", documents), ("best", "val_report_loss", reporting(documents))):
        got, said = per_unit(part, when, "loss"), summary[when][key]
        said = np.nan if said is None else said
        if not np.isclose(got, said, rtol=SAME, atol=0, equal_nan=True):
            why = f"gives {got:.6f}, summary.json {said:.6f} as {when}.{key}: one was cut or is another's"
            raise ConfigError(f"{DOCUMENTS} {why}; {AGAIN}")


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
            row["step"] + 0
        except (ValueError, TypeError, KeyError):  # torn by a kill
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
    return per_unit(reporting(run.documents), "best", unit)


def per_unit(documents: np.ndarray, when: str, unit: str) -> float:
    """Loss, bpc or bpb of documents (D, 5), `final` or `best`; NaN where they predict nothing."""
    size = documents[:, UNITS.index(unit)].sum()
    nats = documents[:, DOCUMENT_COLUMNS.index(f"{when}_nats") - 1].sum()
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
