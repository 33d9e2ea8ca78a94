"""Figures while training: logged when due, and without any influence on the run."""

import json

import numpy as np
import pytest
import runs
import torch

from tid.checkpoint import load
from tid.config import ConfigError, run_hash
from tid.handle import Handle, RunInfo
from tid.loop import Run

PLAIN = ("drop_schedule=constant", "drop_schedule.rate=0.3", "scorer=random", "selector=threshold")


class Recorder(Handle):
    """A tracker that remembers."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.rows, self.tables, self.images = [], {}, {}

    def log(self, row, step):
        self.rows.append((step, row))

    def log_table(self, name, columns, rows, step):
        self.tables.setdefault(name, []).append((step, columns, rows))

    def log_image(self, name, pixels, step):
        self.images.setdefault(name, []).append((step, pixels))


@pytest.fixture
def recorded(monkeypatch):
    """Recorders of the runs of a test, in order."""
    found: list[Recorder] = []
    put = Run.__setattr__

    def replace(self, name, value):
        if name == "tracker" and isinstance(value, Handle):
            found.append(value := Recorder(value.run))
        put(self, name, value)

    monkeypatch.setattr(Run, "__setattr__", replace)
    return found


def test_they_change_nothing_but_what_is_logged(tmp_path, recorded):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = runs.train(tmp_path / "a", *PLAIN)
    with_figures = runs.train(tmp_path / "b", *PLAIN, "diagnostics.every=3", "diagnostics.tokens=100")
    assert runs.metrics(plain) == runs.metrics(with_figures)
    one, other = (load(run / "checkpoints" / "last.pt")["train"] for run in (plain, with_figures))
    assert one["model"].keys() == other["model"].keys()
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    assert all(torch.equal(value, other["selector"][name]) for name, value in one["selector"].items())
    assert not (plain / "diagnostics").exists()
    assert {p.name for p in (with_figures / "diagnostics").iterdir()} == {f"step-{n}.json" for n in (3, 6, 9, 12)}


def test_numbers_tables_and_images_reach_the_tracker(tmp_path, recorded):
    run = runs.train(tmp_path, "drop_schedule=constant", "drop_schedule.rate=0.3", "scorer=entropy",
                     "diagnostics.every=6", "diagnostics.tokens=100")  # fmt: skip
    handle = recorded[0]
    rows = [(step, row) for step, row in handle.rows if "diagnostics/mask_bits_told" in row]
    assert [step for step, _ in rows] == [6, 12]
    assert "diagnostics/churn" not in rows[0][1] and 0 <= rows[1][1]["diagnostics/churn"] <= 1
    assert rows[0][1]["diagnostics/correlation_position"] == pytest.approx(0, abs=1)
    assert {step for step, _, _ in handle.tables["diagnostics/by_position"]} == {6, 12}
    step, columns, table = handle.tables["diagnostics/by_word"][0]
    assert columns == ["word", "tokens", "drop_rate"] and all(len(row) == 3 for row in table)
    saved = json.loads((run / "diagnostics" / "step-6.json").read_text())
    # 6 sequences of 16 tokens fit into 100; EOT and the first of each are protected
    assert saved["tokens"] == 96 and saved["droppable"] == sum(row[1] for row in table) <= 90
    assert [name for name, *_ in table] == saved["by"]["word"]["groups"]
    _, pixels = handle.images["diagnostics/drop_rate_by_position"][0]
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and (pixels[0, 0] == 255).all() and pixels.min() < 60


@pytest.mark.parametrize("more", [("drop_schedule=none",), ("diagnostics.every=null",)])
def test_a_run_that_drops_nothing_or_asks_for_none_has_none(tmp_path, more):
    run = runs.train(tmp_path, "drop_schedule=constant", "diagnostics.every=3", *more)
    assert not (run / "diagnostics").exists()


def test_they_are_no_part_of_a_runs_identity(tmp_path):
    run = runs.train(tmp_path, *PLAIN, "diagnostics.every=6")
    config = json.loads(json.dumps(load(run / "checkpoints" / "last.pt")["run"]["config"]))
    del config["diagnostics"]
    assert run_hash(config) == runs.hash_of(run)


def test_a_validation_text_shorter_than_a_sequence_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"diagnostics\.every: the validation text has \d+ tokens, fewer than"):
        runs.train(tmp_path, *PLAIN, "diagnostics.every=6", "context=1024", "batch_size=1", "eval_batch_size=1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scorer", ["entropy", "grad_norm", "attention_mass"])
def test_beside_captured_steps_they_change_nothing_either(tmp_path, scorer):
    """Between replays of a CUDA graph the model runs eagerly: the steps stay the same to the bit."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shared = ("device=cuda", "compile=true", "drop_schedule=constant", "drop_schedule.rate=0.3", f"scorer={scorer}")
    plain = runs.train(tmp_path / "a", *shared)
    with_figures = runs.train(tmp_path / "b", *shared, "diagnostics.every=3", "diagnostics.tokens=100")
    assert runs.metrics(plain) == runs.metrics(with_figures)
    assert len(list((with_figures / "diagnostics").iterdir())) == 4
