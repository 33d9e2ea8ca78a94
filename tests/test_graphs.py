"""Graphs of a run that share memory, with CUDA played by the test."""

import pytest
import torch
from tiny import tiny_step, weights

from tid import capture, replay
from tid.capture import Graphs, to_cpu


class Played:
    """Stands in for a captured graph."""

    def __init__(self, function, pool) -> None:
        self.function, self.pool, self.graph, self.there = function, pool, self, True

    @classmethod
    def prepare(cls, function) -> None:
        function()
        function()

    def reset(self) -> None:
        self.there = False

    def __call__(self):
        assert self.there
        return self.function()


@pytest.fixture
def pools(monkeypatch) -> list:
    """The pools that are asked for."""
    made: list = []
    monkeypatch.setattr(capture, "Graph", Played)
    monkeypatch.setattr(replay, "Graph", Played)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: made.append(len(made)) or made[-1])
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    return made


class Changed:
    """What a run changes."""

    def __init__(self, calls: list) -> None:
        self.calls = calls

    def state_dict(self) -> dict:
        self.calls.append("aside")
        return {"weight": torch.ones(1)}

    def load_state_dict(self, state: dict) -> None:
        assert state == {"weight": torch.ones(1)}
        state["weight"].zero_()  # as one that goes on with what it is given
        self.calls.append("back")


def short_beside(graphs: Graphs, calls: list, key: str) -> None:
    """A run that finds no memory beside graphs."""
    calls.append(key)
    if graphs.made:
        raise torch.OutOfMemoryError("no room beside the graphs")


def test_graphs_are_run_once_and_share_a_pool(pools):
    graphs, run = Graphs(), []
    for key in "ab":
        graphs.capture(key, "a step", lambda key=key: key, lambda key=key: run.append(key))
    assert "a" in graphs and "c" not in graphs and [graphs[key]() for key in "ab"] == ["a", "b"]
    assert run == ["a", "b"] and {graphs[key].pool for key in "ab"} == {0} and len(pools) == 1
    assert graphs.captures == 2 and graphs.seconds > 0


def test_where_memory_is_short_the_others_are_released_and_come_back_without_a_run(pools):
    graphs, calls, said = Graphs(), [], []
    graphs.say = said.append

    def capture_one(key: str) -> None:
        graphs.capture(key, "a step", lambda: key, lambda: short_beside(graphs, calls, key), Changed(calls))

    capture_one("a")
    first = graphs["a"]
    capture_one("b")
    assert calls == ["aside", "a", "back", "aside", "b", "back", "b", "back"]
    assert "a" not in graphs and not first.there
    capture_one("a")
    assert len(calls) == 8 and [graphs[key]() for key in "ab"] == ["a", "b"]
    assert graphs["a"].pool == graphs["b"].pool == pools[-1] and len(pools) == 2 and graphs.captures == 3
    assert [words.split(" in ")[0] for words in said] == [
        "compiled and captured a step",
        "memory is short: the CUDA graphs are released, and captured again when they are needed",
        "compiled and captured a step",
        "captured a step again",
    ]


@pytest.mark.parametrize("short", [False, True])
def test_steps_by_graphs_are_the_eager_ones(pools, monkeypatch, short):
    """Each length has a graph; trying them out, or having to release them for it, changes no step."""

    def steps(fast: bool):
        step = tiny_step(scorer="random", mode="skip", schedule="uniform", total_steps=12, window=12)
        step.fast = fast
        for number in range(12):
            step(number)
        return step

    prepare, refused = Played.prepare.__func__, []

    def short_once(cls, function) -> None:
        function()  # what runs out of memory half way has changed something
        if len(pools) == 1 and not refused:
            refused.append(True)
            raise torch.OutOfMemoryError("no room beside the graphs")
        prepare(cls, function)

    eager = steps(fast=False)
    if short:
        monkeypatch.setattr(Played, "prepare", classmethod(short_once))
    played = steps(fast=True)
    assert torch.equal(played.metrics, eager.metrics) and len(played.replays.graphs.tried) == 3
    assert all(torch.equal(value, weights(eager)[name]) for name, value in weights(played).items())
    assert bool(refused) == short and len(pools) == 1 + short


def test_memory_that_is_short_without_graphs_is_said(pools):
    def run() -> None:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        Graphs().capture("a", "a step", lambda: None, run)


@pytest.mark.parametrize("why", ["several processes", "told not to", "another error"])
def test_sometimes_nothing_is_released(pools, monkeypatch, why):
    """Other processes have begun what this one would begin anew; a benchmark forgets what was compiled."""
    graphs = Graphs()
    graphs.capture("a", "a step", lambda: None, lambda: None)
    monkeypatch.setattr(capture.distributed, "number", lambda: 2 if why == "several processes" else 1)
    graphs.gives_way = why != "told not to"

    def run() -> None:
        raise RuntimeError("CUDA error: out of memory" if why != "another error" else "a shape is wrong")

    with pytest.raises(RuntimeError):
        graphs.capture("b", "a step", lambda: None, run)
    assert graphs["a"].there


def test_a_forgotten_graph_is_run_again(pools):
    graphs, run = Graphs(), []
    for _ in range(2):
        graphs.capture("a", "a step", lambda: None, lambda: run.append("a"))
        graphs.forget("a")
        assert "a" not in graphs
    graphs.forget("a")
    assert run == ["a", "a"]


def test_zeros_are_set_aside_as_one():
    state = {"moments": torch.zeros(3, 4), "weights": [torch.ones(2)], "step": 3}
    kept = to_cpu(state, zeros_as_one=True)
    assert kept["moments"].untyped_storage().nbytes() == 4 and kept["step"] == 3
    assert torch.equal(torch.ones(3, 4).copy_(kept["moments"]), torch.zeros(3, 4))
    assert torch.equal(kept["weights"][0], torch.ones(2))
    assert to_cpu(state)["moments"].untyped_storage().nbytes() == 48
