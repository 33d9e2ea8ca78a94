"""Prepared text: complete or absent, described by its manifest, shared by processes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from data_tools import ROOT, ListSource, read_jsonl, visible

from tid.data.errors import DataError
from tid.data.folders import new_folder
from tid.data.sources import JsonLines
from tid.data.text import prepare_text, text_folder

HOSTILE = ("a\nb\r\n", 'quotes " and \\', "\u2028\x85\x00", "👩‍👩‍👧 日本語 e\u0301", "<|endoftext|>")


def test_text_is_written_exactly_and_described(tmp_path):
    source = ListSource(train=HOSTILE, val=("ö" * 10,))
    folder = prepare_text(source, tmp_path / "data")
    assert folder == text_folder(source, tmp_path / "data")
    assert visible(folder) == ["manifest.json", "train.jsonl", "val.jsonl"]
    assert read_jsonl(folder / "train.jsonl") == list(HOSTILE)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"]["kind"] == "ListSource" and manifest["source"]["val"] == ["ö" * 10]
    assert datetime.fromisoformat(manifest["date"]).tzinfo is not None
    facts = manifest["files"]["train.jsonl"]
    content = (folder / "train.jsonl").read_bytes()
    assert (facts["bytes"], facts["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert facts["documents"] == 5 and facts["characters"] == sum(map(len, HOSTILE))
    assert facts["text_bytes"] == sum(len(text.encode()) for text in HOSTILE)
    assert manifest["files"]["val.jsonl"]["characters"] * 2 == manifest["files"]["val.jsonl"]["text_bytes"] == 20


@dataclass(frozen=True)
class Once(ListSource):
    """Fails when it is read again."""

    flag: str = ""

    def documents(self, facts):
        with open(self.flag, "x"):
            yield from super().documents(facts)


def test_what_is_complete_is_not_read_again(tmp_path):
    source = Once(flag=str(tmp_path / "flag"))
    folder = prepare_text(source, tmp_path / "data")
    before = (folder / "train.jsonl").stat().st_ino
    assert prepare_text(source, tmp_path / "data") == folder
    assert (folder / "train.jsonl").stat().st_ino == before


@dataclass(frozen=True)
class Failing(ListSource):
    def documents(self, facts):
        yield "train", "written before the end"
        raise DataError("the source broke off")


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="broke off"):
        prepare_text(Failing(), tmp_path)
    assert visible(tmp_path) == []


@pytest.mark.parametrize("killed", [False, True])
def test_what_was_there_is_put_back_when_the_new_folder_cannot_take_its_place(tmp_path, monkeypatch, killed):
    target = tmp_path / "made"
    target.mkdir()
    (target / "before").write_text("")
    rename = Path.rename

    def refuse(path, to):
        if path.name == ".made.new" or (killed and path.name == ".made.old"):
            raise OSError("the disk has gone")
        return rename(path, to)

    def replace() -> None:
        with new_folder(target) as new:
            (new / "after").write_text("")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises((DataError, OSError), match="the disk has gone"):
            replace()
    assert visible(tmp_path / ".made.old" if killed else target) == ["before"]
    if killed:  # between the two renames: the next one begins by putting it back
        with pytest.raises(KeyboardInterrupt), new_folder(target):
            raise KeyboardInterrupt
        assert visible(target) == ["before"]
    replace()
    assert visible(target) == ["after"] and visible(tmp_path) == ["made"]


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from data_tools import ListSource
from tid.data.text import prepare_text
class Killed(ListSource):
    def documents(self, facts):
        yield "train", "x" * 100_000
        os.kill(os.getpid(), signal.SIGKILL)
Killed.__name__ = "ListSource"
prepare_text(Killed(), {data!r})
"""


def test_a_killed_process_leaves_nothing_that_counts(tmp_path):
    code = KILLED.format(tests=str(ROOT / "tests/data"), data=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    folder = text_folder(ListSource(), tmp_path)
    assert not folder.exists() and visible(tmp_path) == [f".{folder.name}.new"]
    prepare_text(ListSource(), tmp_path)
    assert visible(tmp_path) == [folder.name]
    assert read_jsonl(folder / "train.jsonl") == list(ListSource().train)


TOGETHER = """
import sys, time
sys.path[:0] = [{tests!r}]
from data_tools import ListSource
from tid.data.text import prepare_text
class Slow(ListSource):
    def documents(self, facts):
        open(f"{{sys.argv[1]}}/read-{{sys.argv[2]}}", "x")
        time.sleep(0.5)
        yield from super().documents(facts)
print(prepare_text(Slow(), sys.argv[1] + "/data"))
"""


def test_processes_that_want_the_same_text_make_it_once(tmp_path):
    code = TOGETHER.format(tests=str(ROOT / "tests/data"))
    start = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen([*start, str(i)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for i in range(3)]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0] and len(answers) == 1
    assert len(list(tmp_path.glob("read-*"))) == 1
    assert len(visible(tmp_path / "data")) == 1


def test_text_changed_by_hand_is_refused_with_the_way_out(tmp_path):
    folder = prepare_text(ListSource(), tmp_path)
    (folder / "train.jsonl").write_text('"one two three"\n"four fivE"\n')  # the same size
    with pytest.raises(DataError, match=rf"train.jsonl was changed after.*\n.*\n.*rm -r {folder}"):
        prepare_text(ListSource(), tmp_path)
    (folder / "train.jsonl").write_text('"shorter"\n')
    with pytest.raises(DataError, match=r"train.jsonl has 10 bytes, not the 28 that were written"):
        prepare_text(ListSource(), tmp_path)


def test_text_that_was_only_touched_or_copied_is_believed(tmp_path):
    folder = prepare_text(ListSource(), tmp_path)
    os.utime(folder / "train.jsonl", (1, 1))
    assert prepare_text(ListSource(), tmp_path) == folder


@pytest.mark.parametrize("lost", ["train.jsonl", "manifest.json"])
def test_a_lost_file_is_made_again(tmp_path, lost, capsys):
    folder = prepare_text(ListSource(), tmp_path)
    (folder / lost).unlink()
    prepare_text(ListSource(), tmp_path)
    assert (folder / lost).exists() and "preparing it again" in capsys.readouterr().err


def test_a_file_that_changes_is_another_text_and_the_first_stays(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('"a"\n"b"\n"c"\n')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = JsonLines(str(path), None, 0.1, "text", None, None)
    pinned = JsonLines(f"{path}@sha256:{digest}", None, 0.1, "text", None, None)
    folder = prepare_text(source, tmp_path / "data")
    path.write_text('"a"\n"b"\n"new"\n')
    other = prepare_text(source, tmp_path / "data")
    assert "new" in read_jsonl(other / "train.jsonl") + read_jsonl(other / "val.jsonl")
    path.unlink()
    assert prepare_text(pinned, tmp_path / "data") == folder != other  # it was prepared, so the file is not needed
    assert sorted(read_jsonl(folder / "train.jsonl") + read_jsonl(folder / "val.jsonl")) == ["a", "b", "c"]
    with pytest.raises(DataError, match="mine.jsonl does not exist"):
        prepare_text(pinned, tmp_path / "elsewhere")
    path.write_text('"other"\n"text"\n')
    with pytest.raises(DataError, match=f"was changed: it had sha256 {digest}, and now has"):
        prepare_text(pinned, tmp_path / "elsewhere")
    assert visible(tmp_path / "elsewhere") == []


@dataclass(frozen=True)
class Versioned(ListSource):
    version: str = "1"

    def inputs(self):
        with open(self.version) as file:
            return {"some-package": file.read()}


def test_another_version_of_a_package_is_read_again(tmp_path, capsys):
    version = tmp_path / "version"
    version.write_text("1")
    source = Versioned(version=str(version))
    folder = prepare_text(source, tmp_path / "data")
    before = (folder / "train.jsonl").stat().st_ino
    version.write_text("2")
    assert prepare_text(source, tmp_path / "data") == folder and (folder / "train.jsonl").stat().st_ino != before
    assert "some-package changed since; preparing it again" in capsys.readouterr().err
    assert visible(tmp_path / "data") == [folder.name]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            ListSource(train_documents=3),
            r"data\.train_documents=3 was asked for, and there were 2 .*train_documents=2 or",
        ),
        (
            ListSource(val=()),
            r"at least 1 document was asked for, and there were 2 for training and 0 for validation",
        ),
        (ListSource(val=(), val_documents=1), r"Ask for data\.train_documents=1 data\.val_documents=1"),
        (ListSource(train=(), val=()), r"there were 0 for training and 0 for validation\. Give it more text\."),
    ],
)
def test_too_few_documents_are_refused(tmp_path, source, message):
    with pytest.raises(DataError, match=message):
        prepare_text(source, tmp_path)
    assert visible(tmp_path) == []


def test_validation_text_that_is_trained_on_is_said(tmp_path, capsys):
    folder = prepare_text(ListSource(train=("same", "other"), val=("same", "more")), tmp_path)
    assert "1 distinct validation documents also occur in the training text" in capsys.readouterr().err
    assert json.loads((folder / "manifest.json").read_text())["files"]["val.jsonl"]["also_in_train"] == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/data/list-.* cannot be made: .*Choose a writable data_dir"):
        prepare_text(ListSource(), tmp_path / "file" / "data")
