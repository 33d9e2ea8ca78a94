"""`python -m tid.sample` as a user meets it: the text alone on stdout, as it is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import torch

from tid import sample

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.train(tmp_path_factory.mktemp("run"))


def call(run: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    settings = [f"checkpoint={run}", f"tokenizer_dir={run.parents[2]}/tokenizer", "device=cpu", *arguments]
    command = [sys.executable, "-m", "tid.sample", *settings]
    return subprocess.run(command, cwd=run, env=env, capture_output=True, text=True, timeout=60)


def test_the_text_alone_goes_to_stdout_and_the_seed_decides_it(run):
    prompt = 'the cat, "and" ${x} {it\'s}'
    one, again, other = (
        call(run, f"prompt={prompt}", "max_new_tokens=20", f"seed={seed}", "temperature=2") for seed in (0, 0, 1)
    )
    assert one.returncode == 0, one.stderr
    assert one.stdout.startswith(prompt) and one.stdout.endswith("\n") and len(one.stdout) > len(prompt) + 5
    assert one.stdout == again.stdout != other.stdout
    assert one.stderr == "the model was trained on 16 tokens at a time: whenever that many are read, it forgets all " \
        "but the last 8\n"  # fmt: skip


def test_a_reader_that_has_seen_enough_ends_it_quietly(run):
    settings = [f"checkpoint={run}", f"tokenizer_dir={run.parents[2]}/tokenizer", "device=cpu", "max_new_tokens=2000"]
    command = [sys.executable, "-m", "tid.sample", *settings, "prompt=the cat sat"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.read(5) == "the c"
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0 and said.startswith("the model was trained on 16") and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("temperature=-1", "temperature: wanted a value greater than or equal to 0, got -1"),
        ("top_p=1.5", "top_p: wanted a value less than or equal to 1, got 1.5"),
        ("top_k=0", "top_k: wanted a value greater than or equal to 1, got 0"),
        ("checkpoint=nowhere", "nowhere: no such checkpoint"),
    ],
)
def test_wrong_settings_are_refused(run, arguments, message):
    done = call(run, arguments)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr and "Traceback" not in done.stderr


class Letters:
    """A stream that makes a letter of each token; token 0 only completes the next."""

    def __init__(self):
        self.held = 0

    def add(self, token: int) -> str:
        self.held += 1
        return "" if token == 0 else "abcdefgh"[token] * self.held + (self.reset() or "")

    def reset(self) -> None:
        self.held = 0

    def finish(self) -> str:
        return "." if self.held else ""


def test_the_first_sample_is_written_as_it_is_made_and_the_others_after_it(capsys):
    shown = []

    def steps():
        for tokens in ([1, 4], [0, 5], [2, 0]):
            shown.append(capsys.readouterr().out)
            yield torch.tensor(tokens)

    sample.write(steps(), "go ", [Letters(), Letters()])
    shown.append(capsys.readouterr().out)
    assert shown == ["--- 1 of 2\ngo ", "b", "", "cc\n--- 2 of 2\ngo ef.\n"]


def test_one_sample_has_no_heading(capsys):
    sample.write([torch.tensor([1])], "", [Letters()])
    assert capsys.readouterr().out == "b\n"


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [(5, 12, None), (5, 13, "forgets all but the last 8"), (16, 1, None), (17, 1, "it reads the last 16 of them")],
)
def test_what_happens_beyond_the_context_is_said_exactly_when_it_happens(prompt, new, message):
    said = sample.warning(prompt, new, 16)
    assert said is None if message is None else message in said
