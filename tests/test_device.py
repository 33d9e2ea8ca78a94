"""Device and precision from settings, and the refusal of a run that would take days."""

from types import SimpleNamespace

import pytest
import torch
from tiny import build
from torch.utils.benchmark import Timer

from tid.config import ConfigError
from tid.device import (
    choose_device,
    choose_precision,
    estimate_hours,
    fastest_precision,
    in_words,
    refuse_slow,
)

CPU = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        (None, "fp32"),
        ((6, 1), "fp32"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((9, 0), "bf16"),
    ],
)
def test_fastest_precision_by_compute_capability(capability, precision):
    assert fastest_precision(capability) == precision


def test_a_named_precision_stays_and_auto_is_fp32_on_a_cpu():
    assert [choose_precision(p, CPU) for p in ("fp32", "bf16", "fp16", "auto")] == [
        "fp32",
        "bf16",
        "fp16",
        "fp32",
    ]


def test_device_cpu_is_the_cpu_everywhere():
    assert choose_device("cpu") == CPU


@without_cuda
def test_auto_is_the_cpu_and_cuda_is_refused_without_cuda():
    assert choose_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"^device=cuda: PyTorch .* sees no CUDA device; .* device=cpu$"):
        choose_device("cuda")


def test_estimate_agrees_with_products_that_are_timed():
    a = torch.rand(1024, 1024)
    seconds = []
    for _ in range(5):
        timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
        seconds.append(timer.timeit(3).median)
    expected = 1000 * min(seconds) / 3600 / 0.5  # a step reaches half of a product's speed
    assert (
        expected / 4 < estimate_hours(2.0 * 1024**3, 1000) < expected * 4
    )  # other processes share the cores


def asked(**changes):
    """Settings of a run that are looked at, and the shape of its model: the reference run's."""
    fields = {"device": "auto", "context": 128, "batch_size": 8, "accumulate_steps": 1, "total_steps": 200_000}
    return SimpleNamespace(**(fields | changes)), build("model", "gpt_125m")


def test_hopeless_run_is_refused_with_its_cost_and_commands_that_work():
    settings = ["scorer=grad_norm", "model=gpt_50m", "drop_schedule.rate=0.2", "name=my run", "device=auto"]
    with pytest.raises(ConfigError) as error:
        refuse_slow(*asked(), CPU, settings)
    first, small, same = str(error.value).splitlines()
    assert "on this CPU a run would take about" in first and ("days" in first or "hours" in first)
    assert small.endswith("python -m tid.train experiment=quickstart scorer=grad_norm drop_schedule.rate=0.2")
    assert same.endswith("scorer=grad_norm model=gpt_50m drop_schedule.rate=0.2 'name=my run' device=cpu")


def test_hopeless_sweep_is_refused_with_sweeps_that_work():
    with pytest.raises(ConfigError) as error:
        refuse_slow(*asked(), CPU, ["-m", "sweeps=scorers", "seed=0,1", "batch_size=8", "dry_run=true"], runs=22)
    first, small, same = str(error.value).splitlines()
    assert "each of 22 runs would take" in first
    assert small.endswith("python -m tid.train -m sweeps=scorers experiment=quickstart seed=0,1")
    assert "this very sweep, all the same:" in same
    assert same.endswith("python -m tid.train -m sweeps=scorers seed=0,1 batch_size=8 device=cpu")
    assert small.index("python") == same.index("python")


def test_under_torchrun_the_same_run_is_offered_under_torchrun(monkeypatch):
    told = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        refuse_slow(*asked(), CPU, ["model=gpt_50m", "name=my run"])
    _, small, same = str(error.value).splitlines()
    assert small.endswith("  python -m tid.train experiment=quickstart")  # its batch of 4 is for one process
    assert same.endswith(" torchrun --nproc_per_node=4 -m tid.train model=gpt_50m 'name=my run' device=cpu")


def test_nothing_is_refused_that_is_short_or_insisted_on_or_on_a_gpu():
    refuse_slow(*asked(total_steps=1), CPU, [])
    refuse_slow(*asked(device="cpu"), CPU, [])
    refuse_slow(*asked(), torch.device("cuda"), [])


def test_durations_in_words():
    assert [in_words(h) for h in (0.05, 1.25, 30.0, 24 * 17.6, 24 * 365 * 3.0)] == [
        "3 minutes",
        "1.2 hours",
        "30 hours",
        "18 days",
        "3 years",
    ]
