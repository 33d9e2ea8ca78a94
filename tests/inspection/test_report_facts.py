"""What a run's page says, from files written by hand."""

import json
from pathlib import Path

import pytest
import torch

from tid import checkpoint
from tid.config import ConfigError
from tid.data.tokenizer import EOT
from tid.inspection.figures import entropy_bits
from tid.report import check, with_run
from tid.reporting import facts, training

CONFIG = """
name: x
seed: 3
total_steps: 4
model: {_target_: tid.model.GPT, num_layers: 2}
scorer: {_target_: tid.scorers.Random}
selector: {_target_: tid.selectors.Lowest}
drop_mode: {_target_: tid.drop_modes.Zero}
drop_schedule: {_target_: tid.schedules.Constant, rate: 0.5}
tracker: {_target_: tid.tracking.NoTracker}
"""


def figures(step: int, loss: float) -> dict:
    return {"step": step, "val_loss": loss, "val_perplexity": 2.0, "val_bpc": loss / 4, "val_bpb": loss / 5,
            "val_report_loss": loss + 1}  # fmt: skip


def test_the_bare_word_is_the_run(tmp_path, capsys):
    assert with_run(["samples=0", str(tmp_path), "--cfg"]) == ["samples=0", "--cfg", f'run="{tmp_path}"']
    assert with_run(["x", "--cfg", "job"]) == ["--cfg", "job", 'run="x"']  # a flag's value is no folder
    with pytest.raises(SystemExit) as stopped:
        with_run(["a", "b"])
    assert stopped.value.code == 2 and "wanted one run's folder, got 2" in capsys.readouterr().err


def test_without_a_run_the_command_and_the_newest_run_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"name a run's folder: python -m tid.report outputs/(.*\n)No run yet\?"):
        check({"run": None})
    (tmp_path / "outputs/name/a run/checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="python -m tid.report 'outputs/name/a run'$"):
        check({"run": None})


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "logs").mkdir()
    rows = [{"step": n, "train_loss": 5.0 - n, "step_ms": 10.0 * n, "score_ms": 4.0, "nonfinite_score_rows": n == 2,
             "drop_rate_realised": 0.5, "seconds": 60.0 * n, "tokens": 1000 * n, "epoch": n / 4, "memory_mib": 7.0 * n,
             "tokens_per_second": 100.0} for n in (1, 2, 3)]  # fmt: skip
    (tmp_path / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "status.json").write_text(json.dumps({"state": "done"}))
    summary = {"final": figures(4, 6.0), "best": figures(2, 5.0), "drop_rate": 0.25, "parameters": 1_230_000,
               "train_flops": 3e9, "score_flops": 1e9, "seconds": 2.0, "hash": "abcd1234",
               "data": {"text": "t", "a": "b"}, "device": "CPU", "precision": "fp32"}  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_the_answer(run):
    found = facts.read(run)
    assert found.title == "x: random-lowest-zero-constant-seed3"
    assert facts.counts(found) == "done · step 3 of 4 · seed 3 · CPU · fp32 · t"
    assert facts.answer(found) == [
        "Validation after the last step: 1.5000 bits per character, 6.0000 nats per token; at its best, "
        "step 2: 1.2500 and 5.0000.",
        "It over-fits: from step 2 on the validation loss rises.",
        "25.0% of the droppable tokens were dropped on average. Scoring took 20.0% of a step's time.",
        "1 sequences had a score that was not finite; what they dropped was chosen at random.",
    ]


@pytest.mark.parametrize("documents", [None, 1, 2])
def test_of_one_document_none_had_no_say(run, documents):
    if documents:
        (run / "documents.csv").write_text("document,tokens\n" + "0,5\n" * documents)
    table = facts.results(facts.read(run))
    assert ("odd documents only" in table.header[-1]) == ("odd ones had no say" in table.note) == (documents != 1)
    assert ("is one document" in table.note) == (documents == 1)
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_an_unfinished_run_says_so(run):
    (run / "summary.json").unlink()
    (run / "status.json").write_text('{"state": "preempted"}')
    found = facts.read(run)
    assert facts.answer(found)[0] == "The run is not finished (preempted): these are its figures so far."
    assert "50.0% of the droppable tokens" in facts.answer(found)[1]
    assert facts.results(found) is None
    assert ["training time", "180 s"] not in facts.cost(found).rows and ["training time", "3 min"] in facts.cost(
        found
    ).rows


def test_cost(run):
    rows = dict(facts.cost(facts.read(run)).rows)
    assert (rows["a step, median"], rows["of it scoring"], rows["memory at most"]) == ("20 ms", "4 ms", "21 MiB")
    assert (rows["parameters"], rows["floating-point operations"], rows["of them scoring"]) == ("1.23M", "4G", "25.0%")
    assert rows["achieved, FLOP/s"] == "2G"


def test_the_configuration_apart_from_what_changes_no_result(run):
    tables = {table.title: dict(table.rows) for table in facts.settings(facts.read(run))}
    assert tables["training"] == {"seed": "3", "total_steps": "4"}
    assert tables["drop_schedule: Constant"] == {"rate": "0.5"} and tables["selector: Lowest"] == {}
    assert tables["without effect on the result"] == {"name": "x", "tracker": "NoTracker"}


def test_evaluations_are_listed(run):
    folder = run / "evaluations" / "best-t-stride8"
    folder.mkdir(parents=True)
    found = {"checkpoint": "a/best.pt", "text": "t", "stride": 8, "loss": 1, "perplexity": 2, "bpc": 3, "bpb": 4}
    (folder / "figures.json").write_text(json.dumps(found))
    assert facts.evaluations(facts.read(run)).rows == [["best.pt on t", "8", "1.0000", "2.0000", "3.0000", "4.0000"]]
    assert facts.shown({"_target_": "a.B", "c": None, "d": True, "e": 12345}) == "B, c=null, d=true, e=12,345"


def test_what_was_dropped_over_the_whole_training(tmp_path):
    """Tokens 0 … 39 are seen 100 times each, dropped never (even) or always (odd): the bit tells the token."""
    seen, drops = torch.zeros(EOT + 1, dtype=torch.int64), torch.zeros(EOT + 1, dtype=torch.int64)
    seen[:40], drops[1:40:2] = 100, 100
    seen[41], drops[41] = 5, 5  # too rare for the tables
    seen[EOT] = 10_000
    path = tmp_path / "last.pt"
    checkpoint.save({"train": {"tensors": {"token_seen": seen, "token_drops": drops}}}, path)
    pieces = tuple(f" t{n}".encode() for n in range(EOT)) + (b"",)
    (most, least), words = training.tables(path, pieces)
    mask = float(entropy_bits(2005 / 4005))
    assert words.startswith("Over 4,005 tokens read") and f"{mask:.2f} of the {mask:.2f} bits" in words
    assert most.rows[0] == ["␣t39", "100", "100.0%"] and least.rows[0] == ["␣t0", "100", "0.0%"]
    assert len(most.rows) == len(least.rows) == training.ROWS
    checkpoint.save({"train": {"tensors": {"token_seen": seen, "token_drops": 0 * drops}}}, path)
    assert training.tables(path, pieces) == ([], "")
