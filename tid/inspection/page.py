"""The inspection as one HTML page: the marked text, what hovering over a token shows, figures and tables."""

import dataclasses
import html
import json
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from tid import pages
from tid.comparison import svg
from tid.inspection import figures, plots, tables
from tid.inspection import kinds as word_kinds
from tid.inspection.figures import Diagnostics
from tid.inspection.marks import Marks
from tid.inspection.shown import shades
from tid.inspection.study import Study

SHADES = 10

NOTES = (
    "Shade: the score's rank within its sequence, in ten steps. Sequences are cut as in training; each is scored and "
    "dropped from by itself, with nothing dropped while it is scored.",
    "Rank 1 is the least important token. Protected tokens, the first of a sequence and those between documents, are "
    "never dropped and have no rank.",
    "Surprisal and entropy are of the token itself, given what is before it in its sequence; the loss is of the "
    "prediction made at it, of the token after it. All are of the clean text, in nats.",
    "Signs: ↵ a line end, ∎ the token between documents, ◌ a part of a character that its last token shows whole.",
    "Intervals take tokens as independent, which they are not quite: neighbours compete for the same places.",
)


@dataclass(frozen=True)
class Passages:
    """The text, ready for parts.html: names of the scorers; windows, one per sequence, with a cell per scorer."""

    names: list[str]
    windows: list[dict]
    live: bool


def title(study: Study) -> str:
    return "What " + ", ".join(study.marks.fates) + (" drops" if len(study.marks.fates) == 1 else " drop")


def about(study: Study, label: str) -> str:
    """The facts in one line."""
    loaded, found = study.loaded, study.found
    step = f", step {loaded.record['step']:,}" if loaded.record else ""
    return (
        f"{loaded.file}{step}, on {label}: {found.tokens:,} tokens, {found.droppable:,} of them droppable, "
        f"in sequences of {loaded.context}; drop rate {found.rate:g}, selector {study.selector}"
    )


def page(study: Study, *, title: str, about: str, call: str) -> str:
    """The page. about: one line under the title; call: the command that makes it again."""
    marks = study.marks
    return pages.render(
        "inspect.html",
        styles=("text.css",),
        scripts=("inspect.js",),
        title=title,
        counts=about,
        answer=answer(study),
        rates=next(iter(marks.fates.values())).rates,
        rate_index=rate_index(marks),
        passages=passages(marks, study.texts, live=True),
        data=json_for_html(hover(marks, study.counts, study.pieces)),
        figures=drawings(study.found),
        tables=page_tables(study.found),
        notes=NOTES,
        call=call,
    )


def answer(study: Study) -> list[str]:
    """What stands out, and what was chosen for the user."""
    found = tables.findings(study.found)
    return [*(Markup("<b>{}</b> {}").format(name, words) for name, words in found.items()), *study.said]


def figures_json(study: Study, label: str) -> dict:
    """All figures, for figures.json."""
    about = {"checkpoint": str(study.loaded.file), "text": label, "selector": study.selector}
    return about | figures.plain(study.found)


def rate_index(marks: Marks) -> int:
    """Where the slider stands: 0 is a rate of 0."""
    rates = next(iter(marks.fates.values())).rates
    return rates.index(marks.rate) + 1 if marks.rate else 0


def drawings(found: Diagnostics) -> dict[str, tuple[str, str]]:
    """Every figure as (svg, words) by name."""
    return {name: (svg.inline(figure, name, words), words) for name, (figure, words) in plots.figures(found).items()}


def page_tables(found: Diagnostics) -> list[dict]:
    """The tables for parts.html. The rank correlations are coloured by their size."""
    shown, groups = tables.all_tables(found), len(found.by)
    shown = shown[groups:] + shown[:groups]  # the rates by group are in the figures already
    return [dataclasses.asdict(table) | {"heat": table.title == tables.CORRELATION} for table in shown]


def passages(marks: Marks, texts: list[str], live: bool, end: int | None = None) -> Passages:
    """The text of the sequences that begin before token `end`. live: does a script answer to hovering?"""
    starts = np.flatnonzero(np.diff(marks.row, prepend=-1)).tolist()
    bounds = zip(starts, [*starts[1:], len(marks)], strict=True)
    spans = [_spans(marks, texts, name) for name in marks.fates]
    windows = [
        {"first": a, "last": b - 1, "cells": [Markup("".join(own[a:b])) for own in spans]}
        for a, b in bounds
        if a < (end or len(marks))
    ]
    return Passages(list(marks.fates), windows, live)


def _spans(marks: Marks, texts: list[str], name: str) -> list[str]:
    fate = marks.fates[name]
    shade = shades(fate.rank, marks.row, SHADES)
    classes = ["p", *(f"c{i}" for i in range(SHADES))]
    found = []
    for text, s, keep in zip(texts, shade.tolist(), fate.keep.tolist(), strict=True):
        bare = text.lstrip(" ")  # spaces stay outside: at the end of a line they would be painted there
        kind = classes[s + 1] + ("" if keep else " d")
        found.append(f'{text[: len(text) - len(bare)]}<i class="{kind}">{html.escape(bare, quote=False)}</i>')
    return found


def hover(marks: Marks, counts: np.ndarray, pieces: tuple[bytes, ...]) -> dict:
    """What the page's script needs, token by token."""
    before = np.concatenate(([-1], marks.tokens[:-1]))

    def rounded(values: np.ndarray) -> list:
        return [None if v != v else round(v, 2) for v in values.tolist()]

    scorers = []
    for name, fate in marks.fates.items():
        of = np.zeros(marks.row.max() + 1, np.int64)
        np.maximum.at(of, marks.row, fate.rank)
        scorers.append({
            "name": name, "score": [float(f"{s:.4g}") if np.isfinite(s) else None for s in fate.scores.tolist()],
            "rank": fate.rank.tolist(), "of": of.tolist(), "level": "".join(chr(65 + v) for v in fate.level.tolist()),
        })  # fmt: skip
    return {
        "rates": list(next(iter(marks.fates.values())).rates), "kinds": list(word_kinds.KINDS), "scorers": scorers,
        "token": marks.tokens.tolist(), "row": marks.row.tolist(), "seen": counts[marks.tokens].astype(int).tolist(),
        "kind": word_kinds.kinds(marks.tokens, before, marks.next, pieces).tolist(),
        "entropy": rounded(marks.entropy), "surprisal": rounded(marks.surprisal), "loss": rounded(marks.loss),
    }  # fmt: skip


def json_for_html(value: object) -> str:
    """JSON that may stand inside a <script> element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
