"""Each configuration against its controls, in each view: at equal steps, at the best, at equal FLOPs and seconds."""

from collections import defaultdict

import numpy as np

from tid.comparison.agreement import APART, Mixed
from tid.comparison.configurations import Configuration
from tid.comparison.controls import CONTROLS, is_control
from tid.comparison.runs import DOCUMENT_COLUMNS, UNITS, RunRecord, reporting
from tid.comparison.statistics import Difference, adjusted, by_documents, by_seeds
from tid.comparison.views import Budgets, Limit, value

Key = tuple[str, str, str]  # configuration's key, view, control
SAME_RATE, SAME_SHARE = 0.01, 0.05  # realised drop rates that differ by less, and by less of the higher, are the same
FEWEST_DOCUMENTS = 20  # for a bootstrap: with 8 of them nominal 95% intervals held the truth in 85% of simulations

KIND = {"no_drop": "drop_schedule=none", "random": "scorer=random"}
NO_CONTROL = {
    "exact": "no finished run with {} and else the same settings",
    "tuned": "no configuration with {} whose runs are neither pruned nor diverged has a finished one",
}


def differences(
    configurations: list[Configuration],
    views: list[str],
    unit: str,
    limits: Budgets,
    confidence: float,
    correction: str,
    controls: str = "exact",
    mixed: Mixed | None = None,
) -> dict[Key, Difference]:
    """Every difference from both controls, with the p-values corrected for all of those that were tested, or would have
    been had no run been pruned. controls: how they were assigned, see tid.comparison.controls; mixed: facts in which
    the runs were allowed to differ, but not the two of a pair."""
    found: dict[Key, Difference] = {}
    marks = _marks(mixed or {})
    single: dict[tuple, list[tuple[Key, RunRecord, RunRecord]]] = defaultdict(list)
    for ours in configurations:
        for control in CONTROLS:
            for view in views:
                key, theirs = (ours.key, view, control), ours.controls.get((view, control))
                refused = _refusal(ours, theirs, control, controls)
                seeds, apart = _pairs(ours, theirs, marks)
                if refused := refused or apart:
                    found[key] = Difference("none", why=refused)
                elif len(seeds) == 1 and view in ("final", "best"):
                    single[ours.stratum, view].append((key, ours.runs[seeds[0]], theirs.runs[seeds[0]]))
                else:
                    found[key] = _over_seeds(ours, theirs, seeds, view, unit, limits[ours.stratum], confidence)
    for (_, view), waiting in single.items():
        found |= _over_documents(waiting, view, unit, confidence)
    corrected = adjusted(list(found.values()), correction, never_made(configurations, views))
    return dict(zip(found, corrected, strict=True))


def never_made(configurations: list[Configuration], views: list[str]) -> int:
    """Tests of configurations that pruning or divergence has taken out: they were tried, too."""
    censored = [c for c in configurations if c.is_censored]
    return len(views) * sum(not is_control(c, control) for c in censored for control in CONTROLS)


def _marks(mixed: Mixed) -> dict[RunRecord, dict[str, str]]:
    """What each run has of the facts that are averaged over."""
    marks: dict[RunRecord, dict[str, str]] = defaultdict(dict)
    for name in mixed.keys() - set(APART):
        for mark, runs in mixed[name].items():
            for run in runs:
                marks[run][name] = mark
    return marks


def _pairs(ours: Configuration, theirs: Configuration | None, marks: dict) -> tuple[list[int], str]:
    """The seeds with which both sides' runs have the same marks; and why there is none."""
    seeds = sorted(ours.runs.keys() & theirs.runs.keys()) if theirs else []
    alike = [seed for seed in seeds if marks.get(ours.runs[seed]) == marks.get(theirs.runs[seed])]
    facts = {name for seed in seeds for name, value in marks.get(ours.runs[seed], {}).items()
             if value != marks[theirs.runs[seed]][name]}  # fmt: skip
    return alike, "" if alike else f"its runs and the control's differ in {' and '.join(sorted(facts))}, too"


def _refusal(ours: Configuration, theirs: Configuration | None, control: str, controls: str) -> str:
    """Why there is no difference; empty when there is one."""
    if is_control(ours, control):
        return "it is a control"
    if not ours.runs:
        return "no run of it has finished"
    if theirs is None or not theirs.runs:
        return NO_CONTROL[controls].format(KIND[control])
    for side, who in ((ours, "its"), (theirs, "the control's")):
        if side.is_censored:
            return f"{who} pruned or diverged runs are censored, so those that finished are a selection"
    seeds = ours.runs.keys() & theirs.runs.keys()
    if not seeds:
        return "no seed in common with the control"
    if controls == "exact" and control == "random":
        mine, its = (np.mean([c.runs[seed].summary["drop_rate"] for seed in seeds]) for c in (ours, theirs))
        if abs(mine - its) > min(SAME_RATE, SAME_SHARE * max(mine, its)):
            return f"it dropped {mine:.1%} of what may go, the control {its:.1%}: their difference is one of dose, too"
    return ""


def _over_seeds(
    ours: Configuration,
    theirs: Configuration,
    seeds: list[int],
    view: str,
    unit: str,
    limits: dict[str, Limit],
    confidence: float,
) -> Difference:
    pairs = [(value(ours.runs[s], view, unit, limits), value(theirs.runs[s], view, unit, limits), s) for s in seeds]
    pairs = [pair for pair in pairs if np.isfinite(pair[:2]).all()]
    if not pairs:
        return Difference("none", why="the budget lies before the first evaluation or after the last")
    left, right, kept = (list(column) for column in zip(*pairs, strict=True))
    if len(kept) == 1:
        why = "one seed, and no record of each document at this budget"
        return Difference("point", left[0] - right[0], seeds=tuple(kept), why=why)
    return by_seeds(left, right, kept, confidence)


def _over_documents(
    waiting: list[tuple[Key, RunRecord, RunRecord]], view: str, unit: str, confidence: float
) -> dict[Key, Difference]:
    """Differences of single pairs of runs; all validated the same documents."""
    part = np.asarray if view == "final" else reporting
    column = DOCUMENT_COLUMNS.index(f"{view}_nats") - 1
    logarithm = 1.0 if unit == "loss" else np.log(2)
    sizes = part(waiting[0][1].documents)[:, UNITS.index(unit)]
    nats = np.array([part(a.documents - b.documents)[:, column] / logarithm for _, a, b in waiting])
    estimates = nats.sum(1) / sizes.sum() if len(sizes) else np.full(len(nats), np.nan)
    differ = np.array([bool(row.any()) for row in nats])
    lows, highs = np.full(len(nats), np.nan), np.full(len(nats), np.nan)
    if len(sizes) >= FEWEST_DOCUMENTS and differ.any():
        _, lows[differ], highs[differ] = by_documents(nats[differ], sizes, confidence)
    found = {}
    for number, (key, ours, _) in enumerate(waiting):
        seeds = (ours.config["seed"],)
        if np.isfinite(lows[number]):
            interval = float(lows[number]), float(highs[number])
            found[key] = Difference("documents", float(estimates[number]), *interval, seeds=seeds)
        else:
            few = f"one seed, and too few documents for a bootstrap ({len(sizes)}, of {FEWEST_DOCUMENTS} at least)"
            why = few if differ[number] else "the same in every document"
            found[key] = Difference("point", float(estimates[number]), seeds=seeds, why=why)
    return found
