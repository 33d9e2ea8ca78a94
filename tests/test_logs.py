"""A run's files, and what a crash, a resumed run, a new column, a nan and a second process do to them."""

import contextlib
import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tid import logs
from tid.logs import COLUMNS, Progress, RunLog, read_metrics


def row(step: int, **more: float) -> dict:
    return {"step": step, "tokens": step * 1024, "train_loss": 10 / (step + 1), **more}


def csv_rows(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / logs.CSV).read_text().splitlines()))


# ---------------------------------------------------------------------------------------- json


def test_json_holds_plain_numbers_and_null_for_those_that_are_none(tmp_path):
    value = {
        "nan": float("nan"), "inf": [float("-inf"), 1.5], "numpy": np.float32("nan"),
        "int": np.int64(3), "tensor": torch.tensor(2.5), "path": Path("a/b"), "text": "né",
        "none": None, "true": True, 7: (1, 2),
    }  # fmt: skip
    logs.write_json(tmp_path / "new" / "x.json", value)
    assert json.loads((tmp_path / "new" / "x.json").read_text(), parse_constant=pytest.fail) == {
        "nan": None, "inf": [None, 1.5], "numpy": None, "int": 3, "tensor": 2.5, "path": "a/b", "text": "né",
        "none": None, "true": True, "7": [1, 2],
    }  # fmt: skip


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    logs.write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="set"):
        logs.write_json(path, {"a": {1, 2}})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_reader_never_sees_half_a_json(tmp_path):
    path, seen, over = tmp_path / "x.json", set(), threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(tuple(json.loads(path.read_text())))

    logs.write_json(path, [0] * 5000)
    reader = threading.Thread(target=read)
    reader.start()
    for value in range(100):
        logs.write_json(path, [value] * 5000)
    over.set()
    reader.join()
    assert len(seen) > 1 and all(len(set(numbers)) == 1 and len(numbers) == 5000 for numbers in seen)


# ---------------------------------------------------------------------------------------- status


def test_status_keeps_the_start_and_what_is_not_given_anew(tmp_path):
    logs.write_status(tmp_path, "running", step=0, total_steps=10)
    first = logs.read_status(tmp_path)
    logs.write_status(tmp_path, "failed", reason="loss is nan", step=4)
    logs.write_status(tmp_path, "running")
    now = logs.read_status(tmp_path)
    assert first.keys() == {"state", "reason", "step", "total_steps", "started", "updated", "host", "pid"}
    assert (now["state"], now["reason"], now["step"], now["total_steps"]) == ("running", None, 4, 10)
    assert now["started"] == first["started"] and now["pid"] == os.getpid()


def test_status_of_no_run_or_of_a_damaged_file_is_none(tmp_path):
    assert logs.read_status(tmp_path) is None
    for damage in ("", "{", "[1]", "\x00"):
        (tmp_path / "status.json").write_text(damage)
        assert logs.read_status(tmp_path) is None
    logs.write_status(tmp_path, "done")
    assert logs.read_status(tmp_path)["state"] == "done"
    with pytest.raises(ValueError, match="running, done, failed, preempted, pruned, got 'finished'"):
        logs.write_status(tmp_path, "finished")


def child(code: str, *arguments: object, **popen: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, text=True, cwd=Path(__file__).parents[1], **popen)


# ---------------------------------------------------------------------------------------- metrics


def test_rows_are_in_both_files_at_once_and_alike(tmp_path):
    with RunLog(tmp_path, None) as log:
        for step in range(1, 4):
            log.write(row(step))
            assert len(read_metrics(tmp_path)[0]) == len(csv_rows(tmp_path)) == step
        log.write(row(4, val_loss=2.5, train_loss=np.float32(0.5)))
        log.write(row(5, train_loss=float("nan"), grad_norm=float("inf")))
    rows, torn = read_metrics(tmp_path)
    assert torn == 0 and rows[0] == row(1) and rows[3] == row(4, val_loss=2.5, train_loss=0.5)
    assert rows[4]["train_loss"] is None and rows[4]["grad_norm"] is None
    table = csv_rows(tmp_path)
    assert tuple(table[0]) == COLUMNS
    assert float(table[1]["train_loss"]) == rows[1]["train_loss"]  # all digits
    assert (table[0]["val_loss"], table[3]["val_loss"], table[4]["grad_norm"]) == ("", "2.5", "nan")


def test_a_new_key_gets_a_column_on_the_right_and_old_rows_keep_theirs(tmp_path):
    log = RunLog(tmp_path, None)
    log.write(row(1))
    log.write(row(2, staleness=0.25, val_loss=3.0))
    log.write(row(3))
    log.write({"other": 1, "step": 4})
    table = csv_rows(tmp_path)
    assert tuple(table[0]) == (*COLUMNS, "staleness", "other")
    assert [r["staleness"] for r in table] == ["", "0.25", "", ""] and table[3]["other"] == "1"
    assert [r["step"] for r in table] == ["1", "2", "3", "4"] and table[1]["val_loss"] == "3.0"
    assert None not in table[0].values() and all(len(r) == len(COLUMNS) + 2 for r in table)


@pytest.mark.parametrize("bad", [{}, {"step": "1"}, {"step": 1.0}, {"step": None}])
def test_a_row_needs_a_step(tmp_path, bad):
    with pytest.raises(ValueError, match="integer under 'step'"):
        RunLog(tmp_path, None).write(bad)
    assert read_metrics(tmp_path) == ([], 0)


def test_resuming_drops_what_will_be_written_again_and_a_torn_line(tmp_path, capsys):
    log = RunLog(tmp_path, None)
    for step in (10, 20, 30, 40):
        log.write(row(step, extra=step))
    for name in (logs.METRICS, logs.CSV):  # the crash came in the middle of a line
        with open(tmp_path / name, "a") as file:
            file.write('{"step": 50, "tok' if name == logs.METRICS else "50,")
    log = RunLog(tmp_path, 20)
    assert "left out 1 unreadable line" in capsys.readouterr().err
    log.write(row(30, train_loss=1.0))
    rows, torn = read_metrics(tmp_path)
    assert torn == 0 and rows == [row(10, extra=10), row(20, extra=20), row(30, train_loss=1.0)]
    assert [(r["step"], r["extra"]) for r in csv_rows(tmp_path)] == [("10", "10"), ("20", "20"), ("30", "")]


def test_starting_without_a_checkpoint_starts_the_metrics_afresh(tmp_path):
    RunLog(tmp_path, None).write(row(10))
    RunLog(tmp_path, 0)
    assert read_metrics(tmp_path) == ([], 0) and csv_rows(tmp_path) == []
    RunLog(tmp_path, None).write(row(5))
    RunLog(tmp_path, None)
    assert (tmp_path / logs.METRICS).read_text() == ""
    assert (tmp_path / logs.CSV).read_text() == ",".join(COLUMNS) + "\n"


WRITE = """
import itertools, sys
from pathlib import Path
from tid.logs import RunLog
log = RunLog(Path(sys.argv[1]), None)
for step in itertools.count(1):
    log.write({"step": step, "train_loss": step / 7, **({"late": step} if step > 20 else {})})
    print(step, flush=True)
"""


def test_a_killed_process_loses_no_row_that_it_had_written(tmp_path):
    writer = child(WRITE, tmp_path, stdout=subprocess.PIPE)
    while int(writer.stdout.readline()) < 30:
        pass
    writer.send_signal(signal.SIGKILL)
    confirmed = [int(line) for line in writer.stdout.read().split()] or [30]
    writer.wait()
    RunLog(tmp_path, 10**9)
    rows, torn = read_metrics(tmp_path)
    assert torn == 0 and len(rows) >= confirmed[-1]
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))
    assert [float(r["train_loss"]) for r in csv_rows(tmp_path)] == [r["train_loss"] for r in rows]


# ---------------------------------------------------------------------------------------- console


def test_lines_are_shown_and_kept_with_the_time_and_so_is_a_failure(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError), RunLog(tmp_path, None) as log:
        log.say("first\nsecond — ✓")
        log.note("only in the file")
        1 / 0  # noqa: B018
    assert capsys.readouterr().err == "first\nsecond — ✓\n"
    with RunLog(tmp_path, 0) as log:
        log.say("resumed")
    lines = (tmp_path / logs.CONSOLE).read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    texts = [line[20:] for line in lines]
    assert texts[:3] == ["first", "second — ✓", "only in the file"] and texts[-1] == "resumed"
    assert "ZeroDivisionError: division by zero" in texts[-2]


def test_without_a_terminal_progress_is_a_plain_line_each_twentieth(tmp_path, capsys):
    log = RunLog(tmp_path, None)
    with Progress(1000, 200, log) as progress:
        for step in range(201, 1001):
            progress.update(step, loss=1000 / step, drop_rate=0.25, val_loss=2.0 if step == 300 else None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 16 and "\r" not in "".join(lines)
    assert lines[0].startswith("step 250/1000 (25%), ") and lines[0].endswith("left, loss 4, drop rate 0.25")
    assert lines[-1].startswith("step 1000/1000 (100%), ")
    assert lines[-1].endswith("0:00:00 left, loss 1, drop rate 0.25, val loss 2")
    assert [line[20:] for line in (tmp_path / logs.CONSOLE).read_text().splitlines()] == lines


def test_rate_and_time_left_count_from_where_the_run_was_resumed(capsys):
    progress = Progress(200_000, 100_000)
    progress.started -= 1000
    progress.update(110_000)  # 10,000 steps in 1,000 s: 90,000 more take 9,000 s
    assert capsys.readouterr().err == "step 110000/200000 (55%), 10 steps/s, 2:30:00 left\n"
    progress.started, progress.spoken = progress.started - 39_000, progress.spoken - 31
    progress.update(110_001)  # no twentieth, but half a minute without a line
    assert re.fullmatch(r"step 110001/200000 \(55%\), 4 s/step, 4 days, .* left\n", capsys.readouterr().err)


BAR = """
import sys, time
from pathlib import Path
from tid.logs import Progress, RunLog
log = RunLog(Path(sys.argv[1]), None)
with Progress(40, 0, log) as progress:
    for step in range(1, 41):
        progress.update(step, loss=5.0, drop_rate=0.3)
        time.sleep(0.02)
        if step == 20:
            log.say("half-way")
"""


def test_on_a_terminal_progress_is_a_bar_and_the_file_still_gets_lines(tmp_path):
    here, there = pty.openpty()
    process = child(BAR, tmp_path, stderr=there)
    os.close(there)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(here, 4096):
            shown += piece
    assert process.wait() == 0
    text = shown.decode()
    assert "\r" in text and "40/40" in text and "loss 5, drop rate 0.3" in text and "step/s" in text
    assert re.search(r"(^|[\r\n])half-way\r?\n", text)  # on a line of its own
    kept = (tmp_path / logs.CONSOLE).read_text().splitlines()
    assert len(kept) == 21 and "step 40/40 (100%)" in kept[-1]


def test_a_terminal_that_goes_away_does_not_end_the_run(tmp_path):
    here, there = pty.openpty()
    process = child(BAR, tmp_path, stderr=there, start_new_session=True)
    os.close(there)
    os.read(here, 1)
    os.close(here)
    assert process.wait(timeout=30) == 0
    assert "step 40/40" in (tmp_path / logs.CONSOLE).read_text()
