"""The report as tables: for a terminal, as Markdown and as CSV. A table is a header and rows of text."""

import math
import os
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from tid.comparison.controls import CONTROLS
from tid.comparison.report import COSTS, MOMENTS, Report, Row
from tid.comparison.runs import UNITS, RunRecord, measured
from tid.comparison.views import VIEWS
from tid.comparison.words import (
    VIEW,
    alpha,
    answer,
    called,
    count,
    interval,
    level,
    mean_sd,
    name,
    notes,
    number,
    probability,
    provenance,
    verdict,
)
from tid.messages import quantity

WIDTH = 100
TERMINAL_ROWS = 50
LABEL_WIDTH = 16  # at least; else what the other columns leave
LISTED = 8  # configurations that one line names
MEASURED = {"final": ("final", "all documents"), "best": ("best", "all documents"), "report": ("best", "odd documents")}
STATES = ("failed", "killed", "preempted", "pruned", "running", "missing", "unreadable")


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 7200 else f"{seconds / 3600:.1f}h"


def results(report: Report) -> Table:
    """One row per configuration: figures and costs."""
    unit = report.question.metric
    header = ["configuration", "n", f"final {unit}, all documents", f"best {unit}, odd documents"]
    header += ["drop rate", "time", "step ms", "score ms", "FLOPs"]
    rows = []
    for row in report.rows:
        cost = row.costs
        share = cost["drop_rate"]
        total = cost["train_flops"] + cost["score_flops"]
        figures = [mean_sd(row.figures["final", unit]), mean_sd(row.figures["report", unit])]
        times = [duration(cost["seconds"]), number(cost["step_ms"], 0), number(cost["score_ms"], 0), quantity(total)]
        rows.append([name(row), count(row), *figures, "-" if share != share else f"{share:.1%}", *times])
    title = f"Validation {unit}, mean ± sd over n seeds; step ms and FLOPs include scoring's"
    return Table(title, header, rows)


def against(report: Report, control: str, view: str) -> Table:
    """Every configuration's difference from one control in one view. Empty when there is none."""
    unit = report.question.metric
    rows = []
    for row in report.rows:
        d = row.differences[view, control]
        if d.method == "none":
            continue
        mark = {"documents": " †", "seeds": ""}.get(d.method, "")
        numbers = [number(d.estimate, sign=True), interval(d) + mark, probability(d.p), probability(d.p_adjusted)]
        rows.append([name(row), *numbers, str(d.pairs), verdict(d, alpha(report))])
    header = ["configuration", "difference", f"{level(report)} interval", "p", "corrected p", "pairs", "verdict"]
    return Table(f"{unit} minus {called(control, report)}, paired by seed ({VIEW[view]})", header, rows)


def everywhere(report: Report) -> Table:
    """The differences in the views after the first, * where the corrected p-value is below alpha, † over documents."""
    pairs = [(view, control) for control in CONTROLS for view in report.question.at[1:]]
    header = ["configuration", *(f"{view} vs {control.replace('_', ' ')}" for view, control in pairs)]
    rows = []
    for row in report.rows:
        found = [row.differences[pair] for pair in pairs]
        if any(d.method != "none" for d in found):
            marks = ["*" if verdict(d, alpha(report)) else "†" if d.method == "documents" else "" for d in found]
            rows.append([name(row), *(number(d.estimate, sign=True) + m for d, m in zip(found, marks, strict=True))])
    title = f"{report.question.metric} minus the control in the other views (* corrected p < {alpha(report):g})"
    return Table(title, header, rows)


def units(report: Report) -> Table:
    """loss, bpc and bpb: final, best on all documents, best on the odd ones."""
    header = ["configuration", "n", *(f"{when} {unit}, {which}" for when, which in MEASURED.values() for unit in UNITS)]
    rows = [[name(r), count(r), *(mean_sd(r.figures[m, u]) for m in MOMENTS for u in UNITS)] for r in report.rows]
    return Table("All units", header, rows)


def absent(report: Report) -> Table:
    """The cells in no mean: one row for those that have state, seed and reason in common."""
    order = {state: index for index, state in enumerate(STATES)}
    alike: dict[tuple, list[str]] = {}
    for cell in sorted(report.absent, key=lambda cell: order.get(cell.state, len(order))):
        alike.setdefault((cell.state, cell.seed, cell.detail), []).append(cell.label)
    rows = [
        [_several(labels), state, "" if seed is None else str(seed), detail]
        for (state, seed, detail), labels in alike.items()
    ]
    return Table("Cells in no mean", ["configuration", "state", "seed", "why"], rows)


def _several(labels: list[str]) -> str:
    more = f"; and {len(labels) - LISTED} more" if len(labels) > LISTED else ""
    return "; ".join(labels[:LISTED]) + more


# ------------------------------------------------------------------------------------------------ terminal


def terminal(report: Report, files: Iterable[str] = ()) -> str:
    """Everything a terminal of 100 columns should show."""
    view = report.primary
    tables = [results(report), *(against(report, control, view) for control in CONTROLS)]
    if len(report.question.at) > 1:
        tables.append(everywhere(report))
    blocks = [aligned(table) for table in tables if table.rows]
    if report.absent:
        blocks.append(listed(absent(report)))
    said = [*notes(report), "; ".join(provenance(report))]
    blocks.append("\n".join(wrapped(f"- {note}", "  ") for note in said))
    blocks.append("\n".join(wrapped(sentence) for sentence in answer(report)))
    return "\n\n".join(blocks + ["\n".join(files)] if files else blocks)


def aligned(table: Table) -> str:
    """A table in columns: labels and headers go on in the next line where WIDTH would be exceeded."""
    columns = range(1, len(table.header))
    cells = {c: max(len(row[c]) for row in table.rows) for c in columns}
    heads = {c: textwrap.wrap(table.header[c], max(cells[c], *map(len, table.header[c].split()))) for c in columns}
    widths = [max(cells[c], *map(len, heads[c])) for c in columns]
    room = max(LABEL_WIDTH, WIDTH - sum(widths) - 2 * len(widths))
    labels = [textwrap.wrap(row[0], room, subsequent_indent="  ") or [""] for row in table.rows]
    widths = [max(len(line) for line in [table.header[0], *(line for lines in labels for line in lines)]), *widths]
    heads[0] = [table.header[0]]
    depth = max(map(len, heads.values()))
    padded = [[""] * (depth - len(heads[c])) + heads[c] for c in range(len(widths))]
    lines = [bold(table.title), *(_line(cells, widths) for cells in zip(*padded, strict=True))]
    lines.append("  ".join("-" * width for width in widths))
    for row, label in list(zip(table.rows, labels, strict=True))[:TERMINAL_ROWS]:
        lines += [_line([label[0], *row[1:]], widths), *label[1:]]
    if len(table.rows) > TERMINAL_ROWS:
        lines.append(f"... and {len(table.rows) - TERMINAL_ROWS} more: see the files")
    return "\n".join(lines)


def _line(cells: list[str], widths: list[int]) -> str:
    padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join(padded).rstrip()


def listed(table: Table) -> str:
    """A table whose last column is prose: wrapped under the rest."""
    lines = [bold(table.title)]
    for label, state, seed, why in table.rows:
        seed = f"seed {seed} of " if seed else ""
        lines.append(wrapped(f"{state:<10} {seed}{label}{': ' if why else ''}{why}", " " * 11))
    return "\n".join(lines)


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def bold(text: str) -> str:
    """On a terminal, unless NO_COLOR is set."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


# ------------------------------------------------------------------------------------------- Markdown, CSV


def markdown(report: Report, title: str, asked: list[str]) -> str:
    views = [(control, view) for view in report.question.at for control in CONTROLS]
    tables = [results(report), *(against(report, *pair) for pair in views), units(report), absent(report)]
    parts = [
        f"# {title}",
        *(f"*{_escaped(question)}*" for question in asked),
        "\n".join(f"{sentence}  " for sentence in answer(report)).rstrip(),
    ]
    parts += [f"## {table.title}\n\n{_markdown(table)}" for table in tables if table.rows]
    said = [*notes(report), "; ".join(provenance(report))]
    return "\n\n".join([*parts, "## Notes\n\n" + "\n".join(f"- {_escaped(note)}" for note in said)]) + "\n"


def _markdown(table: Table) -> str:
    rule = [":--", *("--:" for _ in table.header[1:])]
    lines = [table.header, rule, *([_escaped(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    for special in "\\|*_<`":
        text = text.replace(special, "\\" + special)
    return text


def configurations_csv(report: Report) -> tuple[list[str], list[list]]:
    """Header and one row per configuration: every figure in full, empty where there is none."""
    rows = [_configuration_cells(row, report) for row in report.rows]
    return list(rows[0]), [list(row.values()) for row in rows]


def _configuration_cells(row: Row, report: Report) -> dict[str, object]:
    c = row.configuration
    cells: dict[str, object] = {"id": c.key, "configuration": c.label, "role": c.role, **_names(c.names)}
    cells |= {"n": row.n, "seeds": " ".join(map(str, sorted(c.runs))), "seeds_expected": row.expected}
    cells |= {state: sum(run.state == state for run in c.others.values()) for state in STATES if state != "missing"}
    for (moment, unit), spread in row.figures.items():
        word = {"report": "best_odd"}.get(moment, moment)
        cells |= {f"{word}_{unit}_mean": spread.mean, f"{word}_{unit}_sd": spread.sd}
    cells |= row.costs
    for view in VIEWS:
        if view in row.views:
            cells |= {f"{view}_{report.question.metric}": row.views[view].mean, f"{view}_n": row.views[view].n}
            for control in CONTROLS:
                d = row.differences[view, control]
                theirs = c.controls.get((view, control))
                facts = {"control": theirs.key if theirs else "", "difference": d.estimate, "low": d.low}
                facts |= {"high": d.high, "p": d.p, "p_corrected": d.p_adjusted, "pairs": d.pairs}
                facts |= {"method": d.method, "why": d.why}
                cells |= {f"{view}_vs_{control}_{key}": value for key, value in facts.items()}
    return {key: "" if value != value else value for key, value in cells.items()}


def _names(names: dict[str, str]) -> dict[str, str]:
    return {group: names.get(group, "") for group in ("scorer", "selector", "drop_mode", "drop_schedule")}


def runs_csv(report: Report) -> tuple[list[str], list[list]]:
    """Header and one row per run, whatever its state: what the means were made of."""
    header = ["folder", "configuration", "id", "seed", "state", "reason", "step", "total_steps"]
    header += [f"{'best_odd' if m == 'report' else m}_{u}" for m in MOMENTS for u in UNITS]
    header += [*COSTS, "code", "source"]
    rows = []
    for row in report.rows:
        c = row.configuration
        for seed, run in sorted((c.runs | c.others).items()):
            rows.append([str(run.folder), c.label, c.key, seed, run.state, run.reason, run.step, run.total_steps])
            rows[-1] += _run_figures(run)
    for run in report.runs:
        if not run.config:
            rows.append([str(run.folder), "", "", "", run.state, run.reason, run.step, run.total_steps])
            rows[-1] += _run_figures(run)
    return header, rows


def _run_figures(run: RunRecord) -> list:
    if not run.summary:
        return [""] * (len(MOMENTS) * len(UNITS) + len(COSTS) + 2)
    figures = [measured(run, moment, unit) for moment in MOMENTS for unit in UNITS]
    code = [run.summary["git_sha"] or "", run.summary.get("source", "")]
    return [*figures, *(run.summary[name] for name in COSTS), *code]
