"""Runs that log to a tracker, in a process of their own: `Tracked` starts it; it is ``-m tests.track``."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tid.tracking import RunInfo

ROOT = Path(__file__).parents[1]
CONFIG = {"key": "a value", "model": {"_target_": "tid.model.GPT", "layers": 2}, "tags": ["x"], "seed": 0}
KEY = "x" * 40


class Stopped(Exception):
    def __init__(self, signal: int) -> None:
        self.signal = signal


ENDS = {
    "done": None, "error": ValueError("boo"), "interrupt": KeyboardInterrupt(), "exit 3": SystemExit(3),
    "exit 0": SystemExit(0), "stopped": Stopped(15), "warned": Stopped(12),
}  # fmt: skip

# ---------------------------------------------------------------------------------------- the tests' side


def options(name: str, **changes: object) -> dict:
    """conf/tracker/<name>.yaml with `changes`."""
    tracker = OmegaConf.load(ROOT / "conf" / "tracker" / f"{name}.yaml")
    cfg = OmegaConf.create({"output_dir": "outputs", "tracker": OmegaConf.merge(tracker, changes)})
    return OmegaConf.to_container(cfg, resolve=True)["tracker"]


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """An environment in which nobody is logged in anywhere."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "TRACKIO_", "HF_"))}
    return kept | {"HOME": str(home), "WANDB_CONFIG_DIR": str(home)} | more


def records(folder: Path, kind: str, run_id: str, start: int = 0) -> list[dict]:
    """What the `start`th .wandb file of the run in `folder` holds of a kind of record, by wandb's own reader."""
    file = sorted(folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb"))[start]
    core = Path(find_spec("wandb").origin).parent / "bin" / "wandb-core"
    command = [core, "leet", "inspect", "--no-observability", "--json", "--run-file", file, file.parent]
    found = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    return [record.get(kind, {}) for record in map(json.loads, found) if record["type"] == kind]


class Tracked:
    """A process, now over, that had one run after the other. `runs` is what it reported of each,
    `exit_seconds` the time from the end of the last one to its own, `errors` its stderr."""

    def __init__(
        self, folder: Path, tracker: dict, *runs: dict, at_pause: Callable | None = None, **env: str
    ) -> None:
        self.folder = folder / "run"
        spec = json.dumps({"tracker": tracker, "folder": str(self.folder), "runs": runs})
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.track", spec],
            cwd=ROOT, env=clean_environment(folder / "home", **env), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            if at_pause:
                assert process.stdout.readline() == "paused\n", process.communicate()[1]
                at_pause()
            out, self.errors = process.communicate("\n", timeout=60)
            over = time.time()
        finally:
            process.kill()
        assert process.returncode == 0, self.errors
        self.runs = [json.loads(line) for line in out.splitlines()]
        self.exit_seconds = over - self.runs[-1]["time"]

    @property
    def said(self) -> list[str]:
        return self.runs[-1]["said"]

    @property
    def cost(self) -> float:
        """Seconds that the tracker made the last run wait, in all."""
        return self.runs[-1]["start"] + self.end_cost

    @property
    def end_cost(self) -> float:
        return self.runs[-1]["end"] + self.exit_seconds

    def records(self, kind: str, run_id: str = "abcd1234", start: int = 0) -> list[dict]:
        return records(self.folder, kind, run_id, start)


# ---------------------------------------------------------------------------------------- the process


def core_process() -> int:
    """The process that wandb has started beside this one."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, rest = (folder / "stat").read_text().rsplit(")", 1)
            if name.endswith("(wandb-core") and int(rest.split()[1]) == os.getpid():
                return int(folder.name)
    raise LookupError("no wandb-core")


def log_step(handle, step: int, tables: bool) -> None:
    row = {"step": step, "tokens": step * 8, "train_loss": 1 / step, "val_loss": abs(step - 3.0)}
    row |= {"drop_rate_scheduled": 0.25, "lr": float("nan")}
    handle.log(row, step)
    row.clear()
    handle.log_histogram("scores", np.array([[1, np.nan], [2, np.inf]], np.float32), step)
    if tables:
        handle.log_table("most_dropped", ["token", "seen"], [["a", 1], ["b", 2]], step)
        handle.log_image("picture", np.full((2, 3, 3), 9, np.uint8), step)


def one_run(
    tracker, folder: Path, steps: list[int], end: str = "done", resumed: bool = False, tables: bool = False,
    pause: bool = False, kill: int = 0, wait: bool = False, run_id: str = "abcd1234",
) -> dict:  # fmt: skip
    """Log `steps`. After the first, pause: wait for a line on stdin; kill: signal wandb's process. wait: last
    until the tracker has said where it logs, as a run of more than seconds does."""
    said, slowest = [], 0.0
    tags = ("a", "b" * 90, "a", "")
    info = RunInfo("my-slug", "g", "train", tags, run_id, CONFIG, folder, resumed, said.append)
    begun = finished = time.perf_counter()
    try:
        with tracker.start(info) as handle:
            started = time.perf_counter() - begun
            for step in steps:
                before = time.perf_counter()
                log_step(handle, step, tables)
                slowest = max(slowest, time.perf_counter() - before)
                if pause and step == steps[0]:
                    print("paused", flush=True)
                    sys.stdin.readline()
                if kill and step == steps[0]:
                    os.kill(core_process(), kill)
                    time.sleep(0.2)
            while wait and not any(line.startswith("wandb: offline") for line in said):
                time.sleep(0.05)
            handle.summary({"best/step": 3})
            finished = time.perf_counter()
            if ENDS[end]:
                raise ENDS[end]
    except BaseException as error:
        if error is not ENDS[end]:
            raise
    over = time.perf_counter() - finished
    return {"start": started, "slowest": slowest, "end": over, "said": said, "time": time.time()}


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    component = instantiate(spec["tracker"])
    assert not {"wandb", "trackio"} & set(sys.modules), "imported before the start"
    before = dict(os.environ)
    for run in spec["runs"]:
        print(json.dumps(one_run(component, Path(spec["folder"]), **run)), flush=True)
    changed = {name for name in before | os.environ if before.get(name) != os.environ.get(name)}
    assert changed <= {"WANDB_SERVICE"}, changed
