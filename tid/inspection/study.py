"""One look at what a trained model would drop from a text: checkpoints and a text in, marks and figures out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tid import config
from tid.checkpoint import BEST, LAST
from tid.data import Corpus, load_corpus
from tid.data.tokenizer import EOT, encode, fast_encoding
from tid.device import choose_device, choose_precision, set_up
from tid.inspection import figures, shown
from tid.inspection.marks import Dropping, Marks, mark
from tid.load import TEXTS, Loaded, load_model, own_text
from tid.options import snake_case
from tid.same_text import OtherText
from tid.schedules import rate_band
from tid.scorers import NoScorer

USUAL_RATE = 0.3  # for a run that has none of its own


@dataclass(frozen=True)
class Wish:
    """What to look at. checkpoints: the first is shown, the others are for the churn. text: itself, or None for
    `source`'s held-out part, or None for the run's own; at most `tokens` of it. scorers and selector: None for the
    run's own, as rate is None for the largest of its schedule."""

    checkpoints: list[str]
    text: str | None
    source: Any | None
    scorers: dict[str, Any] | None
    selector: Any | None
    rate: float | None
    tokens: int
    device: str
    precision: str | None
    data_dir: str
    tokenizer_dir: str


@dataclass(frozen=True)
class Study:
    """What was found. texts (N,): each token as shown; counts (V,): of the training text; pieces: bytes by token id;
    label: of the text; said: what was chosen for the user."""

    loaded: Loaded
    marks: Marks
    found: figures.Diagnostics
    texts: list[str]
    counts: np.ndarray
    pieces: tuple[bytes, ...]
    label: str
    said: list[str]
    selector: str


def study(wish: Wish) -> Study:
    """Raises ConfigError for a wish that cannot be met, CheckpointError and DataError."""
    device = choose_device(wish.device)
    set_up(device)
    loaded = load_model(wish.checkpoints[0], device)
    run = (loaded.record or {}).get("config")
    corpus, why = counted(wish, loaded)
    stream, label = stream_of(wish, corpus)
    counts = np.bincount(corpus.train.tokens, minlength=loaded.model.shape.vocab_size)
    dropping, said = dropping_of(wish, run, torch.from_numpy(counts).float().to(device))
    precision = choose_precision(wish.precision or (run or {}).get("precision", "auto"), device)
    marks = mark(loaded.model, stream, loaded.context, dropping, precision=precision)
    pieces = shown.pieces(fast_encoding(corpus.tokenizer), len(corpus.token_bytes), EOT)
    try:
        found = figures.diagnose(marks, counts, pieces)
    except ValueError as error:
        raise config.ConfigError(str(error)) from None
    found.churn.extend(churn(wish, loaded, marks, stream, dropping, precision, device))
    name = snake_case(type(dropping.selector).__name__)
    return Study(loaded, marks, found, shown.texts(marks.tokens, pieces), counts, pieces, label, why + said, name)


def counted(wish: Wish, loaded: Loaded) -> tuple[Corpus, list[str]]:
    """The text in which tokens are counted, and what there is to say of that: the run's own, and the one to look at
    where that is not known or has changed since. Raises OtherText when it has, and no other is named."""
    folders = wish.data_dir, wish.tokenizer_dir
    if wish.source is not None and not (loaded.record or {}).get("config"):
        return load_corpus(wish.source, *folders), []
    try:
        return own_text(loaded, *folders, f"name another to look at: {TEXTS}"), []
    except OtherText:
        if wish.source is None:
            raise
    corpus = load_corpus(wish.source, *folders)
    return corpus, ["The run's own text has changed since; how frequent a token is was counted in the one named."]


def stream_of(wish: Wish, corpus: Corpus) -> tuple[np.ndarray, str]:
    """The tokens to look at, with the one that follows the last, and what to call them."""
    if wish.text is not None:
        try:
            tokens = [EOT, *encode(corpus.tokenizer, wish.text), EOT]
        except ValueError as error:
            raise config.ConfigError(f"text: {error}") from None
        return np.array(tokens[: wish.tokens + 1]), "text"
    if wish.source is not None:
        corpus = load_corpus(wish.source, wish.data_dir, wish.tokenizer_dir)
    return corpus.val.tokens[: wish.tokens + 1], Path(corpus.manifest["folder"]).name


def dropping_of(wish: Wish, run: dict | None, counts: torch.Tensor) -> tuple[Dropping, list[str]]:
    """How tokens are chosen, and what of that the user did not say."""
    own: dict[str, Any] = {}
    if run and not config.is_baseline(run):
        own = {key: config.instantiate(run[key], key) for key in ("scorer", "selector", "drop_schedule")}
    said = []
    scorers = wish.scorers
    if any(isinstance(scorer, NoScorer) for scorer in (scorers or {}).values()):
        raise config.ConfigError("scorer=none: it drops nothing, so there is nothing to show; name another")
    if not scorers:
        if not own:
            raise config.ConfigError("scorer: this model was trained without one; name some: scorer=entropy,random")
        scorers = {snake_case(type(own["scorer"]).__name__): own["scorer"]}
    rate, largest = wish.rate, max_rate(own["drop_schedule"]) if own else 0.0
    if rate is None:
        rate = largest or USUAL_RATE
        why = "the largest of the run's schedule" if largest else "as the run has none of its own"
        said.append(f"Drop rate {rate:g}, {why}; another with drop_rate=...")
    selector = wish.selector or own.get("selector")
    if selector is None:
        selector = config.instantiate({"_target_": "tid.selectors.Lowest"}, "selector")
        said.append("The least important tokens go, as the run has no selector; another with selector=...")
    protect_first = run["protect_first"] if own else 1
    seed = run["seed"] if run else 0
    return Dropping(scorers, selector, rate, counts, protect_first, EOT, seed), said


def max_rate(schedule: Any) -> float:
    """The largest drop rate that a sequence may get at any time."""
    return max(rate_band(schedule, thousandth / 1000)[1] for thousandth in range(1001))


def churn(
    wish: Wish, shown_one: Loaded, marks: Marks, stream: np.ndarray, dropping: Dropping, precision: str, device: Any
) -> list[dict]:
    """Churn between all checkpoints wished for, by step; with one, between it and the run's other one."""
    seen = [(step_of(shown_one), called(shown_one), marks)]
    for number, path in enumerate(wish.checkpoints[1:] or other_checkpoint(shown_one), start=1):
        loaded = load_model(path, device)
        if loaded.context != shown_one.context:
            raise config.ConfigError(
                f"checkpoint: {path} was trained on {loaded.context} tokens at a time, {shown_one.file} on "
                f"{shown_one.context}: their masks cannot be compared"
            )
        first = number * (int(marks.row[-1]) + 1)  # as if the text were read again: what is random is drawn anew
        other = mark(loaded.model, stream, loaded.context, dropping, precision=precision, first_sample=first)
        seen.append((step_of(loaded), called(loaded), other))
    seen.sort(key=lambda one: one[0])
    return [
        {"before": name, "after": later, "churn": {key: figures.churn(old, new, key) for key in dropping.scorers}}
        for (_, name, old), (_, later, new) in zip(seen, seen[1:], strict=False)
    ]


def step_of(loaded: Loaded) -> int:
    return (loaded.record or {}).get("step", 0)


def called(loaded: Loaded) -> str:
    return f"{loaded.file.name} (step {step_of(loaded):,})"


def other_checkpoint(loaded: Loaded) -> list[str]:
    """last.pt beside best.pt, or the other way round, if it is of another step."""
    if loaded.file.name not in (BEST, LAST):
        return []
    other = loaded.file.with_name(LAST if loaded.file.name == BEST else BEST)
    return [str(other)] if other.is_file() and not other.samefile(loaded.file) else []
