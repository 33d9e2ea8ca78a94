"""Durations of regions of a device's work, without waiting for the device where they are taken."""

import time

import torch


class Stopwatch:
    """``with watch: ...`` times a region; `read` returns the durations since the last read, in milliseconds."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.marks: list[tuple] = []

    def mark(self):
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        self.start = self.mark()

    def __exit__(self, *exception) -> None:
        self.marks.append((self.start, self.mark()))

    def read(self) -> list[float]:
        """Durations in milliseconds, oldest first. On CUDA this waits for the last region to end."""
        marks, self.marks = self.marks, []
        if not self.on_cuda:
            return [1000 * (end - start) for start, end in marks]
        if marks:
            marks[-1][1].synchronize()
        return [start.elapsed_time(end) for start, end in marks]
