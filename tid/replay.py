"""A step as CUDA graphs: one for each decision of the host, captured when it first comes up."""

import time
from collections.abc import Callable
from typing import Any

import torch

from tid.capture import Graph, Graphs, to_cpu


class Replays:
    """``replays(drops, kept_max)`` does what `step.update` does: whole, or up to the optimizer where that cannot be
    captured. seconds: what capturing took so far; told: called with that of each graph."""

    def __init__(self, step: Any) -> None:
        self.step, self.graphs, self.seconds = step, Graphs(), 0.0
        self.told: Callable[[float], None] = lambda seconds: None

    def __call__(self, drops: bool, kept_max: int) -> None:
        step, key = self.step, (drops, kept_max)
        step.score_watch.label = key
        if key not in self.graphs:
            self.capture(key)
        if step.updating.capturable:
            self.graphs[key]()
            return
        *sums, gradients = self.graphs[key]()
        for parameter, gradient in zip(step.updating.parameters, gradients, strict=True):
            parameter.grad = gradient
        step.finish(*sums)

    def capture(self, key: tuple[bool, int]) -> None:
        step = self.step
        torch.cuda.synchronize(step.device)  # steps under way are none of its time
        started = time.perf_counter()
        captured = step.update if step.updating.capturable else self.sums_and_gradients
        self.graphs.capture(key, lambda: captured(*key), lambda: self.try_out(key))
        step.updating.forget()
        self.seconds += (seconds := time.perf_counter() - started)
        self.told(seconds)

    def try_out(self, key: tuple[bool, int]) -> None:
        """A few runs, whose effects are undone."""
        step, before = self.step, to_cpu(self.step.state_dict(), zeros_apart=True)
        try:
            Graph.prepare(lambda: (step.update(*key), step.step.sub_(1)))  # each time on this step's own batch
        finally:
            step.load_state_dict(before)

    def sums_and_gradients(self, drops: bool, kept_max: int) -> tuple:
        """What `backward` returns, and the gradients that it leaves on the parameters."""
        return *self.step.backward(drops, kept_max), [p.grad for p in self.step.updating.parameters]
