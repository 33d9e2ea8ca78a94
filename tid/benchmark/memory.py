"""How much memory something takes that is built among others."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

PEAK, NOW, FILES = "VmHWM", "VmRSS", "RssFile"  # of /proc/self/status, in kB


class Meter:
    """Begins to measure when made. Memory is given back first, so that what is built afterwards takes its own.

    On CUDA what torch's allocator hands out; on a Linux CPU what the whole process holds, code that it loads left out.
    None where neither is known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        give_back(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.allocated = torch.cuda.memory_allocated(device)
            self.reserved = torch.cuda.memory_reserved(device)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: proc(5)
        self.allocated, self.files = process_bytes(NOW), process_bytes(FILES)

    def peak(self) -> int | None:
        """Most bytes in use since the beginning, beyond what was in use then."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.allocated
        most, files = process_bytes(PEAK), process_bytes(FILES)
        known = None not in (most, files, self.allocated, self.files)
        return max(0, most - self.allocated - (files - self.files)) if known else None

    def peak_reserved(self) -> int | None:
        """The same of what the allocator took from the device, unused gaps included. CUDA only."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_reserved(self.device) - self.reserved


def give_back(device: torch.device) -> None:
    """Free what nobody refers to any more, and return it to the device or the kernel."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    else:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def process_bytes(name: str) -> int | None:
    """A line of /proc/self/status in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
