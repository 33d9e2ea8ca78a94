"""A done run whose files were cut, mixed up or damaged is unreadable, says why, and changes nothing for the others."""

import json

import pytest
import synthetic

from tid.comparison import page, report, tables
from tid.comparison.folders import read_all
from tid.comparison.report import Question
from tid.comparison.runs import measured, read
from tid.comparison.views import VIEWS


def in_summary(**changes):
    """Sets dotted keys, written a__b, of summary.json; ... removes one."""

    def spoil(folder):
        path = folder / "summary.json"
        summary = json.loads(path.read_text())
        for key, value in changes.items():
            *above, last = key.split("__")
            part = summary
            for name in above:
                part = part[name]
            if value is ...:
                del part[last]
            else:
                part[last] = value
        path.write_text(json.dumps(summary))

    return spoil


def lines(name, keep):
    """Keeps those lines of a file."""

    def spoil(folder):
        path = folder / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[keep]))

    return spoil


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def torn(name, characters):
    """A file of which the end is missing."""
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:-characters])


def missing(name):
    return lambda folder: (folder / name).unlink()


METRICS, DOCUMENTS = "logs/metrics.jsonl", "documents.csv"
DAMAGE = {
    "no curve": (missing(METRICS), "logs/metrics.jsonl is missing or holds no evaluation"),
    "curve without evaluations": (lines(METRICS, slice(1)), "logs/metrics.jsonl is missing or holds no evaluation"),
    "curve cut": (lines(METRICS, slice(5)), "logs/metrics.jsonl has its last evaluation at step 40 of 200: it was cut"),
    "curve lacks the end": (lines(METRICS, slice(-1)), "last evaluation at step 180 of 200"),
    "curve torn": (torn(METRICS, 20), "last evaluation at step 180 of 200"),
    "curve of a longer run": (in_summary(steps=100), "last evaluation at step 200 of 100"),
    "no documents": (lines(DOCUMENTS, slice(1)), "documents.csv holds no document"),
    "fewer documents": (lines(DOCUMENTS, slice(-5)), "as final.val_loss: one was cut"),
    "document torn": (torn(DOCUMENTS, 40), "documents.csv: wanted 6 finite numbers in each line"),
    "document of a word": (text(DOCUMENTS, "document,tokens,characters,bytes,final_nats,best_nats\n0,1,2,3,x,4\n"),
                           "documents.csv: wanted 6 finite numbers in each line"),
    "documents of another best": (in_summary(best__val_report_loss=3.0),
                                  "summary.json 3.000000 as best.val_report_loss"),
    "reported loss null": (in_summary(best__val_report_loss=None), "summary.json nan as best.val_report_loss"),
    "summary empty": (text("summary.json", "{}"), "summary.json: final: missing"),
    "summary a list": (text("summary.json", "[]"), "summary.json: all of it: wanted a mapping, got []"),
    "no score_flops": (in_summary(score_flops=...), "summary.json: score_flops: missing"),
    "FLOPs as text": (in_summary(train_flops="many"), "summary.json: train_flops: wanted a valid number, got 'many'"),
    "seconds infinite": (in_summary(seconds=float("inf")), "summary.json: seconds: wanted a finite number, got inf"),
    "final loss null": (in_summary(final__val_loss=None), "final.val_loss: wanted a valid number, got null"),
    "best null": (in_summary(best=None), "summary.json: best: wanted a mapping, got null"),
    "no select loss": (in_summary(best__val_select_loss=...), "summary.json: best.val_select_loss: missing"),
    "versions null": (in_summary(versions=None), "summary.json: versions: wanted a mapping, got null"),
    "no checksum": (in_summary(data={"text": "x"}), "summary.json: data.train.jsonl: missing"),
    "own_source null": (in_summary(own_source=None), "summary.json: own_source: wanted a valid dictionary, got null"),
    "another state": (text("status.json", '{"state": "finished"}'), "status.json: state: wanted one of running, done"),
}  # fmt: skip


def write(root, seed, scorer, loss, **how):
    schedule = "none" if scorer == "none" else "constant"
    run = synthetic.settings(scorer=scorer, drop_schedule=schedule, seed=seed, name="s")
    return synthetic.write_run(root, run, loss=loss, **how)


def build(root):
    return report.build(read_all([str(root)]), Question("loss", list(VIEWS), 0.95, "bh", [], "exact"))


def figures(found):
    """Rows by label: their values in every view."""
    return {row.configuration.label: {view: row.views[view].values for view in VIEWS} for row in found.rows}


@pytest.fixture
def nine(tmp_path):
    """Two configurations and the control over three seeds; the folder of entropy's run of seed 1."""
    losses = {"none": 4.0, "random": 4.1, "entropy": 3.9}
    folders = {(scorer, seed): write(tmp_path, seed, scorer, loss + 0.01 * seed, best=loss - 0.1, noise=0.3)
               for scorer, loss in losses.items() for seed in range(3)}  # fmt: skip
    return tmp_path, folders["entropy", 1]


@pytest.mark.parametrize("kind", [kind for kind, (_, words) in DAMAGE.items() if words])
def test_a_damaged_run_is_unreadable_and_the_others_are_reported(nine, kind):
    root, folder = nine
    whole = figures(build(root))
    spoil, words = DAMAGE[kind]
    spoil(folder)
    run = read(folder)
    assert run.state == "unreadable" and not run.summary and not len(run.documents)
    assert words in run.reason and "\n" not in run.reason and len(run.reason) <= 160
    found = build(root)
    (absent,) = found.absent
    assert (absent.label, absent.seed, absent.state, absent.folder) == ("entropy", 1, "unreadable", folder)
    assert words in absent.detail
    for label, values in figures(found).items():
        for view, numbers in values.items():
            expected = list(whole[label][view])
            assert list(numbers) == pytest.approx(expected if label != "entropy" else expected[::2], rel=1e-12)
    assert "unreadable" in tables.terminal(found, [])
    assert "unreadable" in tables.markdown(found, "title", []) and "unreadable" in page.html(found, "title", [], "call")
    assert len(tables.runs_csv(found)[1]) == 9


def test_what_earlier_versions_did_not_write_may_be_absent(nine):
    """Neither a checksum of the code, nor FLOPs and the halves of the documents in the curve."""
    _, folder = nine
    in_summary(source=...)(folder)
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    later = ("flops", "val_select_loss", "val_report_loss", "val_report_bpc", "val_report_bpb")
    rows = [{key: value for key, value in row.items() if key not in later} for row in rows]
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read(folder)
    assert run.state == "done" and not run.summary.keys() & {"source", "own_source"}


@pytest.mark.parametrize("how", [{"document_count": 1}, {"document_count": 2}, {"step_ms": 0.0}])
def test_odd_but_whole_runs_are_read(tmp_path, how):
    assert read(write(tmp_path, 0, "entropy", 4.0, best=3.9, **how)).state == "done"


def test_odd_documents_that_predict_nothing_have_no_loss(tmp_path):
    """As of a held-out text whose second and last document is empty."""
    folder = write(tmp_path, 0, "entropy", 4.0, document_count=1)
    path = folder / DOCUMENTS
    path.write_text(path.read_text() + "1,0,0,0,0.0,0.0\n")
    in_summary(best__val_report_loss=None)(folder)
    run = read(folder)
    assert run.state == "done" and measured(run, "report", "loss") != measured(run, "report", "loss")


@pytest.mark.parametrize("total", [200, 190, 7, 1])
def test_the_last_step_is_evaluated_wherever_the_schedule_falls(tmp_path, total):
    run = synthetic.settings(total_steps=total, eval_every=20, log_every=30, name="s")
    found = read(synthetic.write_run(tmp_path, run))
    assert found.state == "done" and found.evaluations["step"][-1] == total


@pytest.mark.parametrize("status", [{"step": "abc"}, {"step": None, "total_steps": [3]}])
def test_a_status_without_counts_is_no_end_of_the_comparison(nine, status):
    root, folder = nine
    given = {"state": "failed", "reason": "x", "total_steps": 200}
    (folder / "status.json").write_text(json.dumps(given | status))
    assert [absent.state for absent in build(root).absent] == ["failed"]
