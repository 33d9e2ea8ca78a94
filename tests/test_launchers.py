"""The launchers that are packages of their own: the same frozen cells, carried elsewhere."""

import os
import signal
import subprocess
import sys
import time

import pytest

import sweeps

FOUR = ["scorer=entropy,none", "seed=0,1"]


def test_joblib_runs_frozen_cells_and_says_which_failed(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "scorer=none", "optim.warmup_steps=1"]
    done = sweeps.sweep(tmp_path, *joblib, "optim.lr=1e-2,1e30")
    assert done.returncode == 1 and "2 runs: 1 done, 1 failed" in done.stderr, done.stderr
    assert "FAILED: no_drop optim.lr=1e+30 seed=0: loss" in done.stderr
    again = sweeps.sweep(tmp_path, *joblib, "optim.lr=1e-2")
    assert again.returncode == 0 and "nothing is left to run" in again.stderr


@pytest.fixture
def ray_cluster(tmp_path):
    """The address of a cluster of two nodes on this machine, each with one CPU."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    head = [*command, "--head", "--port=6397", "--include-dashboard=false", "--temp-dir=/tmp/tid-ray"]
    nodes = []
    try:
        for words in (head, [*command, "--address=127.0.0.1:6397"]):
            said = open(tmp_path / f"node{len(nodes)}", "w")  # noqa: SIM115
            nodes.append(
                subprocess.Popen(words, env=sweeps.environment(), stdout=said, stderr=said, start_new_session=True)
            )
            until_started(tmp_path / f"node{len(nodes) - 1}")
        yield "127.0.0.1:6397"
    finally:
        for node in reversed(nodes):
            node.terminate()  # with --block it takes all that it has started with it
        for node in nodes:
            try:
                node.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)


def until_started(file) -> None:
    end = time.monotonic() + 60
    while "Ray runtime started" not in file.read_text():
        assert time.monotonic() < end, file.read_text()
        time.sleep(0.2)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_ray_runs_cells_on_both_nodes(tmp_path, ray_cluster):
    done = sweeps.sweep(
        tmp_path, *FOUR, "hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={ray_cluster}", timeout=200
    )
    assert done.returncode == 0 and "4 runs: 4 done" in done.stderr, done.stderr
    assert list(sweeps.states(tmp_path).values()) == ["done"] * 4


@pytest.mark.cluster
def test_submitit_runs_cells_as_jobs_of_this_machine(tmp_path):
    """Its jobs are SLURM's in all but who starts them."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = sweeps.sweep(tmp_path, *FOUR, "hydra/launcher=submitit_local")
    assert done.returncode == 0 and "4 runs: 4 done" in done.stderr, done.stderr
