"""hydra/launcher=ray_cluster on a cluster of two nodes, which tests/cluster/ray starts on this machine."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import runs

import sweeps
from sweeps import said, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
SCRIPT = Path(__file__).with_name("ray")
SWEEP = ["scorer=entropy", "seed=0", "total_steps=200", "eval_every=100", "checkpoint_every=10", "log_every=10"]


@pytest.fixture(scope="module")
def ray():
    """The settings that name a running cluster of two nodes with one CPU each."""
    pytest.importorskip("ray")
    folder = tempfile.mktemp(prefix="tid-ray-", dir="/tmp")  # the paths of Ray's sockets must be short
    try:
        started = subprocess.run(
            [SCRIPT, "start", folder], env=sweeps.environment(PYTHON=sys.executable), capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        yield ["hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={started.stdout.strip()}"]
    finally:
        subprocess.run([SCRIPT, "stop", folder], capture_output=True, timeout=60)
        assert not Path(folder).exists()


def consoles(folder: Path) -> list[str]:
    """What each run's process said. Its first line is what Ray told the worker of itself."""
    return [file.read_text() for file in (folder / "outputs/reference/.sweep/logs").glob("*.log")]


def statuses(folder: Path) -> list[Path]:
    return list((folder / "outputs/reference").glob("*/status.json"))


def begin(folder: Path, *settings: str) -> subprocess.Popen:
    """Start the sweep of SWEEP, and wait until its run has made 20 steps."""
    process = sweeps.begin(folder, *SWEEP, *settings)
    until(lambda: process.poll() is not None or max(sweeps.steps(folder), default=0) >= 20)
    assert process.poll() is None, said(folder)
    return process


def assert_as(undisturbed: Path, folder: Path) -> None:
    """The same run and the same rows."""
    (mine,), (theirs,) = ([file.parent for file in statuses(where)] for where in (folder, undisturbed))
    assert mine.name == theirs.name
    assert runs.metrics(mine) == runs.metrics(theirs)


def test_both_nodes_run_cells_and_one_that_fails_is_reported_alone(ray, folder):
    cells = ["scorer=none", "optim.warmup_steps=1", "optim.lr=1e-2,1e30", "seed=0,1,2"]
    ended = sweeps.sweep(folder, *ray, *cells, "hydra.launcher.ray.remote.num_gpus=1", timeout=250)
    assert ended.returncode == 1 and "6 runs: 3 done, 3 failed" in ended.stderr, ended.stderr
    assert re.search(r"FAILED: no_drop optim.lr=1e\+30 seed=0: loss .* not finite", ended.stderr), ended.stderr
    nodes = {re.match(r"Ray node ([0-9a-f]{56}), worker", text)[1] for text in consoles(folder)}
    assert len(consoles(folder)) == 6 and len(nodes) == 2
    given = {runs.read(file.parent, "status.json")["cuda_visible_devices"] for file in statuses(folder)}
    assert given == {"0"}  # each node's only GPU


def test_a_cell_whose_worker_is_killed_goes_on_elsewhere(ray, undisturbed, folder):
    process = begin(folder, *ray)
    ((_, pid),) = sweeps.pids(folder).items()
    sweeps.kill(pid)
    assert process.wait(timeout=150) == 0, said(folder)
    (console,) = consoles(folder)
    assert console.count("Ray node") == 2 and "resumes at step" in console
    assert_as(undisturbed, folder)


def test_a_cell_whose_worker_is_killed_too_often_is_reported_and_resumes(ray, undisturbed, folder):
    process = begin(folder, *ray, "hydra.launcher.ray.remote.max_retries=0")
    ((_, pid),) = sweeps.pids(folder).items()
    sweeps.kill(pid)
    assert process.wait(timeout=90) == 1, said(folder)
    assert "ended without a result: WorkerCrashedError" in said(folder), said(folder)
    again = sweeps.sweep(folder, *SWEEP, *ray, timeout=150)
    assert again.returncode == 0 and "resumes at step" in again.stderr, again.stderr
    assert_as(undisturbed, folder)


def test_ctrl_c_lets_the_running_cell_save_and_the_same_command_resumes(ray, undisturbed, folder):
    process = begin(folder, *ray, "checkpoint_every=200")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130, said(folder)
    assert list(sweeps.states(folder).values()) == ["preempted"]
    again = sweeps.sweep(folder, *SWEEP, *ray, timeout=150)
    assert again.returncode == 0 and "resumes at step" in again.stderr, again.stderr
    assert_as(undisturbed, folder)
