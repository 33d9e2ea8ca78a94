"""The command line as a user meets it: real processes, in an empty folder that must stay empty on errors."""

import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tid import cli

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"


def call(folder: Path, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess:
    """`python <arguments>` in `folder`, with this repository importable."""
    env = {
        key: value for key, value in os.environ.items() if key not in ("HYDRA_FULL_ERROR", "TID_FULL_ERROR")
    }
    env |= {"PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=env, input=stdin, capture_output=True, text=True, timeout=60
    )


def train(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return call(folder, "-m", "tid.train", *arguments, **environment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("scorer=entropyy", "scorer=entropyy: no such option; did you mean scorer=entropy?"),
        ("scorer=null", "scorer=null: no such option; did you mean scorer=none?"),
        ("scorer=linear_decay", "linear_decay is an option of drop_schedule"),
        ("experiment=quickstat", "experiment is one of"),
        ("scorr=random", "scorr: unknown key; did you mean scorer?"),
        ("+scorr=random", "scorr: unknown key; did you mean scorer?"),
        ("+scorer=random", "every run has scorer already; write scorer=random"),
        ("experiment=[quickstart,mir]", "experiment=[quickstart,mir]: one experiment at a time"),
        ("experiment=quickstart +experiment=mir", "+experiment=mir: one experiment at a time"),
        ("output_dir=~/x", "output_dir: the shell left the ~ of ~/x as it is; write /"),
        ("output_dir=\"~/x\"", "output_dir: the shell left the ~ of ~/x as it is; write /"),
        ("name=", "name: "),
        ("seeed=3", "seeed: unknown key; did you mean seed?"),
        ("lr=1", "lr: unknown key; did you mean optim.lr?"),
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean optim.lr?"),
        ("+optim.lrr=1", "optim.lrr: unknown key; did you mean optim.lr?"),
        ("scorer=random scorer.of=predicted", "scorer.of: unknown key; scorer=random has no keys"),
        ("~scorer", "scorer: missing"),
        ("seed=[1", "seed=[1: cannot be read"),
        ("seed", "seed: settings are written key=value, for instance seed=..."),
        ("name=x seed", "seed: settings are written key=value, for instance seed=..."),
        ("seed=3 four", "four: settings are written key=value, for instance four=..."),
        ("grad_norm", "grad_norm: settings are written key=value, for instance scorer=grad_norm"),
        ("name=x grad_norm", "grad_norm: settings are written key=value, for instance scorer=grad_norm"),
        ("question=Which one wins seed=1", "one: has no key; if it belongs to the value before it, put quotes around "
         "all of that: 'question=Which one wins'\n"),
        ("-m --cfg job seed=0,1", "--cfg shows the configuration of one run: leave out -m"),
        ("--seed=3", "--seed=3: no such flag; settings are written without dashes: seed=3"),
        ("--gpus", "--gpus: no such flag; on N GPUs: torchrun --nproc_per_node=N -m tid.train ..."),
        ("seed=x", "seed: wanted a valid integer, got 'x'"),
        ("seed=1,2", "seed=1,2: several values are a sweep; to run each of them add -m"),
        ("stride=${nope}", "stride: Interpolation key 'nope' not found"),
        ("scorer.of=predictd", "scorer.of: wanted 'predicted' or 'predicting', got 'predictd'"),
        ("data=hf", "data.repo: has no default; give it as data.repo=..."),
        ("--cfg job total_steps=0", "total_steps: wanted a value greater than or equal to 1, got 0"),
        ("-m scorer=entropy,randomm", "scorer=randomm: no such option; did you mean scorer=random?"),
        ("-m seeed=1,2", "seeed: unknown key; did you mean seed?"),
        ("-m seed=0,-1", "seed: wanted a value greater than or equal to 0, got -1"),
        ("-m drop_schedule.rate=0.1,1.5", "drop_schedule.rate: wanted a value less than 1, got 1.5"),
        ("-m scorer=random,none scorer.of=predicted", "scorer.of: unknown key; scorer=random has no keys"),
    ],
)
def test_wrong_setting_is_refused_before_anything_is_written(tmp_path, arguments, message):
    done = train(tmp_path, *arguments.split())
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
    for noise in ("Traceback", "To append", "HYDRA_FULL_ERROR", "Error executing job"):
        assert noise not in done.stderr
    assert len(done.stderr.splitlines()) <= 5


def test_the_key_to_blame_is_not_one_whose_value_is_still_to_be_given(tmp_path):
    done = call(tmp_path, "-m", "tid.sample", "checkpoint=x", "seeed=1")
    assert (done.returncode, done.stderr) == (2, "error: seeed: unknown key; did you mean seed?\n")


@pytest.mark.parametrize("command", ["evaluate", "inspect", "sample", "export", "dashboard"])
def test_a_folder_without_a_key_is_answered_with_the_key(tmp_path, command):
    (tmp_path / "a run").mkdir()
    done = call(tmp_path, "-m", f"tid.{command}", "a run", *(["to=x"] if command == "export" else []))
    key = "sweep" if command == "dashboard" else "checkpoint"
    wanted = f"error: a run: settings are written key=value, for instance '{key}=a run'\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def test_a_prompt_that_the_shell_took_apart_is_shown_in_quotes(tmp_path):
    done = call(tmp_path, "-m", "tid.sample", "checkpoint=x", "prompt=It's", "${the}", "people,", "seed=1")
    quoted = shlex.quote("prompt=It's ${the} people,")
    assert done.returncode == 2 and done.stderr.endswith(f"put quotes around all of that: {quoted}\n"), done.stderr


def test_settings_keep_their_order_whatever_flags_stand_between(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "seed=1", "-m", "word", "--config-name", "train", "seed=2"])
    assert cli._flags_first("train").overrides == ["seed=1", "word", "seed=2"]


def test_full_error_shows_the_traceback_too(tmp_path):
    done = train(tmp_path, "scorer=entropyy", HYDRA_FULL_ERROR="1")
    assert (
        done.returncode != 0 and "Traceback" in done.stderr and "did you mean scorer=entropy?" in done.stderr
    )


def timed(folder: Path, *arguments: str) -> tuple[float, str]:
    """Seconds of processor time, which other processes stretch less than the clock's, and the output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = train(folder, *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def test_help_names_every_option_within_two_seconds(tmp_path):
    seconds, page = timed(tmp_path, "--help")
    assert seconds < 2
    for group in (folder for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra"):
        options = sorted(path.stem for path in group.glob("*.yaml"))
        assert not options or f"{group.name}: {', '.join(options)}" in page
    assert "experiment=quickstart" in page and "$" not in page
    assert list(tmp_path.iterdir()) == []


def test_cfg_shows_the_configuration_within_two_seconds(tmp_path):
    seconds, page = timed(tmp_path, "seed=7", "--cfg", "job", "--resolve", "context=64")
    assert seconds < 2
    assert "\nseed: 7\n" in page and "\ncontext: 64\nstride: 64\n" in page  # settings on both sides of a flag
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["--help", "--cfg job", "seeed=1"])
def test_torch_is_not_imported_to_help_show_or_refuse(tmp_path, arguments):
    script = (
        "import sys; from tid.train import main\ntry: main()\nfinally: sys.exit(9 * ('torch' in sys.modules))"
    )
    assert call(tmp_path, "-c", script, *arguments.split()).returncode == 0


@pytest.mark.parametrize("command", ["evaluate", "compare", "inspect", "report", "sample", "export", "dashboard"])
def test_cfg_shows_what_is_still_to_be_named(tmp_path, command):
    done = call(tmp_path, "-m", f"tid.{command}", "--cfg", "job")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert any(line.partition(": ")[2] in ("???", "null") for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [("sample", "temperature=0,1", "temperature=0,1: wanted one value"),
     ("evaluate", "-m stride=1,2", "-m: a sweep trains many runs"),
     ("evaluate", "checkpoint=", "checkpoint: is empty; give it as checkpoint=...")],
)  # fmt: skip
def test_other_commands_are_no_sweeps(tmp_path, command, arguments, message):
    done = call(tmp_path, "-m", f"tid.{command}", *arguments.split())
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr


def test_importing_the_entry_point_gives_the_same_command(tmp_path):
    """Console scripts import `main`; `python -m` runs the file."""
    script = call(tmp_path, "-c", "from tid.train import main; main()", "--cfg", "job", "scorer=random")
    assert script.stdout == train(tmp_path, "--cfg", "job", "scorer=random").stdout != ""


ENTRY = """
import subprocess, sys
from tid import cli
from tid.config import ConfigError

class DataError(RuntimeError):
    pass

@cli.entry("train")
def main(cfg):
    exec(body)

for body in sys.stdin.read().splitlines():
    code = None
    try:
        main()
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else type(error).__name__
    print(code, file=sys.stderr)
"""


def test_exit_codes_and_messages(tmp_path):
    """One process for all bodies of `main`, since each would import torch. In the last one Hydra's variable
    is set, which a child must not take for the user's wish for tracebacks."""
    expected = {
        "cfg.seed": "None\n",
        "raise ConfigError('seed: wrong')": "error: seed: wrong\n2\n",
        "raise DataError('no data')": "error: no data\n2\n",
        "cfg.nope": "error: Key 'nope' is not in struct\n2\n",
        "raise KeyboardInterrupt": "interrupted\n130\n",
        "raise SystemExit(143)": "143\n",
        "1 / 0": "Error executing job with overrides: ['model=gpt_nano']\nZeroDivisionError\n",
        "sys.exit(subprocess.call([sys.executable, '-m', 'tid.train', 'seeed=1']))": (
            "error: seeed: unknown key; did you mean seed?\n2\n"
        ),
    }
    done = call(tmp_path, "-c", ENTRY, "model=gpt_nano", stdin="\n".join(expected))
    assert done.stderr == "".join(expected.values())


def test_a_bug_shows_its_traceback_and_exits_with_1(tmp_path):
    script = "from tid import cli\n@cli.entry('train')\ndef main(cfg): 1 / 0\nmain()"
    done = call(tmp_path, "-c", script)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA the reference run starts")
def test_reference_run_without_cuda_stops_within_seconds_and_says_what_works(tmp_path):
    start = time.perf_counter()
    done = train(tmp_path, "scorer=entropy", "drop_schedule=linear_decay")
    assert time.perf_counter() - start < 30  # 3 seconds on an idle machine
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    small = "python -m tid.train experiment=quickstart scorer=entropy drop_schedule=linear_decay"
    assert small in done.stderr and "device=cpu" in done.stderr and "would take about" in done.stderr


@pytest.mark.parametrize("written", [["--from", "exported/model"], ["--from=exported/model"]])
@pytest.mark.parametrize(("entry", "key"), [("train", "model.init_from"), ("evaluate", "checkpoint")])
def test_from_is_short_for_the_folder_to_start_from(written, entry, key):
    assert cli._from_written_out(["seed=1", *written, "-m"], entry) == ["seed=1", f"{key}=exported/model", "-m"]


def test_from_without_a_folder_is_refused(tmp_path):
    done = train(tmp_path, "--from")
    assert done.returncode == 2 and "--from: wanted a folder" in done.stderr
