"""What reads a run's own text refuses, with one message, to read another in its place."""

from pathlib import Path

import pytest
import runs

from tid.config import ConfigError
from tid.evaluation import evaluate
from tid.inspection.study import Wish, study
from tid.report import ReportConfig, report


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run = runs.train(tmp_path_factory.mktemp("trained"), "total_steps=2", "eval_every=2")
    runs.tell_of_another_text(run)
    return run


def call(command: str, run: Path) -> None:
    shared = {"device": "cpu", **{f"{kind}_dir": str(run.parents[2] / kind) for kind in ("data", "tokenizer")}}
    if command == "evaluate":
        how = {"protocol": "packed", "stride": None, "batch_size": None, "training_gap": False, "precision": None}
        evaluate(checkpoint=str(run), data=None, output=None, **how, **shared)
    elif command == "inspect":
        anew = {"source": None, "scorers": None, "selector": None, "rate": None, "precision": None}
        study(Wish(checkpoints=[str(run)], text="one two three four", tokens=20, **anew, **shared))
    else:
        how = {"samples": 1, "max_new_tokens": 2, "temperature": 0.8, "top_k": None, "seed": 0, "tokens": 20}
        report(ReportConfig(run=str(run), output=None, **how, **shared))


@pytest.mark.parametrize("command", ["evaluate", "inspect", "report"])
def test_a_text_that_has_changed_is_not_called_the_runs_own(trained, command):
    with pytest.raises(ConfigError, match="best.pt: this run was made with another text: train.jsonl changed"):
        call(command, trained)
    assert not list(trained.rglob("*.html")) and not (trained / "evaluations").exists()
