"""Several processes that train one run together: who decides, when they stop, and what becomes of an error.

This is the host's side of data parallelism. It goes through torchrun's key-value store, and a thread of each process
looks at that: no training step waits for it, nor for the device.
"""

import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from tid import distributed, torchrun
from tid.signals import STOPS

POLL_SECONDS = 0.2
GRACE_SECONDS = 2  # for this process to notice by itself that another one has failed
ANSWER_SECONDS = 15  # for the others to answer; torchrun kills 30 s after it has asked to stop
LINGER_SECONDS = 5  # torchrun ends all processes once one has failed: first the one that tells why
EXIT_SECONDS = 60  # for this process to be gone after an error, whatever hangs


class FailedElsewhere(RuntimeError):
    """Another process of the run failed first; its traceback is a note of this error."""

    def __init__(self, rank: int, reason: str, trace: str) -> None:
        super().__init__(f"rank {rank}: {reason}")
        self.rank = rank
        self.add_note(trace)


class Alone:
    """One process. `leads`: does this process write the run's files, and speak?"""

    leads = True

    def connect(self, device: torch.device) -> None:
        """Make tid.distributed's functions work."""

    def first(self, make: Callable[[], Any]) -> Any:
        """make()'s result; the leader has finished making before any other begins."""
        return make()

    def agree(self, decide: Callable[..., Any], *arguments: Any) -> Any:
        """What decide(*arguments) returns to the leader, a value of JSON's types; the others wait for it."""
        return decide(*arguments)

    def stopping(self, heard: int, done: int) -> int:
        """The number of the signal for which to stop after step `done`, else 0; `heard`: by this process, so far.

        To be asked once for each step, in order. All processes are told to stop after the same step."""
        return heard

    def cause(self, error: BaseException) -> FailedElsewhere | None:
        """The failure of another process that `error` follows from; None if it is this process's own."""
        return None


class Peers(Alone):
    """One of several processes under torchrun. Rank 0 leads.

    A stop: the process that hears a signal says so in the store; then each notes there which is the earliest step it
    can still stop after, and all stop after the latest of these. The thread answers for its process, which may be
    waiting for the device and so for the others.

    An error: the first to fail says so in the store; the leader records it, by `on_failure` where its own thread hangs
    in a collective that will never end, and then they leave, first the one that has to tell.
    """

    def __init__(self) -> None:
        self.rank, self.leads = torchrun.rank(), torchrun.rank() == 0
        self.on_failure: Callable[[Exception], None] = lambda error: None  # the leader's
        store, _, _ = next(rendezvous("env://", timeout=distributed.TIMEOUT))
        self.store = dist.PrefixStore(f"tid/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        self.asked = 0  # calls of `first` and `agree`: the same on all
        self.lock = threading.Lock()
        self.agreed, self.ending, self.over = threading.Event(), threading.Event(), threading.Event()
        self.passed, self.frozen_at = -1, 0.0  # the last step after which it did not stop; since when that is fixed
        self.signal, self.stop_step = 0, 0
        self.ears, self.mouth = socket.socketpair()
        self.mouth.setblocking(False)
        signal.set_wakeup_fd(self.mouth.fileno(), warn_on_full_buffer=False)  # heard even while the device is awaited
        self.thread = threading.Thread(target=self.watch, name="peers", daemon=True)
        self.thread.start()

    def connect(self, device: torch.device) -> None:
        distributed.connect(device, dist.PrefixStore("group", self.store))

    def first(self, make: Callable[[], Any]) -> Any:
        self.asked += 1
        if not self.leads:
            self.wait(f"made/{self.asked}")
            return make()
        result = make()
        self.store.set(f"made/{self.asked}", "")
        return result

    def agree(self, decide: Callable[..., Any], *arguments: Any) -> Any:
        self.asked += 1
        if not self.leads:
            return json.loads(self.wait(f"decided/{self.asked}"))
        result = decide(*arguments)
        self.store.set(f"decided/{self.asked}", json.dumps(result))
        return result

    def wait(self, key: str, seconds: float = float("inf")) -> str | None:
        """The value of `key` once it is there, None after `seconds`. A failure elsewhere ends the process meanwhile."""
        end = time.monotonic() + seconds
        while not self.store.check([key]):
            if time.monotonic() > end:
                return None
            time.sleep(POLL_SECONDS / 4)
        return self.store.get(key).decode()

    # --------------------------------------------------------------------------------------------- stopping

    def stopping(self, heard: int, done: int) -> int:
        with self.lock:
            if not self.frozen_at:
                self.passed = done
                return 0
        self.agreed.wait()
        return self.signal if done >= self.stop_step else 0

    def settle_stop(self) -> None:
        """Ask the others to stop, answer them, or read their answers."""
        if not self.frozen_at:
            if self.signal:
                self.store.compare_set("stop", "", str(self.signal))
            elif not self.store.check(["stop"]):
                return
            with self.lock:
                self.frozen_at, mine = time.monotonic(), self.passed + 1
            self.store.set(f"stop/{self.rank}", str(mine))
        if self.agreed.is_set():
            return
        keys = [f"stop/{rank}" for rank in range(torchrun.processes())]
        if self.store.check(keys):
            self.stop_step = max(int(self.store.get(key)) for key in keys)
            self.signal = int(self.store.get("stop"))
            self.agreed.set()
        elif time.monotonic() - self.frozen_at > ANSWER_SECONDS:
            silent = [key.removeprefix("stop/") for key in keys if not self.store.check([key])]
            self.give_up(RuntimeError(f"asked to stop, but rank {', '.join(silent)} does not answer"))

    # ---------------------------------------------------------------------------------------------- errors

    def watch(self) -> None:
        """The thread: listen for signals, stops and failures until it is all over."""
        try:
            while not self.over.is_set():
                if select.select([self.ears], [], [], POLL_SECONDS)[0]:
                    numbers = [number for number in self.ears.recv(64) if number in STOPS]
                    self.signal = self.signal or (numbers[0] if numbers else 0)
                self.settle_stop()
                self.look_for_failure()
        except dist.DistError:
            if not self.over.is_set():
                self.give_up(RuntimeError("torchrun is gone"))

    def look_for_failure(self) -> None:
        if not self.store.check(["failure"]):
            return
        failure = FailedElsewhere(*json.loads(self.store.get("failure")))
        if failure.rank == self.rank or self.ending.wait(GRACE_SECONDS):
            self.over.set()  # the main thread knows, and leaves
        elif self.leads:
            self.give_up(failure)
        else:
            self.wait("left", ANSWER_SECONDS)
            self.exit()

    def give_up(self, error: Exception) -> None:
        """End this process from its thread: its main one hangs."""
        if self.leads:
            self.on_failure(error)
            with contextlib.suppress(dist.DistError):
                self.store.set("left", str(getattr(error, "rank", 0)))
        self.exit()

    def exit(self) -> None:
        """End this process, after the one that tells why, unless its main thread comes to do so."""
        if not self.ending.wait(LINGER_SECONDS):
            os._exit(1)
        self.over.set()

    def cause(self, error: BaseException) -> FailedElsewhere | None:
        self.ending.set()
        if isinstance(error, SystemExit) or hasattr(error, "signal"):  # a stop, agreed upon
            return None
        if isinstance(error, FailedElsewhere):
            return error
        reason = str(error) or type(error).__name__
        mine = json.dumps([self.rank, reason, "".join(traceback.format_exception(error))])
        rank, first, trace = json.loads(self.store.compare_set("failure", "", mine))
        return None if rank == self.rank or first == reason else FailedElsewhere(rank, first, trace)

    def leave(self, error: BaseException) -> BaseException:
        """The exception with which to end: the error itself, where this process is the one to tell."""
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True)
        cause, own = self.cause(error), not isinstance(error, SystemExit)
        if self.leads:
            blamed = cause.rank if cause else 0
            self.store.set("left", str(blamed))
        else:
            answer = self.wait("left", ANSWER_SECONDS)
            blamed = self.rank if answer is None else int(answer)
        if own and blamed != self.rank:
            time.sleep(LINGER_SECONDS)
        self.rest()
        if own and blamed == self.rank:
            error.of_this_rank = True  # type: ignore[attr-defined]
            return error
        if not own:
            distributed.disconnect()
        return SystemExit(1 if own else error.code)

    def part(self) -> None:
        """All went well."""
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True)
        self.rest()
        distributed.disconnect()
        faulthandler.cancel_dump_traceback_later()

    def rest(self) -> None:
        """End the thread: Python must not end while it is in the store's code, or the process aborts."""
        self.over.set()
        self.thread.join()


@contextlib.contextmanager
def together() -> Iterator[Alone]:
    """The processes that torchrun started, for one run; Alone without it.

    Leaving the ``with`` block by an exception ends them all; only one of them lets the exception pass.
    """
    if torchrun.processes() == 1:
        yield Alone()
        return
    peers = Peers()
    try:
        yield peers
        peers.agree(lambda: None)  # ending NCCL, for which there is a time limit, takes the leader, who still writes
    except BaseException as error:
        last = peers.leave(error)
        if last is error:
            raise
        raise last from None
    finally:
        signal.set_wakeup_fd(-1)
    peers.part()
