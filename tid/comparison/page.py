"""The comparison as one HTML page: no file beside it, no request, readable without scripts and on paper."""

from pathlib import Path

import jinja2

from tid.comparison import plots, svg, tables
from tid.comparison.controls import CONTROLS
from tid.comparison.report import Report
from tid.comparison.runs import UNITS
from tid.comparison.statistics import Difference
from tid.comparison.words import (
    BEST,
    VIEW,
    alpha,
    answer,
    called,
    interval,
    level,
    name,
    notes,
    number,
    probability,
    provenance,
    verdict,
)

HERE = Path(__file__).parent


def html(report: Report, title: str, asked: list[str], call: str) -> str:
    """The page. asked: the questions that the sweeps set out to answer; call: the command that makes it again."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    drawn = {name: (svg.inline(figure, name, words), words) for name, (figure, words) in plots.figures(report).items()}
    return environment.get_template("page.html").render(
        title=title,
        asked=asked,
        call=call,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        answer=answer(report),
        notes=[note for note in notes(report) if note != BEST],  # that is under the first table
        provenance=provenance(report),
        figures=drawn,
        counts=counts(report),
        tables=[_results(report), *(_view(report, view) for view in report.question.at), _units(report)],
        absent=tables.absent(report),
    )


def counts(report: Report) -> str:
    """How much was compared."""
    unfinished = len(report.absent)
    text = f"{len(report.done)} finished runs of {len(report.rows)} configurations"
    return text + (f"; {unfinished} cells are in no mean" if unfinished else "")


def _results(report: Report) -> dict:
    return _keyed(report, tables.results) | {"note": BEST}


def _units(report: Report) -> dict:
    """Its heads in two rows, which leave more room for the numbers."""
    groups = [("", 1), ("", 1), *((f"{when}, {which}", len(UNITS)) for when, which in tables.MEASURED.values())]
    header = ["configuration", "n", *UNITS * len(tables.MEASURED)]
    return _keyed(report, tables.units) | {"groups": groups, "header": header}


def _keyed(report: Report, make: object) -> dict:
    """A table of tables.py, one row per configuration, with cells that sort by value."""
    table = make(report)
    rows = [
        {"key": row.configuration.key, "role": row.configuration.role, "cells": [_cell(text) for text in cells]}
        for row, cells in zip(report.rows, table.rows, strict=True)
    ]
    return {"title": table.title, "note": "", "groups": [], "header": table.header, "rows": rows}


def _cell(text: str, kind: str = "", order: float | None = None, why: str = "") -> dict:
    wraps = "wraps" if " ± " in text or text.startswith("[") else ""  # a pair of numbers may take two lines
    return {
        "text": text.replace("± ", "±\N{NO-BREAK SPACE}"), "kind": f"{wraps} {kind}".strip(),
        "order": sort_value(text) if order is None else order, "why": why,
    }  # fmt: skip


def sort_value(text: str) -> float | str:
    """What a cell sorts by: the number that it opens with, its prefix and unit applied; a dash last."""
    if text == "-":
        return float("inf")
    word = text.split(" ")[0].split("/")[0].rstrip("%")
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "s": 1, "m": 60, "h": 3600}
    factor = scale.get(word[-1:], 1)
    try:
        return float(word[:-1] if word[-1:] in scale else word) * factor
    except ValueError:
        return text


def _view(report: Report, view: str) -> dict:
    """Both controls side by side in one view."""
    header = ["configuration", "n", report.question.metric]
    rows = []
    for row in report.rows:
        spread = row.views[view]
        cells = [_cell(name(row)), _cell(str(spread.n)), _cell(tables.mean_sd(spread))]
        for control in CONTROLS:
            cells += _difference(row.differences[view, control], alpha(report))
        rows.append({"key": row.configuration.key, "role": row.configuration.role, "cells": cells})
    header += ["difference", f"{level(report)} interval", "p", "corr. p"] * len(CONTROLS)
    groups = [("", 1), ("", 2), *((f"minus {called(control, report)}", 4) for control in CONTROLS)]
    title = f"{VIEW[view][0].upper()}{VIEW[view][1:]}"
    return {"title": title, "note": "", "groups": groups, "header": header, "rows": rows}


def _difference(d: Difference, threshold: float) -> list[dict]:
    kind = verdict(d, threshold)
    mark = {"better": " ▼", "worse": " ▲"}.get(kind, "")
    dagger = " †" if d.method == "documents" else ""
    last = float("inf")
    return [
        _cell(number(d.estimate, sign=True) + mark, kind, why=d.why),
        _cell(interval(d) + dagger, kind, d.low if d.low == d.low else last, d.why),
        _cell(probability(d.p), "", d.p if d.p == d.p else last),
        _cell(probability(d.p_adjusted), kind, d.p_adjusted if d.p_adjusted == d.p_adjusted else last),
    ]
