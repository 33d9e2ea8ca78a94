"""How figures look: colours that the colour-blind tell apart, markers, axes, legends."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from tid.comparison.configurations import Configuration
from tid.comparison.report import Report, Row

INK, FAINT, GRID, PAPER = "#010203", "#050607", "#090a0b", "#0d0e0f"  # the page gives each its colour, light or dark
RANDOM_COLOUR = "#767676"
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008
MARKERS, DASHES = "osD^vP", ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), "-", (0, (5, 1.5)))
WIDTH = 4.8  # inches


@dataclass(frozen=True)
class Style:
    """How one configuration is drawn in every figure."""

    colour: str
    dashes: object
    marker: str
    prominent: bool


def styles(report: Report) -> dict[str, Style]:
    """The two controls of the first row and the six best others stand out; the rest are thin grey lines."""
    ranked = [row.configuration for row in report.rows if row.n]
    leader = next((c for c in ranked if c.role == ""), ranked[0])
    no_drop = leader if leader.is_baseline else leader.controls.get((report.primary, "no_drop"))
    random = leader if leader.is_random else leader.controls.get((report.primary, "random"))
    found = {c.key: Style(FAINT, "-", "", False) for c in ranked}
    others = [c for c in ranked if c not in (no_drop, random)][: len(OKABE_ITO)]
    for c, colour, marker, dashes in zip(others, OKABE_ITO, MARKERS, DASHES, strict=False):
        found[c.key] = Style(colour, dashes, marker, True)
    controls = ((no_drop, Style(INK, "-", "", True)), (random, Style(RANDOM_COLOUR, (0, (3, 1)), "X", True)))
    for control, style in controls:
        if control is not None and control.key in found:
            found[control.key] = style
    return found


def one_panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    dress(axes)
    return figure, axes


def dress(axes: Axes, x: str = "plain") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    if x == "prefixes":  # 200k, 1.5E
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=5)
    colour(axes)


def colour(axes: Axes) -> None:
    axes.tick_params(colors=INK, labelsize=8, width=0.6)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    axes.xaxis.offsetText.set(color=INK, fontsize=8)
    axes.spines[:].set(color=INK, linewidth=0.6)


def line(axes: Axes, c: Configuration, style: Style, x: np.ndarray, y: np.ndarray) -> None:
    """A curve with a marker at every eighth of the way, which tells it apart without colour."""
    look = {
        "color": style.colour,
        "ls": style.dashes,
        "marker": style.marker or None,
        "ms": 4,
        "mec": PAPER,
        "mew": 0.4,
    }
    look |= {"lw": 1.6, "label": c.label, "zorder": 3} if style.prominent else {"lw": 0.6, "alpha": 0.5}
    axes.plot(x, y, markevery=max(1, len(x) // 8), gid=f"cfg:{c.key}", **look)


def legend(figure: Figure, axes: Axes, first_on_top: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: i if first_on_top else -i)  # others are drawn back to front
    texts = ["\n".join(textwrap.wrap(labels[i], 58)) for i in order]
    if handles:
        figure.legend([handles[i] for i in order], texts, loc="outside lower left", frameon=False, fontsize=8,
                      labelcolor=INK, handlelength=3)  # fmt: skip


def back_to_front(report: Report, chosen: dict[str, Style]) -> list[Row]:
    rows = [row for row in report.rows if row.n]
    rows.reverse()
    return sorted(rows, key=lambda row: chosen[row.configuration.key].prominent)


def fence(report: Report) -> float:
    """Above this a configuration is left out of the frame, or one that diverged would flatten all others: three
    interquartile ranges above the upper quartile of the means (Tukey's outer fence). What is far below is a result."""
    means = [row.views[report.primary].mean for row in report.rows if row.views[report.primary].n]
    if not means:
        return float("inf")
    lower, upper = np.quantile(means, (0.25, 0.75))
    return float(upper + 3 * (upper - lower)) if upper > lower else float("inf")


def framed(report: Report) -> list[Row]:
    """The rows with a mean below the fence."""
    return [row for row in report.rows if row.views[report.primary].mean <= fence(report)]


def margin(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis that shows low … high."""
    room = 0.05 * (high - low) or 1e-6
    return low - room, high + room


def common(steps: Iterable[np.ndarray]) -> np.ndarray:
    """Steps that every seed has."""
    steps = list(steps)
    return np.array(sorted(set(steps[0]).intersection(*steps[1:])))
