"""The figures of the comparison, as matplotlib Figures. `svg` puts them into the page."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from tid.comparison.configurations import Configuration
from tid.comparison.drawing import (
    DASHES,
    FAINT,
    INK,
    MARKERS,
    OKABE_ITO,
    PAPER,
    RANDOM_COLOUR,
    WIDTH,
    Style,
    back_to_front,
    colour,
    common,
    dress,
    framed,
    legend,
    line,
    margin,
    one_panel,
    styles,
)
from tid.comparison.report import Report, Row
from tid.comparison.runs import RunRecord
from tid.comparison.statistics import Spread, band
from tid.comparison.words import VIEW, level, name

FOREST_ROWS = 40
PANELS = 4  # of the heat map
CELL_COLUMNS = 5  # up to which a cell has room for four decimals; beyond, it is in thousandths
SAME_RATE = 0.01


def figures(report: Report) -> dict[str, tuple[Figure, str]]:
    """Every figure that the runs have the data for, by name, with what it shows."""
    chosen = styles(report)
    unit = report.question.metric
    few = len([s for s in chosen.values() if s.prominent]) < len(chosen)
    rest = " Coloured: the controls and the six lowest; thin grey: the rest." if few else ""
    primary = f"{unit} ({VIEW[report.primary]})"
    far = _far_words(report)
    shown = {
        "curves": (
            curves(report, chosen),
            f"Validation {unit} (all documents) while training: mean over seeds, band ± sd.{rest}{far}",
        ),
        "forest": (forest(report, chosen), _forest_words(report)),
        "heat": (
            heat_map(report),
            f"{primary} minus no drop's{', in thousandths' if _thousandths(report) else ''}, scorer by schedule. "
            "Orange: lower, which is better; purple: higher.",
        ),
        "cost": (
            costs(report, chosen),
            f"{primary} against cost, scoring included: a dot is a run. Dotted: the budget common to all.{rest}{far}",
        ),
        "drops": (
            drop_rates(report),
            "Fraction of the droppable tokens that was dropped, mean over seeds; a point is the mean of the steps "
            "around it.",
        ),
    }
    return {name: (figure, words) for name, (figure, words) in shown.items() if figure is not None}


def _far_words(report: Report) -> str:
    inside = framed(report)
    far = [name(row) for row in report.rows if row.views[report.primary].n and row not in inside]
    more = f" and {len(far) - 3} more" if len(far) > 3 else ""
    return f" Far above the frame: {', '.join(far[:3])}{more}." if far else ""


def _forest_words(report: Report) -> str:
    many = len(report.rows)
    cut = f" The lowest {FOREST_ROWS} of {many}; the table has all." if many > FOREST_ROWS else ""
    what = f"{report.question.metric}, {VIEW[report.primary]}: mean with its {level(report)} t interval over seeds"
    two = any(row.views[report.primary].n == 2 for row in report.rows)
    wide = " Intervals of two seeds may run out of the frame." if two else ""
    return f"{what}, each seed a dot. Line: no drop.{wide}{cut}"


# ------------------------------------------------------------------------------------------------- figures


def curves(report: Report, chosen: dict[str, Style]) -> Figure:
    """The whole way on the left, its second half enlarged on the right."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    whole, late = figure.subplots(1, 2, width_ratios=(2, 3))
    ends, inside = [], framed(report)
    for row in back_to_front(report, chosen):
        c, style, unit = row.configuration, chosen[row.configuration.key], report.question.metric
        runs = [run.evaluations for run in c.runs.values()]
        steps = common([e["step"] for e in runs])
        if not len(steps):
            continue
        values = np.array([e[unit][np.isin(e["step"], steps)] for e in runs])
        mean, sd = band(values)
        half = steps >= steps[-1] / 2
        for axes, part in ((whole, steps > 0), (late, half)):
            line(axes, c, style, steps[part], mean[part])
            if len(values) > 1 and style.prominent:
                low, high = (mean - sd)[part], (mean + sd)[part]
                axes.fill_between(steps[part], low, high, color=style.colour, alpha=0.16, lw=0, gid=f"cfg:{c.key}")
        ends += [(mean - sd)[half].min(), (mean + sd)[half].max()] if row in inside else []
    if ends:
        late.set_ylim(*margin(min(ends), max(ends)))
    for axes, words in ((whole, "the whole way"), (late, "second half, enlarged")):
        dress(axes, "prefixes")
        axes.set_xlabel(f"step ({words})")
    whole.set_ylabel(f"validation {report.question.metric}")
    legend(figure, late)
    return figure


def forest(report: Report, chosen: dict[str, Style]) -> Figure:
    rows = [row for row in report.rows if row.views[report.primary].n][:FOREST_ROWS]
    labels = ["\n".join(textwrap.wrap(name(row), 30)[:2]) for row in rows]
    figure, axes = one_panel(0.9 + sum(0.32 if "\n" in label else 0.24 for label in labels))
    inside = framed(report)
    ends = [end for row in rows if row in inside for end in _extent(row.views[report.primary])]
    for place, row in enumerate(rows):
        spread, style = row.views[report.primary], chosen[row.configuration.key]
        colour = style.colour if style.prominent else INK
        options = {"gid": f"cfg:{row.configuration.key}", "color": colour}
        if row not in inside:
            axes.text(0.99, place, f"{spread.mean:.4g} →", transform=axes.get_yaxis_transform(), fontsize=8,
                      ha="right", va="center", **options)  # fmt: skip
            continue
        if spread.low == spread.low:
            axes.plot([spread.low, spread.high], [place, place], "-", lw=1.6, **options)
        axes.plot(spread.values, [place + 0.22] * spread.n, "o", ms=2, alpha=0.6, mew=0, **options)
        axes.plot([spread.mean], [place], style.marker or "o", ms=5.5, mec=PAPER, mew=0.6, **options)
    for row in rows:
        if row.configuration.is_baseline:
            axes.axvline(row.views[report.primary].mean, color=INK, lw=0.8, ls=(0, (2, 2)), zorder=0)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if ends:
        axes.set_xlim(*margin(min(ends), max(ends)))
    axes.set_xlabel(f"validation {report.question.metric}\n{VIEW[report.primary]}")
    axes.grid(axis="y", visible=False)
    return figure


def _extent(spread: Spread) -> list[float]:
    """What of a row must be seen: its seeds, and its interval but for the huge ones of two seeds."""
    far = 4 * (max(spread.values) - min(spread.values))
    ends = [max(spread.low, spread.mean - far), min(spread.high, spread.mean + far)] if spread.n > 1 else []
    return [*spread.values, *ends]


def heat_map(report: Report) -> Figure | None:
    """One panel for each rest of the configuration (mode, selector, ...) with at least two scorers or schedules."""
    panels: dict[str, dict[tuple[str, str], Row]] = {}
    for row in report.rows:
        names = row.configuration.names
        if names and row.n and np.isfinite(_gain(row, report)):
            rest = " · ".join([names["drop_mode"], names["selector"], *_elsewhere(row.configuration)])
            panels.setdefault(rest, {})[names["scorer"], names["drop_schedule"]] = row
    panels = {rest: cells for rest, cells in panels.items() if len(cells) > 2 and len({d for _, d in cells}) > 1}
    panels = dict(sorted(panels.items(), key=lambda item: -len(item[1]))[:PANELS])
    if not panels:
        return None
    sizes = [len({scorer for scorer, _ in cells}) for cells in panels.values()]
    figure = Figure(figsize=(WIDTH, sum(1.5 + 0.3 * size for size in sizes)), layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=[3 + size for size in sizes])[:, 0]
    largest = max(abs(_gain(row, report)) for cells in panels.values() for row in cells.values())
    for axes, (rest, cells) in zip(grid, panels.items(), strict=True):
        _panel(axes, cells, report, largest)
        axes.set_title(rest, fontsize=9, color=INK)
    return figure


def _panel(axes: Axes, cells: dict[tuple[str, str], Row], report: Report, largest: float) -> None:
    scorers, schedules = (sorted({pair[i] for pair in cells}) for i in (0, 1))
    values = np.full((len(scorers), len(schedules)), np.nan)
    for (scorer, schedule), row in cells.items():
        values[scorers.index(scorer), schedules.index(schedule)] = _gain(row, report)
    norm = CenteredNorm(0, largest or 1.0)
    axes.pcolormesh(values, cmap="PuOr", norm=norm, edgecolors=PAPER, lw=1.5)
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = abs(value) > 0.62 * (largest or 1.0)
            text = f"{1000 * value:+.{int(abs(value) < 0.1)}f}" if _thousandths(report) else f"{value:+.4f}"
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8,
                      color="#ffffff" if dark else "#000000")  # fmt: skip
    axes.set_yticks(np.arange(len(scorers)) + 0.5, scorers)
    axes.set_xticks(np.arange(len(schedules)) + 0.5, schedules, rotation=30 if len(schedules) > 3 else 0,
                    ha="right" if len(schedules) > 3 else "center")  # fmt: skip
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    colour(axes)


def _thousandths(report: Report) -> bool:
    dropping = [row.configuration for row in report.rows if row.n and not row.configuration.is_baseline]
    return len({c.names.get("drop_schedule") for c in dropping}) > CELL_COLUMNS


def costs(report: Report, chosen: dict[str, Style]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = {"flops": "FLOPs, training + scoring", "seconds": "seconds"}
    for axes, (cost, words) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for row in back_to_front(report, chosen):
            style = chosen[row.configuration.key]
            spent, values = _spent(row, report, cost)
            look = {"ls": "", "marker": style.marker or "o", "color": style.colour, "mec": PAPER, "mew": 0.5}
            look |= {"ms": 5, "label": row.configuration.label, "zorder": 3} if style.prominent else {"ms": 3}
            axes.plot(spent, values, gid=f"cfg:{row.configuration.key}", **look)
        for limits in report.limits.values():
            if cost in limits:
                axes.axvline(limits[cost].amount, color=INK, lw=0.8, ls=":", zorder=1)
        axes.set_xlabel(words)
        dress(axes, "prefixes")
        axes.locator_params(axis="x", nbins=4)
    values = [value for row in framed(report) for value in row.views[report.primary].values]
    figure.axes[0].set_ylim(*margin(min(values), max(values)) if values else (0, 1))
    figure.axes[0].set_ylabel(f"validation {report.question.metric}")
    legend(figure, figure.axes[0])
    return figure


def _spent(row: Row, report: Report, cost: str) -> tuple[list[float], list[float]]:
    """What each run cost in all, and what it reached."""
    summaries, values = [run.summary for run in row.configuration.runs.values()], row.views[report.primary].values
    parts = ("train_flops", "score_flops") if cost == "flops" else ("seconds",)
    spent = [sum(summary[part] for part in parts) for summary in summaries]
    return (spent, list(values)) if len(spent) == len(values) else ([], [])


def drop_rates(report: Report) -> Figure | None:
    """One line for all configurations whose rates are alike: most scorers follow their schedule exactly."""
    kinds: list[tuple[np.ndarray, np.ndarray, list[Configuration]]] = []
    for row in report.rows:
        runs: list[RunRecord] = list(row.configuration.runs.values())
        steps = common([run.drops["step"] for run in runs]) if runs and not row.configuration.is_baseline else []
        if not len(steps):
            continue
        middles, rates = (
            np.mean([run.drops[key][np.isin(run.drops["step"], steps)] for run in runs], axis=0)
            for key in ("middle", "realised")
        )
        alike = (k for k in kinds if len(k[0]) == len(steps) and np.abs(k[1] - rates).max() < SAME_RATE)
        found = next(alike, None) or (middles, rates, [])
        found[2].append(row.configuration)
        if len(found[2]) == 1:
            kinds.append(found)
    if not kinds:
        return None
    figure, axes = one_panel(3.2)
    colours = (*OKABE_ITO, INK, RANDOM_COLOUR)
    for number, (middles, rates, same) in enumerate(kinds):
        look = {"color": FAINT, "lw": 0.7}
        if number < len(colours):
            look = {"color": colours[number], "ls": DASHES[number % 4], "marker": MARKERS[number % 6]}
            look["label"] = _rate_label(same)
        axes.plot(middles, rates, ms=4, mec=PAPER, mew=0.4, markevery=(number * 3, max(1, len(rates) // 8)), **look)
    dress(axes, "prefixes")
    axes.set(xlabel="step", ylabel="fraction dropped")
    axes.set_ylim(bottom=0)
    legend(figure, axes, first_on_top=True)
    return figure


def _rate_label(same: list[Configuration]) -> str:
    schedules = sorted({c.names["drop_schedule"] for c in same})
    names = ", ".join(schedules) if len(same) > 1 else f"{schedules[0]} ({same[0].label})"
    return f"{names} ({len(same)} configurations)" if len(same) > 1 else names


def _gain(row: Row, report: Report) -> float:
    """The difference from no drop, as in the table; NaN without one."""
    return row.differences[report.primary, "no_drop"].estimate


def _elsewhere(c: Configuration) -> list[str]:
    """The part of a label that is about no dropping group: a learning rate, a model."""
    known = {word for name in c.names.values() for word in name.split()}
    return [word for word in c.label.split(" · ") if word not in known]
