"""Graphs of a run that share memory, with CUDA played by the test."""

import pytest
import torch

from tid import capture
from tid.capture import Graphs, to_cpu


class Played:
    """Stands in for a captured graph."""

    def __init__(self, function, pool) -> None:
        self.function, self.pool, self.graph, self.there = function, pool, self, True

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
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: made.append(len(made)) or made[-1])
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    return made


def test_graphs_are_tried_out_once_and_share_a_pool(pools):
    graphs, tried = Graphs(), []
    for key in "ab":
        graphs.capture(key, lambda key=key: key, lambda key=key: tried.append(key))
    assert "a" in graphs and "c" not in graphs and [graphs[key]() for key in "ab"] == ["a", "b"]
    assert tried == ["a", "b"] and {graphs[key].pool for key in "ab"} == {0} and len(pools) == 1


def test_where_memory_is_short_the_others_are_given_up_and_come_back_untried(pools):
    graphs, calls = Graphs(), []

    def try_out(key: str) -> None:
        calls.append(key)
        if graphs.made:
            raise torch.OutOfMemoryError("no room beside the graphs")

    def capture_one(key: str) -> None:
        graphs.capture(key, lambda: key, lambda: try_out(key))

    capture_one("a")
    first = graphs["a"]
    capture_one("b")
    assert calls == ["a", "b", "b"] and "a" not in graphs and not first.there
    capture_one("a")
    assert calls == ["a", "b", "b"] and [graphs[key]() for key in "ab"] == ["a", "b"]
    assert graphs["a"].pool == graphs["b"].pool == pools[-1] and len(pools) == 2


def test_memory_that_is_short_without_graphs_is_said(pools):
    def try_out() -> None:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        Graphs().capture("a", lambda: None, try_out)


def test_several_processes_give_nothing_up(pools, monkeypatch):
    """The others have begun what this one would begin anew."""

    def try_out() -> None:
        raise torch.OutOfMemoryError("too large")

    graphs = Graphs()
    graphs.capture("a", lambda: None, lambda: None)
    monkeypatch.setattr(capture.distributed, "number", lambda: 2)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.capture("b", lambda: None, try_out)
    assert graphs["a"].there


def test_a_forgotten_graph_is_tried_out_again(pools):
    graphs, tried = Graphs(), []
    for _ in range(2):
        graphs.capture("a", lambda: None, lambda: tried.append("a"))
        graphs.forget("a")
        assert "a" not in graphs
    graphs.forget("a")
    assert tried == ["a", "a"]


def test_zeros_are_set_aside_as_one():
    state = {"moments": torch.zeros(3, 4), "weights": [torch.ones(2)], "step": 3}
    kept = to_cpu(state, zeros_apart=True)
    assert kept["moments"].untyped_storage().nbytes() == 4 and kept["step"] == 3
    assert torch.equal(torch.ones(3, 4).copy_(kept["moments"]), torch.zeros(3, 4))
    assert torch.equal(kept["weights"][0], torch.ones(2))
    assert to_cpu(state)["moments"].untyped_storage().nbytes() == 48
