"""One cell of a sweep, in a process of its own."""

import os
import signal
import sys
import threading
import traceback
from multiprocessing import connection, parent_process
from pathlib import Path

from tid.config import build, check
from tid.messages import correctable
from tid.sweep.plan import thaw

USER_ERROR, BUSY = 2, 75  # exit codes: something the user can correct; another process is in that folder


def run(frozen: str, console: str, gpu: str | None, threads: int) -> None:
    """Train the frozen cell in a process that a sweep on this machine has started, and leave with `outcome`'s code.

    All output goes to the file `console`. gpu: what CUDA_VISIBLE_DEVICES shall be (None: as it is). A cell whose
    sweep dies stops as on SIGTERM: it saves.
    """
    os.setsid()  # Ctrl-C is for the sweep, which passes it on
    speak_into(Path(console))
    threading.Thread(target=stop_with_the_sweep, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    sys.exit(outcome(frozen, threads))


def outcome(frozen: str, threads: int) -> int:
    """Train the frozen cell; returns an exit code: 0 done, 1 what may go well when tried again, USER_ERROR, BUSY,
    128 + signal when stopped.

    threads: for torch on the CPU. What went wrong is said on stderr.
    """
    code = 1
    try:
        import torch

        torch.set_num_threads(threads)
        train_frozen(Path(frozen))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        code = exit_code(error)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def train_frozen(frozen: Path) -> Path:
    """Train what `tid.sweep.plan.freeze` wrote down, and return the run's folder."""
    from tid.job import train

    config, overrides, cwd = thaw(frozen)
    os.chdir(cwd)  # another machine's worker may have been started elsewhere
    return train(config, check(config), build(config), overrides)


def exit_code(error: BaseException) -> int:
    """Say what went wrong, on stderr, and return the exit code for it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if message := correctable(error):
        print(f"error: {message}", file=sys.stderr)
        if "RunLocked" in kinds:
            return BUSY
        may_go_well = not {"ConfigError", "DataError"} & kinds or "NonFiniteLoss" in kinds  # when tried again
        return 1 if may_go_well else USER_ERROR
    traceback.print_exception(error)
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def speak_into(console: Path) -> None:
    """Send stdout and stderr, those of libraries and of children too, to the end of a file."""
    console.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def stop_with_the_sweep() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
