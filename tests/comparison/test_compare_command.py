"""The command itself: folders in, files out, refusals, and its speed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic

from tid import compare

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tid.compare", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare") / "outputs"
    synthetic.sweep(root, scorers=("entropy",), schedules=("constant",), seeds=2)
    other = synthetic.settings(scorer="grad_norm", drop_schedule="constant", name="other sweep")
    synthetic.write_run(root, other, source="e" * 12)
    return root


def test_a_sweep_is_compared_into_its_own_folder(outputs):
    done = command("outputs/sweep", cwd=outputs.parent)
    assert done.returncode == 0 and not done.stderr
    assert "Lowest validation bpc" in done.stdout and max(map(len, done.stdout.splitlines())) <= 100
    files = {path.name for path in (outputs / "sweep/comparison").iterdir()}
    assert files == {"comparison.html", "comparison.md", "comparison.csv", "runs.csv"}
    assert "outputs/sweep/comparison/comparison.html" in done.stdout
    again = command("outputs/sweep", "at=best", "metric=loss", cwd=outputs.parent)
    assert "Lowest validation loss (equal steps, best, odd documents)" in again.stdout


def test_differing_code_is_refused_in_one_message_and_let_through_when_allowed(outputs):
    refused = command("outputs/sweep", "outputs/other*", cwd=outputs.parent)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.startswith("error: these 7 runs differ in code") and "allow=code" in refused.stderr
    assert not (outputs / "comparison").exists()
    allowed = command("outputs/sweep", "outputs/other*", "allow=code", cwd=outputs.parent)
    assert allowed.returncode == 0, allowed.stderr
    assert "averaged over nevertheless" in allowed.stdout.replace("\n  ", " ")
    assert (outputs / "comparison/comparison.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("outputs/swep",), "outputs/swep: no such folder; outputs has other sweep, sweep"),
        ((), "name the folders to compare: python -m tid.compare outputs/<sweep>"),
        (("outputs/sweep", "metric=ppl"), "metric: wanted 'loss', 'bpc' or 'bpb', got 'ppl'"),
        (("outputs/sweep", "at=[final,steps]"), "wanted 'final', 'best', 'flops' or 'seconds'"),
        (("outputs/sweep", "confidence=95"), "confidence: wanted a value less than 1, got 95"),
        (("outputs/sweep", "metrc=loss"), "metrc: unknown key; did you mean metric"),
    ],
)
def test_wrong_settings_are_refused_kindly(outputs, arguments, words):
    refused = command(*arguments, cwd=outputs.parent)
    assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr


def test_help_shows_how(outputs):
    shown = command("--help", cwd=outputs.parent)
    assert shown.returncode == 0 and "python -m tid.compare outputs/<sweep>" in shown.stdout


def test_output_names_the_folder_and_one_that_cannot_be_made_is_refused(outputs, tmp_path):
    assert command(str(outputs / "sweep"), f"output={tmp_path}/here", cwd=tmp_path).returncode == 0
    assert (tmp_path / "here/comparison.csv").is_file()
    (tmp_path / "file").write_text("")
    refused = command(str(outputs / "sweep"), f"output={tmp_path}/file", cwd=tmp_path)
    assert refused.returncode == 2 and "name a folder: output=" in refused.stderr


def test_bare_words_become_folders_whatever_is_in_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rate=0.1").mkdir()
    assert compare.as_hydra(["a b", "at=best", "rate=0.1", 'c"d', "--cfg", "job"]) == [
        "at=[best]", "--cfg", "job", r'runs=["a b","rate=0.1","c\"d"]',
    ]  # fmt: skip
    assert compare.as_hydra(["runs=[x]"]) == ["runs=[x]"]


def test_where_it_is_written(tmp_path):
    for name in ("a/r1", "b/r2", "b/c/r3"):
        (tmp_path / name).mkdir(parents=True)
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "b/c"
    assert compare.default_output([str(a)], [a]) == a / "comparison"
    assert compare.default_output([str(a / "r1")], [a]) == a / "comparison"
    assert compare.default_output([str(b)], [b, c]) == b / "comparison"
    assert compare.default_output([str(a), str(b)], [a, b, c]) == tmp_path / "comparison"
    assert compare.default_output([str(tmp_path / "*")], [a, b]) == tmp_path / "comparison"
    relative = [Path(os.path.relpath(folder)) for folder in (a, b)]
    assert compare.default_output(["?", "?"], relative) == Path(os.path.relpath(tmp_path)) / "comparison"
    assert compare.default_output(["?", "?"], [relative[0], b]) == tmp_path / "comparison"


def test_a_reader_that_closes_the_pipe_early_gets_no_traceback(outputs):
    line = f"{sys.executable} -m tid.compare outputs/sweep | head -1"
    done = subprocess.run(
        line,
        shell=True,
        cwd=outputs.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "Validation bpc" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
def test_200_finished_cells_are_compared(tmp_path):
    """50 configurations with 4 seeds; each run logged 400 rows and validated 250 documents 20 times."""
    schedules = ("linear_decay", "constant", "cosine_decay", "sigmoid_ramp", "early", "late", "cyclic")
    scorers = ("entropy", "surprisal", "grad_norm", "grad_x_input", "unigram", "position")
    size = {"total_steps": 4000, "eval_every": 200, "log_every": 10, "document_count": 250}
    folders = synthetic.sweep(tmp_path, scorers=scorers, schedules=schedules, seeds=4, **size)
    assert len(folders) == 200
    done = command(str(tmp_path / "sweep"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "200 finished runs of 50 configurations" in (tmp_path / "sweep/comparison/comparison.html").read_text()
