"""The HTML page: complete by itself, and alive in a browser."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest
import synthetic
from browser import Browser

from tid.comparison import drawing, page, plots, report
from tid.comparison.folders import read_all
from tid.comparison.report import Question

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


def compared(root):
    question = Question("bpc", ["final", "best", "flops", "seconds"], 0.95, "bh", [])
    return report.build(read_all([str(root)]), question)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    synthetic.sweep(root)
    failed = synthetic.settings(name="sweep", drop_schedule="constant", seed=3)
    synthetic.write_run(root, failed, state="failed", reason="<script>alert(1)</script>", until=60)
    return compared(root)


@pytest.fixture(scope="module")
def text(found):
    return page.html(found, "Comparison of <b>outputs</b>", ["Which scorer & why?"], "python -m tid.compare 'a b'")


class Elements(html.parser.HTMLParser):
    """Tags with their attributes, and what was left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.open, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_well_formed_and_names_nothing_outside_it(text):
    elements = Elements(text)
    assert not elements.wrong and not elements.open
    assert not re.findall(r"https?:|//[a-z]", text.replace("// ", ""))
    for tag, attributes in elements.found:
        assert tag not in ("script", "img", "iframe", "object") or "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert "default-src 'none'" in text


def test_ids_are_unique_and_references_resolve(text):
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_what_users_wrote_is_escaped(text):
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "<b>outputs" not in text and "Which scorer &amp; why?" in text


def test_every_figure_is_there_with_words_and_in_the_pages_colours(text):
    for name in ("curves", "forest", "heat", "cost", "drops"):
        assert f'id="figure-{name}"' in text
    assert text.count('role="img" aria-label="') == 5
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", re.sub(r'<g id="heat.*', "", drawings, flags=re.DOTALL)))
    assert fixed <= {"#ffffff", "#000000"} and "var(--ink)" in drawings


def test_each_configuration_is_the_same_in_tables_and_figures(text, found):
    keys = {row.configuration.key for row in found.rows}
    assert set(re.findall(r'<tr data-key="(\w+)"', text)) == keys
    assert set(re.findall(r'class="cfg" data-key="(\w+)"', text)) == keys


def test_the_same_runs_make_the_same_page(found, text):
    again = page.html(found, "Comparison of <b>outputs</b>", ["Which scorer & why?"], "python -m tid.compare 'a b'")
    assert again == text


def test_a_configuration_that_diverged_does_not_flatten_the_others(tmp_path):
    synthetic.sweep(tmp_path)
    synthetic.write_run(tmp_path, synthetic.settings(name="sweep", scorer="position"), loss=9.0)
    found = compared(tmp_path)
    assert len(drawing.framed(found)) == len(found.rows) - 1
    shown = plots.figures(found)
    for name, along in (("curves", "y"), ("cost", "y"), ("forest", "x")):
        figure, words = shown[name]
        axes = figure.axes[-1]
        high = (axes.get_ylim() if along == "y" else axes.get_xlim())[1]
        means = [row.views["final"].mean for row in found.rows]
        assert max(means[:-1]) < high < max(means[:-1]) + (max(means[:-1]) - min(means)) < means[-1], name
        assert "position · linear_decay" in words or any("→" in text.get_text() for text in axes.texts)


def test_few_or_equal_means_have_no_fence(tmp_path):
    synthetic.write_run(tmp_path, synthetic.settings(name="s"))
    assert drawing.fence(compared(tmp_path)) == float("inf")


@pytest.mark.parametrize(
    "kinds", [[("none", "none")], [("entropy", "constant")], [("none", "none"), ("random", "constant")]]
)
def test_few_runs_make_a_page_too(tmp_path, kinds):
    for scorer, schedule in kinds:
        synthetic.write_run(tmp_path, synthetic.settings(scorer=scorer, drop_schedule=schedule, name="s"))
    text = page.html(compared(tmp_path), "t", [], "c")
    assert not Elements(text).wrong and 'id="figure-curves"' in text


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.25 ± 0.1", 1.25), ("-0.5 ▼", -0.5), ("200T", 2e14), ("14.2%", 14.2), ("2/3", 2), ("10m", 600), ("a", "a")],
)
def test_cells_sort_by_value(text, value):
    assert page.sort_value(text) == value
    assert page.sort_value("-") == float("inf")


# ------------------------------------------------------------------------------------------------- browser

BEFORE = """<script>
window.problems = [];
addEventListener("error", (e) => problems.push(String(e.message)));
addEventListener("securitypolicyviolation", (e) => problems.push(e.violatedDirective + " " + e.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(words.join(" "));
</script>"""
AFTER = """<script>
const table = document.querySelectorAll("table.sortable")[1];
const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
const column = (index) => shown().map((row) => row.cells[index].textContent);
const heads = [...table.querySelectorAll("tr.keys th button")];
const found = {initial: column(0)};
heads[3].click(); found.rising = column(3);
heads[3].click(); found.falling = column(3); found.sorted = heads[3].parentElement.getAttribute("aria-sort");
heads[0].click(); found.byName = column(0);
const input = document.getElementById("filter");
input.value = "Entropy CONST"; input.dispatchEvent(new Event("input"));
found.filtered = column(0);
found.matches = document.getElementById("matches").textContent;
found.bright = document.querySelectorAll("#figure-curves .cfg:not(.off)").length;
found.dim = document.querySelectorAll("#figure-curves .cfg.off").length;
input.value = ""; input.dispatchEvent(new Event("input"));
found.cleared = column(0).length;
table.tBodies[0].rows[0].dispatchEvent(new PointerEvent("pointerenter"));
found.lit = document.querySelectorAll("#figure-curves .cfg.lit").length;
found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
found.widths = [document.documentElement.scrollWidth, innerWidth];
found.ink = getComputedStyle(document.body).color;
found.problems = problems;
document.body.innerHTML = ""; document.title = "told";
const told = document.createElement("pre"); told.id = "told"; told.textContent = JSON.stringify(found);
document.body.append(told);
</script>"""


def browse(path, *flags):
    """What the page says of itself after sorting and filtering, in a browser that can reach no host."""
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={path.parent}/chrome",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000", *flags, f"file://{path}"],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert told, done.stdout[-500:] + done.stderr[-500:]
    return json.loads(html.unescape(told[1]))


@needs_browser
def test_sorting_filtering_and_no_request_in_a_browser(text, found, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(text.replace("<head>", f"<head>{BEFORE}").replace("</body>", f"{AFTER}</body>"))
    seen = browse(path, "--window-size=1280,900")
    assert seen["problems"] == [] and seen["requests"] == []
    assert seen["initial"] == [row.configuration.label for row in found.rows]
    numbers = [float(cell.split()[0]) for cell in seen["rising"] if cell != "-"]
    assert numbers == sorted(numbers) and len(numbers) == len(found.rows) - 1 and seen["rising"][-1] == "-"
    assert [float(cell.split()[0]) for cell in seen["falling"] if cell != "-"] == numbers[::-1]
    assert seen["falling"][-1] == "-" and seen["sorted"] == "descending"
    assert seen["byName"] == sorted(seen["byName"])
    assert seen["filtered"] == ["entropy · constant"] and seen["matches"] == f"1 of {len(found.rows)}"
    assert seen["bright"] > 0 and seen["dim"] > seen["bright"]
    assert seen["cleared"] == len(found.rows) and seen["lit"] > 0


@needs_browser
def test_a_phone_scrolls_tables_and_not_the_page(text, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(text.replace("<head>", f"<head>{BEFORE}").replace("</body>", f"{AFTER}</body>"))
    seen = browse(path, "--window-size=500,900")  # the narrowest window that Chromium makes
    assert seen["widths"][0] <= seen["widths"][1] <= 500


@needs_browser
def test_tables_and_figures_can_be_read_on_a_phone(text, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(text)
    with Browser(tmp_path / "chrome") as browser:
        browser.open(path)
        cut = "[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
        assert browser.run(cut) == 0  # at 1280 px
        browser.resize(390)
        assert browser.run("document.documentElement.scrollWidth") == 390
        smallest = """Math.min(...[...document.querySelectorAll('figure svg text')].map(text =>
            parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a))"""
        assert browser.run(smallest) >= 11
        place = """(() => { const table = document.querySelectorAll('table.sortable')[1], box = table.parentElement;
            const left = (element) => element.getBoundingClientRect().left - box.getBoundingClientRect().left;
            const group = table.querySelector('.group span'), first = table.tBodies[0].rows[0].cells[0];
            const at = () => [left(table.querySelectorAll('tr.keys th')[3]), left(group), left(first)].map(Math.round);
            const before = at(); box.scrollLeft = 150;
            return [before, at(), box.clientWidth, first.offsetWidth]; })()"""
        before, after, width, label = browser.run(place)
        assert before[0] <= before[1] < before[0] + 20 < width  # "minus no drop" begins above its "difference"
        assert after[0] < before[0] and label <= after[1] < width and after[2] == before[2] == 0


@needs_browser
def test_dark_mode_turns_the_ink_light(text, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(text.replace("<head>", f"<head>{BEFORE}").replace("</body>", f"{AFTER}</body>"))
    light = browse(path)["ink"]
    dark = browse(path, "--blink-settings=preferredColorScheme=0")["ink"]
    brightness = [sum(map(int, re.findall(r"\d+", ink))) for ink in (light, dark)]
    assert brightness[0] < 150 < 600 < brightness[1]
