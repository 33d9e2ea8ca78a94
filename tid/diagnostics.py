"""Figures about what is dropped, while training: every so many steps, on a fixed part of the validation text.

They go to the tracker as tables and images, and to diagnostics/step-<n>.json in the run's folder. Training does not
notice: no weight, gradient, random number or selector state is touched, and their time is not counted as training's.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tid.config import ConfigError
from tid.data import Corpus
from tid.data.tokenizer import EOT, fast_encoding
from tid.dropout import TokenDropout
from tid.inspection import figures, shown
from tid.inspection.figures import Diagnostics
from tid.inspection.marks import Dropping, Marks, mark
from tid.logs import write_json
from tid.options import snake_case

FOLDER = "diagnostics"


@dataclass
class Probe:
    """What `fit` calls when figures are due. stream: tokens, a whole number of batches of whole sequences, and one
    more; previous: the marks of the last time in this sitting, for the churn."""

    every: int
    stream: np.ndarray
    pieces: tuple[bytes, ...]
    precision: str
    batch_size: int
    context: int
    previous: Marks | None = None

    @property
    def rows(self) -> int:
        return (len(self.stream) - 1) // self.context

    def __call__(self, run: Any) -> float:
        """Figures of `run` (tid.loop.Run) as it stands. Returns the seconds that they took."""
        started = time.perf_counter()
        rate = float(run.step.host_bands[run.done - 1].max())
        if rate:
            run.step.updating.settle()
            marks = self.mark(run.step.model, run.step.dropout, run.done, rate)
            found = figures.diagnose(marks, run.step.dropout.counts.cpu().numpy(), self.pieces)
            name = next(iter(marks.fates))
            churn = figures.churn(self.previous, marks, name) if self.previous else float("nan")
            self.previous = marks
            found_now = figures.plain(found) | {"step": run.done, "churn": churn}
            write_json(run.folder / FOLDER / f"step-{run.done}.json", found_now)
            log(run.tracker, found, name, churn, run.done)
        return time.perf_counter() - started

    def mark(self, model: Any, dropout: TokenDropout, done: int, rate: float) -> Marks:
        """The stream as the run would drop from it now, by fresh scores; what is random is drawn anew at every step."""
        dropping = Dropping(
            {snake_case(type(dropout.scorer).__name__): dropout.scorer}, dropout.selector, rate, dropout.counts,
            dropout.protect_first, dropout.protected_token, dropout.seed,
        )  # fmt: skip
        return mark(
            model, self.stream, self.context, dropping, precision=self.precision, first_sample=done * self.rows,
            batch_size=self.batch_size,
        )  # fmt: skip


def probe(
    settings: dict, corpus: Corpus, *, context: int, batch_size: int, precision: str, drops: bool
) -> Probe | None:
    """The probe that `settings`, the configuration's node diagnostics, asks for; None if it asks for none, or if the
    run never drops anything. A text shorter than a batch gives smaller batches. Raises ConfigError for one that is
    shorter than a sequence."""
    every, tokens = settings["every"], settings["tokens"] or 1
    if not every or not drops:
        return None
    there = (len(corpus.val.tokens) - 1) // context
    if not there:
        raise ConfigError(
            f"diagnostics.every: the validation text has {len(corpus.val.tokens)} tokens, fewer than a sequence of "
            f"{context}; use a longer text, or diagnostics.every=0"
        )
    batch = min(batch_size, there)
    rows = max(1, min(tokens // context, there) // batch) * batch
    stream = np.array(corpus.val.tokens[: rows * context + 1])
    pieces = shown.pieces(fast_encoding(corpus.tokenizer), len(corpus.token_bytes), EOT)
    return Probe(every, stream, pieces, precision, batch, context)


def log(tracker: Any, found: Diagnostics, name: str, churn: float, step: int) -> None:
    """To a handle of tid.tracking: numbers, tables and images."""
    from tid.inspection import plots  # matplotlib, which a run without diagnostics does not wait for

    own, following = found.own[name], found.following[name]
    row = {"mask_bits": own.mask, "mask_bits_told": own.told, "mask_bits_told_of_next": following.told}
    row |= {"never_dropped": found.extremes[name].never, "always_dropped": found.extremes[name].always, "churn": churn}
    row |= {
        f"correlation_{other}": value
        for other, value in zip(found.names[1:], found.correlation[0, 1:].tolist(), strict=True)
    }
    tracker.log({f"{FOLDER}/{key}": value for key, value in row.items() if value == value}, step)
    for key, rates in found.by.items():
        columns = [rates.groups, rates.seen.tolist(), rates.rates[name].tolist()]
        rows = [list(cells) for cells in zip(*columns, strict=True)]
        tracker.log_table(f"{FOLDER}/by_{key}", [key, "tokens", "drop_rate"], rows, step)
        figure = plots.drop_rate(rates, found.drop_rate[name])
        tracker.log_image(f"{FOLDER}/drop_rate_by_{key}", plots.pixels(figure), step)
