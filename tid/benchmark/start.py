"""Time to the first step, in a process of its own: importing, building, and on CUDA compiling and capturing.

What torch compiles it keeps on disk, so a second start finds it there. `TORCHINDUCTOR_CACHE_DIR` says where.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE, TRITON_CACHE = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
CHILD = "import json, sys; from tid.benchmark.start import child; print(json.dumps(child(json.load(sys.stdin))))"
PATIENCE_SECONDS = 280


@contextmanager
def empty_cache():
    """The compile cache in a new, empty folder, for this process and those that it starts."""
    before = {name: os.environ.pop(name, None) for name in (CACHE, TRITON_CACHE)}
    with tempfile.TemporaryDirectory(prefix="tid-compile-cache-") as folder:
        os.environ[CACHE] = folder
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def start(settings: dict, kind: dict) -> dict[str, Any]:
    """Seconds of a new process until it was up, had built everything, and had made its first step. kind: the names of
    scorer, drop mode and optimizer. `failed` says why there are none."""
    settings = settings | {"kind": kind, "born": time.time()}
    try:
        done = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(settings), capture_output=True,
                              text=True, timeout=PATIENCE_SECONDS)  # fmt: skip
    except subprocess.TimeoutExpired:
        return kind | {"failed": f"no first step within {PATIENCE_SECONDS} seconds"}
    if done.returncode:
        return kind | {"failed": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return kind | json.loads(done.stdout.splitlines()[-1])


def child(settings: dict) -> dict[str, float]:
    """In the new process: make the first step; seconds since the process was asked for."""
    import torch

    from tid.benchmark.arrange import arrange
    from tid.benchmark.ceilings import wait_for
    from tid.benchmark.variants import OurStep

    imported = time.time() - settings["born"]
    bench = arrange(settings)
    step = OurStep(bench.setup, bench.variant(**settings["kind"]), "auto")
    wait_for(bench.setup.device)
    built = time.time() - settings["born"]
    step()
    wait_for(bench.setup.device)
    first = time.time() - settings["born"]
    return {"imported": imported, "built": built, "first_step": first, "compiles": first - built,
            "threads": torch.get_num_threads()}  # fmt: skip
