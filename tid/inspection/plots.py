"""Figures of the diagnostics, as matplotlib Figures; `tid.comparison.svg` puts them into a page."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from tid.comparison.drawing import DASHES, GRID, INK, MARKERS, OKABE_ITO, PAPER
from tid.inspection.figures import Diagnostics, Rates

LIGHT = {GRID: "#e3e5e9", PAPER: "#ffffff"}
WIDTH = 4.8  # inches
LABELS = 10  # on an axis, at most, of groups in order
CHARACTERS = 50  # of them beside each other; a range that is longer than its share of these takes two lines
SAME_RATE = 0.005


def figures(found: Diagnostics) -> dict[str, tuple[Figure, str]]:
    """Drop rates by group: by name, each with what it shows."""
    return {name: (drop_rate(rates, *found.drop_rate.values()), caption(rates)) for name, rates in found.by.items()}


def caption(rates: Rates) -> str:
    note = f" ({rates.note})" if rates.note else ""
    least, most = int(min(rates.seen)), int(max(rates.seen))
    size = f"n = {least:,}" if least == most else f"n from {least:,} to {most:,}"
    return f"Drop rate by {rates.title}{note}. Bars: 95% intervals; dashed: what was dropped of all; {size}."


def drop_rate(rates: Rates, *overall: float) -> Figure:
    """One series per scorer over the groups, with intervals. overall: the rate of all groups; of each scorer, where
    they differ."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    dress(axes)
    x = np.arange(len(rates.groups))
    ordered = rates.title != "part of word"
    names = list(rates.rates)
    for number, name in enumerate(names):
        colour, marker, dashes = (options[number % 6] for options in (OKABE_ITO, MARKERS, DASHES))
        spread = (number - (len(names) - 1) / 2) * min(0.12, 0.6 / len(names))
        y = rates.rates[name]
        errors = np.stack((y - rates.low[name], rates.high[name] - y)).clip(0)
        axes.errorbar(x + spread, y, errors, color=colour, marker=marker, ms=4, mec=PAPER, mew=0.4,
                      lw=1.4 if ordered else 0, ls=dashes, elinewidth=0.8, label=name)  # fmt: skip
    differ = np.ptp(overall) > SAME_RATE
    for number, rate in enumerate(overall if differ else overall[:1]):
        axes.axhline(rate, color=OKABE_ITO[number % 6] if differ else INK, lw=0.8, ls=(0, (2, 2)), zorder=1)
    every = -(-len(x) // LABELS) if ordered else 1
    labels = rates.groups[::every]
    if ordered:
        labels = [label if len(label) <= CHARACTERS / len(labels) else label.replace("–", "–\n") for label in labels]
    axes.set_xticks(x[::every], labels, rotation=0 if ordered else 25, ha="center" if ordered else "right")
    axes.set_xlabel(rates.title)
    axes.set_ylabel("dropped")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend(figure, axes)
    return figure


def dress(axes: Axes) -> None:
    """Thin axes and a quiet grid, in the page's colours."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set(color=INK, linewidth=0.6)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8, width=0.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=INK, fontsize=9)
        axis.offsetText.set(color=INK, fontsize=8)


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=8, labelcolor=INK,
                      handlelength=3, ncols=3)  # fmt: skip


def pixels(figure: Figure, dots_per_inch: int = 110) -> np.ndarray:
    """The figure on white, (H, W, 3) uint8, for a tracker; the page's variable colours become those of light mode."""
    canvas = FigureCanvasAgg(figure)
    for line in figure.findobj(Line2D):
        line.set_color(LIGHT.get(line.get_color(), line.get_color()))
        line.set_markeredgecolor(LIGHT.get(line.get_markeredgecolor(), line.get_markeredgecolor()))
    figure.set_dpi(dots_per_inch)
    figure.set_facecolor("white")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
