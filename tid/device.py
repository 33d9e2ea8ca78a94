"""Where a run computes and in what precision, and whether that can end within reason."""

import ctypes
import functools
import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from tid import torchrun
from tid.config import DROPPING, ConfigError, RunConfig
from tid.messages import train_command

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4  # malloc.h
PATIENCE_HOURS = 1.0  # device=auto starts nothing on a CPU that would take longer
PROBE_SIZE, PROBE_SECONDS = 1024, 0.5
# A training step reaches this share of the probe's speed: 0.68 to 0.79 for gpt_125m, 0.33 to 0.49 for gpt_20m
# and 0.29 to 0.67 for gpt_nano, batch 8, context 128, on two cores that other processes shared.
STEP_SHARE = 0.5


def choose_device(device: str) -> torch.device:
    """The setting as a device; "auto" is CUDA where there is one. Raises ConfigError if cuda is not there."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if device != "cuda":
        return torch.device("cpu")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    raise ConfigError(
        f"device=cuda: PyTorch {torch.__version__} ({built}) sees no CUDA device; check nvidia-smi and "
        "the driver, or use device=cpu"
    )


def choose_fast(settings: RunConfig, device: torch.device) -> bool:
    """Is the step compiled and captured? Raises ConfigError for kernels that it would have to be for."""
    fast = settings.compile and device.type == "cuda"
    if settings.kernels == "all" and not fast:
        raise ConfigError("kernels=all needs a CUDA GPU and compile=true; leave it at auto")
    return fast


def is_hopper(device: torch.device) -> bool:
    """Is it an NVIDIA GPU of compute capability 9.x (H100, H200)? AMD's call theirs 9.x too."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9


def where(device: torch.device) -> dict[str, str | None]:
    """For status.json: the device, a GPU by its UUID as in `nvidia-smi -L`, and what CUDA_VISIBLE_DEVICES said."""
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else device.type
    return {"device": name, "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES")}


def choose_precision(precision: str, device: torch.device) -> str:
    """The setting as it is; for "auto" the fastest of fp32, bf16 and fp16 that is safe on this device."""
    if precision != "auto":
        return precision
    return fastest_precision(torch.cuda.get_device_capability(device) if device.type == "cuda" else None)


def fastest_precision(capability: tuple[int, int] | None) -> str:
    """Precision for a CUDA compute capability; None is a CPU.

    From 8.0 (Ampere) tensor cores take bf16, which has float32's range and needs no loss scaling. 7.x (Volta,
    Turing) has them for fp16 only and emulates bf16 slowly. Below, fp16 arithmetic is slower than fp32. CPUs
    stay in fp32: few have bf16 units, and the CPU is where results are compared bit by bit.
    """
    if capability is None or capability < (7, 0):
        return "fp32"
    return "bf16" if capability >= (8, 0) else "fp16"


def set_up(device: torch.device) -> None:
    """What a process does once for speed. CUDA: float32 matrix products in TF32, ten bits of mantissa and several times
    the speed. A CPU's stay exact, and it keeps its memory."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    else:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of giving it back; does nothing with another C library.

    Logits and their gradients are 100 MB each at 512 tokens. Given back, the kernel zeroes their pages anew at every
    step: half of gpt_nano's step time on two cores (LOG.md).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MALLOPT_MMAP_MAX, 0)
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def matmul_flops_per_second() -> float:
    """float32 speed of this CPU with torch's threads: the best of the matrix products of half a second."""
    a, b = torch.rand(PROBE_SIZE, PROBE_SIZE), torch.rand(PROBE_SIZE, PROBE_SIZE)
    best, end = float("inf"), time.perf_counter() + PROBE_SECONDS
    torch.mm(a, b)  # the first one starts the threads
    while (start := time.perf_counter()) < end:
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2.0 * PROBE_SIZE**3 / best


def estimate_hours(flops_per_step: float, total_steps: int) -> float:
    """Hours that `total_steps` steps of `flops_per_step` take on this CPU, from a probe of half a second.

    An estimate within a factor of two when nothing else runs: see STEP_SHARE. Evaluations are not counted.
    """
    return flops_per_step * total_steps / (matmul_flops_per_second() * STEP_SHARE) / 3600.0


def run_hours(settings: RunConfig, model: Any) -> float:
    """`estimate_hours` of a run; model: its shape, by which a step's operations are counted."""
    return estimate_hours(step_flops(settings, model), settings.total_steps)


def step_flops(settings: RunConfig, model: Any) -> float:
    return model.flops_per_token(settings.context) * settings.context * settings.batch_size * settings.accumulate_steps


def refuse_slow(
    settings: RunConfig, model: Any, device: torch.device, overrides: Sequence[str], runs: int = 1
) -> None:
    """Raise ConfigError when device=auto has come to a CPU on which a run would take more than about an hour.

    overrides: the command line's settings, of a sweep with -m, for the commands it suggests; runs: how many of this
    size the sweep has.
    """
    if settings.device != "auto" or device.type != "cpu":
        return
    hours = run_hours(settings, model)
    if hours <= PATIENCE_HOURS:
        return
    sweep = [o for o in overrides if o in ("-m", "--multirun") or o.startswith("sweeps=")]
    kept = [o for o in overrides if o.lstrip("+~").partition("=")[0].partition(".")[0] in (*DROPPING, "seed")]
    insisting = [*(o for o in overrides if not o.startswith(("device=", "dry_run="))), "device=cpu"]
    which = "a run" if runs == 1 else f"each of {runs} runs"
    this = "this very sweep" if sweep else "this very run"
    raise ConfigError(
        f"no CUDA device, and on this CPU {which} would take about {in_words(hours)} "
        f"({settings.total_steps:,} steps of {step_flops(settings, model) / 1e9:,.0f} GFLOP).\n"
        f"  a small model on real text, in minutes:  {train_command(*sweep, 'experiment=quickstart', *kept)}\n"
        f"  {this + ', all the same:':39}  {torchrun.command(*insisting)}"
    )


def in_words(hours: float) -> str:
    """A duration to two digits: "30 seconds", "20 minutes", "3.2 hours", "12 days"."""
    if hours < 1 / 60:
        return f"{max(1, round(3600 * hours))} seconds"
    if hours < 1:
        return f"{60 * hours:.2g} minutes"
    if hours < 48:
        return f"{hours:.2g} hours"
    days = hours / 24
    return f"{days:.0f} days" if days < 730 else f"{days / 365:.0f} years"
