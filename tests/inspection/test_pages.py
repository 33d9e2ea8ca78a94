"""The pages in a real browser: nothing complained of, nothing fetched, and they do what they say."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import runs
from browser import Browser, chromium
from test_figures import PIECES

from tid import config
from tid.inspection import page
from tid.inspection.figures import diagnose
from tid.inspection.marks import Fate, Marks
from tid.inspection.shown import texts
from tid.inspection.study import Study, Wish, study
from tid.load import Loaded
from tid.report import ReportConfig, report

DROPPING = ("drop_schedule=constant", "drop_schedule.rate=0.3", "scorer=entropy", "diagnostics.every=3")
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return runs.train(folder, *DROPPING)


def wish(run: Path, **changes) -> Wish:
    fields = {
        "checkpoints": [str(run)], "text": None, "source": None, "scorers": None, "selector": None, "rate": None,
        "tokens": 400, "device": "cpu", "precision": None, "data_dir": str(run.parents[2] / "data"),
        "tokenizer_dir": str(run.parents[2] / "tokenizer"),
    }  # fmt: skip
    return Wish(**(fields | changes))


def html_of(found: Study, path: Path) -> Path:
    path.write_text(page.page(found, title=page.title(found), about="about", call="call"), encoding="utf-8")
    return path


def scorers(*names: str) -> dict:
    nodes = {"entropy": {"_target_": "tid.scorers.Entropy", "of": "predicted", "source": "fresh"},
             "surprisal": {"_target_": "tid.scorers.Surprisal", "of": "predicted", "source": "fresh"},
             "random": {"_target_": "tid.scorers.Random"}}  # fmt: skip
    return {name: config.instantiate(nodes[name], name) for name in names}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium()
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def assert_sound(browser: Browser, path: Path) -> None:
    """No complaint, no request but the file itself, no sideways scrolling: light, dark, on a phone, on paper."""
    for scheme in SCHEMES:
        browser.look(scheme)
        browser.resize(1280)
        browser.open(path)
        assert browser.errors == [] and browser.requests == [path.resolve().as_uri()]
        assert luminance(browser, "background-color") > 0.8 if scheme == "light" else luminance(browser, "color") > 0.6
        assert contrast(browser) > 7
    browser.resize(390)
    assert browser.run("document.documentElement.scrollWidth") == 390
    browser.resize(1280)
    browser.look("dark", "print")
    assert luminance(browser, "color") < 0.2  # ink is dark on paper, also of who prefers dark
    browser.look()
    assert not re.search(r"""(?:src|href)=["']?(?!["'#]|data:)""", path.read_text(encoding="utf-8"))


def luminance(browser: Browser, what: str) -> float:
    """0 black … 1 white."""
    colour = browser.run(f"getComputedStyle(document.body).getPropertyValue('{what}')")
    r, g, b = (float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(browser: Browser) -> float:
    one, other = sorted(luminance(browser, what) for what in ("color", "background-color"))
    return (other + 0.05) / (one + 0.05)


# ---------------------------------------------------------------------------------------------- inspection


def test_the_inspection_page(browser, trained, tmp_path):
    found = study(wish(trained, scorers=scorers("entropy", "surprisal", "random")))
    path = html_of(found, tmp_path / "inspect.html")
    assert_sound(browser, path)
    assert browser.run("document.querySelectorAll('#text p i').length") == 3 * found.found.tokens
    struck = browser.run("[...document.querySelectorAll('#text p.k0 i')].map(i => i.classList.contains('d'))")
    assert struck == (~found.marks.fates["entropy"].keep).tolist()
    shown = browser.run("[...document.querySelectorAll('#text p.k0')].map(p => p.textContent).join('')")
    assert shown == "".join(found.texts)


def test_links_at_the_top_lead_to_every_section(browser, trained, tmp_path):
    browser.resize(390)
    browser.open(html_of(study(wish(trained)), tmp_path / "inspect.html"))
    for link in range(browser.run("document.querySelectorAll('nav a').length")):
        browser.run(f"document.querySelectorAll('nav a')[{link}].click()")
        browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert abs(browser.run("document.querySelector(location.hash).getBoundingClientRect().top")) < 5
    sections = browser.run("[...document.querySelectorAll('main section[id]')].map(s => '#' + s.id)")
    linked = browser.run("[...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert linked == sections and "#dropping" in linked
    browser.resize(1280)


def test_hovering_shows_the_tokens_figures_and_the_slider_strikes_others(browser, trained, tmp_path):
    found = study(wish(trained, scorers=scorers("entropy", "random")))
    browser.open(html_of(found, tmp_path / "inspect.html"))
    place = 21
    browser.run(f"document.querySelectorAll('#text p.k1 i')[{place}]"
                ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))")  # fmt: skip
    hint = browser.run("document.getElementById('hint').innerText")
    fate = found.marks.fates["random"]
    assert f"score {fate.scores[place]:.4g}" in hint and f"rank {fate.rank[place]} of" in hint
    assert f"surprisal {found.marks.surprisal[place]:.2f} nats" in hint
    assert f"entropy {found.marks.entropy[place]:.2f} nats" in hint
    assert f"loss of the next token {found.marks.loss[place]:.2f} nats" in hint
    assert f"token {found.marks.tokens[place]}," in hint
    assert browser.run("document.querySelectorAll('.at-hand').length") == 2  # the same token in each column
    leave = "document.getElementById('text').dispatchEvent(new PointerEvent('pointerleave'))"
    hidden = "document.getElementById('hint').hidden"
    browser.run(leave)
    assert browser.run(hidden)
    browser.run("document.querySelector('#text p i')"
                ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true, pointerType: 'touch'}))")  # fmt: skip
    browser.run(leave)
    assert not browser.run(hidden)  # what a tap shows stays
    browser.run("document.body.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true}))")
    assert browser.run(hidden)
    browser.run("document.getElementById('text').focus()")
    for _ in range(3):
        browser.run("document.getElementById('text').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert browser.run("[...document.querySelectorAll('#text p.k0 i')].findIndex(i => i.matches('.at-hand'))") == 2
    browser.run("const s = document.getElementById('rate'); s.value = 12; s.dispatchEvent(new Event('input'))")
    struck = browser.run("[...document.querySelectorAll('#text p.k1 i')].map(i => i.classList.contains('d'))")
    assert struck == (fate.level < 12).tolist() and sum(struck) > (~fate.keep).sum()
    browser.run("document.querySelector('[name=scorer][value=\"0\"]').click()")
    assert browser.run("getComputedStyle(document.querySelector('#text p.k0')).display") == "none"
    assert browser.errors == []


def test_text_of_any_kind_is_shown_as_text(browser, trained, tmp_path):
    text = "<script>alert(1)</script> & 'quotes' \"</i>\" naïve 😀\tTab\r\nline \u2028 𝔘 " + "word " * 20
    found = study(wish(trained, text=text, rate=0.5))
    path = html_of(found, tmp_path / "inspect.html")
    browser.open(path)
    assert browser.errors == [] and browser.run("document.querySelectorAll('script').length") == 2
    shown = browser.run("[...document.querySelectorAll('#text p')].map(p => p.textContent).join('')")
    assert shown.replace("∎", "").replace("◌", "").replace("↵", "") == text.replace("\r", "")


def big_study(tokens: int, names: tuple[str, ...]) -> Study:
    """As study() gives it, of random numbers."""
    rng = np.random.default_rng(0)
    row = np.arange(tokens) // 128
    ids = rng.integers(1, len(PIECES), tokens)
    rates = tuple(n / 20 for n in range(1, 20))

    def fate() -> Fate:
        scores = rng.random(tokens).astype(np.float32)
        order = np.lexsort((scores, row))
        rank = np.empty(tokens, np.int64)
        rank[order] = np.arange(tokens) % 128 + 1
        level = np.minimum(19, (rank * 20) // 129)
        return Fate(scores, level > 5, rank, level, rates, uses_labels=False)

    marks = Marks(
        tokens=ids, next=np.append(ids[1:], 0), row=row, position=np.arange(tokens) % 128, droppable=ids > 0,
        entropy=rng.random(tokens), surprisal=rng.random(tokens), loss=rng.random(tokens), rate=0.3,
        fates={name: fate() for name in names},
    )  # fmt: skip
    counts = rng.integers(1, 10**6, len(PIECES))
    loaded = Loaded(model=None, context=128, record=None, file=Path("x"), folder=Path("x"), name="x")
    found = diagnose(marks, counts, PIECES)
    return Study(loaded, marks, found, texts(ids, PIECES), counts, PIECES, "random", [], "lowest")


def test_twenty_thousand_tokens_by_three_scorers_stay_responsive(browser, tmp_path):
    path = html_of(big_study(20_000, ("one", "two", "three")), tmp_path / "inspect.html")
    assert path.stat().st_size < 12e6
    browser.resize(1280)
    started = time.perf_counter()
    browser.open(path)
    loaded = time.perf_counter() - started
    slide = """new Promise(done => { const s = document.getElementById('rate'), t = performance.now(); s.value = 12;
        s.dispatchEvent(new Event('input'));
        requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - t))) })"""
    hover = """new Promise(done => { const t = performance.now();
        document.querySelectorAll('#text p i')[40].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
        requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - t))) })"""
    scroll = """new Promise(done => { const t = performance.now(); scrollTo(0, document.body.scrollHeight / 2);
        requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - t))) })"""
    took = {name: browser.run(script) for name, script in (("slide", slide), ("hover", hover), ("scroll", scroll))}
    print(f"load {loaded:.2f} s, ms: {took}, {path.stat().st_size / 1e6:.1f} MB")
    assert loaded < 15 and max(took.values()) < 2000, (loaded, took)  # a busy machine; see the numbers printed
    assert browser.errors == []


# ---------------------------------------------------------------------------------------------- a run's own page


def settings(trained: Path, **changes) -> ReportConfig:
    shared = trained.parents[2]
    fields = {
        "run": str(trained), "samples": 2, "max_new_tokens": 5, "temperature": 0.8, "top_k": 50, "seed": 0,
        "tokens": 300, "device": "cpu", "output": None, "data_dir": str(shared / "data"),
        "tokenizer_dir": str(shared / "tokenizer"),
    }  # fmt: skip
    return ReportConfig(**(fields | changes))


def test_a_finished_runs_page(browser, trained):
    said = report(settings(trained))
    path = trained / "report.html"
    assert said == f"The page: {path}"
    assert_sound(browser, path)
    words = browser.run("document.body.innerText")
    summary = json.loads((trained / "summary.json").read_text())
    for wanted in (
        f"{summary['final']['val_bpc']:.4f}", summary["hash"], "done · step 12 of 12", "What it drops", "Samples",
        "of the run's schedule", "entropy drops",
    ):  # fmt: skip
        assert wanted in words, wanted
    assert browser.run("[...document.querySelectorAll('figure')].map(f => f.id)") == [
        f"figure-{name}"
        for name in ("loss", "drops", "mask", "optim", "speed", "position", "frequency", "entropy", "word")
    ]
    assert browser.run("document.querySelectorAll('blockquote').length") == 2


def test_a_baselines_page_has_no_section_on_dropping(tmp_path, browser):
    run = runs.train(tmp_path, "drop_schedule=none")
    report(settings(run, samples=0))
    browser.open(run / "report.html")
    words = browser.run("document.body.innerText")
    assert "Nothing was dropped: a baseline." in words and "What it drops" not in words and "Samples" not in words
    assert browser.errors == []


def test_a_run_without_its_checkpoint_or_summary_has_a_page_all_the_same(trained, tmp_path, browser):
    run = tmp_path / "a" / "b" / trained.name
    shutil.copytree(trained, run)
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    (run / "status.json").write_text('{"state": "failed", "reason": "out of memory"}')
    said = report(settings(trained, run=str(run))).splitlines()
    assert len(said) == 3 and said[0].startswith("left out what is dropped: ") and "no such checkpoint" in said[0]
    browser.open(run / "report.html")
    words = browser.run("document.body.innerText")
    assert "failed · step 12 of 12" in words and "out of memory" in words and "Left out: what is dropped" in words
    assert browser.errors == []


def test_a_folder_that_is_no_runs_is_refused(trained, tmp_path):
    with pytest.raises(config.ConfigError, match=f"no run's folder.*did you mean .*{trained.name}"):
        report(settings(trained, run=str(trained.parent)))
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(config.ConfigError, match="has logged nothing yet"):
        report(settings(trained, run=str(tmp_path)))
