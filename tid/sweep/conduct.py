"""A sweep from its configurations to its end, whatever launches the cells."""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from tid.config import ConfigError, SweepConfig, build, doubts, instantiate
from tid.disk import refuse_unwritable
from tid.messages import train_command
from tid.sweep.grid import Composed
from tid.sweep.plan import Cell, freeze, make_cells, record, sweep_folder
from tid.sweep.screen import Screen

FAILED = 1  # exit code of a sweep with a failed cell
NOT_AGAIN = ("retry_failed=true", "dry_run=true")  # words that a command suggested leaves out

Launch = Callable[[list[Cell], Screen], int]


def conduct(
    composed: Composed, sweep: SweepConfig, launch: Launch, here: bool, remember: Callable[[list[Cell]], None]
) -> list[Cell]:
    """List the cells, check those to be run, run them by `launch`, and say what became of all.

    launch: runs cells, sets their `state`, and returns 0 or the number of the signal that stopped it. here: will they
    run on this machine? remember: called once all is known to be good.

    Raises ConfigError for a cell that cannot be run, or not in reasonable time, before any is. Leaves with SystemExit:
    FAILED after a failure, 128 + signal when stopped.
    """
    cells = make_cells(composed.configs, composed.settings, sweep.retry_failed)
    todo = [cell for cell in cells if cell.to_run]
    check_all(todo)
    slow = too_slow(todo) if here else None
    if slow and not sweep.dry_run:
        raise slow
    screen = Screen(cells)
    screen.listing(cpu_time(todo) if here and sweep.dry_run else None)
    for line in [*composed.remarks, *warnings(todo)]:
        screen.say(line)
    if sweep.dry_run:
        if slow:
            screen.say(f"it would be refused: {slow}")
        return cells
    remember(cells)
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


def check_all(cells: list[Cell]) -> None:
    """Build every component and hold them against each other; try the folders. Raises ConfigError, which names the
    cell."""
    if not cells:
        return
    for folder in {sweep_folder(cell.settings) for cell in cells}:
        refuse_unwritable(folder, "output_dir")
    from tid.job import refuse_nonsense  # and with it torch, for which a sweep that is done need not wait

    for cell in cells:
        try:
            refuse_nonsense(cell.settings, build(cell.config))
        except ConfigError as error:
            raise ConfigError(f"{error}\n  in the run {cell.label}") from None


def refuse(cells: list[Cell], here: bool) -> None:
    """`check_all` and `refuse_slow`."""
    check_all(cells)
    refuse_slow(cells, here)


def refuse_slow(cells: list[Cell], here: bool) -> None:
    """Raise the ConfigError of a cell that would be refused `here` since it would take too long."""
    if here and (slow := too_slow(cells)):
        raise slow


def warnings(cells: list[Cell]) -> list[str]:
    """What is doubtful about cells, each once: a run says it only in its own log."""
    return [f"warning: {doubt}" for doubt in dict.fromkeys(doubt for cell in cells for doubt in doubts(cell.config))]


def too_slow(cells: list[Cell]) -> ConfigError | None:
    """Why cells would be refused on this machine: the first that would. None when none would."""
    if not cells:
        return None
    from tid.device import choose_device, refuse_slow

    sizes = Counter(cell.size for cell in cells)
    for cell in {cell.size: cell for cell in cells}.values():
        model, device = instantiate(cell.config["model"], "model"), choose_device(cell.settings.device)
        try:
            refuse_slow(cell.settings, model, device, sys.argv[1:], runs=sizes[cell.size])
        except ConfigError as error:
            return error
    return None


def cpu_time(cells: list[Cell]) -> str | None:
    """How long the steps of cells take one after the other on this machine's CPU, as "12 days"; None if a GPU has
    them."""
    if not cells:
        return None
    from tid.device import choose_device, in_words, run_hours

    if any(choose_device(cell.settings.device).type == "cuda" for cell in cells):
        return None
    return in_words(sum(run_hours(cell.settings, instantiate(cell.config["model"], "model")) for cell in cells))


def command() -> str:
    """The command line of this sweep."""
    return train_command(*(word for word in sys.argv[1:] if word not in NOT_AGAIN))


def winner_command(settings: list[str], searched: Collection[str], name: str) -> str:
    """The command line of a sweep that runs a search's winner again: `settings` in place of what is `searched`."""
    replaced = {*searched, "seed", "name", "hydra/sweeper"}
    words = [word for word in sys.argv[1:] if word not in NOT_AGAIN and not word.startswith("hydra.sweeper.")]
    kept = [word for word in words if word.partition("=")[0] not in replaced]
    return train_command(*kept, "hydra/sweeper=cells", f"name={name}_winner", *settings)


def compare_command(folders: Iterable[Path]) -> str:
    return "compare: python -m tid.compare " + shlex.join(map(str, dict.fromkeys(folders)))
