"""What fits: the largest batch and the largest model under a hard cap on the GPU's memory."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tid.benchmark.ceilings import wait_for
from tid.benchmark.memory import Meter, give_back
from tid.benchmark.race import forget_compiled, reason
from tid.benchmark.variants import OurStep, Setup, Variant
from tid.model import GPT
from tid.validation import Validation

STEPS = 3  # made before something counts as fitting
BATCH_STEP, FIRST_BATCH, LARGEST_BATCH = 8, 32, 4096
INNER = 8 / 3  # SwiGLU's inner width in widths, rounded up to a multiple of 64


@dataclass(frozen=True)
class Trial:
    """Peak bytes in use, and taken from the device; or why there was none."""

    allocated: int | None
    reserved: int | None
    failed: str | None = None


@dataclass(frozen=True)
class Fit:
    """What fits with one optimizer. None where not even the smallest does."""

    optim: str
    reference: Trial  # the configured model at the configured batch size
    batch_size: int | None
    batch: Trial | None
    model: GPT | None
    model_parameters: int | None
    largest: Trial | None
    trials: int


class Cap:
    """``with Cap(bytes, device)``: torch's allocator takes at most that much of the device."""

    def __init__(self, size: float, device: torch.device) -> None:
        self.fraction = min(1.0, size / torch.cuda.get_device_properties(device).total_memory)
        self.device = device

    def __enter__(self) -> None:
        give_back(self.device)
        torch.cuda.set_per_process_memory_fraction(self.fraction)

    def __exit__(self, *exception: object) -> None:
        torch.cuda.set_per_process_memory_fraction(1.0)


def what_fits(setup: Setup, variant: Variant, ladder: list[list[int]], say: Callable[[str], None]) -> Fit:
    """Of one optimizer, under the cap that is in force. The ladder: layers, width and heads of models."""
    trials: dict[Any, Trial] = {}

    def fits(shape: GPT, batch_size: int) -> bool:
        key = (shape, batch_size)
        if key not in trials:
            trials[key] = apart(dataclasses.replace(setup, shape=shape), variant, batch_size)
            found = trials[key]
            words = found.failed or f"{found.reserved / 2**30:.2f} GiB"
            say(f"  {variant.optim_name}, {millions(shape)}M parameters, batch {batch_size}: {words}")
        return not trials[key].failed

    fits(setup.shape, variant.batch_size)
    batch_size = largest_batch(lambda size: fits(setup.shape, size))
    models = models_of(setup.shape, ladder)
    index = largest_index(lambda i: fits(models[i], BATCH_STEP), len(models))
    model = None if index is None else models[index]
    return Fit(
        variant.optim_name,
        trials[setup.shape, variant.batch_size],
        batch_size,
        None if batch_size is None else trials[setup.shape, batch_size],
        model,
        None if model is None else parameters(model),
        None if model is None else trials[model, BATCH_STEP],
        len(trials),
    )


def apart(setup: Setup, variant: Variant, batch_size: int) -> Trial:
    """`attempt`, on a GPU in a process of its own under the same cap: what runs out of memory while a CUDA graph is
    captured leaves torch's allocator in a state in which nothing is freed."""
    if setup.device.type != "cuda":
        return attempt(setup, variant, batch_size)
    cap = torch.cuda.get_per_process_memory_fraction()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.cuda.set_per_process_memory_fraction, (cap,)) as process:
        return process.submit(attempt, setup, variant, batch_size).result()


def attempt(setup: Setup, variant: Variant, batch_size: int) -> Trial:
    """Some steps of this shape, and a validation; whatever they leave behind is freed."""
    meter = Meter(setup.device)
    failed = None
    try:
        step = OurStep(setup, dataclasses.replace(variant, batch_size=batch_size), "auto")
        for _ in range(STEPS):
            step()
        validate(setup, step)
        wait_for(setup.device)
        trial = Trial(meter.peak(), meter.peak_reserved())
    except Exception as error:
        failed = reason(error)
    step = None
    forget_compiled()
    give_back(setup.device)
    return Trial(None, None, failed) if failed else trial


def validate(setup: Setup, step: OurStep) -> None:
    """One batch of a validation, as a run makes it between its steps."""
    tokens = setup.text[: setup.eval_batch_size * setup.context + 1]
    ones = np.ones(setup.shape.vocab_size, np.int64)
    validation = Validation(
        tokens, np.zeros(1, np.int64), ones, ones, context=setup.context, stride=setup.context,
        batch_size=setup.eval_batch_size, precision=setup.precision, device=setup.device, fast=setup.fast,
    )  # fmt: skip
    validation.nats(step.step.trained, step.step.replays.graphs)


def largest_batch(
    fits: Callable[[int], bool], step: int = BATCH_STEP, first: int = FIRST_BATCH, most: int = LARGEST_BATCH
) -> int | None:
    """The largest multiple of `step` up to `most` that fits, None for none: doubled from `first` until one does not,
    then halved in between."""
    good, bad = 0, first
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + step)
    while bad - good > step:
        middle = (good + bad) // 2 // step * step
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good or None


def largest_index(fits: Callable[[int], bool], count: int) -> int | None:
    """The largest index below `count` that fits, by halving; None for none."""
    good, bad = -1, count
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return None if good < 0 else good


def models_of(shape: GPT, ladder: list[list[int]]) -> list[GPT]:
    """The ladder's models and `shape`, from small to large, with the vocabulary and the constants of `shape`."""
    models = {shape}
    for layers, width, heads in ladder:
        inner = -(-int(width * INNER) // 64) * 64
        models.add(dataclasses.replace(shape, num_layers=layers, hidden_size=width, num_heads=heads,
                                       intermediate_size=inner))  # fmt: skip
    return sorted(models, key=parameters)


def parameters(shape: GPT) -> int:
    """Trainable parameters of a model of this shape, which is not built for it."""
    width = shape.hidden_size
    layer = 4 * width**2 + 3 * width * shape.intermediate_size + 2 * width
    return shape.num_layers * layer + width * (shape.vocab_size + 1)


def millions(shape: GPT) -> str:
    return f"{parameters(shape) / 1e6:.3g}"
