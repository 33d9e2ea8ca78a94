"""What a sweep shows: the list before it starts, the live table, failures when they happen and again at the end."""

import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tid import revision
from tid.logs import CONSOLE, METRICS, read_metrics, read_status
from tid.offline import sync_command
from tid.sweep.plan import MEANING, Cell, Slot, expected_seconds

TAIL_LINES = 12  # of a failed cell's output
PLAIN_SECONDS = 60  # between lines about the whole, where there is no terminal
STATES = ("done", "pruned", "failed", "interrupted", "elsewhere", "running", "retry", "new")  # as they are counted
LISTED = 400  # cells; of a larger sweep the list is cut


def span(seconds: float | None) -> str:
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


def last_lines(file: Path, count: int = TAIL_LINES) -> str:
    """The last lines of a file that are not blank; "" when it cannot be read."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, file.stat().st_size - 200 * (count + 10)))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-count:])


def states_of(cells: list[Cell]) -> list[str]:
    """The cells' states, in the order of STATES."""
    return sorted((cell.state for cell in cells), key=STATES.index)


def tally(words: Iterable[str]) -> str:
    """How often each word comes, in the order of their first: "7 done, 1 failed"."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items())


class Screen:
    """Everything goes to stderr. `with screen:` a table of the running cells is kept up to date, on a terminal."""

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = cells
        self.console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self.live: Live | None = None
        self.began = self.spoke = time.monotonic()
        self.recent: deque[str] = deque(maxlen=3)
        self.ended_count = 0

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, text: str) -> None:
        self.console.print(Text(text))

    # --------------------------------------------------------------------------------------------- before

    def listing(self, guess: str | None = None) -> None:
        """Every cell and what will be done with it; counts; an estimate of the time: where no finished run tells it,
        `guess`, for all that is to be run."""
        table = Table(box=None, pad_edge=False, show_header=False)
        for number, cell in enumerate(self.cells[:LISTED]):
            doing = MEANING[cell.state]
            if cell.state == "interrupted":
                doing += f" at step {cell.step} of {cell.total_steps}"
            table.add_row(str(number), cell.label, doing, other_code(cell))
        self.console.print(table)
        if len(self.cells) > LISTED:
            self.say(f"... and {len(self.cells) - LISTED} more")
        self.say(f"{len(self.cells)} runs: {tally(MEANING[state] for state in states_of(self.cells))}")
        self.say(self.estimate(guess))
        others = [cell for cell in self.cells if other_code(cell)]
        if others:
            made_by = "; ".join(sorted({revision.in_words(cell.code) for cell in others}))
            present = "; ".join(sorted({revision.in_words(revision.present(cell.config)) for cell in others}))
            self.say(
                f"warning: {len(others)} of them {'was' if len(others) == 1 else 'were'} made or begun by other code "
                f"({made_by}) than the present {present}. They are marked above, and no "
                "comparison mixes them with new runs unasked; delete their folders to run them again"
            )

    def estimate(self, guess: str | None) -> str:
        left = [cell for cell in self.cells if cell.to_run]
        seconds = [expected_seconds(cell, self.cells) for cell in left]
        known = [value for value in seconds if value is not None]
        if not left:
            return "nothing is left to run"
        if not known and guess is not None:
            alone = "one after the other for the training steps alone, judged by the speed of this CPU"
            return f"{len(left)} to run, very roughly {guess} {alone}"
        if not known:
            return f"{len(left)} to run; no run of this size has finished here yet, so how long it takes is not known"
        total = sum(known) * len(left) / len(known)
        return f"{len(left)} to run, about {span(total)} one after the other, judged by the finished runs"

    # --------------------------------------------------------------------------------------------- meanwhile

    def started(self, slot: Slot) -> None:
        gpu = f" on GPU {slot.gpu}" if slot.gpu is not None else ""
        if self.live is None:
            self.say(f"started: {slot.cell.label}{gpu}")

    def ended(self, cell: Cell, seconds: float) -> None:
        self.ended_count += 1
        reason = f" ({cell.reason})" if cell.reason else ""
        self.say(f"{cell.state}: {cell.label}, {span(seconds)}{figure(cell)}{reason}")

    def failed(self, cell: Cell, seconds: float, again: bool) -> None:
        self.say(f"FAILED after {span(seconds)}{', tried once more' if again else ''}: {failure(cell)}")

    def refresh(self, slots: list[Slot], waiting: int) -> None:
        if self.live is not None:
            self.live.update(self.picture(slots, waiting), refresh=True)
        elif time.monotonic() - self.spoke > PLAIN_SECONDS:
            self.spoke = time.monotonic()
            self.say(self.counts(slots, waiting))

    def counts(self, slots: list[Slot], waiting: int) -> str:
        states = Counter(cell.state for cell in self.cells)
        ended = [f"{states[name]} {name}" for name in ("done", "pruned", "failed") if states[name]]
        took = span(time.monotonic() - self.began)
        left = [f"about {span(seconds)} left"] if (seconds := self.left(slots)) is not None else []
        return ", ".join([*ended, f"{states['running']} running", f"{waiting} waiting", took, *left])

    def left(self, slots: list[Slot]) -> float | None:
        """Seconds until all is done, from the finished siblings of the cells that are not; None without any."""
        begun = {slot.cell.name: time.monotonic() - slot.started for slot in slots if slot.cell is not None}
        known = []
        for cell in self.cells:
            if cell.state == "running" or cell.to_run:
                whole = expected_seconds(cell, self.cells)
                if whole is None:
                    return None
                known.append(max(0.0, whole - begun.get(cell.name, 0.0)))
        return max(sum(known) / max(1, len(slots)), *known) if known else None

    def picture(self, slots: list[Slot], waiting: int) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("slot", "run", "step", "validation", "running for", "left"):
            table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name != "run")
        for slot in slots:
            if slot.cell is None:
                continue
            seconds = time.monotonic() - slot.started
            step = (read_status(slot.cell.folder) or {}).get("step") or 0
            rows = read_metrics(slot.cell.folder)[0] if (slot.cell.folder / METRICS).exists() else []
            step = max([step, *(row["step"] for row in rows[-1:])])
            bpc = [row["val_bpc"] for row in rows if row.get("val_bpc") is not None]
            made = step - slot.cell.step
            left = seconds / made * (slot.cell.total_steps - step) if made > 0 else None
            where = f"{slot.number}" + (f" gpu {slot.gpu}" if slot.gpu is not None else "")
            table.add_row(where, slot.cell.label, f"{step}/{slot.cell.total_steps}",
                          f"{bpc[-1]:.4f} bpc" if bpc else "", span(seconds), span(left))  # fmt: skip
        return Group(table, Text(self.counts(slots, waiting)))

    # --------------------------------------------------------------------------------------------- after

    def ending(self, command: str, compare: str) -> None:
        """What failed and why, what is left, and what to do next."""
        failures = [cell for cell in self.cells if cell.state == "failed"]
        for cell in failures:
            self.say(f"FAILED: {failure(cell)}")
        self.say(f"{len(self.cells)} runs: {tally(states_of(self.cells))}")
        if failures:
            self.say(f"{len(failures)} failed; when what ailed them is mended: {command} retry_failed=true")
        if any(cell.state in ("new", "interrupted", "elsewhere", "retry") for cell in self.cells):
            self.say(f"the same command goes on where it stopped: {command}")
        self.say(compare)
        self.uploading(cell.folder for cell in self.cells)

    def uploading(self, runs: Iterable[Path]) -> None:
        """How to upload what these runs logged to W&B offline, if they did."""
        if upload := sync_command(runs):
            self.say(f"upload what was logged offline: {upload}")


def other_code(cell: Cell) -> str:
    """Which code the cell was made by, in short, if not by the present."""
    if not revision.is_other(cell.code, cell.config):
        return ""
    if (source := cell.code.get("source")) == revision.SOURCE:
        return f"other code: {', '.join(cell.code['own_source'])}"
    return f"other code: {source or cell.code['git_sha'][:10]}"


def figure(cell: Cell) -> str:
    rows = [row for row in read_metrics(cell.folder)[0] if row.get("val_bpc") is not None]
    return f", {rows[-1]['val_bpc']:.4f} bpc" if rows else ""


def failure(cell: Cell) -> str:
    """One failed cell: which, why, where it lies, and the end of what it said."""
    lines = last_lines(cell.console) or last_lines(cell.folder / CONSOLE)
    tail = "".join(f"\n    {line}" for line in lines.splitlines())
    return f"{cell.label}: {cell.reason}\n  folder {cell.folder}\n  output {cell.console}{tail}"
