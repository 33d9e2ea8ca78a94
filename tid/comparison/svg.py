"""Matplotlib figures as SVG inside a page: colours become the page's variables, so that dark mode and print work."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from tid.comparison.drawing import FAINT, GRID, INK, OKABE_ITO, PAPER, RANDOM_COLOUR

VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid", PAPER: "--paper", RANDOM_COLOUR: "--c0"}
VARIABLES |= {colour: f"--c{number}" for number, colour in enumerate(OKABE_ITO, start=1)}
# Text stays text: it can be searched and copied, and is set in the page's font. The salt makes ids reproducible.
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "tid", "axes.unicode_minus": False, "path.simplify_threshold": 0.2}


def inline(figure: Figure, name: str, words: str) -> str:
    """An <svg> element that refers to nothing outside it. What has the gid cfg:<key> gets data-key="<key>"."""
    text = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="cfg:(\w+)"', r'class="cfg" data-key="\1"', svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", svg).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg).group()
    label = words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(r"<svg[^>]*>", lambda _: f'<svg {box} role="img" aria-label="{label}">', svg, count=1)
