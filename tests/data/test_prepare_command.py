"""``python -m tid.prepare``: what a user types, and what comes back."""

import os
import subprocess
import sys
import time

from data_tools import ROOT, visible
from small_hub import SilentHub


def prepare(tmp_path, *settings, **environment):
    folders = [f"data_dir={tmp_path / 'data'}", f"tokenizer_dir={tmp_path / 'tokenizer'}"]
    command = [sys.executable, "-m", "tid.prepare", *settings, *folders]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    return done, time.monotonic() - started


def test_what_was_made_is_described(tmp_path):
    done, _ = prepare(tmp_path, "data=builtin", "data.train_documents=50", "data.val_documents=10")
    assert done.returncode == 0, done.stderr
    [text] = [name for name in visible(tmp_path / "data") if name.startswith("builtin-")]
    assert f"text in {tmp_path / 'data' / text}" in done.stdout
    assert "train.jsonl: 50 documents" in done.stdout and "val.jsonl: 10 documents" in done.stdout
    assert f"tokenizer in {tmp_path / 'tokenizer' / 'tokenizer.json'}" in done.stdout
    assert "builtin text: 60 documents" in done.stderr


def test_missing_data_is_an_error_message_within_ten_seconds(tmp_path):
    absent, start_up = prepare(tmp_path, "data=jsonl", f"data.train={tmp_path / 'absent.jsonl'}")
    assert (absent.returncode, absent.stdout) == (2, "")
    assert absent.stderr.startswith(f"error: {tmp_path / 'absent.jsonl'} does not exist")
    with SilentHub() as hub:
        done, seconds = prepare(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 2
    assert seconds < max(10, start_up + 7)  # on a machine busy with other things, importing torch may take 10 alone
    assert done.stderr.startswith("error: missing data: Skylion007/openwebtext at refs/convert/parquet.")
    assert "\n  data=builtin " in done.stderr and "Traceback" not in done.stderr
    assert visible(tmp_path / "data") == []
