"""The border to a tracker, by handles that log nowhere. With real libraries: test_tracking, test_tracking_trouble."""

import threading
from pathlib import Path

import pytest

import tid.handle
from tid.handle import Handle, RunInfo, tracking


@pytest.fixture
def said(monkeypatch) -> list[str]:
    monkeypatch.setattr(tid.handle, "START_SECONDS", 0.05)
    return []


class Slow(Handle):
    """Its start lasts until `go_on` is set; `opens_first`: with the session already there."""

    def __init__(self, said: list[str], opens_first: bool) -> None:
        super().__init__(RunInfo("name", "g", "train", (), "abcd1234", {}, Path("nowhere"), False, said.append))
        self.opens_first, self.go_on, self.sent = opens_first, threading.Event(), []

    def open(self) -> None:
        if self.opens_first:
            self.session = "open"
            self.run.say("tracker: offline")
        self.go_on.wait(10)
        if not self.opens_first:
            self.session = "open"
            self.run.say("tracker: offline")

    def send(self, values: dict, step: int) -> None:
        self.sent.append((values, step))


@pytest.mark.parametrize("opens_first", [False, True])
def test_a_start_is_said_to_be_late_only_before_it_says_where_it_logs(said, opens_first):
    slow = Slow(said, opens_first)
    with tracking(slow) as handle:
        before = list(said)
        handle.log({"train_loss": 2.0}, step=1)
        slow.go_on.set()
    late = "tracker: not ready after 0 s; the run does not wait for it"
    assert before == (["tracker: offline"] if opens_first else [late])
    assert said == (["tracker: offline"] if opens_first else [late, "tracker: offline"])
    assert slow.sent == [({"train/loss": 2.0}, 1)]  # logged before the start was over: not lost
