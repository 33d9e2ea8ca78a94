"""What was dropped over the whole training, from the counts that its checkpoint keeps."""

from pathlib import Path

import numpy as np

from tid import checkpoint
from tid.data.tokenizer import EOT
from tid.inspection.figures import channel_of_counts
from tid.inspection.shown import quoted
from tid.inspection.tables import Table, percent

ROWS = 12
MIN_SEEN = 20  # a rarer token's drop rate is noise


def tables(file: Path, pieces: tuple[bytes, ...]) -> tuple[list[Table], str]:
    """The tokens dropped most and least often, and a sentence on the mask as a channel. file: a checkpoint; pieces:
    bytes of each token. No tables for a training that was too short to say. Raises CheckpointError."""
    counts = checkpoint.load(file)["train"]["tensors"]
    seen, drops = counts["token_seen"].numpy().copy(), counts["token_drops"].numpy()
    seen[EOT] = 0  # which is never dropped
    if not drops.sum():
        return [], ""
    known = seen > 0
    told = channel_of_counts(seen[known], drops[known])
    words = (
        f"Over {seen.sum():,} tokens read while something was dropped, {told.told:.2f} of the {told.mask:.2f} bits of "
        "its mask told the token."
    )
    ids = np.flatnonzero(seen >= MIN_SEEN)
    ids = ids[np.argsort(drops[ids] / seen[ids], kind="stable")]
    rows = [
        [quoted(pieces[i].decode("utf-8", "replace")), f"{seen[i]:,}", percent(drops[i] / seen[i])]
        for i in ids.tolist()
    ]
    if len(rows) < 2 * ROWS:
        return [], words
    note = f"Of the {len(ids):,} tokens seen {MIN_SEEN} times or more, at the rates of the schedule."
    header = ["token", "seen", "dropped"]
    most, least = (
        Table("Dropped most often", "", header, rows[::-1][:ROWS]),
        Table("Least often", note, header, rows[:ROWS]),
    )
    return [most, least], words
