"""What a run is worth in each view: at equal steps, its last and its best; and at equal FLOPs or seconds."""

from typing import NamedTuple

from tid.comparison.configurations import Configuration
from tid.comparison.runs import DOCUMENT_COLUMNS, RunRecord, at_budget, measured

VIEWS = ("final", "best", "flops", "seconds")


class Limit(NamedTuple):
    """What every run of a stratum spent: `amount` FLOPs or seconds, all that its `cheapest` run spent."""

    amount: float
    cheapest: RunRecord


Budgets = dict[tuple, dict[str, Limit]]


def budgets(configurations: list[Configuration]) -> Budgets:
    """For each stratum what its cheapest done run spent: the most that all of them spent."""
    found: Budgets = {}
    for stratum in {c.stratum for c in configurations if c.runs}:
        runs = [run for c in configurations if c.stratum == stratum for run in c.runs.values()]
        runs = [run for run in runs if len(run.evaluations["step"])]
        cheapest = {cost: min(runs, key=lambda run, cost=cost: run.evaluations[cost][-1], default=None)
                    for cost in ("flops", "seconds")}  # fmt: skip
        found[stratum] = {cost: Limit(run.evaluations[cost][-1], run) for cost, run in cheapest.items() if run}
    return found


def value(run: RunRecord, view: str, unit: str, limits: dict[str, Limit]) -> float:
    """A done run's validation figure in a view; NaN where its curve does not reach the budget."""
    if view in ("flops", "seconds"):
        if view not in limits:
            return float("nan")
        return at_budget(run, view, limits[view].amount, f"report_{unit}")
    return measured(run, "report" if view == "best" else view, unit)


def choosing(run: RunRecord, view: str, limits: dict[str, Limit]) -> float:
    """What a done run is chosen by in a view, for its value to be reported on other documents: nats per token of the
    even documents; NaN where its curve does not reach the budget."""
    if view == "best":
        return run.summary["best"]["val_select_loss"]
    if view == "final":
        even = run.documents[::2]
        return float(even[:, DOCUMENT_COLUMNS.index("final_nats") - 1].sum() / even[:, 0].sum())
    return at_budget(run, view, limits[view].amount, "select_loss") if view in limits else float("nan")
