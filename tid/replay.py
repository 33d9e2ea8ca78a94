"""A step as CUDA graphs: one for each decision of the host, captured when it comes up."""

from typing import Any

from tid.capture import Graph, Graphs


class Replays:
    """``replays(drops, kept_max)`` does what `step.update` does: whole, or up to the optimizer where that cannot be
    captured. graphs: of the steps, and of what else the run captures."""

    def __init__(self, step: Any) -> None:
        self.step, self.graphs = step, Graphs()

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
        step.score_watch.forget(key)
        captured = step.update if step.updating.capturable else self.sums_and_gradients
        self.graphs.capture(key, "a step", lambda: captured(*key), lambda: self.try_out(key), step)
        step.updating.forget()

    def try_out(self, key: tuple[bool, int]) -> None:
        """Each time on this step's own batch."""
        step = self.step
        Graph.prepare(lambda: (step.update(*key), step.step.sub_(1)))

    def sums_and_gradients(self, drops: bool, kept_max: int) -> tuple:
        """What `backward` returns, and the gradients that it leaves on the parameters."""
        return *self.step.backward(drops, kept_max), [p.grad for p in self.step.updating.parameters]
