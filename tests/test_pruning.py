"""Stopping losers: the rule on curves made by hand, and a run that it stops."""

import json

import pytest
import runs
import yaml

from tid import config_file
from tid.config import ConfigError
from tid.logs import read_status
from tid.pruning import MedianRule, NoPruner, siblings

CONFIG = {
    "data": {"_target_": "x"}, "context": 16, "batch_size": 8, "accumulate_steps": 2, "total_steps": 100,
    "scorer": {"_target_": "tid.scorers.Entropy"}, "drop_schedule": {"_target_": "tid.schedules.Constant"},
}  # fmt: skip
RULE = MedianRule(warmup_steps=20, min_siblings=3)


def validation(step: int, loss: float) -> dict:
    """A row: the loss of the even documents, and what must not decide, which would say the opposite."""
    return {"step": step, "val_select_loss": loss, "val_report_loss": -loss, "val_loss": -loss, "val_bpc": -loss}


def run_with(folder, name: str, curve: dict[int, float], **changes):
    """A run's folder with validations, step → loss of the even documents."""
    run = folder / name
    (run / "logs").mkdir(parents=True)
    rows = [{"step": 5, "train_loss": 1.0}, *(validation(step, loss) for step, loss in curve.items())]
    write_rows(run, rows)
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG | changes))
    return run


def write_rows(run, rows: list[dict]) -> None:
    (run / "logs/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def four(tmp_path):
    """Siblings whose best at step 20 are 1.0, 1.2, 1.4; and ours with 1.3, above their median."""
    run_with(tmp_path, "a", {10: 1.0, 20: 1.5, 30: 0.1})
    run_with(tmp_path, "b", {10: 2.0, 20: 1.2})
    run_with(tmp_path, "c", {10: 2.0, 20: 1.4, 30: 1.0})
    return run_with(tmp_path, "ours", {10: 2.0, 20: 1.3})


def test_above_the_median_of_the_best_so_far_is_stopped(four):
    why = RULE.verdict(CONFIG, four, {"step": 20})
    assert why == (
        "best validation loss 1.3000 nats up to step 20 is above the median 1.2000 of 3 siblings, on the even documents"
    )
    assert RULE.verdict(CONFIG, four.parent / "b", {"step": 20}) is None  # others: 1.0, 1.3, 1.4
    assert NoPruner().verdict(CONFIG, four, {"step": 20}) is None


@pytest.mark.parametrize(
    "spared",
    [{"scorer": {"_target_": "tid.scorers.Random"}}, {"scorer": {"_target_": "tid.scorers.NoScorer"}},
     {"drop_schedule": {"_target_": "tid.schedules.NoDrop"}}],
)  # fmt: skip
def test_controls_go_on(four, spared):
    assert RULE.verdict(CONFIG | spared, four, {"step": 20}) is None


def test_neither_early_nor_on_little_evidence(four):
    assert MedianRule(warmup_steps=21, min_siblings=3).verdict(CONFIG, four, {"step": 20}) is None
    assert MedianRule(warmup_steps=0, min_siblings=4).verdict(CONFIG, four, {"step": 20}) is None


def test_only_runs_of_the_same_data_and_budget_that_came_as_far_are_siblings(four):
    folder = four.parent
    others = {"data": {"_target_": "y"}, "context": 32, "batch_size": 64, "accumulate_steps": 1, "total_steps": 50}
    for key, value in others.items():
        run_with(folder, f"other {key}", {20: 9.0}, **{key: value})
    run_with(folder, "behind", {10: 9.0})
    old = run_with(folder, "old", {20: 9.0})  # begun by a version that did not log the even documents' loss
    write_rows(old, [{"step": 10, "val_loss": 9.0, "val_bpc": 9.0}, validation(20, 9.0)])
    (folder / "torn").mkdir()
    (folder / "torn/config.yaml").write_text("{")
    assert "1.2000 of 3 siblings" in RULE.verdict(CONFIG, four, {"step": 20})
    write_rows(four, [{"step": 10, "val_loss": 9.0, "val_bpc": 9.0}, validation(20, 1.3)])
    assert RULE.verdict(CONFIG, four, {"step": 20}) is None  # its own best is not known


@pytest.mark.parametrize("text", ["just words", "", "- a list", "seed: 0", "a: [", "\udcff"])
def test_a_sibling_without_a_configuration_is_none(four, text):
    bad = run_with(four.parent, "bad", {20: 0.1})
    (bad / "config.yaml").write_bytes(text.encode(errors="surrogateescape"))
    assert "1.2000 of 3 siblings" in RULE.verdict(CONFIG, four, {"step": 20})


def test_a_sibling_whose_configuration_was_edited_is_not_believed(four):
    other = run_with(four.parent, "other", {20: 0.1}, context=32, seed=0, model={})
    file, whole = other / "config.yaml", {"selector": {"_target_": "x"}, "drop_mode": {"_target_": "x"}}
    config = yaml.safe_load(file.read_text()) | whole
    config_file.write(other, config)
    (other / "status.json").write_text(json.dumps({"state": "done"} | config_file.remembered(other, config)))
    assert siblings(CONFIG | {"context": 32}, four) == [other]
    file.write_text(file.read_text().replace("context: 32", "context: 16"))
    assert yaml.safe_load(file.read_text())["context"] == CONFIG["context"]
    assert "1.2000 of 3 siblings" in RULE.verdict(CONFIG, four, {"step": 20})


def test_a_run_that_loses_ends_as_pruned_and_goes_on_without_the_rule(tmp_path, capsys):
    loser = ["optim.lr=1e-9", "scorer=entropy"]
    for seed in range(2):
        runs.train(tmp_path, f"seed={seed}", "optim.lr=1e-2")
    rule = ["pruner=median", "pruner.warmup_steps=8", "pruner.min_siblings=2"]
    run = runs.train(tmp_path, *loser, *rule)
    status = read_status(run)
    assert status["state"] == "pruned" and status["step"] == 8 and "median" in status["reason"]
    assert not (run / "summary.json").exists() and runs.metrics(run)[-1]["step"] == 8
    assert (runs.train(tmp_path, *loser, *rule), read_status(run)) == (run, status)  # once more: it has ended
    assert f"pruned already at step 8: {run}" in capsys.readouterr().err
    last = run / "checkpoints/last.pt"
    before = last.read_bytes()
    runs.tell_of_another_text(run)
    with pytest.raises(ConfigError, match="another text: train.jsonl changed since"):
        runs.train(tmp_path, *loser, *rule)
    last.write_bytes(before)
    assert runs.train(tmp_path, *loser) == run and read_status(run)["state"] == "done"  # the same run, to its end
    assert read_status(runs.train(tmp_path, "scorer=random", "optim.lr=1e-9", *rule))["state"] == "done"
