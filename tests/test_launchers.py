"""Where a sweep's cells run: slots and GPUs of this machine, and joblib. Clusters: tests/cluster."""

import json
import os
import re
import signal
import sys
import time

import pytest
import torch

import sweeps
from tid.config import ConfigError
from tid.logs import read_status, write_text
from tid.sweep import carry, on_slurm, pool
from tid.sweep import cell as child
from tid.sweep.plan import freeze
from tid.sweep.screen import Screen


@pytest.mark.slow
def test_joblib_runs_frozen_cells_and_says_which_failed(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "scorer=none", "optim.warmup_steps=1"]
    done = sweeps.sweep(tmp_path, *joblib, "optim.lr=1e-2,1e30")
    assert done.returncode == 1 and "2 runs: 1 done, 1 failed" in done.stderr, done.stderr
    assert "FAILED: no_drop optim.lr=1e+30 seed=0: loss" in done.stderr
    monkeypatch.chdir(tmp_path)
    assert [cell.state for cell in sweeps.cells(tmp_path, *joblib[2:], "optim.lr=1e-2,1e30")] == ["done", "failed"]


@pytest.mark.slow
def test_a_killed_worker_of_joblib_leaves_a_sweep_that_the_same_command_finishes(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "scorer=none", "seed=0,1,2,3", "total_steps=100"]
    begun = sweeps.begin(tmp_path, *sweep, "checkpoint_every=10")
    sweeps.until(lambda: any("seed2" in name for name in sweeps.pids(tmp_path)))
    sweeps.kill(next(pid for name, pid in sweeps.pids(tmp_path).items() if "seed2" in name))
    assert begun.wait(30) == 128 + signal.SIGKILL
    said = sweeps.said(tmp_path)
    assert "a worker process was killed" in said and "Traceback" not in said
    assert re.search(r"4 runs: [12] done, [^f]*\nthe same command goes on where it stopped: ", said), said
    again = sweeps.sweep(tmp_path, *sweep, "checkpoint_every=10")
    assert again.returncode == 0 and "4 runs: 4 done" in again.stderr, again.stderr


class Processes:
    """The least cluster there is: its jobs are processes of this machine."""

    look_seconds = 0.2

    def __init__(self, *instead: tuple) -> None:
        self.instead = instead  # of training: what each job calls, and with what

    def submit(self, cells: list) -> dict:
        self.jobs = {}
        for cell, (target, *arguments) in zip(cells, self.instead, strict=True):
            words = arguments or [str(cell.frozen), str(cell.console), None, 1]
            with pool.empty_main():
                process = pool.forkserver().Process(target=target, args=words)
                process.start()
            self.jobs[cell.label] = process
        return dict(zip(self.jobs, cells, strict=True))

    def states(self, jobs) -> dict:
        alive = {job: self.jobs[job].is_alive() for job in jobs}
        return {job: carry.RUNNING if alive[job] else f"exit code {self.jobs[job].exitcode}" for job in jobs}

    def cancel(self, jobs) -> None:
        for job in jobs:
            self.jobs[job].terminate()


def carried(folder, *settings: str, instead: list[tuple], fail_fast: bool = False) -> tuple[int, list]:
    cells = sweeps.cells(folder, *settings)
    for cell in cells:
        freeze(cell)
    return carry.Carrier(Processes(*instead), fail_fast, Screen(cells)).run(cells), cells


def test_a_cluster_s_jobs_are_followed_each_to_its_own_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(carry, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(carry, "TICK_SECONDS", 0.1)
    three = ["scorer=none", "optim.warmup_steps=1", "optim.lr=1e-2,1e30,1e-3"]
    stopped, cells = carried(tmp_path, *three, instead=[(child.run,), (child.run,), (signal.raise_signal, 9)])
    assert stopped == 0 and [cell.state for cell in cells] == ["done", "failed", "failed"]
    assert "not finite" in cells[1].reason
    assert cells[2].reason == "job no_drop optim.lr=0.001 seed=0 ended without a result: exit code -9"


def test_a_failure_elsewhere_stops_the_others_when_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(carry, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(carry, "TICK_SECONDS", 0.1)
    instead = [(os._exit, 1), (time.sleep, 60)]
    stopped, cells = carried(tmp_path, "scorer=none", "seed=0,1", instead=instead, fail_fast=True)
    assert stopped == 0 and [cell.state for cell in cells] == ["failed", "new"]


def test_a_signal_while_jobs_are_handed_over_cancels_them_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(carry, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(carry, "TICK_SECONDS", 0.1)

    class Interrupted(Processes):
        def submit(self, cells: list) -> dict:
            jobs = super().submit(cells)
            signal.raise_signal(signal.SIGINT)
            return jobs

    cells, before = sweeps.cells(tmp_path, "scorer=none", "seed=0,1"), signal.getsignal(signal.SIGINT)
    cluster = Interrupted((time.sleep, 60), (time.sleep, 60))
    assert carry.Carrier(cluster, False, Screen(cells)).run(cells) == signal.SIGINT
    assert [process.exitcode for process in cluster.jobs.values()] == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGINT) is before


SLURM = {
    "srun": "#!/bin/sh",
    "sbatch": f"""#!{sys.executable}
import os, signal
for process in os.getppid(), os.getpid():
    os.kill(process, signal.SIGINT)
print("Submitted batch job 7")
""",
    "squeue": """#!/bin/sh
if [ -e cancelled ]; then echo "7 CANCELLED"; else echo "7 PENDING"; fi
""",
    "scancel": """#!/bin/sh
echo "$@" > cancelled
""",
}


def programs(folder, **scripts: str) -> str:
    """A PATH that begins with these scripts."""
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_ctrl_c_while_sbatch_is_at_work_leaves_no_job_behind(tmp_path, monkeypatch):
    """Ctrl-C is a SIGINT for every process of the terminal, here sent by sbatch itself: it may not die of it."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(carry, "SETTLE_SECONDS", 0.2)
    monkeypatch.setenv("PATH", programs(tmp_path, **SLURM))
    cells = sweeps.cells(tmp_path, "scorer=none")
    cluster = on_slurm.Slurm(str(tmp_path / "submitit"), 1)
    assert carry.Carrier(cluster, False, Screen(cells)).run(cells) == signal.SIGINT
    assert (tmp_path / "cancelled").read_text() == "7\n" and on_slurm.job_of(cells[0]) == "7"


def test_nothing_is_submitted_while_earlier_jobs_may_be_alive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", programs(tmp_path, **SLURM | {"squeue": "#!/bin/sh\nexit 1\n"}))
    (cell,) = sweeps.cells(tmp_path, "scorer=none")
    write_text(on_slurm.job_file(cell), json.dumps({"slurm": "7"}))
    with pytest.raises(ConfigError, match=r"(?s)squeue does not answer; cannot tell .* rm -r .*/\.sweep/jobs$"):
        on_slurm.Slurm(str(tmp_path / "submitit"), 1).submit([cell])
    assert not (tmp_path / "submitit").exists() and on_slurm.job_of(cell) == "7"


def test_slurm_s_words_for_a_job():
    assert {on_slurm.state_of(word) for word in ("PENDING", "CONFIGURING", "REQUEUE_HOLD")} == {carry.WAITING}
    assert {on_slurm.state_of(word) for word in ("RUNNING", "COMPLETING")} == {carry.RUNNING}
    assert on_slurm.state_of("OUT_OF_MEMORY") == "SLURM says OUT_OF_MEMORY"


@pytest.mark.parametrize("launcher", ["slurm", "ray_cluster"])
def test_a_launcher_without_its_cluster_is_refused_in_one_message(tmp_path, monkeypatch, launcher):
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun
    address = ["hydra.launcher.ray.init.address=127.0.0.1:1"] if launcher == "ray_cluster" else []
    refused = sweeps.sweep(tmp_path, "scorer=none", f"hydra/launcher={launcher}", *address)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
    assert re.search(rf"error: hydra/launcher={launcher}: (needs \w+; pip install|.*srun|.*refused)", refused.stderr)
    assert launcher == "ray_cluster" or not (tmp_path / "outputs").exists()  # Ray is asked once all is ready


# ---------------------------------------------------------------------------------------------- slots and GPUs


@pytest.mark.parametrize(
    "count, visible, names",
    [
        (0, None, []),
        (2, None, ["0", "1"]),
        (2, "2,3", ["2", "3"]),
        (2, " 3 , 0", ["3", "0"]),
        (1, "1,-1,0", ["1"]),  # CUDA stops at what does not exist
        (2, "GPU-8a1f0a54,GPU-77b9", ["GPU-8a1f0a54", "GPU-77b9"]),
        (1, "MIG-3f1c-52", ["MIG-3f1c-52"]),
        (0, "", []),  # the user hides them all
    ],
)
def test_gpus_keep_the_names_that_the_user_gave_them(count, visible, names):
    assert pool.visible_gpus(count, visible) == names


@pytest.mark.parametrize(
    "gpus, at_once, slots, slots_per_gpu, expected",
    [
        (["0", "1"], 16, None, 1, ["0", "1"]),
        (["2", "3"], 16, None, 2, ["2", "3", "2", "3"]),
        (["2", "3"], 16, 3, 1, ["2", "3", "2"]),
        (["GPU-a", "GPU-b"], 16, 1, 4, ["GPU-a"]),
        ([], 3, None, 2, [None, None, None]),
        ([], 0, None, 1, [None]),
        ([], 2, 5, 1, [None] * 5),
    ],
)
def test_slots_take_the_gpus_in_turn(gpus, at_once, slots, slots_per_gpu, expected):
    made = pool.assign(gpus, at_once, slots, slots_per_gpu)
    assert [slot.gpu for slot in made] == expected
    assert [slot.number for slot in made] == list(range(len(expected)))


def test_this_machines_slots_are_those_of_its_cores_when_cells_ask_for_no_gpu():
    assert {slot.gpu for slot in pool.make_slots(None, 2, 1, "cpu")} == {None}
    assert len(pool.make_slots(None, 2, 1, "cpu")) == len(os.sched_getaffinity(0))
    assert len(pool.make_slots(None, 2, 10_000, "cpu")) == 1


def test_a_cell_sees_the_gpu_of_its_slot_only(tmp_path, monkeypatch):
    """The processes are real, the GPUs need not be: the cells compute on the CPU and note what they were given."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,7")
    monkeypatch.chdir(tmp_path)
    slots = pool.assign(pool.visible_gpus(2, os.environ["CUDA_VISIBLE_DEVICES"]), 1, None, 1)
    cells = sweeps.cells(tmp_path, "scorer=none", "seed=0,1")
    for cell in cells:
        freeze(cell)
    assert pool.Pool(slots, threads=1, retries=0, fail_fast=False, screen=Screen(cells)).run(cells) == 0
    assert [cell.state for cell in cells] == ["done", "done"]
    given = [read_status(cell.folder) for cell in cells]
    assert [status["cuda_visible_devices"] for status in given] == ["GPU-a", "7"]
    assert [status["device"] for status in given] == ["cpu", "cpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("slots_per_gpu", [1, 2])
def test_four_cells_share_two_gpus_and_run_at_the_same_time(tmp_path, monkeypatch, slots_per_gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    two = [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in range(2)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(two))
    cells = ["scorer=entropy,none", "seed=0,1", "device=cuda", "compile=false", "total_steps=600", "eval_every=300"]
    process = sweeps.begin(tmp_path, *cells, f"hydra.launcher.slots_per_gpu={slots_per_gpu}")
    together = set()  # which runs were at work on which GPUs, whenever we looked
    while process.poll() is None:
        found = {name: status(tmp_path, name) for name in sweeps.pids(tmp_path)}
        together.add(tuple(sorted(s["device"] for s in found.values() if s.get("state") == "running")))
        time.sleep(0.02)
    said = (tmp_path / "sweep.out").read_text()
    assert process.returncode == 0 and "4 runs: 4 done" in said, said
    assert tuple(sorted(two * slots_per_gpu)) in together and max(map(len, together)) == 2 * slots_per_gpu
    for name in sweeps.states(tmp_path):
        assert status(tmp_path, name)["device"] == status(tmp_path, name)["cuda_visible_devices"]
        assert status(tmp_path, name)["device"] in two


def status(folder, name: str) -> dict:
    return read_status(folder / "outputs" / "reference" / name) or {}
