"""What the device can do at best, measured: matrix products and memory traffic. No table of names."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tid.precision import AUTOCAST

MATMUL_SIZES = {"cuda": (1024, 2048, 4096, 8192), "cpu": (512, 1024, 2048)}
STREAM_FLOATS = {"cuda": 2**26, "cpu": 2**25}  # 256 and 128 MiB each: more than caches hold
TRIAL_SECONDS = {"cuda": 0.3, "cpu": 0.2}  # of each product, in all
TRIALS = 8


@dataclass(frozen=True)
class Ceilings:
    """flops_per_second of the best matrix product, of two square matrices of `matmul_size`; bytes_per_second read and
    written by the better of a copy and a triad (a = b + s·c, McCalpin's STREAM)."""

    flops_per_second: float
    matmul_size: int
    bytes_per_second: float

    def floor_ms(self, flops: float, moved_bytes: float) -> float:
        """Milliseconds that a step takes at least: its products at the ceiling, then its update at full bandwidth."""
        return 1000 * (flops / self.flops_per_second + moved_bytes / self.bytes_per_second)

    def share(self, flops: float, ms: float) -> float:
        """Fraction of the ceiling that `flops` in `ms` milliseconds are."""
        return flops / (ms / 1000) / self.flops_per_second


def measure_ceilings(precision: str, device: torch.device) -> Ceilings:
    """Takes about a second on a GPU and some on a CPU."""
    speeds = {size: matmul_speed(size, precision, device) for size in MATMUL_SIZES[device.type]}
    best = max(speeds, key=speeds.__getitem__)
    return Ceilings(speeds[best], best, bandwidth(device))


def matmul_speed(size: int, precision: str, device: torch.device) -> float:
    """Operations per second of a product of two square matrices, in what autocast would use at `precision`."""
    dtype = AUTOCAST[precision] or torch.float32
    # random values: zeros take less power, and a GPU then runs faster than it ever will
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out), device)


def bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written ones counted alike."""
    a, b, c = (torch.rand(STREAM_FLOATS[device.type], device=device) for _ in range(3))
    copy = 2 * a.nbytes / best_seconds(lambda: a.copy_(b), device)
    triad = 3 * a.nbytes / best_seconds(lambda: torch.add(b, c, alpha=0.5, out=a), device)
    return max(copy, triad)


def best_seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds per call in the best of some trials, each long enough to be timed."""
    timed(call, 2, device)  # threads start, libraries are loaded
    once = timed(call, 2, device)
    calls = max(1, int(TRIAL_SECONDS[device.type] / TRIALS / max(once, 1e-9)))
    return min(timed(call, calls, device) for _ in range(TRIALS))


def timed(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Mean seconds of a call; the device is waited for before and after all of them."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait_for(device)
    return (time.perf_counter() - start) / calls


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
