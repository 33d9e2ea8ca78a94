"""Runs that training really wrote, through the command line: the made-up ones of these tests look the same."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import synthetic

from tid.comparison.folders import read_all
from tid.comparison.runs import measured

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # three runs, each a process that imports torch
OPTIONAL = {"flops"}  # logged as they are spent


def command(module, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=110,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Entropy and its two controls, one seed each."""
    folder = tmp_path_factory.mktemp("real")
    for choice in ("drop_schedule=none", "scorer=random", "scorer=entropy"):
        command("tid.train", *runs.settings(folder, "name=real", choice))
    return folder / "outputs/real"


def keys(value, path=""):
    """Every key of a nested mapping, dotted."""
    inner = (
        (key for name, item in value.items() for key in keys(item, f"{path}{name}.")) if isinstance(value, dict) else ()
    )
    return {path[:-1], *inner}


def test_the_generator_writes_nothing_that_training_does_not_write(sweep, tmp_path):
    real = next(path for path in sweep.iterdir() if path.name.startswith("entropy"))
    made = synthetic.write_run(tmp_path, synthetic.settings())
    for name in ("summary.json", "status.json"):
        one, other = (keys(json.loads((folder / name).read_text())) for folder in (real, made))
        assert other <= one, (name, other - one)
    rows = [
        [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
        for folder in (real, made)
    ]
    for evaluated in (False, True):
        first, second = (next(row for row in table if ("val_loss" in row) == evaluated) for table in rows)
        assert second.keys() - OPTIONAL <= first.keys()
    headers = [(folder / "documents.csv").read_text().partition("\n")[0] for folder in (real, made)]
    assert headers[0] == headers[1]
    assert made.name.rpartition("-")[0] == real.name.rpartition("-")[0]
    assert (made / "config.yaml").read_text().split("scorer:")[1].split("data:")[0] in (
        real / "config.yaml"
    ).read_text()


def test_real_runs_are_compared_with_their_controls(sweep):
    text = command("tid.compare", str(sweep), "metric=loss")
    assert "Lowest validation loss" in text
    table = {row["role"]: row for row in csv.DictReader((sweep / "comparison/comparison.csv").read_text().splitlines())}
    assert set(table) == {"no drop", "random", ""}
    ours = table[""]
    for control in ("no_drop", "random"):
        other = table[control.replace("_", " ")]
        assert ours[f"final_vs_{control}_method"] == "point"  # of one seed, and few documents
        assert "too few documents" in ours[f"final_vs_{control}_why"]
        expected = float(ours["final_loss_mean"]) - float(other["final_loss_mean"])
        assert float(ours[f"final_vs_{control}_difference"]) == pytest.approx(expected, abs=1e-9)
    assert float(ours["score_flops"]) > 0 == float(table["no drop"]["score_flops"])
    assert (sweep / "comparison/comparison.html").stat().st_size > 50_000


def test_the_odd_documents_are_those_that_training_reports(sweep):
    for run in read_all([str(sweep)]):
        assert run.hash == run.summary["hash"]
        assert measured(run, "report", "loss") == pytest.approx(run.summary["best"]["val_report_loss"], rel=1e-9)
        assert measured(run, "final", "loss") == pytest.approx(run.documents[:, 3].sum() / run.documents[:, 0].sum())
