"""How a sweep is stopped: the first of STOPS lets the running cells save, a second SIGINT is impatient."""

import contextlib
import signal
from collections.abc import Callable

from tid.signals import STOPS


@contextlib.contextmanager
def stopped_by(first: Callable[[int], None], again: Callable[[], None]):
    """For the ``with`` block the first of STOPS calls `first` with its number, any SIGINT after it `again`."""
    seen = False

    def handle(number: int, frame: object) -> None:
        nonlocal seen
        if seen and number == signal.SIGINT:
            again()
        elif not seen:
            seen = True
            first(number)

    before = {number: signal.signal(number, handle) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def not_now():
    """SIGINT waits for the end of the ``with`` block; Ctrl-C, which reaches every process of the terminal, does not
    reach those that are started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
