"""A polite stop: SIGINT, SIGTERM and SIGUSR2 are noted, and obeyed between two steps."""

import signal
import threading

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
STOPPED = tuple(128 + number for number in STOPS)  # exit codes of a run that one of them stopped, and that has saved


class StopRequest:
    """``with StopRequest() as stop``: `stop.signal` is the number of the first of the signals, 0 before.

    A second SIGINT is not noted but raised as KeyboardInterrupt, for when saving itself hangs. SIGUSR2 is how
    batch systems warn of the time limit (submitit's choice; NCCL may use SIGUSR1). Outside the main thread, where
    Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self.note) for number in STOPS}
        return self

    def note(self, number: int, frame) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
