"""What a configuration is held against: the same with nothing dropped, and with random scores in place of its scorer's.

Exact, a control equals it in everything but what is tested, in every view. Tuned, it is the best of its kind whatever
else differs, and each view has its own: what is best at its best may have over-fitted by the last step.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from operator import attrgetter

from tid.comparison.configurations import RANDOM, Configuration
from tid.comparison.runs import RunRecord
from tid.comparison.views import Budgets, choosing
from tid.config import DROPPING

KINDS = {"no_drop": attrgetter("is_baseline"), "random": attrgetter("is_random")}  # the controls
CONTROLS = tuple(KINDS)
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
                found = {name: _best(ours, list(filter(kind, alike)), loss) for name, kind in KINDS.items()
                         if not is_control(ours, name)}  # fmt: skip
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
    common = [len(c.runs.keys() & of.runs.keys()) for c in fair]
    fair = [c for c, count in zip(fair, common, strict=True) if count == max(common)]
    shared = set(of.runs).intersection(*(c.runs for c in fair))
    return min(fair, key=lambda c: statistics.fmean(loss(c.runs[seed]) for seed in shared or c.runs), default=None)
