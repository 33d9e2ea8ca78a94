"""A step as CUDA graphs: one for each decision of the host, captured when it first comes up."""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from tid.capture import Graph, to_cpu


class Replays:
    """``replays(drops, kept_max)`` does what `step.update` does: whole, or up to the optimizer where that cannot be
    captured. seconds: what capturing took so far; told: called with that of each graph."""

    def __init__(self, step: Any) -> None:
        self.step, self.graphs, self.seconds = step, {}, 0.0
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

    @functools.cached_property
    def pool(self) -> Any:
        """The memory that all graphs of a run share, for one replay follows the other; None where none is captured."""
        return torch.cuda.graph_pool_handle() if self.step.fast else None

    def capture(self, key: tuple[bool, int]) -> None:
        """Capturing needs a few runs first; their effects are undone."""
        step = self.step
        torch.cuda.synchronize(step.device)  # steps under way are none of its time
        started = time.perf_counter()
        before = to_cpu(step.state_dict())
        Graph.prepare(lambda: (step.update(*key), step.step.sub_(1)))  # each time on this step's own batch
        step.load_state_dict(before)
        captured = step.update if step.updating.capturable else self.sums_and_gradients
        self.graphs[key] = Graph(lambda: captured(*key), self.pool)
        step.updating.forget()
        self.seconds += (seconds := time.perf_counter() - started)
        self.told(seconds)

    def sums_and_gradients(self, drops: bool, kept_max: int) -> tuple:
        """What `backward` returns, and the gradients that it leaves on the parameters."""
        return *self.step.backward(drops, kept_max), [p.grad for p in self.step.updating.parameters]

    def release(self) -> None:
        """Part with the graphs: NCCL cannot end while one of them holds a collective."""
        while self.graphs:
            self.graphs.popitem()[1].graph.reset()
