"""Sums over the processes that train one run together (data parallelism, torch.distributed).

Every process has all weights and the same share of every batch's rows. Alone, without torchrun, each function returns
what it was given. All work inside a captured CUDA graph; every process must come to the same calls in the same order.
"""

from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tid import torchrun
from tid.config import ConfigError

TIMEOUT = timedelta(minutes=10)  # for the others to come to the same collective: rank 0 may be saving, or compiling


def connect(device: torch.device, store: dist.Store) -> None:
    """Join the other processes: over NCCL for a GPU, which becomes this process's own, else over gloo.

    Raises ConfigError when this machine has fewer GPUs than processes.
    """
    if device.type == "cuda":
        wanted, there = torchrun.local_processes(), torch.cuda.device_count()
        if wanted > there:
            raise ConfigError(
                f"torchrun started {wanted} processes, and this machine has {there} GPU{'s' * (there != 1)}: "
                f"use --nproc_per_node={there}, or device=cpu"
            )
        torch.cuda.set_device(torchrun.local_rank())
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=torchrun.rank(), world_size=torchrun.processes(), timeout=TIMEOUT
    )


def disconnect() -> None:
    """Part from the others. CUDA graphs that hold collectives must be gone: NCCL waits for them without end."""
    if number() > 1:
        dist.destroy_process_group()


def number() -> int:
    """How many processes are connected; 1 alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of the connected processes this is, from 0."""
    return dist.get_rank() if number() > 1 else 0


def share(rows: int) -> slice:
    """This process's rows of a batch of `rows`: equal pieces in the order of the ranks."""
    size = rows // number()
    return slice(rank() * size, (rank() + 1) * size)


@torch.no_grad()
def sum_(tensors: Iterable[Tensor]) -> None:
    """Add up each tensor over the processes, in place; all get the same bits."""
    if number() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """The mean of x over the processes, of any shape; integers become float32."""
    if number() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / number()


@torch.no_grad()
def gather_rows(mine: Tensor) -> Tensor:
    """Rows (B / n, ...) of each of the n processes → all of them (B, ...), in the order of the ranks."""
    if number() == 1:
        return mine
    rows = mine.new_zeros(number() * len(mine), *mine.shape[1:])
    rows[share(len(rows))] = mine
    dist.all_reduce(rows)  # beside zeros a sum is exact, and gloo and NCCL have it alike
    return rows


@torch.no_grad()
def from_first(x: Tensor) -> Tensor:
    """What rank 0 has for x: kernels compiled on each GPU apart may add in another order."""
    if number() > 1:
        x = x.clone()
        dist.broadcast(x, src=0)
    return x


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number that follows from the bits of float32 tensors, for `assert_same`."""
    return sum(int(t.detach().view(torch.int32).sum(dtype=torch.int64)) for t in tensors) % 2**62


def assert_same(facts: dict[str, int], device: torch.device) -> None:
    """Raise RuntimeError, on every process, if one of the `facts` is not what it is on rank 0."""
    if number() == 1:
        return
    everywhere = gather_rows(torch.tensor([list(facts.values())], device=device)).tolist()
    for where, found in enumerate(everywhere):
        other = [name for name, value, first in zip(facts, found, everywhere[0], strict=True) if value != first]
        if other:
            raise RuntimeError(f"rank {where} has another {' and another '.join(other)} than rank 0")
