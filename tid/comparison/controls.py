"""What a configuration is held against: the same with nothing dropped, and with random scores in place of its scorer's.

Exact, a control equals it in everything but what is tested, in every view. Tuned, it is the best of its kind whatever
else differs, and each view has its own: what is best at its best may have over-fitted by the last step.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial

from tid.comparison.configurations import RANDOM, Configuration
from tid.comparison.runs import RunRecord
from tid.comparison.views import Budgets, choosing
from tid.config import DROPPING

CONTROLS = ("no_drop", "random")
Loss = Callable[[RunRecord], float]
# Given random scores these all drop the same number of tokens, uniformly chosen: one control serves them all.
EXCHANGEABLE = {f"tid.selectors.{name}" for name in ("Lowest", "Highest", "Sampled")}


def assign(configurations: list[Configuration], views: list[str], limits: Budgets, how: str) -> None:
    """Fill in `controls` of every configuration. how: exact | tuned."""
    for ours in configurations:
        alike = [c for c in configurations if c.stratum == ours.stratum and c is not ours]
        found = {"no_drop": _no_drop(ours, alike), "random": _random(ours, alike)} if how == "exact" else {}
        for view in views:
            if how == "tuned":
                loss = partial(choosing, view=view, limits=limits.get(ours.stratum, {}))
                kinds = {"no_drop": lambda c: c.is_baseline, "random": lambda c: c.is_random}
                found = {
                    control: None if is_control(ours, control) else _best(ours, list(filter(is_one, alike)), loss)
                    for control, is_one in kinds.items()
                }
            ours.controls |= {(view, control): c for control, c in found.items() if c is not None}


def _no_drop(of: Configuration, among: list[Configuration]) -> Configuration | None:
    wanted = of.settings | dict.fromkeys(DROPPING)
    return next((c for c in among if c.settings == wanted), None)


def _random(of: Configuration, among: list[Configuration]) -> Configuration | None:
    """The random control with the same selector, else one with a selector that amounts to the same."""
    if of.is_baseline or of.is_random:
        return None
    wanted = of.settings | {"scorer": {"_target_": RANDOM}}
    near = [c for c in among if c.is_random]
    exact = [c for c in near if c.settings == wanted]
    if exact or of.settings["selector"]["_target_"] not in EXCHANGEABLE:
        return exact[0] if exact else None
    alike = [c for c in near if c.settings | {"selector": None} == wanted | {"selector": None}]
    return next((c for c in alike if c.settings["selector"]["_target_"] in EXCHANGEABLE), None)


def is_control(ours: Configuration, control: str) -> bool:
    """Is it a control itself, that is held against none of this kind?"""
    return ours.is_baseline or (ours.is_random and control == "random")


def _best(of: Configuration, among: list[Configuration], loss: Loss) -> Configuration | None:
    """The lowest mean of those that are not censored and whose runs all reach the view's budget, on seeds that all
    have: of those with the most seeds in common with `of`, for another might lack just the hard ones."""
    fair = [c for c in among if c.runs and not c.is_censored and all(map(math.isfinite, map(loss, c.runs.values())))]
    most = max((len(c.runs.keys() & of.runs.keys()) for c in fair), default=0)
    fair = [c for c in fair if len(c.runs.keys() & of.runs.keys()) == most]
    shared = set.intersection(*(set(c.runs) for c in fair), set(of.runs) or set(fair[0].runs)) if fair else set()

    def mean(c: Configuration) -> float:
        return statistics.fmean(loss(run) for seed, run in c.runs.items() if seed in shared or not shared)

    return min(fair, key=mean, default=None)
