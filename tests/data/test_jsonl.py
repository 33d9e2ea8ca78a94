"""The user's own JSON lines: what is read, and how every fault is named."""

import json

import pytest
from data_tools import ROOT
from hydra import compose, initialize_config_dir

from tid.data.errors import DataError
from tid.data.jsonl import held_out, read_documents
from tid.data.sources import JsonLines


def source(**fields) -> JsonLines:
    defaults = {
        "val": None,
        "val_fraction": 0.1,
        "text_field": "text",
        "train_documents": None,
        "val_documents": None,
    }
    return JsonLines(
        **defaults | {key: str(value) if key in ("train", "val") else value for key, value in fields.items()}
    )


def write(path, lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def test_strings_and_objects_are_read_exactly(tmp_path):
    texts = [
        "plain",
        'a "quoted" \\ line\nwith a break',
        "emoji 👩‍👩‍👧, e\u0301, \x00, \u2028 and \x85",
        "  kept white space \t",
    ]
    lines = [
        json.dumps(texts[0]),
        json.dumps({"id": 1, "text": texts[1]}),
        "",
        json.dumps(texts[2], ensure_ascii=False),
    ]
    path = write(tmp_path / "t.jsonl", [b"\xef\xbb\xbf" + lines[0].encode(), *lines[1:], json.dumps(texts[3]) + "\r"])
    assert list(read_documents(str(path), "text")) == texts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', r"not JSON \(Unterminated string.* at character 10\): \{\"text\": \"cut"),
        (b"plain words", r"not JSON .*: plain words"),
        (b'"caf\xe9"', r"not UTF-8 \(byte 0xe9 at 4\)"),
        (b"[1, 2]", r"expected a JSON string or an object with a text under 'text', got a list: \[1, 2\]"),
        (b"null", r"got null"),
        (b"3.5", r"got a number"),
        (b"[" * 100_000, r"nested too deeply|not JSON"),
        (
            b'{"body": "x", "id": 3}',
            r"no field 'text'; its fields are body, id; perhaps data\.text_field=body",
        ),
        (b'{"Text": "x", "author": "y"}', r"no field 'text'.*perhaps data\.text_field=Text"),
        (b'{"text": ["x"]}', r"field 'text' holds a list, not a text"),
        (b'" \\n "', r"the document is empty; remove the line"),
        (b'"ok \\ud83d"', r"lone surrogate U\+D83D at character 4"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_reason(tmp_path, line, reason):
    path = write(tmp_path / "t.jsonl", ['"fine"', "", line, "worse"])
    with pytest.raises(DataError, match=rf"{path}, line 3: .*{reason}"):
        list(read_documents(str(path), "text"))


def test_a_missing_file_is_answered_with_the_nearest(tmp_path):
    write(tmp_path / "training.jsonl", ['"x"'])
    write(tmp_path / "notes.txt", ["x"])
    with pytest.raises(DataError, match=r"trainig\.jsonl does not exist; nearest: .*/training\.jsonl$"):
        source(train=tmp_path / "trainig.jsonl").inputs()
    with pytest.raises(DataError, match=r"x does not exist; nearest: .*/training\.jsonl$"):
        list(source(train=tmp_path / "x").documents({}))
    with pytest.raises(DataError, match="is a folder, not a file; nearest: .*/training.jsonl"):
        source(train=tmp_path).inputs()
    with pytest.raises(DataError, match="there is no folder"):
        source(train=tmp_path / "absent" / "t.jsonl").inputs()


def test_two_files_keep_their_order_and_limits(tmp_path):
    train = write(tmp_path / "t.jsonl", [json.dumps(f"train {i}") for i in range(5)])
    val = write(tmp_path / "v.jsonl", [json.dumps({"body": f"val {i}"}) for i in range(3)])
    with pytest.raises(DataError, match=r"v\.jsonl, line 1: no field 'text'.*data\.text_field=body"):
        list(source(train=train, val=val).documents({}))
    limited = source(train=train, val=val, text_field="body", train_documents=2, val_documents=1)
    assert list(limited.documents({})) == [("train", "train 0"), ("train", "train 1"), ("val", "val 0")]
    assert set(source(train=train, val=val).inputs()) == {"train", "val"}


def test_holding_out_goes_by_content(tmp_path):
    texts = [f"document {i % 90}" for i in range(100)]  # ten occur twice
    path = write(tmp_path / "t.jsonl", map(json.dumps, texts))
    turned = write(tmp_path / "r.jsonl", map(json.dumps, reversed(texts)))
    sides = list(held_out(str(path), "text", 0.2))
    assert [text for _, text in sides] == texts
    val = {text for side, text in sides if side == "val"}
    assert 17 <= sum(side == "val" for side, _ in sides) <= 21
    assert not val & {text for side, text in sides if side == "train"}
    assert val == {text for side, text in held_out(str(turned), "text", 0.2) if side == "val"}


def test_a_fraction_of_few_documents_holds_out_one(tmp_path):
    path = write(tmp_path / "t.jsonl", ['"a"', '"b"', '"c"'])
    assert sorted(side for side, _ in source(train=path).documents({})) == ["train", "train", "val"]


def test_the_quickstart_leaves_other_texts_as_they_are():
    """Its few held-out documents are the builtin text's alone."""
    files = ["data=jsonl", "data.train=t.jsonl"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        own, builtin, mine, plain = (
            dict(compose("train", settings)["data"])
            for settings in (["experiment=quickstart"], ["data=builtin"], ["experiment=quickstart", *files], files)
        )
    assert own == builtin | {"val_documents": 120}
    assert mine == plain and mine["val_documents"] is None
