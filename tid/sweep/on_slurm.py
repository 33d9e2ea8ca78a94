"""Cells as jobs of a SLURM cluster. submitit writes the batch script and queues a job again that nears its time limit;
squeue, which needs no accounting, tells of the jobs."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tid.config import ConfigError
from tid.logs import write_text
from tid.sweep import cell as child
from tid.sweep.carry import RUNNING, WAITING
from tid.sweep.plan import Cell
from tid.sweep.stopping import not_now

OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
ON_NODE = ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED", "SIGNALING", "STAGE_OUT")


class Job:
    """What submitit carries to the node and calls there."""

    def __init__(self, frozen: Path, console: Path) -> None:
        self.frozen, self.console = str(frozen), str(console)

    def __call__(self) -> None:
        """Train the cell; the job's exit code is the cell's.

        SIGUSR2 means that the time limit is near. SIGTERM means that the job is preempted, requeued or cancelled.
        If SLURM has not yet decided so itself (it gives a time of grace, and a job that ends within it has just
        ended), this job queues itself again, by submitit's handler of SIGUSR2.
        """
        child.speak_into(Path(self.console))
        code = child.outcome(self.frozen, threads=int(os.environ.get("SLURM_CPUS_PER_TASK") or 1))
        if code == 128 + signal.SIGUSR2 or (code == 128 + signal.SIGTERM and still_running()):
            signal.raise_signal(signal.SIGUSR2)
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """What submitit shall run when the job is queued again: the same, which goes on where it had saved."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def still_running() -> bool:
    """Does SLURM mean this job to run on? A job that it cancels or requeues is COMPLETING at once."""
    import submitit

    # the number of an array's last job alone is also that of the whole array: submitit's is 12_3
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={submitit.JobEnvironment().job_id}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() == "RUNNING"


class Slurm:
    """The cluster that sbatch of this machine submits to.

    parameters: submitit's, see conf/hydra/launcher/slurm.yaml. A cell whose job of an earlier sweep still waits or
    runs is not submitted a second time.
    """

    look_seconds = 30.0

    def __init__(self, submitit_folder: str, max_num_timeout: int, **parameters: Any) -> None:
        self.folder, self.max_num_timeout = submitit_folder, max_num_timeout
        self.parameters = {f"slurm_{name}": value for name, value in parameters.items() if value is not None}

    def submit(self, cells: list[Cell]) -> dict[str, Cell]:
        listed = self.listed()
        if listed is None and any(map(job_of, cells)):
            where = shlex.quote(str(job_file(cells[0]).parent))
            raise ConfigError(
                "hydra/launcher=slurm: squeue does not answer; cannot tell whether jobs of an earlier sweep are alive\n"
                f"Try again when it does. If you know that none is: rm -r {where}"
            )
        alive = {job for job, state in (listed or {}).items() if state not in OVER}
        jobs = {job: cell for cell in cells if (job := job_of(cell)) in alive}
        known = {cell.name for cell in jobs.values()}
        new = [cell for cell in cells if cell.name not in known]
        for cell in new:
            cell.console.unlink(missing_ok=True)
        for cell, job in zip(new, self.sbatch(new) if new else [], strict=True):
            write_text(job_file(cell), json.dumps({"slurm": job}))
            jobs[job] = cell
        return jobs

    def sbatch(self, cells: list[Cell]) -> list[str]:
        """The job numbers of the cells; several are one array."""
        import submitit

        try:
            executor = submitit.AutoExecutor(self.folder, "slurm", slurm_max_num_timeout=self.max_num_timeout)
            executor.update_parameters(**self.parameters)
            with not_now(), executor.batch():  # an sbatch that is interrupted may have queued them, and does not say so
                jobs = [executor.submit(Job(cell.frozen.resolve(), cell.console.resolve())) for cell in cells]
            return [job.job_id for job in jobs]
        except (AssertionError, NameError, RuntimeError, ValueError, OSError) as error:  # submitit's ways to refuse
            said = [line for line in str(error).splitlines() if line.startswith("sbatch: error:")]
            raise ConfigError("hydra/launcher=slurm: " + ("\n".join(said) or str(error))) from None

    def listed(self) -> dict[str, str] | None:
        """This user's jobs and their states, of those that ended only the latest; None when squeue does not answer."""
        command = ["squeue", f"--user={os.getuid()}", "--array", "--states=all", "--noheader", "--format=%i %T"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return dict(line.split()[:2] for line in said.stdout.splitlines()) if said.returncode == 0 else None

    def states(self, jobs: Collection[str]) -> dict[str, str]:
        listed = self.listed()
        return {} if listed is None else {job: state_of(listed.get(job, "nothing of it any more")) for job in jobs}

    def cancel(self, jobs: Collection[str]) -> None:
        subprocess.run(["scancel", *jobs], capture_output=True)


def state_of(slurm: str) -> str:
    if slurm in OVER or " " in slurm:
        return f"SLURM says {slurm}"
    return RUNNING if slurm in ON_NODE else WAITING


def job_file(cell: Cell) -> Path:
    return cell.home / "jobs" / f"{cell.name}.json"


def job_of(cell: Cell) -> str | None:
    """The number of the job that the cell was last submitted as."""
    try:
        return json.loads(job_file(cell).read_text(encoding="utf-8"))["slurm"]
    except (OSError, ValueError, KeyError):
        return None
