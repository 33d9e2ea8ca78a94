"""What torchrun tells each process that it starts, and what cannot be done under it. Nothing here needs torch."""

import os

from tid.config import ConfigError
from tid.messages import train_command

AFTERWARDS = "(What follows is torchrun's own report that a process has ended with an error: the one above.)"


def processes() -> int:
    """How many processes torchrun has started to train together; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine: the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if processes() > 1 else 0


def local_processes() -> int:
    """How many of them are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if processes() > 1 else 1


def speaks(error: BaseException | None = None) -> bool:
    """Should this process show the user `error`, or a result? All stumble over the same wrong setting, and the first
    one tells; an error of one rank alone is marked with `of_this_rank` (tid.processes)."""
    return local_rank() == 0 or getattr(error, "of_this_rank", False)


def command(*settings: str) -> str:
    """The shell command that trains with these settings in as many processes of this machine as there are now."""
    alone = train_command(*settings)
    return alone if processes() == 1 else alone.replace("python", f"torchrun --nproc_per_node={local_processes()}", 1)


def refuse_others(command: str, sweep: bool) -> None:
    """Raise ConfigError under torchrun unless the command is one plain training run."""
    if processes() == 1 or command == "train" and not sweep:
        return
    if sweep:
        raise ConfigError(
            "torchrun trains one run on several GPUs, and -m is a sweep of many: start the sweep without torchrun "
            "(hydra/launcher=local gives every GPU a run of its own), or leave out -m"
        )
    raise ConfigError(f"torchrun is for tid.train; run this one process alone: python -m tid.{command} ...")


def refuse_uneven(batch_size: int) -> None:
    """Raise ConfigError unless `batch_size`, which is that of all processes together, can be shared equally."""
    number = processes()
    if batch_size % number == 0:
        return
    near = [size for size in (batch_size // number * number, -(-batch_size // number) * number) if size]
    raise ConfigError(
        f"batch_size: wanted a multiple of the {number} processes that torchrun started, got {batch_size} (it is the "
        f"batch of all of them together); use batch_size={' or '.join(map(str, near))}, or another --nproc_per_node"
    )
