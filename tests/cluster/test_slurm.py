"""hydra/launcher=slurm on a real SLURM, which tests/cluster/slurm starts on this machine: jobs that are preempted, run
out of time, fail, are killed or cancelled, and a sweep that loses its own process."""

import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
import runs

import sweeps
from sweeps import said, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
SCRIPT = Path(__file__).with_name("slurm")
SLURM = ["hydra/launcher=slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=1"]
SWEEP = ["scorer=entropy", "seed=0", "total_steps=300", "eval_every=100", "checkpoint_every=300", "log_every=10"]


@pytest.fixture(scope="module")
def slurm():
    """SLURM running, and this process's environment naming it."""
    pytest.importorskip("submitit")
    folder = tempfile.mktemp(prefix="tid-slurm-", dir="/tmp")  # tmp_path is nobody else's, which munged refuses
    with pytest.MonkeyPatch.context() as environment:
        try:
            started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, timeout=60)
            if started.returncode == 2:
                pytest.skip(started.stderr.strip())
            assert started.returncode == 0, started.stderr
            environment.setenv("SLURM_CONF", f"{folder}/slurm.conf")
            yield
        finally:
            subprocess.run([SCRIPT, "stop", folder], capture_output=True, timeout=60)
            assert not Path(folder).exists()


def run_of(folder: Path) -> Path:
    """The run of seed 0."""
    (run,) = (folder / "outputs/reference").glob("*-seed0-*/status.json")
    return run.parent


def jobs_of(folder: Path) -> set[str]:
    files = (folder / "outputs/reference/.sweep/jobs").glob("*.json")
    return {json.loads(file.read_text())["slurm"] for file in files}


def shown(job: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    text = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=True).stdout
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def console(folder: Path) -> str:
    """What the jobs of seed 0 said."""
    (file,) = (folder / "outputs/reference/.sweep/logs").glob("*-seed0-*.log")
    return file.read_text()


def begin(folder: Path, *settings: str) -> subprocess.Popen:
    """Start the sweep of SWEEP, and wait until its run has made 20 steps."""
    process = sweeps.begin(folder, *SWEEP, *SLURM, *settings)
    until(lambda: process.poll() is not None or max(sweeps.steps(folder), default=0) >= 20)
    assert process.poll() is None, said(folder)
    return process


def assert_as(undisturbed: Path, folder: Path) -> None:
    """The same folder, the same figures, the same rows."""
    mine, theirs = run_of(folder), run_of(undisturbed)
    assert mine.name == theirs.name
    assert runs.metrics(mine) == runs.metrics(theirs)
    assert runs.read(mine, "summary.json")["final"] == runs.read(theirs, "summary.json")["final"]


def test_a_job_ends_as_its_run_does(slurm, folder):
    ended = sweeps.sweep(folder, *SLURM, "scorer=none", "optim.warmup_steps=1", "optim.lr=1e-2,1e30")
    assert ended.returncode == 1 and "2 runs: 1 done, 1 failed" in ended.stderr, ended.stderr
    assert re.search(r"FAILED: no_drop optim.lr=1e\+30 seed=0: loss .* not finite", ended.stderr), ended.stderr
    states = [(shown(job)["JobState"], shown(job)["ExitCode"]) for job in sorted(jobs_of(folder))]
    assert states == [("COMPLETED", "0:0"), ("FAILED", "1:0")]
    given = [json.loads(file.read_text()) for file in (folder / "outputs/reference").glob("*/status.json")]
    assert {status["cuda_visible_devices"] for status in given} <= {"0", "1"}  # one of the node's two for each
    again = sweeps.sweep(folder, *SLURM, "scorer=none", "optim.warmup_steps=1", "optim.lr=1e-2")
    assert again.returncode == 0 and "nothing is left to run" in again.stderr


@pytest.mark.parametrize("partition, seeds", [("low", "0"), ("graceful", "0,1")])
def test_preempted_jobs_save_and_go_on_as_if_undisturbed(slurm, undisturbed, folder, partition, seeds):
    """low: SLURM requeues the job as it warns it. graceful: it leaves 20 seconds, and a job that ends in them has
    ended, so the job has to requeue itself. Two seeds are an array."""
    process = begin(folder, f"hydra.launcher.partition={partition}", f"seed={seeds}")
    urgent = ["--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(["sbatch", *urgent], check=True)
    assert process.wait(timeout=150) == 0, said(folder)
    for job in jobs_of(folder):
        assert (shown(job)["JobState"], shown(job)["Restarts"]) == ("COMPLETED", "1")
    assert "waits to go on: seed=0, job" in said(folder)
    assert list(sweeps.states(folder).values()) == ["done"] * len(seeds.split(","))
    (saved,) = re.findall(r"stopped by signal 15 at step (\d+)", console(folder))
    assert re.findall(r"resumes at step (\d+) in", console(folder)) == [saved]
    assert_as(undisturbed, folder)


def test_a_job_that_nears_its_time_limit_saves_and_goes_on(slurm, folder):
    """One minute is the shortest limit there is. SLURM looks at limits twice a minute and warns up to half a minute too
    early: with a longer delay the signal could come while a job is still starting, and kill it."""
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10"]
    process = begin(folder, *limit, "total_steps=1000000", "eval_every=1000000")
    (job,) = jobs_of(folder)
    until(lambda: "resumes at step" in console(folder), 150)
    (saved,) = re.findall(r"stopped by signal 12 at step (\d+)", console(folder))
    assert re.findall(r"resumes at step (\d+) in", console(folder)) == [saved]
    until(lambda: max(sweeps.steps(folder)) >= int(saved) + 20)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130, said(folder)
    assert (shown(job)["JobState"], shown(job)["Restarts"]) == ("CANCELLED", "1")
    steps = [row["step"] for row in runs.metrics(run_of(folder))]
    assert steps == list(range(10, steps[-1] + 1, 10))


def test_ctrl_c_cancels_the_jobs_which_save_and_the_same_command_resumes(slurm, undisturbed, folder):
    process = begin(folder)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130, said(folder)
    assert list(sweeps.states(folder).values()) == ["preempted"]
    (job,) = jobs_of(folder)
    assert shown(job)["JobState"] == "CANCELLED"
    again = sweeps.sweep(folder, *SWEEP, *SLURM)
    assert again.returncode == 0 and "resumes at step" in again.stderr, again.stderr
    assert_as(undisturbed, folder)


def test_a_sweep_that_was_lost_finds_its_jobs_again(slurm, undisturbed, folder):
    process = begin(folder)
    process.kill()
    process.wait()
    before = jobs_of(folder)
    again = sweeps.sweep(folder, *SWEEP, *SLURM)
    assert again.returncode == 0 and "1 runs: 1 done" in again.stderr, again.stderr
    assert jobs_of(folder) == before and "resumes" not in console(folder)
    assert_as(undisturbed, folder)


def test_a_job_whose_process_is_killed_is_reported_and_resumes(slurm, undisturbed, folder):
    process = begin(folder, "checkpoint_every=10")
    ((_, pid),) = sweeps.pids(folder).items()
    sweeps.kill(pid)
    assert process.wait(timeout=90) == 1
    (job,) = jobs_of(folder)
    assert f"job {job} ended without a result: SLURM says FAILED" in said(folder), said(folder)
    again = sweeps.sweep(folder, *SWEEP, *SLURM, "checkpoint_every=10")
    assert again.returncode == 0 and "resumes at step" in again.stderr, again.stderr
    assert_as(undisturbed, folder)


def test_what_sbatch_refuses_is_one_message(slurm, folder):
    refused = sweeps.sweep(folder, *SWEEP, *SLURM, "hydra.launcher.partition=nowhere")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
    assert "error: hydra/launcher=slurm: sbatch: error: invalid partition specified: nowhere" in refused.stderr
