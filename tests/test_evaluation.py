"""`python -m tid.evaluate`: the figures training logged, what they are made of, from run and exported folder alike."""

import csv
import json
import math
import shutil

import pytest
import runs
import torch
from tiny import build

from tid import evaluation
from tid.config import ConfigError
from tid.evaluation import TABLES, evaluate, report
from tid.export import ExportConfig, export
from tid.load import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.train(tmp_path_factory.mktemp("run"))


def figures(run, checkpoint=None, **changes) -> dict:
    home = run.parents[2]
    settings = {
        "checkpoint": str(checkpoint or run), "data": None, "protocol": "packed", "stride": None, "batch_size": None,
        "training_gap": True, "device": "cpu", "precision": None, "output": None, "data_dir": f"{home}/data",
        "tokenizer_dir": f"{home}/tokenizer",
    }  # fmt: skip
    return evaluate(**settings | changes)


@pytest.fixture(scope="module")
def found(run):
    return figures(run)


@pytest.fixture(scope="module")
def exported(run):
    to = run.parents[2] / "exported"
    return export(ExportConfig(checkpoint=str(run), to=str(to), overwrite=False,
                               tokenizer_dir=str(run.parents[2] / "tokenizer")))  # fmt: skip


def test_figures_are_those_of_training_bit_by_bit(run, found):
    best = runs.read(run, "summary.json")["best"]
    assert {f"val_{key}": found[key] for key in ("loss", "perplexity", "bpc", "bpb")} == {
        key: best[key] for key in ("val_loss", "val_perplexity", "val_bpc", "val_bpb")
    }
    assert found["step"] == best["step"] and found["documents"] == 8 and found["stride"] == 16


def test_files_hold_what_is_returned(run, found):
    folder = run / "evaluations" / f"best-{found['text']}-stride16"
    assert found["folder"] == str(folder)
    stored = json.loads((folder / "figures.json").read_text())
    assert stored["loss"] == found["loss"] and stored["by_position"] == found["by_position"]
    assert {path.stem for path in folder.glob("*.csv")} == {"documents", *TABLES}
    documents = list(csv.DictReader((folder / "documents.csv").open()))
    assert sum(float(row["loss"]) * int(row["tokens"]) for row in documents) / found["tokens"] == pytest.approx(
        found["loss"]
    )
    assert sum(int(row["bytes"]) for row in documents) == found["bytes"]
    trained = list(csv.DictReader((run / "documents.csv").open()))
    for ours, theirs in zip(documents, trained, strict=True):
        assert float(ours["loss"]) * int(ours["tokens"]) == pytest.approx(float(theirs["best_nats"]))
        bits = float(theirs["best_nats"]) / math.log(2)
        assert float(ours["bpc"]) == pytest.approx(bits / int(theirs["characters"]))
        assert float(ours["bpb"]) == pytest.approx(bits / int(theirs["bytes"]))


def test_the_gap_is_to_as_many_training_documents(found):
    training = found["training"]
    assert training["documents"] == 8
    assert training["gap"] == found["loss"] - training["loss"]


def test_an_exported_folder_gives_the_same_figures(run, found, exported):
    again = figures(run, exported)
    changed = {"checkpoint", "folder"}
    assert {k: v for k, v in again.items() if k not in changed} == {k: v for k, v in found.items() if k not in changed}
    assert again["folder"].startswith(str(exported / "evaluations"))


def test_documents_by_themselves_leave_out_the_end_of_text_tokens(run, found):
    alone = figures(run, protocol="document", training_gap=False)
    assert alone["tokens"] == found["tokens"] - found["documents"]
    assert (alone["bytes"], alone["characters"]) == (found["bytes"], found["characters"])
    assert alone["training"] is None and alone["folder"].endswith("-document-stride16")
    assert figures(run, protocol="document", stride=4, training_gap=False)["loss"] != alone["loss"]


@pytest.mark.parametrize("kept", ["data", "summary"])  # older exports have the text's checksums in the summary alone
def test_a_text_that_has_changed_is_not_called_the_runs_own(run, exported, kept):
    file = exported / "tid.json"
    before = file.read_bytes()
    record = json.loads(before)
    assert record["data"] == record["summary"]["data"]
    data = record["data"] | {"val.jsonl": "0" * 64}
    record |= {"data": data} if kept == "data" else {"data": None, "summary": record["summary"] | {"data": data}}
    file.write_text(json.dumps(record))
    try:
        with pytest.raises(ConfigError, match=r"another text: val.jsonl changed since.\n.*data=builtin"):
            figures(run, exported)
        assert figures(run, exported, data=build("data", "jsonl", **source_of(run)))["documents"] == 8
    finally:
        file.write_bytes(before)


def source_of(run) -> dict:
    home = run.parents[2]
    return {"train": f"{home}/train.jsonl", "val": f"{home}/val.jsonl"}


def test_another_text_has_no_gap_and_says_whose_counts(run, tmp_path):
    runs.write_texts(tmp_path)
    source = build("data", "jsonl", train=f"{tmp_path}/val.jsonl", val=f"{tmp_path}/train.jsonl")
    other = figures(run, data=source, output=str(tmp_path / "out"))
    assert other["documents"] == 40 and other["training"] is None and other["training_counts_of"] == other["text"]
    assert (tmp_path / "out" / "figures.json").exists()


def test_the_terminal_shows_every_figure(found):
    shown = report(found)
    for text in (f"{found['loss']:.6f}", f"{found['bpb']:.6f}", "calibration error", "upper half", "validation is"):
        assert text in shown
    assert all(len(line) < 100 for line in shown.splitlines() if "/" not in line)  # paths are as long as they are


def test_a_stride_beyond_the_context_is_refused(run):
    with pytest.raises(ConfigError, match="stride: wanted at most the model's context .16., got 17"):
        figures(run, stride=17)


def test_a_folder_from_elsewhere_needs_a_text(run, exported):
    record = exported / "tid.json"
    kept = record.read_bytes()
    record.unlink()
    try:
        with pytest.raises(ConfigError, match="does not say which text it was trained on; name one: data="):
            figures(run, exported)
    finally:
        record.write_bytes(kept)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluation, "read", None)  # is not come to
    with pytest.raises(ConfigError, match=f"{tmp_path}/file/out: cannot be written .*; name a folder: output=..."):
        figures(run, output=str(tmp_path / "file" / "out"))


def test_a_disk_that_is_full_in_the_end_is_told_in_one_message(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "write_csv", full)
    with pytest.raises(ConfigError, match="cannot be written .No space left on device.; name a folder: output="):
        figures(run, output=str(tmp_path / "out"))


def test_of_a_checkpoint_outside_a_runs_folder_the_figures_lie_beside_it(run, found, tmp_path):
    alone = tmp_path / "kept" / "mine.pt"
    alone.parent.mkdir()
    shutil.copy(run / "checkpoints" / "best.pt", alone)
    for folder in (tmp_path, alone.parent):
        (folder / "summary.json").write_text(json.dumps({"data": {"train.jsonl": "of another run"}}))
    loaded = load_model(alone, torch.device("cpu"))
    assert loaded.record["summary"] is None and loaded.folder == alone.parent
    again = figures(run, alone)
    assert again["loss"] == found["loss"] and again["folder"] == str(
        alone.parent / "evaluations" / f"mine-{found['text']}-stride16"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "summary.json"]
