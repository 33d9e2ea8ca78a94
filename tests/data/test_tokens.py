"""Token streams: their layout, exact lengths, and a cache that is believed only when it is whole."""

import os
import subprocess
import sys

import numpy as np
import pytest
from data_tools import ROOT, ListSource, visible

from tid.data import DataError, load_corpus
from tid.data.sources import Speeches
from tid.data.tokenizer import EOT, encode

TRAIN = ("Hello world", "<|endoftext|>", "日本語 👩‍👩‍👧\r\n\x00", " ", "a" * 5000)
VAL = ("One more document.", "And a last.")
DOCUMENTS = ListSource(TRAIN, VAL)


@pytest.fixture
def load(tmp_path, tokenizer_dir):
    return lambda source=DOCUMENTS: load_corpus(source, tmp_path / "data", tokenizer_dir)


def caches(tmp_path):
    return sorted((tmp_path / "data").glob("tokens-*"))


def expected(tokenizer, texts):
    """The stream and the starts, the slow and obvious way."""
    stream, starts = [], []
    for text in texts:
        starts.append(len(stream))
        stream += [EOT, *encode(tokenizer, text)]
    return [*stream, EOT], starts


def test_documents_are_opened_by_eot_and_the_last_is_closed(load, tokenizer):
    corpus = load()
    for file, texts in ((corpus.train, TRAIN), (corpus.val, VAL)):
        stream, starts = expected(tokenizer, texts)
        assert file.tokens.tolist() == stream and file.doc_starts.tolist() == starts
        assert isinstance(file.tokens, np.memmap) and file.tokens.dtype == np.uint16
        assert file.doc_starts.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        corpus.train.tokens[0] = 1


def test_the_builtin_corpus_is_exact_to_the_character_and_the_byte(load, tokenizer):
    source = Speeches(min_characters=200, train_documents=1200, val_documents=50)  # two chunks of text
    corpus = load(source)
    for file, name in ((corpus.train, "train"), (corpus.val, "val")):
        facts = corpus.manifest["files"][f"{name}.jsonl"]
        assert corpus.token_chars[file.tokens].sum() == facts["characters"]
        assert corpus.token_bytes[file.tokens].sum() == facts["text_bytes"]
        texts = [text for side, text in source.documents({}) if side == name]
        stream, starts = expected(tokenizer, texts)
        assert np.array_equal(file.tokens, stream) and np.array_equal(file.doc_starts, starts)


def test_a_million_white_spaces_in_a_row(load, tokenizer):
    text = " " * 1_000_000 + "x"  # too many for tiktoken's pattern
    assert load(ListSource((text,), VAL)).train.tokens.tolist() == expected(tokenizer, [text])[0]


def test_the_cache_is_used_and_keyed_by_content(load, tmp_path, capsys):
    load()
    assert len(caches(tmp_path)) == 2
    stamps = [(p / "tokens.bin").stat().st_mtime_ns for p in caches(tmp_path)]
    capsys.readouterr()
    load()
    assert capsys.readouterr().err == ""
    assert [(p / "tokens.bin").stat().st_mtime_ns for p in caches(tmp_path)] == stamps
    load(ListSource((*TRAIN, "new"), VAL))
    assert len(caches(tmp_path)) == 3  # the validation text is the same, and so are its tokens


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("tokens.bin", "truncated"),
        ("tokens.bin", "changed"),
        ("doc_starts.npy", "changed"),
        ("doc_starts.npy", "lost"),
        ("manifest.json", "truncated"),
    ],
)
def test_a_damaged_cache_is_said_and_made_again(load, tmp_path, capsys, name, fault):
    before = load()
    stream, starts = before.train.tokens.tolist(), before.train.doc_starts.tolist()
    for folder in caches(tmp_path):
        path = folder / name
        content = path.read_bytes()
        if fault == "lost":
            path.unlink()
        else:
            path.write_bytes(content[:-2] if fault == "truncated" else b"\x01" + content[1:])
    capsys.readouterr()
    again = load()
    assert (again.train.tokens.tolist(), again.train.doc_starts.tolist()) == (stream, starts)
    said = capsys.readouterr().err
    assert said.count("tokenising again") == 2 and said.count(" tokens in ") == 2
    assert not [n for n in visible(tmp_path / "data") if n.startswith(".")]


def test_a_cache_that_was_copied_is_believed(load, tmp_path, capsys):
    load()
    for folder in caches(tmp_path):
        os.utime(folder / "tokens.bin", (1, 1))
    capsys.readouterr()
    load()
    assert capsys.readouterr().err == ""


def test_the_manifest_names_text_and_tokenizer(load, tmp_path):
    manifest = load().manifest
    assert manifest["folder"].startswith(str(tmp_path / "data" / "list-"))
    assert len(manifest["tokenizer_sha256"]) == len(manifest["files"]["train.jsonl"]["sha256"]) == 64


def test_missing_text_is_reported_before_anything_is_made(tmp_path):
    with pytest.raises(DataError, match="too little text"):
        load_corpus(ListSource(val=()), tmp_path / "data", tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()


STARTS = """
import sys, time
sys.path[:0] = [{tests!r}]
from data_tools import ListSource
from tid.data import load_corpus
print(load_corpus(ListSource(("a b c",) * 50, ("d",)), sys.argv[1], sys.argv[2]).train.tokens.sum())
"""


def test_processes_that_start_together_share_one_cache(tmp_path):
    code = STARTS.format(tests=str(ROOT / "tests/data"))
    start = [sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / "tokenizer")]
    running = [subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len({out for out, _ in answers}) == 1
    said = b"".join(err for _, err in answers)
    assert said.count(b"made ") == 1 and said.count(b"list text:") == 1 and said.count(b" tokens in ") == 2
