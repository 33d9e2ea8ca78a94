"""A sweep from its configurations to its end, whatever launches the cells."""

import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tid.config import ConfigError, SweepConfig, build, instantiate
from tid.sweep.plan import Cell, freeze, make_cells, record, sweep_folder
from tid.sweep.screen import Screen

FAILED = 1  # exit code of a sweep with a failed cell

Launch = Callable[[list[Cell], Screen], int]


def conduct(
    configs: list[dict], meant: list[list[str]], sweep: SweepConfig, launch: Launch, here: bool, remember: Callable
) -> list[Cell]:
    """List the cells, check those to be run, run them by `launch`, and say what became of all.

    meant: each configuration's settings. launch: runs cells, sets their `state`, and returns 0 or the number of the
    signal that stopped it. here: will they run on this machine? remember: called once all is known to be good.

    Raises ConfigError for a cell that cannot be run, before any is. Leaves with SystemExit: FAILED after a failure,
    128 + signal when stopped.
    """
    cells = make_cells(configs, meant, sweep.retry_failed)
    todo = [cell for cell in cells if cell.to_run]
    check_all(todo, here)
    screen = Screen(cells)
    screen.listing()
    if sweep.dry_run:
        return cells
    remember()
    stopped = start(cells, sweep.question, launch, screen)
    screen.ending(command(), compare_command(sweep_folder(cell.settings) for cell in cells))
    if stopped:
        raise SystemExit(128 + stopped)
    if any(cell.state not in ("done", "pruned") for cell in cells):
        raise SystemExit(FAILED)
    return cells


def start(cells: list[Cell], question: str, launch: Launch, screen: Screen) -> int:
    """Freeze the cells that are to be run, and launch them; returns the number of the signal that stopped it, or 0."""
    todo = [cell for cell in cells if cell.to_run]
    if not todo:
        return 0
    record(cells, question, command())
    for cell in todo:
        freeze(cell)
    return launch(todo, screen)


def check_all(cells: list[Cell], here: bool) -> None:
    """Build every component and hold them against each other, and against this machine if they run `here`.

    Raises ConfigError, which names the cell.
    """
    if not cells:
        return
    from tid.device import choose_device, refuse_slow  # and with it torch, for which a sweep that is done need not wait
    from tid.job import refuse_nonsense

    for cell in cells:
        try:
            refuse_nonsense(cell.settings, build(cell.config))
        except ConfigError as error:
            raise ConfigError(f"{error}\n  in the run {cell.label}") from None
    for cell in {cell.size: cell for cell in cells}.values() if here else []:
        model = instantiate(cell.config["model"], "model")
        refuse_slow(cell.settings, model, choose_device(cell.settings.device), sys.argv[1:])


def command() -> str:
    """The command line of this sweep."""
    words = [word for word in sys.argv[1:] if word not in ("retry_failed=true", "dry_run=true")]
    return shlex.join(["python", "-m", "tid.train", *words])


def compare_command(folders: Iterable[Path]) -> str:
    return "compare: python -m tid.compare " + shlex.join(map(str, dict.fromkeys(folders)))
