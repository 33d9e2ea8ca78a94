"""`python -m tid.bench` as a user meets it: settings, tables and JSON."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import composing
import pytest
import torch

from tid import bench
from tid.benchmark import ceilings, conduct, peers, race, whole
from tid.config import ConfigError

ROOT = Path(__file__).parents[1]
TINY = [
    "model.hidden_size=16", "model.num_heads=1", "model.num_layers=2", "model.intermediate_size=32",
    "model.vocab_size=512", "context=16", "val_tokens=100", "made_up_tokens=5000", "repeats=2", "block_seconds=0.001",
    "device=cpu",
]  # fmt: skip


def composed(*arguments: str) -> dict:
    """The checked settings of a command line."""
    return bench.check(composing.composed(*bench.as_hydra(list(arguments)), name="bench")).model_dump()


# ------------------------------------------------------------------------------------------- command line


def test_the_defaults_are_the_reference_run_and_its_control():
    settings = composed()
    assert list(settings["scorers"]) == ["none", "entropy"] and list(settings["optims"]) == ["adamw"]
    train = composing.composed()
    shared = ("context", "protect_first", "total_steps", "log_every", "eval_every", "checkpoint_every",
              "eval_batch_size", "model", "selector")  # fmt: skip
    assert {key: settings[key] for key in shared} == {key: train[key] for key in shared}
    assert settings["batch_size"] == [train["batch_size"]] and settings["peers"] == ["eager", "compiled"]


def test_several_options_are_written_with_commas():
    settings = composed("scorer=grad_norm,none", "drop_mode=skip", "optim=muon,adamw", "batch_size=8,128",
                        "measure=run", "peers=eager", "drop_schedule.rate=0.5")  # fmt: skip
    assert set(settings["scorers"]) == {"grad_norm", "none"} and set(settings["drop_modes"]) == {"skip"}
    assert set(settings["optims"]) == {"muon", "adamw"}
    assert (settings["batch_size"], settings["measure"], settings["peers"]) == ([8, 128], ["run"], ["eager"])
    assert settings["drop_schedule"]["rate"] == 0.5 and composed("peers=[]")["peers"] == []


def test_keys_go_to_the_options_that_have_them_and_several_values_are_several_scorers():
    scorers = composed("scorer=none,entropy,position", "scorer.of=predicted,predicting")["scorers"]
    assert set(scorers) == {"none", "entropy_predicted", "entropy_predicting", "position"}
    assert scorers["entropy_predicting"]["of"] == "predicting"
    assert composed("optim.lr=1")["optims"]["adamw"]["lr"] == 1


def test_a_model_that_is_named_is_timed_on_a_cpu_too():
    settings = composed("model=gpt_20m", "model.num_layers=2")
    assert settings["cpu_model"] == settings["model"] and settings["model"]["num_layers"] == 2
    assert composed()["cpu_model"]["hidden_size"] == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("scorer=entropyy", "scorer=entropyy: no such option; did you mean scorer=entropy?"),
        ("scorer.sorce=x", "scorers.none.sorce: unknown key"),
        ("measure=speed", "measure.0: wanted 'steps', 'loop', 'run', 'start' or 'memory', got 'speed'"),
        ("batch_size=8,0", "batch_size.1: wanted a value greater than or equal to 1, got 0"),
        ("peers=eager,eager", "peers: the same value is there twice"),
        ("kernels=none,all device=cpu", "kernels: those by hand need a CUDA GPU and compile=true"),
        ("kernels=norm", "kernels.0: wanted 'auto', 'none', 'all', 'attention', 'swiglu_gradient', "),
        ("scorer=random seeed=1", "seeed: unknown key; did you mean seed?"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, arguments, message):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tid.bench", *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ results


@pytest.fixture
def quick(monkeypatch):
    """Ceilings of small matrices, and few turns."""
    monkeypatch.setattr(ceilings, "MATMUL_SIZES", {"cpu": (64,)})
    monkeypatch.setattr(ceilings, "STREAM_FLOATS", {"cpu": 2**12})
    monkeypatch.setattr(ceilings, "TRIAL_SECONDS", {"cpu": 1e-3})
    monkeypatch.setattr(conduct, "LOOP_TURNS", 3)


def measured(folder: Path, *arguments: str) -> tuple[str, dict]:
    """What the terminal shows, and the JSON file."""
    text = "\n".join(conduct.conduct(composed(*TINY, f"output_dir={folder}", *arguments), "the command"))
    (path,) = (folder / "bench").glob("bench-*.json")
    return text, json.loads(path.read_text())


def test_tables_and_json_hold_every_row_and_those_that_fail(quick, tmp_path):
    pytest.importorskip("transformers")
    text, found = measured(tmp_path, "scorer=none,random", "drop_mode=zero,skip", "batch_size=2,4", "peers=eager")
    labels = ["no drop", "random, zero", "random, skip", "transformers Llama, eager"]
    assert [(s["batch_size"], s["label"]) for s in found["steps"]] == [(n, label) for n in (2, 4) for label in labels]
    for step in found["steps"]:
        if step["label"] == "random, skip":  # two layers, both of which see everything
            assert "leaves no layer to skip" in step["failed"] and "ms" not in step
            continue
        assert step["failed"] is None and len(step["ms"]) == len(step["ratios"]) == 2
        floor = step["flops"] / found["ceilings"]["flops_per_second"]
        floor += step["moved_bytes"] / found["ceilings"]["bytes_per_second"]
        assert step["floor_ms"] == pytest.approx(1000 * floor)
        assert step["floor_ratio"] == pytest.approx(step["ms_per_step"] / step["floor_ms"])
        assert step["tokens_per_second"] == pytest.approx(step["batch_size"] * 16_000 / step["ms_per_step"])
        share = step["flops"] * 1000 / step["ms_per_step"] / found["ceilings"]["flops_per_second"]
        assert step["ceiling_share"] == pytest.approx(share)
    words = " ".join(text.split())  # a long label goes on in the next line
    assert all(words.count(label.split(",")[0]) >= 2 for label in labels)
    assert words.count("random, skip: not timed: drop_mode Skip leaves no layer") == 2
    assert len(found["loop"]["ratios_ms"]) == 3 and 0 < found["run"]["together"] < 1
    assert {"command", "git_sha", "device", "versions", "precision", "parameters"} <= found.keys()
    assert max(map(len, text.splitlines()[:-1])) <= 100  # the last one is the file's path


def test_without_transformers_the_rest_is_timed_and_a_line_says_how_to_get_it(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "load_transformers", lambda: False)
    text, found = measured(tmp_path, "scorer=none", "measure=steps,memory", "batch_size=2", "kernels=auto,none")
    assert [s["label"] for s in found["steps"]] == ["no drop", "no drop, none by hand"]
    assert "transformers is not installed" in text and "pip install" in text
    assert "only a GPU has an allocator that can be capped" in text and "memory" not in found


def test_what_a_step_does_wrong_while_it_is_timed_ends_no_other(quick, tmp_path, monkeypatch):
    real = race.turn

    def turn(step, count, device):
        if getattr(step, "step", None) is not None and step.step.dropout.scorer.needs == "logits":
            raise RuntimeError("device-side assert")
        return real(step, count, device)

    monkeypatch.setattr(race, "turn", turn)
    _, found = measured(tmp_path, "measure=steps", "peers=[]", "batch_size=2")
    assert [(s["label"], s["failed"]) for s in found["steps"]] == [
        ("no drop", None), ("entropy, zero", "RuntimeError: device-side assert")
    ]  # fmt: skip


def test_a_new_process_makes_its_first_step(quick, tmp_path):
    text, found = measured(tmp_path, "measure=start", "scorer=none", "batch_size=2")
    (one,) = found["start"]
    assert 0 < one["imported"] < one["built"] < one["first_step"] and one["label"] == "no drop"
    assert "nothing is compiled here" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA it is measured")
def test_a_large_model_is_refused_on_a_cpu_unless_it_is_insisted_on():
    large = composed("model.num_layers=400", "model.hidden_size=4096", "model.num_heads=32")
    with pytest.raises(ConfigError, match="(?s)would take about .*python -m tid.bench\n.*device=cpu"):
        next(conduct.conduct(large, "the command"))
    conduct.refuse_hopeless(large | {"device": "cpu"}, conduct.arrange(large))


def test_a_part_that_fails_ends_no_other_and_keeps_what_it_has_found(quick, tmp_path, monkeypatch):
    def broken(settings, bench, ceilings, rules, found):
        found["run"] = {"half": 1}
        yield "the first half"
        raise OSError("no space left")

    monkeypatch.setitem(conduct.PARTS, "run", broken)
    text, found = measured(tmp_path, "measure=run,memory", "batch_size=2")
    assert found["run"] == {"half": 1} and "the first half" in text
    why = found["failed"]["run"]
    assert why["reason"] == "OSError: no space left" and "Traceback" in why["trace"]
    assert "run: failed: OSError: no space left" in text and "only a GPU" in text


def test_what_is_shown_is_on_disk(quick, tmp_path):
    arguments = (*TINY, f"output_dir={tmp_path}", "measure=steps", "peers=[]", "batch_size=2,4")
    blocks = conduct.conduct(composed(*arguments), "the command")
    for block in blocks:
        if "batch 2 x" in block:  # the larger batch is still to come
            break
    (path,) = (tmp_path / "bench").glob("*.json")
    assert [step["batch_size"] for step in json.loads(path.read_text())["steps"]] == [2, 2]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_in_the_training_loop_stops_everything(quick, tmp_path, monkeypatch, number, error):
    def stopped(*arguments):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(whole.Turns, "since", stopped)
    with pytest.raises(error):
        measured(tmp_path, "measure=loop,memory", "batch_size=2")
    assert not (tmp_path / "bench").exists() and list(tmp_path.glob(".bench-*")) == []
