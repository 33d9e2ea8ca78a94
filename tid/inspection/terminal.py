"""The marked text and the figures in a terminal: colours where it has them, signs where it has not."""

import os
import shutil
import sys
import textwrap
from typing import TextIO

import numpy as np

from tid.inspection.figures import Diagnostics
from tid.inspection.marks import Marks
from tid.inspection.shown import shades
from tid.inspection.tables import Table, all_tables, findings

GREYS = (None, 17, 18, 24, 25, 31, 32, 38, 39, 45)  # of the 256 colours, for backgrounds: unimportant to important
DARK_INK_FROM = 6  # on these backgrounds the text is black
STRUCK, RESET, BOLD = "\x1b[9;2m", "\x1b[0m", "\x1b[1m"
SHOWN_TOKENS = 256


def coloured(stream: TextIO | None = None) -> bool:
    """May `stream` be sent colours? NO_COLOR says no (no-color.org), FORCE_COLOR yes, else a terminal gets them."""
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def view(marks: Marks, texts: list[str], found: Diagnostics, colour: bool) -> str:
    """The first tokens as each scorer sees them, then the figures."""
    end = (
        len(marks)
        if len(marks) <= SHOWN_TOKENS
        else int(np.flatnonzero(marks.row < max(1, marks.row[SHOWN_TOKENS]))[-1]) + 1
    )
    lines = []
    for name in marks.fates:
        lines += [
            heading(f"{name}, {found.drop_rate[name]:.1%} dropped", colour),
            passage(marks, texts, name, end, colour),
            "",
        ]
    if colour:
        scale = "".join(paint(f" {i} ", i, False) for i in range(len(GREYS)))
        lines.append(f"importance {scale}  {STRUCK}dropped{RESET}")
    else:
        lines.append("[-dropped-]")
    if end < len(marks):
        lines.append(f"the first {end:,} of {len(marks):,} tokens; all of them are on the page")
    lines += [
        "",
        *(textwrap.fill(f"{name} {words}", width(), subsequent_indent="  ") for name, words in findings(found).items()),
    ]
    for table in all_tables(found):
        lines += ["", aligned(table, colour)]
    return "\n".join(lines)


def width() -> int:
    return min(120, shutil.get_terminal_size((100, 24)).columns)


def heading(text: str, colour: bool) -> str:
    return f"{BOLD}{text}{RESET}" if colour else text


def passage(marks: Marks, texts: list[str], name: str, end: int, colour: bool) -> str:
    """The first `end` tokens; control characters other than line feeds are left out."""
    fate = marks.fates[name]
    shade = shades(fate.rank, marks.row, len(GREYS))
    out = []
    for i in range(end):
        text = "".join(c for c in texts[i] if c.isprintable() or c == "\n")
        if colour:
            out.append("\n".join(paint(line, int(shade[i]), not fate.keep[i]) for line in text.split("\n")))
        else:
            out.append(text if fate.keep[i] else struck(text))
    return "".join(out)


def struck(text: str) -> str:
    """[-text-], its leading space outside."""
    bare = text.strip()
    return text.replace(bare, f"[-{bare}-]", 1) if bare else f"[-{text}-]"


def paint(text: str, shade: int, dropped: bool) -> str:
    if not text:
        return ""
    back = GREYS[shade] if shade >= 0 else None
    codes = ["9", "2"] if dropped else []
    if back is not None:
        codes += ["30" if shade >= DARK_INK_FROM else "97", f"48;5;{back}"]
    return f"\x1b[{';'.join(codes)}m{text}{RESET}" if codes else text


def aligned(table: Table, colour: bool) -> str:
    cells = [table.header, *table.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]
    lines = [heading(table.title, colour)]
    for row in cells:
        numbers = (cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)
