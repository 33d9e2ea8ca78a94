"""What a run leaves in its folder: metrics, console lines and status.

Numbers that are not finite: JSON has no word for them, so JSON files hold null, and metrics.csv holds nan.
A key that a row does not have is absent from its JSON and an empty cell in the CSV.
"""

import contextlib
import csv
import io
import json
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tid.disk import flush

METRICS, CSV, CONSOLE, STATUS = "logs/metrics.jsonl", "logs/metrics.csv", "logs/train.log", "status.json"
STATES = ("running", "done", "failed", "preempted", "pruned")

# metrics.csv opens with these columns in this order; any other key gets a column on the right.
COLUMNS = (
    "step", "epoch", "tokens", "train_loss", "val_loss", "val_perplexity", "val_bpc", "val_bpb",
    "drop_rate_scheduled", "drop_rate_realised", "lr", "grad_norm", "step_ms", "score_ms",
    "tokens_per_second", "memory_mib", "seconds",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ files


def jsonable(value: Any) -> Any:
    """`value` in JSON's types: numbers that are not finite become None, scalars of arrays and tensors plain
    numbers, paths strings. Raises TypeError, naming the type, for anything else."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return jsonable(value.item())
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`: after a crash or a power cut it holds the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. What becomes of its types: see `jsonable`."""
    write_text(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table as CSV, atomically."""
    write_text(path, csv_text([header, *rows]))


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text)


# ----------------------------------------------------------------------------------------------- status


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def read_status(folder: Path) -> dict | None:
    """status.json of a run's folder; None when there is none or it cannot be read."""
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        return status if isinstance(status, dict) else None
    except (OSError, ValueError):
        return None


def write_status(folder: Path, state: str, **info: Any) -> None:
    """Write status.json, atomically: `state`, reason (null unless given), started (of the first start),
    updated, host, pid, and `info`, which stays until it is given anew: step, total_steps, ...

    Raises ValueError for a state that is not one of STATES.
    """
    if state not in STATES:
        raise ValueError(f"state: wanted one of {', '.join(STATES)}, got {state!r}")
    first = {"state": None, "reason": None, "step": None, "total_steps": None, "started": now()}
    process = {"updated": now(), "host": socket.gethostname(), "pid": os.getpid()}
    kept = first | (read_status(folder) or {})
    write_json(folder / STATUS, kept | {"state": state, "reason": None} | process | info)


# ---------------------------------------------------------------------------------------------- metrics


def read_metrics(folder: Path) -> tuple[list[dict], int]:
    """The rows of a run's metrics.jsonl, and the number of lines that are none: a kill may tear the last."""
    path = folder / METRICS
    rows, torn = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows.append(row | {"step": row["step"] + 0})
        except (ValueError, TypeError, KeyError):
            torn += 1
    return rows, torn


class RunLog:
    """The logs of one run: metrics.jsonl and metrics.csv a row at a time, train.log a line at a time. Each is
    in its file when the call returns: a process that is killed loses none.

    resume_step: the step to continue from: rows beyond it, which the resumed run will write again, are
    dropped, and so is a line that a crash tore. None starts both metrics files afresh. train.log only grows.

    Leaving the ``with`` block by an exception writes its traceback to train.log.
    """

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        self.folder = folder
        self.columns = list(COLUMNS)
        rows, torn = read_metrics(folder) if resume_step is not None else ([], 0)
        rows = [row for row in rows if row["step"] <= resume_step]
        write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        self.rewrite_csv(rows)
        if torn:
            self.say(f"{folder / METRICS}: left out {torn} unreadable line{'s' if torn > 1 else ''}")

    def cells(self, row: dict) -> list:
        row = jsonable(row)
        return ["nan" if row.get(key, "") is None else row.get(key, "") for key in self.columns]

    def rewrite_csv(self, rows: list[dict]) -> None:
        """Write metrics.csv anew, with a column for every key of `rows`."""
        self.columns += {key: None for row in rows for key in row if key not in self.columns}
        write_csv(self.folder / CSV, self.columns, map(self.cells, rows))

    def write(self, row: dict[str, float]) -> None:
        """Add a row to metrics.jsonl and metrics.csv. Raises ValueError unless it holds an integer "step"."""
        if type(row.get("step")) is not int:
            raise ValueError(f"row: wanted an integer under 'step', got {row.get('step')!r}")
        append(self.folder / METRICS, json.dumps(jsonable(row)) + "\n")
        if row.keys() <= set(self.columns):
            append(self.folder / CSV, csv_text([self.cells(row)]))
        else:  # the header grows
            self.rewrite_csv(read_metrics(self.folder)[0])

    def say(self, text: str) -> None:
        """Show `text` on stderr, above the progress line, and add it to train.log."""
        self.note(text)
        say(text)

    def note(self, text: str) -> None:
        """Add `text` to train.log only, each line with the time."""
        stamp = datetime.now().isoformat(sep=" ", timespec="seconds")
        append(self.folder / CONSOLE, "".join(f"{stamp} {line}\n" for line in text.splitlines()))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.note("".join(traceback.format_exception(error)))


class NoLog:
    """`RunLog` of a process that leaves the logs to another."""

    def write(self, row: dict[str, float]) -> None: ...

    def say(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *exception: object) -> None: ...


def say(text: str) -> None:
    """Show `text` on stderr, above a progress line if there is one. A terminal that is gone ends no run."""
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(text, file=sys.stderr)


class Progress:
    """The live line: how far, how fast, how long still, and the newest loss and drop rate.

    On a terminal a bar. Elsewhere a plain line at every twentieth of the way, and after 30 seconds without
    one. With `log` the plain lines also go to its train.log, on a terminal too; with a `NoLog` it shows nothing.
    """

    PLAIN_SECONDS = 30
    BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def __init__(self, total_steps: int, start_step: int, log: RunLog | None = None) -> None:
        self.total_steps, self.start_step, self.log = total_steps, start_step, log
        self.figures: dict[str, float] = {}
        self.started = self.spoken = time.monotonic()
        self.twentieth = 20 * start_step // total_steps
        self.bar = None
        if sys.stderr and sys.stderr.isatty() and not isinstance(log, NoLog):
            known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            size = {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 20}  # tqdm would show nothing
            bar = {"total": total_steps, "initial": start_step, "unit": "step", "bar_format": self.BAR}
            self.bar = tqdm(file=sys.stderr, **bar, **size)

    def update(self, step: int, **figures: float | None) -> None:
        """`step` updates are made; `figures` (loss, drop_rate, ...) replace those shown, but for None."""
        self.figures |= {name: value for name, value in figures.items() if value is not None}
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                self.bar.set_postfix_str(self.shown(), refresh=False)
                self.bar.update(step - self.bar.n)
        moment, twentieth = time.monotonic(), 20 * step // self.total_steps
        if twentieth > self.twentieth or moment - self.spoken >= self.PLAIN_SECONDS:
            self.twentieth, self.spoken = twentieth, moment
            if self.bar is None:
                (self.log.say if self.log else say)(self.line(step, moment))
            elif self.log:
                self.log.note(self.line(step, moment))

    def shown(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.figures.items())

    def line(self, step: int, moment: float) -> str:
        rate = (step - self.start_step) / max(moment - self.started, 1e-9)
        speed = f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.3g} s/step"
        left = timedelta(seconds=round((self.total_steps - step) / max(rate, 1e-9)))
        parts = [f"step {step}/{self.total_steps} ({step / self.total_steps:.0%})", speed, f"{left} left"]
        return ", ".join([*parts, *([self.shown()] if self.figures else [])])

    def __enter__(self) -> "Progress":
        return self

    def close(self, *exception: object) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.close()

    __exit__ = close
