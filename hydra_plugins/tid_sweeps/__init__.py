"""TID's sweeper and launcher, as Hydra wants them. What they do is in tid.sweep; importing this is quick."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


def sweep_settings(config: DictConfig) -> Any:
    """What a sweep goes by, as a tid.config.SweepConfig. Raises ConfigError."""
    from tid.config import SweepConfig, check

    return check({key: config[key] for key in SweepConfig.model_fields}, SweepConfig)


class CellLauncher(Launcher):
    """A launcher of TID's: `run_cells` brings cells to an end, each with its new `state`, and returns 0 or the number
    of the signal that stopped it."""

    here = False  # do the cells run on this machine?
    needs: str | None = None  # a package that is not installed with tid
    programs: tuple[str, ...] = ()  # that this machine must have
    run_cells: Callable[[list, Any], int]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from tid.config import ConfigError

        self.context, self.config, self.settings = hydra_context, config, sweep_settings(config)
        if self.settings.dry_run:
            return
        chosen = f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}"
        if self.needs and find_spec(self.needs) is None:
            raise ConfigError(f"{chosen}: needs {self.needs}; pip install {self.needs}")
        if missing := [program for program in self.programs if which(program) is None]:
            raise ConfigError(
                f"{chosen}: this machine has no {', '.join(missing)}; start the sweep on a login node of the cluster, "
                f"or leave out {chosen} to run it here"
            )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """For other sweepers than TID's. A job that failed returns the reason as an exception."""
        from tid.config import coerced, plain
        from tid.sweep.conduct import refuse
        from tid.sweep.plan import freeze, make_cells
        from tid.sweep.screen import Screen

        configs = []
        for job in job_overrides:
            composed = self.context.config_loader.load_sweep_config(self.config, list(job))
            configs.append(coerced({key: value for key, value in plain(composed).items() if key != "hydra"}))
        cells = make_cells(configs, [list(job) for job in job_overrides], self.settings.retry_failed)
        todo = [cell for cell in cells if cell.to_run]
        refuse(todo, self.here)
        for cell in todo:
            freeze(cell)
        if self.run_cells(todo, Screen(cells)):
            raise KeyboardInterrupt
        ended = {cell.folder: cell for cell in cells}
        return [job_return(job, config, ended) for job, config in zip(job_overrides, configs, strict=True)]


class LocalLauncher(CellLauncher):
    """Every run in a process of its own on this machine: see tid.sweep.pool.

    slots, slots_per_gpu, threads, retries: see conf/hydra/launcher/local.yaml.
    """

    here = True

    def __init__(self, slots: int | None, slots_per_gpu: int, threads: int, retries: int) -> None:
        from tid.config import ConfigError

        given = {"slots": slots, "slots_per_gpu": slots_per_gpu, "threads": threads, "retries": retries}
        for name, value in given.items():
            least = 0 if name == "retries" else 1
            if not (value is None and name == "slots") and (type(value) is not int or value < least):
                raise ConfigError(f"hydra.launcher.{name}: wanted a whole number of at least {least}, got {value!r}")
        self.slots, self.slots_per_gpu, self.threads, self.retries = slots, slots_per_gpu, threads, retries

    def run_cells(self, cells: list, screen: Any) -> int:
        from tid.sweep.pool import Pool, make_slots

        slots = make_slots(self.slots, self.slots_per_gpu, self.threads, self.config.device)
        return Pool(slots, self.threads, self.retries, self.settings.fail_fast, screen).run(cells)


class SlurmLauncher(CellLauncher):
    """Every run as a job of a SLURM cluster: see tid.sweep.on_slurm and conf/hydra/launcher/slurm.yaml."""

    needs = "submitit"
    programs = ("sbatch", "srun", "squeue", "scancel")

    def __init__(self, **parameters: Any) -> None:
        self.parameters = {name: as_python(value) for name, value in parameters.items()}

    def run_cells(self, cells: list, screen: Any) -> int:
        from tid.sweep.carry import Carrier
        from tid.sweep.on_slurm import Slurm

        return Carrier(Slurm(**self.parameters), self.settings.fail_fast, screen).run(cells)


class RayLauncher(CellLauncher):
    """Every run as a task of a Ray cluster: see tid.sweep.on_ray and conf/hydra/launcher/ray_cluster.yaml."""

    needs = "ray"

    def __init__(self, ray: Any) -> None:
        self.ray = as_python(ray)

    def run_cells(self, cells: list, screen: Any) -> int:
        from tid.sweep.carry import Carrier
        from tid.sweep.on_ray import Ray

        return Carrier(Ray(**self.ray), self.settings.fail_fast, screen).run(cells)


def as_python(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def job_return(job: Sequence[str], config: dict, cells: dict) -> JobReturn:
    """What Hydra wants to hear of a job."""
    from tid.config import run_folder

    cell = cells[run_folder(config)]
    good = cell.state in ("done", "pruned")
    ret = JobReturn(overrides=job, cfg=OmegaConf.create(config), working_dir=str(cell.folder))
    ret.status = JobStatus.COMPLETED if good else JobStatus.FAILED
    ret.return_value = str(cell.folder) if good else RuntimeError(f"{cell.label}: {cell.reason or cell.state}")
    return ret


class CellSweeper(Sweeper):
    """Every combination of the values given, each run once: see tid.sweep.

    search: the options of a search, which a sweep's YAML may bring along; nothing goes by them here."""

    def __init__(self, params: dict, **search: Any) -> None:
        self.params = OmegaConf.to_container(params) if OmegaConf.is_config(params) else dict(params)
        self.options = search

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.settings = config, sweep_settings(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.here = getattr(self.launcher, "here", False)

    def sweep(self, arguments: list[str]) -> list[str]:
        """Run the sweep; returns its runs' folders."""
        from tid.logs import write_text
        from tid.sweep import conduct, grid
        from tid.sweep.plan import sweep_folder

        combinations = grid.combinations(grid.settings_of(self.params, arguments))
        folder = sweep_folder(self.settings)
        composed, file = grid.compose_all(
            self.config.hydra.job.config_name, combinations, folder / ".sweep" / "composed"
        )

        def remember(cells: list) -> None:
            # Where experiments are swept all runs may be elsewhere: then no folder is made here for this alone.
            if file and any(sweep_folder(cell.settings) == folder for cell in cells):
                write_text(file, composed.as_json())

        cells = conduct.conduct(composed, self.settings, self.launch, self.here, remember)
        return [str(cell.folder) for cell in cells]

    def launch(self, cells: list, screen: Any) -> int:
        if isinstance(self.launcher, CellLauncher):
            return self.launcher.run_cells(cells, screen)
        return launch_elsewhere(self.launcher, cells, screen)


class OptunaSweeper(CellSweeper):
    """A search by Optuna over the keys with several values or an interval; the seeds of a trial are averaged over.

    params, sampler, sampler_seed, n_trials, trials_at_once, objective: see conf/hydra/sweeper/optuna.yaml.
    """

    def sweep(self, arguments: list[str]) -> list[str]:
        """Run the search; returns the folders of its runs."""
        from tid.sweep import conduct, grid
        from tid.sweep.plan import sweep_folder
        from tid.sweep.screen import Screen
        from tid.sweep.search import Search, what_is_common
        from tid.sweep.space import Space
        from tid.sweep.trials import report

        settings, screen, folder, runs = self.settings, Screen([]), sweep_folder(self.settings), {}
        composer = grid.Composer(self.config.hydra.job.config_name)
        space = Space(grid.settings_of(self.params, arguments), composer, settings.retry_failed)
        search = Search(
            settings.name, folder / ".sweep", space.axes, **self.options,
            common=what_is_common(*space.first(), space.seeds),
            fail_fast=settings.fail_fast, retry_failed=settings.retry_failed,
        )  # fmt: skip
        found = space.check()
        conduct.refuse_slow(list({cell.size: cell for cell in found}.values()), self.here and not settings.dry_run)
        study = search.open(make=not settings.dry_run)
        for line in [search.introduction(len(space.seeds)), *space.applying.remarks(), *conduct.warnings(found)]:
            screen.say(line)
        if study is None:
            return []

        def cells_of(chosen: list[str]) -> list:
            cells = space.cells(chosen)
            conduct.refuse_slow(cells, self.here)
            return cells

        def launch(cells: list) -> int:
            runs.update((cell.name, str(cell.folder)) for cell in cells)
            return conduct.start(cells, settings.question, self.launch, Screen(cells))

        stopped = search.run(study, cells_of, launch, screen.say)
        screen.say(report(study, search.objective))
        screen.say(f"study: {search.storage}\n{space.advice(study, settings)}")
        screen.uploading(map(Path, runs.values()))
        leave_unless_good(search, study, stopped, screen)
        return list(runs.values())


def leave_unless_good(search: Any, study: Any, stopped: int, screen: Any) -> None:
    """SystemExit after a search that the signal of that number has `stopped`, that gave up, or without any result."""
    from tid.sweep import conduct
    from tid.sweep.trials import has_result

    if stopped:
        screen.say(f"the same command goes on where it stopped: {conduct.command()}")
        raise SystemExit(128 + stopped)
    if search.gave_up or not has_result(study):
        raise SystemExit(conduct.FAILED)


WORKER_KILLED = (
    "a worker process was killed, by the system if memory ran out, and joblib then ends all others. What is done stays "
    "done, the rest goes on from its checkpoints. Fewer at a time need less memory (hydra.launcher.n_jobs); "
    "hydra/launcher=local loses only the run that is killed."
)


def launch_elsewhere(launcher: Launcher, cells: list, screen: Any) -> int:
    """Run the cells by a launcher that knows nothing of cells: it is given only the name of each frozen file. Returns
    0, or the number of the signal that stopped it."""
    from tid.sweep.plan import look

    jobs = [
        [f"cell='{cell.frozen.resolve()}'", f"name={cell.settings.name}", f"output_dir='{cell.settings.output_dir}'"]
        for cell in cells
    ]
    returns, stopped, trouble = [], 0, ""
    try:
        returns = launcher.launch(jobs, initial_job_idx=0)
    except KeyboardInterrupt:
        stopped = signal.SIGINT
    except BrokenExecutor:
        screen.say(WORKER_KILLED)
        stopped = signal.SIGKILL
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    for number, cell in enumerate(cells):
        ret = returns[number] if number < len(returns) else None
        if look(cell).state not in ("done", "pruned") and not stopped:
            said = str(ret._return_value) if ret is not None and ret.status == JobStatus.FAILED else ""
            cell.state, cell.reason = "failed", trouble or said or cell.reason or "it ended without a result"
    return stopped


PLUGINS = (LocalLauncher, SlurmLauncher, RayLauncher, CellSweeper, OptunaSweeper)


def register() -> None:
    """Make them known to Hydra, whose own search misses them when tid is installed by pip install -e."""
    known = Plugins.instance()
    for plugin in PLUGINS:
        known.register(plugin)
    # hydra-optuna-sweeper, if that is installed, has an option of the same name, which would be merged with ours.
    ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)
