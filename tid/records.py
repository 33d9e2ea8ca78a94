"""What a run's folder says about the run: is it done, of which text, how did it end."""

import contextlib
import json
import traceback
from pathlib import Path

from tid.checkpoint import CheckpointError, Writer, load_newest
from tid.data import Corpus
from tid.logs import RunLog, read_status, say, write_csv, write_status
from tid.loop import NonFiniteLoss, Preempted, Run
from tid.messages import correctable
from tid.pruning import prunes_nothing
from tid.revision import in_words, is_other, present
from tid.same_text import refuse_other_text

ANEW = "give the run another name, or delete the folder to start it again"
WRITE_SECONDS = 8  # torchrun kills all processes 30 s after one has failed


def is_done(folder: Path, config: dict) -> bool:
    """Has the run in `folder` ended? One that was pruned goes on without a pruner."""
    state = (read_status(folder) or {}).get("state")
    return state == "done" or (state == "pruned" and not prunes_nothing(config))


def say_done(folder: Path, corpus: Corpus, config: dict) -> None:
    """Tell that the run of this configuration has ended. Raises ConfigError when it was another text's."""
    status = read_status(folder) or {}
    if is_other(status, config):
        say(f"warning: other code made it ({in_words(status)}) than the present ({in_words(present(config))})")
    if status.get("state") == "pruned":
        state, _ = load_newest(folder / "checkpoints")
        if state:
            refuse_other_text(state["run"]["data"], corpus, folder, ANEW)
        say(f"pruned already at step {status['step']}: {folder}\n{status['reason']}. With pruner=none it goes on.")
        return
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    refuse_other_text(summary["data"], corpus, folder, ANEW)
    say(f"done already: {folder}\nDelete that folder to run it again, or change the seed or any other setting.")


def record_failure(folder: Path, error: BaseException) -> None:
    """status.json after anything but success. That a loss diverged is noted: its own settings did it, so that the seeds
    that are left are no fair sample."""
    stopped = isinstance(error, Preempted | KeyboardInterrupt | SystemExit)
    reason = correctable(error) or str(error) or type(error).__name__
    state, diverged = "preempted" if stopped else "failed", isinstance(error, NonFiniteLoss)
    write_status(folder, state, reason=reason, diverged=diverged)


def record_from_thread(folder: Path, log: RunLog, writer: Writer, error: Exception) -> None:
    """status.json and the log of a run whose main thread hangs, once its last checkpoint is written."""
    with contextlib.suppress(CheckpointError):
        writer.wait(WRITE_SECONDS)
    writer.abandoned = True  # what it says after this is not heard
    record_failure(folder, error)
    log.note("".join(traceback.format_exception(error)))


def write_documents(run: Run) -> None:
    """documents.csv: Σ nats of each validation document after the last step and at the best, and its size. A paired
    comparison of two runs over documents needs no more."""
    rows = zip(run.validation.document_sizes(), run.documents["final"], run.documents["best"], strict=True)
    header = ["document", "tokens", "characters", "bytes", "final_nats", "best_nats"]
    table = ([number, *sizes, final, best] for number, (sizes, final, best) in enumerate(rows))
    write_csv(run.folder / "documents.csv", header, table)
