"""Progress on stderr: a live bar on a terminal, one closing line anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """One line for the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Counts what was done; ``advance`` is cheap enough to be called per document."""

    def __init__(self, label: str, total: int | None, unit: str):
        from tqdm import tqdm

        self.label, self.unit, self.done, self.note = label, unit, 0, ""
        self.started = time.perf_counter()
        scale = {"unit_scale": True, "unit_divisor": 1000} if unit == "B" else {}
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=label, unit=unit, file=sys.stderr, disable=hidden, leave=False, **scale)

    def advance(self, count: int = 1) -> None:
        self.done += count
        self.bar.update(count)

    def close(self, finished: bool) -> None:
        """Take the bar away; when ``finished``, say in one line what was done and how long it took."""
        self.bar.close()
        seconds = time.perf_counter() - self.started
        if finished and self.unit == "B":
            rate = self.done / 1e6 / max(seconds, 1e-9)
            say(f"{self.label}: {self.done / 1e6:.1f} MB{self.note} in {seconds:.1f} s ({rate:.0f} MB/s)")
        elif finished:
            say(f"{self.label}: {self.done:,} {self.unit.strip()}{self.note} in {seconds:.1f} s")


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Progress]:
    """A ``Progress`` over the block. ``unit`` is "B" for bytes, else a word such as " documents"."""
    shown = Progress(label, total, unit)
    try:
        yield shown
    except BaseException:
        shown.close(finished=False)
        raise
    shown.close(finished=True)
