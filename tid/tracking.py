"""Where a run's curves go besides its own folder: Weights & Biases, trackio or nowhere.

    with tracker.start(RunInfo(...)) as handle:
        handle.log({"step": 50, "train_loss": 7.1, ...}, step=50)

Leaving the ``with`` block by an exception marks the run as failed, killed or preempted. How a tracker is kept
from holding a run up: see tid.handle. ``check()`` is called before data are made and anything is written.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tid.component import component
from tid.config import ConfigError
from tid.handle import CHARTS, Handle, RunInfo, first_line, tracking
from tid.offline import PARTS
from tid.signals import STOPPED


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Environment variables for the ``with`` block; None removes one."""
    before = {name: os.environ.get(name) for name in values}
    put_environment(values)
    try:
        yield
    finally:
        put_environment(before)


def put_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@component
class NoTracker:
    """No tracker: only the run's own logs."""

    def check(self) -> None:
        """There is nothing to find wrong."""

    @contextmanager
    def start(self, run: RunInfo) -> Iterator[Handle]:
        yield Handle(run)


# ------------------------------------------------------------------------------------------------ wandb


@component
class Wandb:
    """Weights & Biases (wandb.ai). Files go to <run folder>/wandb.

    mode: auto does what WANDB_MODE says, and without it means online. Online needs a key (`wandb login`, or
    WANDB_API_KEY) and a server that answers within `timeout_seconds`; else the run is logged offline, and a
    line says how to upload it later. `timeout_seconds` is also how long the end waits for the last uploads.
    """

    project: Annotated[str, Field(min_length=1)]
    entity: str | None
    mode: Literal["auto", "online", "offline", "disabled"]
    x_axis: Literal["tokens", "step"]
    timeout_seconds: Annotated[float, Field(gt=0, le=8)]

    def check(self) -> None:
        """Raise ConfigError when WANDB_MODE is to be heeded and is no mode."""
        self.chosen_mode()

    @contextmanager
    def start(self, run: RunInfo) -> Iterator[Handle]:
        mode = self.chosen_mode()
        if mode == "disabled":
            run.say("wandb: disabled")
            yield Handle(run)
            return
        # wandb's own telemetry waits 10 s at exit for a server that does not answer. Tables wait for their
        # upload in WANDB_DATA_DIR, by default in the home directory.
        quiet = os.environ.get("WANDB_ERROR_REPORTING", "false")
        data = os.environ.get("WANDB_DATA_DIR", str(run.folder.resolve() / "wandb" / "data"))
        with (
            environment(WANDB_ERROR_REPORTING=quiet, WANDB_DATA_DIR=data),
            tracking(WandbHandle(run, self, mode)) as handle,
        ):
            yield handle

    def chosen_mode(self) -> str:
        """mode, or for auto what WANDB_MODE says; ConfigError when that is no mode of wandb's."""
        if self.mode != "auto":
            return self.mode
        known = {"": "online", "online": "online", "run": "online", "shared": "online",
                 "offline": "offline", "dryrun": "offline", "disabled": "disabled"}  # fmt: skip
        said = os.environ.get("WANDB_MODE", "")
        if said.lower() not in known:
            raise ConfigError(f"WANDB_MODE: wanted online, offline or disabled, got {said!r}; unset it")
        return known[said.lower()]


class WandbHandle(Handle):
    title = "wandb"

    def __init__(self, run: RunInfo, options: Wandb, mode: str) -> None:
        super().__init__(run)
        self.options, self.mode = options, mode

    def open(self) -> None:
        import wandb

        self.library = wandb
        wandb.setup(self.settings(mode=self.mode))
        why = "as asked" if self.mode == "offline" else self.go_online()
        if self.session is None:
            self.session = self.init("offline")
        where = f"offline, {why}; upload it with: {self.sync_command()}" if why else self.session.url
        self.run.say(f"wandb: {where}")
        self.define_metrics()

    def go_online(self) -> str:
        """Set `session` if the server takes the run. Otherwise say why not."""
        server = self.library.setup().settings.base_url
        folders = set((self.run.folder / "wandb").glob("run-*"))
        try:
            if not self.library.login(verify=False, prompt=False):
                return f"no API key for {server} (wandb login)"
            self.session = self.init("online")
        except Exception as error:
            with contextlib.suppress(BaseException):
                self.library.teardown()  # else the id is in use
            for folder in set((self.run.folder / "wandb").glob("run-*")) - folders:
                shutil.rmtree(folder, ignore_errors=True)  # no more than a header
            return f"since {server} did not take the run ({first_line(error)})"
        return ""

    def init(self, mode: str) -> Any:
        run, options = self.run, self.options
        return self.library.init(
            project=options.project, entity=options.entity, mode=mode, dir=str(run.folder.resolve()),
            id=run.run_id, resume="allow", name=run.name, group=run.group, job_type=run.job_type,
            notes=run.notes or None, tags=list(dict.fromkeys(tag[:64] for tag in run.tags if tag)), config=run.config,
            reinit="create_new", settings=self.settings(mode=mode),
        )  # fmt: skip

    def settings(self, **more: Any) -> Any:
        seconds = self.options.timeout_seconds
        limits = {"init_timeout": seconds, "finish_timeout": seconds, "finish_timeout_raises": True}
        return self.library.Settings(silent=True, console="off", **limits, **more)

    def define_metrics(self) -> None:
        axis = self.options.x_axis
        self.session.define_metric(axis)
        for group in sorted({name.split("/")[0] for name in CHARTS.values()}):
            best = {"summary": "min"} if group == "val" else {}
            self.session.define_metric(f"{group}/*", step_metric=axis, **best)

    def sync_command(self) -> str:
        """Of an offline run all parts, those of earlier sittings too: see tid.offline."""
        if self.session.offline:
            return f"wandb sync {shlex.quote(str(self.run.folder))}/{PARTS}-{self.run.run_id}"
        return f"wandb sync --include-online {shlex.quote(str(Path(self.session.dir).parent))}"

    def summarise(self, values: dict[str, Any]) -> None:
        self.session.summary.update(values)

    def finish(self, code: int) -> None:
        command = self.sync_command()
        try:
            if code in STOPPED:
                self.session.mark_preempting()
            self.session.finish(exit_code=code)
            if self.session.offline:  # said at the start, hours ago
                self.run.say(f"wandb: logged offline; upload it with: {command}")
        except BaseException as error:
            self.run.say(f"wandb: not all was uploaded ({first_line(error)}); upload it with: {command}")
            with contextlib.suppress(BaseException):
                self.library.teardown()  # else its atexit hook fails, or waits, once more

    def abandon(self) -> None:
        end_service(self.library)


def end_service(wandb: Any) -> None:
    """Kill wandb's own process, for which its hook at exit waits, however long the server keeps it waiting."""
    with contextlib.suppress(AttributeError):  # of wandb 0.31
        wandb.setup()._connection._proc._process.kill()
    with contextlib.suppress(BaseException):
        wandb.teardown()


@contextmanager
def asking(seconds: int = 8) -> Iterator[str]:
    """For the ``with`` block W&B's public API can be asked, each question for at most `seconds`; yields the user's
    default entity. What goes wrong in it, a missing login or network above all, becomes a ConfigError."""
    limits = {"WANDB_HTTP_TIMEOUT": str(seconds), "WANDB_X_GRAPHQL_RETRY_MAX": "0"}  # else its end waits for a minute
    limits |= {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    with environment(**{name: os.environ.get(name, value) for name, value in limits.items()}):
        import wandb  # reads the time limit now

        server = wandb.setup().settings.base_url
        try:
            if not wandb.login(verify=False, prompt=False):
                raise ConfigError(f"no API key for {server}: wandb login, or set WANDB_API_KEY")
            yield wandb.Api().default_entity
        except ConfigError:
            raise
        except Exception as error:
            end_service(wandb)
            silent = "did not respond in time" in str(error)  # wandb's words for a server that does not answer
            why = f"no answer within {os.environ['WANDB_HTTP_TIMEOUT']} s" if silent else first_line(error)
            raise ConfigError(f"{server} did not take it: {why}; are server, network and key right?") from None


# ------------------------------------------------------------------------------------------------ trackio


@component
class Trackio:
    """trackio: a dashboard on this machine, with no account and no network. All runs of `project` are in one
    database in `dir`, unless TRACKIO_DIR names another folder."""

    project: Annotated[str, Field(min_length=1)]
    dir: Annotated[str, Field(min_length=1)]

    def check(self) -> None:
        """Raise ConfigError when the package is missing."""
        if importlib.util.find_spec("trackio") is None:
            raise ConfigError(
                "tracker=trackio needs the package trackio, which is not installed.\n"
                "Install it (pip install trackio), or choose tracker=wandb or tracker=none."
            )

    @contextmanager
    def start(self, run: RunInfo) -> Iterator[Handle]:
        folder = os.environ.get("TRACKIO_DIR", str(Path(self.dir).resolve()))
        local = {"TRACKIO_SPACE_ID": None, "TRACKIO_SERVER_URL": None}
        with environment(TRACKIO_DIR=folder, **local), tracking(TrackioHandle(run, self)) as handle:
            yield handle


class TrackioHandle(Handle):
    title = "trackio"

    def __init__(self, run: RunInfo, options: Trackio) -> None:
        super().__init__(run)
        self.options = options
        self.last_step = -1  # of those logged before this start
        self.step = 0

    def open(self) -> None:
        import trackio
        from huggingface_hub import constants
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR  # set when trackio was first imported

        run, project = self.run, self.options.project
        name = run.name if run.run_id in run.name else f"{run.name}-{run.run_id}"
        config = {key: value for key, value in run.config.items() if not key.startswith("_")}
        resume = "allow" if run.resumed else "never"
        online, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:  # else the hub is asked for the user's name, without a time limit
            with contextlib.redirect_stdout(io.StringIO()):
                session = trackio.init(project, name, run.group, config=config, resume=resume, embed=False)
        finally:
            constants.HF_HUB_OFFLINE = online
        if run.resumed:
            last = SQLiteStorage.get_max_step_for_run(project, name, run_id=session.id)
            self.last_step = -1 if last is None else last
        self.library, self.session = trackio, session
        show = f"TRACKIO_DIR={shlex.quote(str(TRACKIO_DIR))} trackio show --project {shlex.quote(project)}"
        run.say(f"trackio: see the curves with: {show}")

    def send(self, values: dict[str, Any], step: int) -> None:
        self.step = step
        if step > self.last_step:  # wandb does the same: rows that a resumed run repeats are there already
            self.session.log({name: value for name, value in values.items() if name != "step"}, step=step)

    def summarise(self, values: dict[str, Any]) -> None:
        """trackio has no summary: the values are logged at the last step, under summary/."""
        self.session.log({f"summary/{name}": value for name, value in values.items()}, step=self.step)

    def finish(self, code: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if code:
                level = self.library.AlertLevel.WARN if code in STOPPED else self.library.AlertLevel.ERROR
                self.session.alert(f"the run ended with exit code {code}", level=level, step=self.step)
            self.session.finish()
