"""The newcomer's path on real text, through the command line: it learns, and it evaluates to what it logged."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SETTINGS = [
    "experiment=quickstart", "scorer=random", "drop_schedule=linear_decay", "total_steps=110", "eval_every=110",
    "data.val_documents=40",
]  # fmt: skip


def run(folder: Path, module: str, *settings: str) -> str:
    """stdout of `python -m tid.<module>` in `folder`, where it finds and leaves everything."""
    done = subprocess.run(
        [sys.executable, "-m", f"tid.{module}", *settings], cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_on_real_text_falls_well_below_the_unigram_entropy(tmp_path):
    run_folder = tmp_path / run(tmp_path, "train", *SETTINGS).strip()
    summary = json.loads((run_folder / "summary.json").read_text())

    (text,) = {path.parent for path in tmp_path.glob("data/builtin-*/manifest.json")}
    files = json.loads((text / "manifest.json").read_text())["files"]
    streams = {len(np.memmap(path, np.uint16)): path for path in tmp_path.glob("data/tokens-*/tokens.bin")}
    tokens = np.memmap(streams[max(streams)], np.uint16)
    p = np.bincount(tokens) / len(tokens)
    unigram_entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    assert summary["final"]["val_loss"] < unigram_entropy - 0.2
    assert summary["final"]["val_loss"] < math.log(50257) - 4

    evaluated = run(tmp_path, "evaluate", f"checkpoint={run_folder}", "training_gap=false")
    figures = json.loads(next(run_folder.glob("evaluations/*/figures.json")).read_text())
    for name in ("loss", "perplexity", "bpc", "bpb"):
        assert figures[name] == summary["best"][f"val_{name}"], name
    assert f"{figures['bpc']:.4f}"[:5] in evaluated
    assert figures["documents"] == files["val.jsonl"]["documents"] == 40
