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
    """Every combination of the values given, each run once: see tid.sweep."""

    def __init__(self, params: dict) -> None:
        self.params = OmegaConf.to_container(params) if OmegaConf.is_config(params) else dict(params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.settings = config, sweep_settings(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[str]:
        """Run the sweep; returns its runs' folders."""
        from tid.logs import write_text
        from tid.sweep import conduct, grid
        from tid.sweep.plan import sweep_folder

        settings = grid.combinations(grid.settings_of(self.params, arguments))
        cache = sweep_folder(self.settings) / ".sweep" / "composed"
        configs, file = grid.compose_all(self.config.hydra.job.config_name, settings, cache)

        def remember() -> None:
            if file:
                import json

                write_text(file, json.dumps(configs))

        here = getattr(self.launcher, "here", False)
        cells = conduct.conduct(configs, settings, self.settings, self.launch, here, remember)
        return [str(cell.folder) for cell in cells]

    def launch(self, cells: list, screen: Any) -> int:
        if isinstance(self.launcher, CellLauncher):
            return self.launcher.run_cells(cells, screen)
        return launch_elsewhere(self.launcher, cells, screen)


class OptunaSweeper(CellSweeper):
    """A search by Optuna over the keys with several values or an interval; the seeds of a trial are averaged over.

    params, sampler, sampler_seed, n_trials, trials_at_once, objective: see conf/hydra/sweeper/optuna.yaml.
    """

    def __init__(self, params: dict, **search: Any) -> None:
        super().__init__(params)
        self.options = search

    def sweep(self, arguments: list[str]) -> list[str]:
        """Run the search; returns the folders of its runs."""
        from tid.sweep import conduct, grid
        from tid.sweep.plan import make_cells, sweep_folder
        from tid.sweep.screen import Screen
        from tid.sweep.search import Search, report, what_is_common

        fixed, space, seeds = grid.search_space(grid.settings_of(self.params, arguments))
        composer = grid.Composer(self.config.hydra.job.config_name)
        first = [*fixed, *grid.first_values(space), seeds[0]]
        composed = composer(first)
        common = what_is_common(composed, seeds)
        folder = sweep_folder(self.settings)
        search = Search(self.settings.name, folder / ".sweep", space, **self.options, common=common)
        here, runs = getattr(self.launcher, "here", False), {}

        def cells_of(settings: list[str]) -> list:
            meant = [[*fixed, *settings, seed] for seed in seeds]
            configs = [composer(words) | {"label": " ".join([*settings, words[-1]])} for words in meant]
            cells = make_cells(configs, meant, self.settings.retry_failed)
            conduct.refuse(cells, here)
            return cells

        def launch(cells: list) -> int:
            runs.update((cell.name, str(cell.folder)) for cell in cells)
            return conduct.start(cells, self.settings.question, self.launch, Screen(cells))

        conduct.refuse(make_cells([composed], [first], retry_failed=False), here and not self.settings.dry_run)
        study = search.open(make=not self.settings.dry_run)
        screen = Screen([])
        screen.say(f"search of {', '.join(space)}: {search.n_trials} trials of {len(seeds)} seeds by {search.sampler}")
        if self.settings.dry_run:
            return []
        stopped = search.run(study, cells_of, launch)
        screen.say(report(study, search.objective))
        screen.say(f"study: {search.storage}\n{conduct.compare_command([folder])}")
        screen.uploading(map(Path, runs.values()))
        leave_unless_good(study, stopped, screen)
        return list(runs.values())


def leave_unless_good(study: Any, stopped: int, screen: Any) -> None:
    """SystemExit after a search that the signal of that number has `stopped`, or none of whose trials has a result."""
    from tid.sweep import conduct

    if stopped:
        screen.say(f"the same command goes on where it stopped: {conduct.command()}")
        raise SystemExit(128 + stopped)
    if not any(trial.value is not None for trial in study.trials):
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
