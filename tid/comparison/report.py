"""The comparison as data: rows, what is not in them, and what must be said. Tables, plots and page only show it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tid.comparison import agreement, configurations, controls
from tid.comparison.configurations import Configuration
from tid.comparison.differences import Difference, differences, never_made
from tid.comparison.runs import UNITS, RunRecord, measured
from tid.comparison.statistics import Spread, spread
from tid.comparison.views import Budgets, budgets, value
from tid.config import ConfigError

COSTS = ("drop_rate", "steps", "tokens", "seconds", "step_ms", "score_ms", "train_flops", "score_flops")
MOMENTS = ("final", "best", "report")


@dataclass(frozen=True)
class Question:
    """What the user asked for. at: the views; the first orders the rows and is what the plots show. controls: exact |
    tuned, see tid.comparison.controls."""

    metric: str
    at: list[str]
    confidence: float
    correction: str
    allow: list[str]
    controls: str = "exact"


@dataclass(frozen=True)
class Row:
    """One configuration. figures: by (moment, unit), moments as in `measured`; views: the metric in each view;
    differences: by (view, control); costs: means over its done runs; expected: seeds that it should have."""

    configuration: Configuration
    figures: dict[tuple[str, str], Spread]
    views: dict[str, Spread]
    differences: dict[tuple[str, str], Difference]
    costs: dict[str, float]
    expected: int

    @property
    def n(self) -> int:
        return len(self.configuration.runs)


@dataclass(frozen=True)
class Absent:
    """A cell that is in no mean, and why."""

    label: str
    seed: int | None
    state: str
    detail: str
    folder: Path | None


@dataclass(frozen=True)
class Report:
    """rows: lowest mean first, then those that lack seeds, those with censored runs, and those without a done run.
    mixed: differences between runs that were allowed."""

    question: Question
    rows: list[Row]
    absent: list[Absent]
    runs: list[RunRecord]
    limits: Budgets
    mixed: dict[str, dict[str, list[RunRecord]]]
    said: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[RunRecord]:
        return [run for row in self.rows for run in row.configuration.runs.values()]

    @property
    def primary(self) -> str:
        return self.question.at[0]

    @property
    def tests(self) -> int:
        """How many p-values there are."""
        return sum(d.method == "seeds" for row in self.rows for d in row.differences.values())

    @property
    def never_made(self) -> int:
        """How many more there would be, had no run been pruned or diverged."""
        return never_made([row.configuration for row in self.rows], self.question.at)


def build(runs: list[RunRecord], question: Question) -> Report:
    """Compare runs in any state. Raises ConfigError when none is done, or when those that are done must not stand
    in one report (see `agreement`)."""
    done = [run for run in runs if run.summary]
    if not done:
        raise ConfigError(f"none of the {len(runs)} runs is done:\n" + "\n".join(map(_state_of, runs[:12])))
    mixed = agreement.insist(done, question.allow)
    runs, repeats = configurations.once(runs)
    said = _repeated(repeats)
    if "seconds" in question.at and (why := _unlike_speed(done, mixed)):
        views = [view for view in question.at if view != "seconds"] or ["final"]
        question = replace(question, at=views)
        said.append(f"no comparison at equal wall-clock: the runs were made {why}")
    groups = configurations.group(runs)
    limits = budgets(groups)
    controls.assign(groups, question.at, limits, question.controls)
    found = differences(
        groups, question.at, question.metric, limits, question.confidence, question.correction, question.controls, mixed
    )
    rows = [_row(c, groups, question, limits, found) for c in groups]
    rows.sort(key=lambda row: _rank(row, question.at[0]))
    return Report(question, rows, _absent(groups, runs, question.metric), runs, limits, mixed, said)


def _unlike_speed(done: list[RunRecord], mixed: agreement.Mixed) -> str:
    """Why the same step took some runs longer than others; empty if it did not."""
    if "device" in mixed:
        return "on different devices"
    how = {(run.config.get("compile"), tuple(run.summary.get("kernels_by_hand", ()))) for run in done}
    return "with different compile= or kernels=" if len(how) > 1 else ""


def _rank(row: Row, view: str) -> tuple:
    """Lowest mean first; a mean that lacks seeds, or is of those that pruning or divergence left, is not ranked among
    the others."""
    mean, last = row.views[view].mean, (row.configuration.is_censored, row.n < row.expected)
    return not row.n, mean != mean, *last, mean, row.configuration.label


def _repeated(repeats: list[tuple[RunRecord, RunRecord]]) -> list[str]:
    if not repeats:
        return []
    named = "; ".join(f"{run.folder} repeats {kept.folder}" for run, kept in repeats[:3])
    other = sum(bool(run.summary) and run.summary["final"] != kept.summary["final"] for run, kept in repeats)
    differ = f" {other} of them reached another result." if other else ""
    more = " ..." if len(repeats) > 3 else ""
    return [f"Cells that are there twice count once ({len(repeats)}: {named}{more}).{differ}"]


def _state_of(run: RunRecord) -> str:
    return f"  {run.state:<10} {run.folder}{f': {run.reason}' if run.reason else ''}"


def _row(
    configuration: Configuration,
    groups: list[Configuration],
    question: Question,
    limits: Budgets,
    found: dict[tuple[str, str, str], Difference],
) -> Row:
    runs, confidence = list(configuration.runs.values()), question.confidence
    here = limits.get(configuration.stratum, {})
    figures = {
        (moment, unit): spread([measured(run, moment, unit) for run in runs], confidence)
        for moment in MOMENTS
        for unit in UNITS
    }
    views = {
        view: spread([value(run, view, question.metric, here) for run in runs], confidence) for view in question.at
    }
    costs = {name: float(np.mean([run.summary[name] for run in runs])) if runs else float("nan") for name in COSTS}
    mine = {(view, control): d for (key, view, control), d in found.items() if key == configuration.key}
    return Row(configuration, figures, views, mine, costs, len(_expected(configuration, groups)))


def _expected(configuration: Configuration, groups: list[Configuration]) -> set[int]:
    """The seeds of the sweep's plan; without one, those that any configuration of the same sweep has."""
    own = [configuration]
    siblings = own if configuration.is_planned else [c for c in groups if c.sweeps & configuration.sweeps]
    return {seed for c in siblings for seed in (*c.runs, *c.others)}


def _absent(groups: list[Configuration], runs: list[RunRecord], unit: str) -> list[Absent]:
    """Censored, failed, running and missing cells, by configuration and seed, then those of no configuration."""
    found = []
    for c in groups:
        for seed in sorted(_expected(c, groups) | c.others.keys()):
            if seed in c.others:
                found.append(_unfinished(c.label, seed, c.others[seed], unit))
            elif seed not in c.runs:
                why = "others of this sweep have this seed; this one was not started with it"
                found.append(Absent(c.label, seed, "missing", why, None))
    found += [_unfinished(run.folder.name, None, run, unit) for run in runs if not run.config]
    return found


def _unfinished(label: str, seed: int | None, run: RunRecord, unit: str) -> Absent:
    meaning = ""
    if run.is_censored:
        how = "it diverged" if run.diverged else "it was losing when it was stopped"
        meaning = f"censored: {how}, so it is in no mean"
    where = f"step {run.step:,} of {run.total_steps:,}" if run.total_steps else ""
    detail = "; ".join(text for text in (run.reason, where, run.last(unit), meaning) if text)
    return Absent(label, seed, run.state, detail, run.folder)
