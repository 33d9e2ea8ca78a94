"""Durations of regions of a device's work, without waiting for the device where they are taken."""

import time
from collections import defaultdict

import torch


class Stopwatch:
    """``with watch: ...`` times a region; `read` returns the durations since the last read, in milliseconds.

    A region inside a CUDA graph that is being captured is timed at each replay; `read` then has only the latest replay
    of the graph that was captured under the present `label`.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.marks: list[tuple] = []
        self.label: object = None
        self.captured: dict[object, list[tuple]] = defaultdict(list)  # a graph's events must outlive it, all of them

    def mark(self):
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, external=torch.cuda.is_current_stream_capturing())
        event.record()
        return event

    def __enter__(self) -> None:
        self.start = self.mark()

    def __exit__(self, *exception) -> None:
        marks = (self.start, self.mark())
        if self.on_cuda and torch.cuda.is_current_stream_capturing():
            self.captured[self.label].append(marks)
        else:
            self.marks.append(marks)

    def forget(self, label: object) -> None:
        """The graph that was captured under this label is gone."""
        self.captured.pop(label, None)

    def read(self) -> list[float]:
        """Durations in milliseconds, oldest first. On CUDA this waits for the last region to end."""
        marks, self.marks = self.marks, []
        if not self.on_cuda:
            return [1000 * (end - start) for start, end in marks]
        if self.captured:
            marks = self.captured.get(self.label, [])
        if marks:
            marks[-1][1].synchronize()
        return [start.elapsed_time(end) for start, end in marks]
