"""A run's page: configuration, curves, samples, diagnostics and cost, in one file of HTML."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tid import config, pages
from tid.checkpoint import BEST, LAST
from tid.comparison import svg
from tid.data import DataError
from tid.device import choose_device, choose_precision
from tid.inspection import page as inspection_page
from tid.inspection.study import Study, Wish, study
from tid.inspection.tables import Table
from tid.load import load_model, own_text
from tid.reporting import curves, facts, training
from tid.reporting.facts import Facts
from tid.reporting.samples import Sampling, samples

SHOWN_TOKENS = 384  # of the marked text: a few sequences; all of it is on the page of tid.inspect
NOTES = (
    "Losses are in nats per token; bits per character and per byte count the text that the tokens stand for.",
    "Validation drops nothing. Training's loss is of the inputs as they were after dropping, in drop modes that change "
    "them; the two curves are then not of the same task.",
    "Times are medians of the logged steps. Floating-point operations are counted, not measured: 6 per weight and "
    "token, and attention's products.",
)


@dataclass(frozen=True)
class Looks:
    """What costs time on the page: samples, and how many tokens the figures about dropping are of; where it runs and
    where the text is."""

    sampling: Sampling
    tokens: int
    device: str
    data_dir: str
    tokenizer_dir: str


def page(folder: Path, looks: Looks, call: str) -> tuple[str, list[str]]:
    """The page, and what had to be left out, with the reason. Raises ConfigError for a folder that is no run's."""
    found = facts.read(folder)
    left_out: list[str] = []
    dropping = None
    if not found.is_baseline:
        dropping = attempt("what is dropped", left_out, lambda: dropped(folder, looks))
    written = []
    if looks.sampling.count:
        written = attempt("samples", left_out, lambda: write(folder, found, looks)) or []
    html = pages.render(
        "report.html",
        styles=("text.css", "report.css"),
        title=found.title,
        counts=facts.counts(found),
        answer=facts.answer(found),
        left_out=left_out,
        results=[shown(t) for t in (facts.results(found), facts.evaluations(found)) if t],
        curves=drawings(found),
        dropping=dropping,
        samples=written,
        sampling=looks.sampling,
        cost=shown(facts.cost(found)),
        settings=[shown(table) for table in facts.settings(found)],
        provenance=facts.provenance(found),
        notes=NOTES,
        call=call,
    )
    return html, left_out


def attempt(what: str, left_out: list[str], make: Callable[[], Any]) -> Any:
    """What `make` gives; None, with the reason in `left_out`, when the checkpoint or the text is not to be had, or is
    another than the run's."""
    try:
        return make()
    except (config.ConfigError, DataError) as error:
        left_out.append(f"{what}: {str(error).splitlines()[0]}")
        return None


def checkpoint_of(folder: Path) -> Path:
    """best.pt, or last.pt of a run that was not evaluated yet."""
    best, last = (folder / "checkpoints" / name for name in (BEST, LAST))
    return last if last.exists() and not best.exists() else best


def drawings(found: Facts) -> dict[str, tuple[str, str]]:
    return {name: (svg.inline(figure, name, words), words) for name, (figure, words) in curves.figures(found).items()}


def shown(table: Table) -> dict:
    return dataclasses.asdict(table) | {"heat": False}


def dropped(folder: Path, looks: Looks) -> dict:
    """The marked text and the figures about it, by the names of report.html."""
    found: Study = study(
        Wish(
            checkpoints=[str(checkpoint_of(folder))], text=None, source=None, scorers=None, selector=None, rate=None,
            tokens=looks.tokens, device=looks.device, precision=None, data_dir=looks.data_dir,
            tokenizer_dir=looks.tokenizer_dir,
        )
    )  # fmt: skip
    counted, words = training.tables(found.loaded.file, found.pieces)
    return {
        "about": inspection_page.about(found, found.label),
        "answer": [*inspection_page.answer(found), *filter(None, [words])],
        "counted": [shown(table) for table in counted],
        "passages": inspection_page.passages(found.marks, found.texts, live=False, end=SHOWN_TOKENS),
        "figures": inspection_page.drawings(found.found),
        "tables": inspection_page.page_tables(found.found)[: -len(found.found.by)],
        "call": f"python -m tid.inspect checkpoint={folder}",
    }


def write(folder: Path, found: Facts, looks: Looks) -> list[tuple[str, str]]:
    """Samples of the run's checkpoint."""
    device = choose_device(looks.device)
    loaded = load_model(checkpoint_of(folder), device)
    corpus = own_text(loaded, looks.data_dir, looks.tokenizer_dir)
    return samples(loaded, corpus, looks.sampling, choose_precision(found.config["precision"], device))
