"""Sources as components: every YAML of conf/data builds one, and wrong fields are refused."""

import hashlib
import subprocess
import sys
from dataclasses import asdict

import pytest
import yaml
from data_tools import ROOT
from pydantic import ValidationError

from tid.config import instantiate
from tid.data.errors import DataError
from tid.data.sources import HubDataset, JsonLines, MovieReviews, Speeches
from tid.data.text import text_folder

YAMLS = sorted((ROOT / "conf" / "data").glob("*.yaml"))
HUB = {"repo": "a/b", "name": None, "revision": None, "split": "train", "text_field": "text"}
HUB |= {"train_documents": 10, "val_documents": 1}
FILES = {"train": "t.jsonl", "val": None, "val_fraction": 0.1, "text_field": "text"}
FILES |= {"train_documents": None, "val_documents": None}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_builds_a_source(path, tmp_path, monkeypatch):
    node = {key: "given/here" if value == "???" else value for key, value in yaml.safe_load(path.read_text()).items()}
    source = instantiate(node, "data")
    assert asdict(source) == {key: value for key, value in node.items() if key != "_target_"}
    monkeypatch.chdir(tmp_path)
    if path.stem == "jsonl":
        with pytest.raises(DataError, match="given/here does not exist"):
            text_folder(source, tmp_path)
    else:
        assert text_folder(source, tmp_path).name.startswith(source.label + "-")
    assert list(tmp_path.iterdir()) == []  # nothing is touched by building it


def test_the_reference_data_are_the_designs():
    reference = yaml.safe_load((ROOT / "conf/data/openwebtext.yaml").read_text())
    assert (reference["repo"], reference["revision"]) == ("Skylion007/openwebtext", "refs/convert/parquet")
    assert (reference["train_documents"], reference["val_documents"]) == (10_000, 1_000)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (HubDataset, HUB | {"train_documents": 0}),
        (HubDataset, HUB | {"val_documents": "many"}),
        (HubDataset, HUB | {"repo": ""}),
        (HubDataset, HUB | {"extra": 1}),
        (HubDataset, {key: value for key, value in HUB.items() if key != "split"}),
        (Speeches, {"min_characters": 0, "train_documents": None, "val_documents": None}),
        (MovieReviews, {"min_characters": 1, "train_documents": None, "val_documents": None}),
        (JsonLines, FILES | {"val_fraction": 1.0}),
        (JsonLines, FILES | {"val": "./t.jsonl"}),
    ],
)
def test_wrong_fields_are_refused(kind, fields):
    with pytest.raises(ValidationError):
        kind(**fields)


def test_the_folder_is_named_by_the_fields(tmp_path):
    one, same, other = HubDataset(**HUB), HubDataset(**HUB), HubDataset(**HUB | {"train_documents": 11})
    assert text_folder(one, tmp_path) == text_folder(same, tmp_path) != text_folder(other, tmp_path)
    assert HubDataset(**HUB | {"repo": "Owner/Tiny-Stories.v2"}).label == "tiny_stories_v2"


def test_files_are_known_by_their_content(tmp_path):
    for name, text in {"t": '"a"', "moved/t": '"a"', "other/t": '"b"'}.items():
        (tmp_path / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(text)

    def folder(name: str):
        return text_folder(JsonLines(**FILES | {"train": f"{tmp_path}/{name}"}), tmp_path)

    digest = hashlib.sha256(b'"a"').hexdigest()
    here = folder("t.jsonl")
    assert here == folder("moved/t.jsonl") == folder(f"gone/t.jsonl@sha256:{digest}") != folder("other/t.jsonl")
    assert here.name.startswith("t-")


def test_importing_sources_is_cheap():
    heavy = "('torch', 'datasets', 'huggingface_hub', 'pyarrow', 'pandas', 'tiktoken', 'transformers', 'hydra')"
    code = f"import sys, tid.data.sources; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
